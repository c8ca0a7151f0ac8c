//! The directory of a run: `config.toml`, `metrics.jsonl`, `rollouts.jsonl`, `starts.jsonl`, `checkpoints/`, `report.html`.
//!
//! One process trains in it at a time (a lock that dies with the process), and never over another run.

use crate::error::{Error, Result};
use crate::files::atomic;
use crate::train::checkpoint::Checkpoints;
use crate::train::metrics::{self, JsonlWriter, Record, complete_lines};
use serde::Deserialize;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// A run directory. While the value that [`RunDir::create`] or [`RunDir::resume`] gave lives, no other process can
/// train in it.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    _lock: Option<File>,
}

impl RunDir {
    /// Makes the directory of a new run and writes its `config.toml`.
    ///
    /// # Errors
    /// [`Error::is_state`] when it holds a run already or another process trains in it, [`Error::is_io`].
    pub fn create(root: &Path, config: &str) -> Result<RunDir> {
        RunDir::vacant(root)?;
        let place = root.display();
        fs::create_dir_all(root.join("checkpoints"))
            .map_err(|e| Error::io(format!("making the run directory {place}"), e))?;
        let lock = lock(root)?;
        RunDir::vacant(root)?;
        let run = RunDir { root: root.to_path_buf(), _lock: Some(lock) };
        atomic::write_file(&run.config_path(), config.as_bytes())?;
        Ok(run)
    }

    /// Checks that a new run may be made here, before anything costly is done for it.
    ///
    /// # Errors
    /// [`Error::is_state`] when there is a run already.
    pub fn vacant(root: &Path) -> Result<()> {
        if !holds_a_run(root) {
            return Ok(());
        }
        let place = root.display();
        Err(Error::state(format!(
            "{place} holds a run already\ncontinue it with --resume, or give another directory with --out"
        )))
    }

    /// Opens the directory of a run to go on with it.
    ///
    /// # Errors
    /// [`Error::is_state`] when it holds no run or another process trains in it.
    pub fn resume(root: &Path) -> Result<RunDir> {
        let mut run = RunDir::open(root)?;
        run._lock = Some(lock(root)?);
        Ok(run)
    }

