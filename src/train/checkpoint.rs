//! Checkpoints of a run: `checkpoints/step-NNNNNN/`, whole or absent.
//!
//! What is in one is the trainer's business (weights, optimizer, tokenizer); this module asks only for `state.json`
//! with the positions of every random stream and of the data, and makes the folder appear atomically.

use crate::error::{Error, Result};
use crate::files::atomic;
use crate::files::safetensors::SafetensorsFile;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::{Path, PathBuf};

/// The file that every checkpoint has: step, positions of random streams, data cursor.
pub const STATE: &str = "state.json";

/// The checkpoints folder of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    protected: Option<u64>,
}

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last step that is in it.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

impl Checkpoints {
    /// The checkpoints in a folder. `keep`: how many of the newest stay when one is added; 0: all.
    pub fn new(folder: &Path, keep: usize) -> Checkpoints {
        Checkpoints { folder: folder.to_path_buf(), keep, protected: None }
    }

    /// Keeps the checkpoint of this step, however old it grows, beside the newest.
    pub fn protect(&mut self, step: u64) {
        self.protected = Some(step);
    }

    /// Makes the checkpoint of a step: `write` puts weights, optimizer and whatever else into the folder it is given,
    /// `state` becomes `state.json`. Every file is synced before the checkpoint gets its name.
    ///
    /// # Errors
    /// What `write` returns, or [`Error::is_io`] (a full disk). All earlier checkpoints are then as they were.
    pub fn save<S: Serialize>(
        &self,
        step: u64,
        state: &S,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Checkpoint> {
        let io = |e| Error::io(format!("making {}", self.folder.display()), e);
        fs::create_dir_all(&self.folder).map_err(io)?;
        atomic::remove_leftovers(&self.folder);
        let path = self.folder.join(format!("step-{step:06}"));
        let state = serde_json::to_vec_pretty(state)
            .map_err(|e| Error::invalid(format!("the state of a checkpoint is not JSON: {e}")))?;
        atomic::write_folder(&path, |draft| {
            write(draft)?;
            atomic::write_file(&draft.join(STATE), &state)
        })
        .map_err(|e| e.at(format!("checkpoint of step {step} (earlier ones are untouched)")))?;
        self.prune()?;
        Ok(Checkpoint { step, path })
    }

    fn prune(&self) -> Result<()> {
        let mut all = self.list()?;
        all.retain(|one| Some(one.step) != self.protected);
        let surplus = if self.keep == 0 { 0 } else { all.len().saturating_sub(self.keep) };
        for old in all.iter().take(surplus) {
            fs::remove_dir_all(&old.path)
                .map_err(|e| Error::io(format!("removing {}", old.path.display()), e))?;
        }
        Ok(())
    }

    /// Every checkpoint folder, oldest first, complete or not.
    ///
    /// # Errors
    /// [`Error::is_io`] when the folder is there and cannot be read.
    pub fn list(&self) -> Result<Vec<Checkpoint>> {
        let io = |e| Error::io(format!("reading {}", self.folder.display()), e);
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let digits = name.as_deref().and_then(|name| name.strip_prefix("step-"));
            if let Some(step) = digits.and_then(|digits| digits.parse().ok()) {
                found.push(Checkpoint { step, path });
            }
        }
        found.sort_by_key(|checkpoint| checkpoint.step);
        Ok(found)
    }

    /// The newest checkpoint whose files are all readable, and what is wrong with newer ones.
    ///
    /// # Errors
    /// [`Error::is_io`] when the folder is there and cannot be read.
    pub fn latest(&self) -> Result<(Option<Checkpoint>, Vec<Error>)> {
        let mut damaged = Vec::new();
        for checkpoint in self.list()?.into_iter().rev() {
            match checkpoint.check() {
                Ok(()) => return Ok((Some(checkpoint), damaged)),
                Err(error) => damaged.push(error),
            }
        }
        Ok((None, damaged))
    }
}

impl Checkpoint {
    /// Reads `state.json`.
    ///
    /// # Errors
    /// [`Error::is_io`], or [`Error::is_format`] when it is not the state that was asked for.
    pub fn state<S: DeserializeOwned>(&self) -> Result<S> {
        let path = self.path.join(STATE);
        let bytes =
            fs::read(&path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::format(format!("{}: {e}", path.display())))
    }

