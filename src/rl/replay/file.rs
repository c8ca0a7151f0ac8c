//! The pool on disk: lines of JSON between a header and a checksum, replaced whole or not at all.

use super::{Entry, Pool, PoolLimits};
use crate::error::{Error, Result};
use crate::files::atomic;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FORMAT: &str = "gradstone replay pool 1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    limits: PoolLimits,
    questions: usize,
    retired: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    question: u64,
    #[serde(flatten)]
    entry: Entry,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Footer {
    checksum: String,
}

/// A pool that survives a restart.
///
/// A file that cannot be read as a pool is an error at [`PoolFile::open`], and is left as it is: only a pool that was
/// read from the file, or that began where there was none, is ever written to it.
#[derive(Debug)]
pub struct PoolFile {
    path: PathBuf,
    /// The pool.
    pub pool: Pool,
}

impl PoolFile {
    /// Reads the pool of a file; a new one with `limits` where there is no file.
    ///
    /// # Errors
    /// [`Error::is_format`] saying what is wrong with the file and in which line, [`Error::is_invalid`] when it was made
    /// with other limits, [`Error::is_io`].
    pub fn open(path: &Path, limits: PoolLimits) -> Result<PoolFile> {
        let path = path.to_path_buf();
        if !path.exists() {
            return Ok(PoolFile { path, pool: Pool::new(limits)? });
        }
        let bytes = std::fs::read(&path)
            .map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
        let pool = parse(&bytes).map_err(|error| error.at(path.display()))?;
        if pool.limits != limits {
            return Err(Error::invalid(format!(
                "{}: made with {:?}, not {limits:?}",
                path.display(),
                pool.limits
            )));
        }
        Ok(PoolFile { path, pool })
    }

    /// Writes the pool: the old file stays until the new one is complete.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn save(&self) -> Result<()> {
        atomic::write_file(&self.path, text(&self.pool)?.as_bytes())
    }
}

fn text(pool: &Pool) -> Result<String> {
    let header = Header {
        format: FORMAT.to_owned(),
        limits: pool.limits,
        questions: pool.entries.len(),
        retired: pool.retired.iter().copied().collect(),
    };
    let mut out = line(&header)?;
    for (question, entry) in &pool.entries {
        out += &line(&Line { question: *question, entry: entry.clone() })?;
    }
    let checksum = checksum(out.as_bytes());
    Ok(out + &line(&Footer { checksum })?)
}

fn line(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(value);
    text.map(|text| text + "\n").map_err(|e| Error::state(format!("replay pool as JSON: {e}")))
}

fn parse(bytes: &[u8]) -> Result<Pool> {
    let text = std::str::from_utf8(bytes).map_err(|e| Error::format(format!("no text: {e}")))?;
    let lines: Vec<&str> = text.lines().collect();
    fn read<'a, T: Deserialize<'a>>(lines: &[&'a str], at: usize, what: &str) -> Result<T> {
        let line =
            lines.get(at).ok_or_else(|| Error::format(format!("no {what}: it is cut off")))?;
        serde_json::from_str(line)
            .map_err(|e| Error::format(format!("line {}: no {what}: {e}", at + 1)))
    }
    let header: Header = read(&lines, 0, "header of a replay pool")?;
    if header.format != FORMAT {
        return Err(Error::format(format!("line 1: format `{}`, not `{FORMAT}`", header.format)));
    }
    let last = header.questions.saturating_add(1);
    let footer: Footer = read(&lines, last, "checksum")?;
    if lines.len() != last + 1 {
        return Err(Error::format(format!("{} lines after the checksum", lines.len() - last - 1)));
    }
    let body = text.trim_end_matches('\n').rfind('\n').map_or(0, |end| end + 1);
    let found = checksum(&bytes[..body]);
    if found != footer.checksum {
        return Err(Error::format(format!(
            "damaged: its content has checksum {found}, it says {}",
            footer.checksum
        )));
    }
    let mut pool = Pool::new(header.limits).map_err(|e| Error::format(format!("line 1: {e}")))?;
    pool.retired = header.retired.into_iter().collect();
    for at in 1..last {
        let Line { question, entry } = read(&lines, at, "question")?;
        let bad = |what: String| Error::format(format!("line {}: {what}", at + 1));
        entry
            .trajectories
            .iter()
            .try_for_each(|one| one.check())
            .map_err(|e| bad(e.to_string()))?;
        if entry.trajectories.is_empty() || !(1..=header.limits.group).contains(&entry.successes) {
            return Err(bad(format!(
                "{} trajectories, {} successes of {}",
                entry.trajectories.len(),
                entry.successes,
                header.limits.group
            )));
        }
        if pool.entries.insert(question, entry).is_some() || pool.retired.contains(&question) {
            return Err(bad(format!("question {question} a second time")));
        }
    }
    Ok(pool)
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::super::Trajectory;
    use super::*;

    fn filled(path: &Path) -> PoolFile {
        let mut file = PoolFile::open(path, PoolLimits::default()).unwrap();
        for question in 0..5u64 {
            let logprob = vec![-0.1 / (question + 1) as f32, -1e-7];
            let one = Trajectory { tokens: vec![question as i32, 2], logprob, step: question };
            file.pool.record(question, 1 + question as usize, 8, vec![one]).unwrap();
        }
        file.pool.record(9, 8, 8, vec![]).unwrap();
        file.save().unwrap();
        file
    }

    #[test]
    fn a_pool_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.jsonl");
        let file = filled(&path);
        let again = PoolFile::open(&path, PoolLimits::default()).unwrap();
        assert_eq!(again.pool, file.pool);
        assert!(again.pool.is_retired(9));
        let other = PoolLimits { group: 4, ..PoolLimits::default() };
        assert!(PoolFile::open(&path, other).unwrap_err().is_invalid());
    }

    #[test]
    fn any_damage_is_refused_and_the_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.jsonl");
        filled(&path);
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = PoolFile::open(&path, PoolLimits::default()).unwrap_err();
            assert!(error.is_format() && error.to_string().contains("pool.jsonl"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        };
        // Cut off anywhere but before the last line's end.
        for length in (0..whole.len() - 1).step_by(7) {
            refused(&whole[..length]);
        }
        // One character changed, anywhere.
        for at in (0..whole.len() - 1).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
            refused(&bytes);
        }
        refused(&[whole.clone(), b"{}\n".to_vec()].concat());
        refused(b"\xff\xfe");
    }
}