    /// Opens the directory of a run to read it: a report, `generate`. Another process may be training in it.
    ///
    /// # Errors
    /// [`Error::is_state`] when it holds no run.
    pub fn open(root: &Path) -> Result<RunDir> {
        if !holds_a_run(root) {
            let place = root.display();
            return Err(Error::state(format!("{place} holds no run (no config.toml in it)")));
        }
        Ok(RunDir { root: root.to_path_buf(), _lock: None })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config.toml`: every setting of the run, defaults included.
    pub fn config_path(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The text of `config.toml`.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn config(&self) -> Result<String> {
        let path = self.config_path();
        fs::read_to_string(&path).map_err(|e| Error::io(format!("reading {}", path.display()), e))
    }

    /// Replaces `config.toml`: a run that goes on with other settings.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn replace_config(&self, config: &str) -> Result<()> {
        atomic::write_file(&self.config_path(), config.as_bytes())
    }

    /// `metrics.jsonl`
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// `rollouts.jsonl`
    pub fn rollouts_path(&self) -> PathBuf {
        self.root.join("rollouts.jsonl")
    }

    /// `starts.jsonl`
    pub fn starts_path(&self) -> PathBuf {
        self.root.join("starts.jsonl")
    }

    /// `report.html`
    pub fn report_path(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// The checkpoints; `keep` of the newest stay, 0 keeps all.
    pub fn checkpoints(&self, keep: usize) -> Checkpoints {
        Checkpoints::new(&self.root.join("checkpoints"), keep)
    }

    /// Cuts both logs back to the lines of steps up to `step`, so that a loop which goes on after the checkpoint of
    /// that step writes every later line once. Without any checkpoint: `rewind(0)`, and from the beginning.
    ///
    /// A last line that a kill tore off goes too. Each log is replaced atomically.
    ///
    /// # Errors
    /// [`Error::is_format`] with file and line number when a log is damaged, or when it ends before `step`: the run
    /// could go on but its record would have a hole.
    pub fn rewind(&self, step: u64) -> Result<()> {
        let last = rewind_log(&self.metrics_path(), step)?;
        if last.unwrap_or(0) < step {
            let (path, last) = (self.metrics_path(), last.unwrap_or(0));
            return Err(Error::format(format!(
                "{} ends at step {last} but the checkpoint is of step {step}: its lines are lost",
                path.display()
            )));
        }
        rewind_log(&self.rollouts_path(), step)?;
        Ok(())
    }

    /// The lines of `metrics.jsonl`; none where there is no file yet.
    ///
    /// # Errors
    /// As [`metrics::read`].
    pub fn metrics(&self) -> Result<Vec<Record>> {
        let path = self.metrics_path();
        if path.exists() { metrics::read(&path) } else { Ok(Vec::new()) }
    }

    /// Both logs, opened for appending.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn logs(&self) -> Result<Logs> {
        Ok(Logs {
            metrics: JsonlWriter::append_to(&self.metrics_path())?,
            rollouts: JsonlWriter::append_to(&self.rollouts_path())?,
        })
    }
}

/// The two logs of a run.
#[derive(Debug)]
pub struct Logs {
    /// `metrics.jsonl`: one [`StepMetrics`](crate::train::StepMetrics) a step.
    pub metrics: JsonlWriter,
    /// `rollouts.jsonl`: some [`Rollout`](crate::train::Rollout)s of a step.
    pub rollouts: JsonlWriter,
}

impl Logs {
    /// Makes both durable; before every checkpoint.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync()?;
        self.rollouts.sync()
    }
}

fn holds_a_run(root: &Path) -> bool {
    root.join("config.toml").exists() || root.join("metrics.jsonl").exists()
}

fn lock(root: &Path) -> Result<File> {
    let path = root.join(".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let place = root.display();
            Err(Error::state(format!("another process is training in {place}")))
        }
        // A file system without locks: nothing to hold.
        Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Keeps the lines of steps up to `step`; the last step kept.
fn rewind_log(path: &Path, step: u64) -> Result<Option<u64>> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    if !path.exists() {
        return Ok(None);
    }
    let text = complete_lines(path)?;
    let (mut kept, mut last) = (String::with_capacity(text.len()), None);
    for (number, line) in text.lines().enumerate() {
        let Line { step: at } = serde_json::from_str(line)
            .map_err(|e| Error::format(format!("{}:{}: {e}", path.display(), number + 1)))?;
        if at <= step {
            kept.push_str(line);
            kept.push('\n');
            last = last.max(Some(at));
        }
    }
    atomic::write_file(path, kept.as_bytes())?;
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::{Phase, StepMetrics};

    #[test]
    fn a_run_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/b");
        assert!(RunDir::open(&root).unwrap_err().is_state());
        assert!(RunDir::resume(&root).unwrap_err().is_state());
        let run = RunDir::create(&root, "seed = 1\n").unwrap();
        assert_eq!(run.config().unwrap(), "seed = 1\n");
        let error = RunDir::resume(&root).unwrap_err();
        assert!(error.is_state() && error.to_string().contains("another process"), "{error}");
        assert!(RunDir::open(&root).is_ok());
        drop(run);
        let error = RunDir::create(&root, "").unwrap_err();
        assert!(error.is_state() && error.to_string().contains("--resume"), "{error}");
        assert!(RunDir::resume(&root).is_ok());
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(RunDir::create(&folder.path().join("file"), "").unwrap_err().is_io());
    }

    #[test]
    fn rewinding_leaves_the_same_bytes_as_never_having_gone_on() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), "").unwrap();
        let mut logs = run.logs().unwrap();
        let mut at_seven = Vec::new();
        for step in 0..=9u64 {
            logs.metrics.write(&StepMetrics::new(step, Phase::Rl)).unwrap();
            logs.sync().unwrap();
            if step == 7 {
                at_seven = fs::read(run.metrics_path()).unwrap();
            }
        }
        fs::write(run.rollouts_path(), "{\"step\":7,\"x\":1}\n{\"step\":7}\n{\"step\":8}\n{\"ste")
            .unwrap();
        run.rewind(7).unwrap();
        assert_eq!(fs::read(run.metrics_path()).unwrap(), at_seven);
        assert_eq!(
            fs::read_to_string(run.rollouts_path()).unwrap(),
            "{\"step\":7,\"x\":1}\n{\"step\":7}\n"
        );
        let error = run.rewind(8).unwrap_err();
        assert!(error.is_format() && error.to_string().contains("ends at step 7"), "{error}");
        run.rewind(0).unwrap();
        fs::write(run.metrics_path(), "{\"step\":0}\nnonsense\n{\"step\":1}\n").unwrap();
        let error = run.rewind(1).unwrap_err();
        assert!(error.to_string().contains("metrics.jsonl:2"), "{error}");
    }
}