    /// Checks that `state.json` parses and that every safetensors file is as long as its header says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<()> {
        self.state::<serde_json::Value>()?;
        let io = |e| Error::io(format!("reading {}", self.path.display()), e);
        for entry in fs::read_dir(&self.path).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                SafetensorsFile::open(&path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::files::safetensors::{TensorBytes, write};
    use serde_json::json;

    fn put(draft: &Path, value: u8) -> Result<()> {
        let bytes = [value; 4096];
        let tensor = TensorBytes { name: "w", dtype: DType::U8, shape: &[4096], bytes: &bytes };
        write(&draft.join("model.safetensors"), &[tensor], &[])
    }

    fn weights(checkpoint: &Checkpoint) -> u8 {
        let file = SafetensorsFile::open(&checkpoint.path.join("model.safetensors")).unwrap();
        file.read("w").unwrap().2[4095]
    }

    fn steps(checkpoints: &Checkpoints) -> Vec<u64> {
        checkpoints.list().unwrap().iter().map(|c| c.step).collect()
    }

    fn latest(checkpoints: &Checkpoints) -> Checkpoint {
        checkpoints.latest().unwrap().0.unwrap()
    }

    #[test]
    fn saved_found_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(&folder.path().join("checkpoints"), 2);
        assert_eq!(checkpoints.latest().unwrap().0, None);
        for step in [5u64, 10, 15] {
            let saved =
                checkpoints.save(step, &json!({"step": step}), |d| put(d, step as u8)).unwrap();
            assert!(saved.path.ends_with(format!("checkpoints/step-{step:06}")));
        }
        assert_eq!(steps(&checkpoints), [10, 15]);
        assert_eq!(weights(&latest(&checkpoints)), 15);
        assert_eq!(latest(&checkpoints).state::<serde_json::Value>().unwrap()["step"], 15);
        // The same step again replaces it.
        checkpoints.save(15, &json!({}), |d| put(d, 16)).unwrap();
        assert_eq!((steps(&checkpoints), weights(&latest(&checkpoints))), (vec![10, 15], 16));
    }

    #[test]
    fn leftovers_and_damaged_ones_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), 0);
        for step in [1, 2, 3, 4] {
            checkpoints.save(step, &json!({}), |d| put(d, step as u8)).unwrap();
        }
        fs::create_dir(folder.path().join(".tmp-77-step-000009")).unwrap();
        fs::create_dir(folder.path().join("step-junk")).unwrap();
        fs::write(folder.path().join("step-000004/state.json"), "{").unwrap();
        let model = folder.path().join("step-000003/model.safetensors");
        let bytes = fs::read(&model).unwrap();
        fs::write(&model, &bytes[..bytes.len() - 1]).unwrap();
        let (found, damaged) = checkpoints.latest().unwrap();
        assert_eq!(found.unwrap().step, 2);
        assert_eq!(damaged.len(), 2);
        assert!(
            damaged[0].to_string().contains("step-000004") && damaged[1].is_format(),
            "{damaged:?}"
        );
        checkpoints.save(3, &json!({}), |d| put(d, 33)).unwrap();
        assert!(!folder.path().join(".tmp-77-step-000009").exists());
        assert_eq!(weights(&latest(&checkpoints)), 33);
    }

    #[test]
    fn a_failed_one_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), 1);
        checkpoints.save(1, &json!({}), |d| put(d, 1)).unwrap();
        let error = checkpoints.save(2, &json!({}), |draft| {
            put(draft, 2)?;
            Err(Error::numeric("stop"))
        });
        assert!(error.unwrap_err().is_numeric());
        assert_eq!((steps(&checkpoints), weights(&latest(&checkpoints))), (vec![1], 1));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// The device that is always full gives the operating system's own error in the middle of a checkpoint.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), 1);
        checkpoints.save(1, &json!({}), |d| put(d, 1)).unwrap();
        let error = checkpoints.save(2, &json!({}), |draft| {
            fs::write(draft.join("config.json"), "{}").unwrap();
            std::os::unix::fs::symlink("/dev/full", draft.join("model.safetensors")).unwrap();
            put(draft, 2)
        });
        let error = error.unwrap_err();
        assert!(error.is_io() && error.to_string().contains("No space left"), "{error}");
        assert_eq!((steps(&checkpoints), weights(&latest(&checkpoints))), (vec![1], 1));
    }

    /// A real file system of 64 KiB; needs the right to mount, and says so where it is missing.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_file_system_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let run = |command: &mut std::process::Command| {
            command.status().is_ok_and(|status| status.success())
        };
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(folder.path())
            .stderr(std::process::Stdio::null());
        if !run(&mut mount) {
            eprintln!("SKIPPED: mounting a small tmpfs is not allowed here");
            return;
        }
        let checkpoints = Checkpoints::new(folder.path(), 0);
        let mut failed = None;
        for step in 1..30 {
            if let Err(error) = checkpoints.save(step, &json!({}), |d| put(d, step as u8)) {
                failed = Some((step, error));
                break;
            }
        }
        let last = checkpoints.latest().unwrap().0.unwrap();
        let value = weights(&last);
        run(std::process::Command::new("umount").arg(folder.path()));
        let (step, error) = failed.unwrap();
        assert!(error.is_io(), "{error}");
        assert_eq!((last.step, value), (step - 1, (step - 1) as u8));
    }
}
