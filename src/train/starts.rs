//! When and on what a run was started: `starts.jsonl`, one object for its beginning and one for each time that it was resumed.

use super::metrics::complete_lines;
use super::run_dir::RunDir;
use crate::device::Device;
use crate::device::machine::Machine;
use crate::error::{Error, Result};
use crate::files::atomic;
use serde::{Deserialize, Serialize};

/// A line of `starts.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// When, in UTC: `2026-11-29T22:30:07Z`.
    pub started: String,
    /// The step after which it went on; 0 at the beginning.
    pub step: u64,
    /// What it runs on.
    #[serde(flatten)]
    pub machine: Machine,
}

/// Now, in UTC to the second: `2026-11-29T22:30:07Z`.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Start {
    /// A start at this moment.
    pub fn now(device: &Device, step: u64) -> Start {
        Start { started: now(), step, machine: Machine::with(device) }
    }

    /// Adds it to the run's `starts.jsonl`. A line that a kill tore off goes.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn note(&self, run: &RunDir) -> Result<()> {
        let path = run.starts_path();
        let mut text = if path.exists() { complete_lines(&path)? } else { String::new() };
        let line = serde_json::to_string(self);
        text.push_str(&line.map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?);
        text.push('\n');
        atomic::write_file(&path, text.as_bytes())
    }
}

/// The starts of a run in their order; none where there is no file.
///
/// # Errors
/// [`Error::is_io`], [`Error::is_format`] with the line that is damaged.
pub fn read(run: &RunDir) -> Result<Vec<Start>> {
    let path = run.starts_path();
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = complete_lines(&path)?;
    let parsed = text.lines().enumerate().map(|(number, line)| {
        let place = || format!("{}:{}", path.display(), number + 1);
        serde_json::from_str(line).map_err(|e| Error::format(format!("{}: {e}", place())))
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_added_and_a_torn_line_goes() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), "").unwrap();
        assert!(read(&run).unwrap().is_empty());
        let first = Start::now(&Device::Cpu, 0);
        first.note(&run).unwrap();
        let whole = std::fs::read_to_string(run.starts_path()).unwrap();
        std::fs::write(run.starts_path(), format!("{whole}{{\"started\":")).unwrap();
        let second = Start::now(&Device::Cpu, 7);
        second.note(&run).unwrap();
        assert_eq!(read(&run).unwrap(), [first, second]);
        std::fs::write(run.starts_path(), format!("{whole}nonsense\n")).unwrap();
        let error = read(&run).unwrap_err();
        assert!(error.is_format() && error.to_string().contains("starts.jsonl:2"), "{error}");
        let when = now();
        assert!(when.len() == 20 && when.ends_with('Z') && when.as_bytes()[10] == b'T', "{when}");
    }
}
