//! An earlier report beside which a new one is laid, row by row.

use super::Row;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// What is read of an earlier report.
#[derive(Clone, Debug, Deserialize)]
pub struct Baseline {
    /// The device in words.
    pub device: String,
    /// The CPU's model.
    pub cpu: String,
    /// Threads of the CPU.
    pub threads: usize,
    /// The version that it was measured with.
    pub gradstone: String,
    /// Its commit.
    #[serde(default)]
    pub commit: Option<String>,
    /// When.
    pub measured: String,
    rows: Vec<Earlier>,
}

#[derive(Clone, Debug, Deserialize)]
struct Earlier {
    kernel: String,
    part: String,
    shape: Vec<usize>,
    dtype: String,
    cold_ms: f64,
    cold_quartiles_ms: [f64; 2],
}

/// A row beside its earlier one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Earlier time over the new one, cold medians: above 1 the kernel has become faster.
    pub faster: f64,
    /// The middle halves of both measurements do not touch.
    pub clear: bool,
}

impl Baseline {
    /// Reads what `gradstone bench --json` wrote.
    ///
    /// # Errors
    /// [`Error::is_io`], [`Error::is_format`] when it is no such file.
    pub fn read(path: &Path) -> Result<Baseline> {
        let place = path.display();
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|e| Error::io(format!("reading {place}"), e))?;
        let read = serde_json::from_str(&text);
        read.map_err(|e| {
            Error::format(format!("{place} is no report of gradstone bench --json: {e}"))
        })
    }

    /// How a row compares with that of the same kernel, part, shape and type; `None` where there was none.
    pub fn ratio(&self, row: &Row) -> Option<Ratio> {
        let same = |earlier: &&Earlier| {
            earlier.kernel == row.kernel
                && earlier.part == row.part
                && earlier.shape == row.shape
                && earlier.dtype == row.dtype
        };
        let earlier = self.rows.iter().find(same)?;
        let ([low, high], [old_low, old_high]) = (row.cold_quartiles_ms, earlier.cold_quartiles_ms);
        Some(Ratio {
            faster: earlier.cold_ms / row.cold_ms,
            clear: high < old_low || old_high < low,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_and_compared() {
        let text = r#"{"device": "cpu", "cpu": "C", "threads": 2, "gradstone": "0.1.0", "measured": "2026-11-29T22:30:07Z",
            "more": 1, "rows": [{"kernel": "rope", "part": "forward", "shape": [2, 3], "dtype": "f32", "cold_ms": 3.0,
            "cold_quartiles_ms": [2.5, 3.5]}]}"#;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("earlier.json");
        std::fs::write(&path, text).unwrap();
        let baseline = Baseline::read(&path).unwrap();
        let mut row = Row {
            kernel: "rope",
            part: "forward",
            shape: vec![2, 3],
            dtype: "f32",
            cold_ms: 2.0,
            cold_quartiles_ms: [1.9, 2.4],
            warm_ms: 1.0,
            warm_quartiles_ms: [1.0, 1.0],
            rounds: 3,
            bytes: 1.0,
            flops: 0.0,
            rate: 1.0,
            percent_of_bound: None,
            error: 0.0,
            correct: true,
        };
        assert_eq!(baseline.ratio(&row), Some(Ratio { faster: 1.5, clear: true }));
        row.cold_quartiles_ms = [1.9, 2.6];
        assert_eq!(baseline.ratio(&row).map(|ratio| ratio.clear), Some(false));
        row.shape = vec![3, 2];
        assert_eq!(baseline.ratio(&row), None);
        std::fs::write(&path, "{}").unwrap();
        assert!(Baseline::read(&path).unwrap_err().is_format());
        assert!(Baseline::read(&folder.path().join("none")).unwrap_err().is_io());
    }
}
