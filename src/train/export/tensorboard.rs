//! Event files of TensorBoard: one scalar per measured number and step.
//!
//! An event file is a sequence of records, each a length, a protocol buffer `tensorflow.Event`, and masked checksums of both
//! (CRC-32C). Only the fields that scalars need are written. Source: `tensorflow/core/util/event.proto`,
//! `tensorflow/core/framework/summary.proto` and `tensorflow/core/lib/io/record_writer.cc`.

use crate::error::{Error, Result};
use crate::train::metrics::{Record, StepMetrics};
use prost::Message;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.SessionStatus.START`: what an earlier file says of this step and later ones no longer counts.
const START: i32 = 1;

/// One event file that grows with a run.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `folder` for a run that goes on after step `done`.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn create(folder: &Path, done: u64) -> Result<EventFile> {
        let io = |what: &str, path: &Path, e| Error::io(format!("{what} {}", path.display()), e);
        std::fs::create_dir_all(folder).map_err(|e| io("making", folder, e))?;
        // Names sort by time; a process number keeps two runs that begin in one second apart.
        let seconds = wall_time() as u64;
        let name = format!("events.out.tfevents.{seconds:010}.gradstone.{}", std::process::id());
        let (mut path, mut next) = (folder.join(&name), 1);
        while path.exists() {
            path = folder.join(format!("{name}.{next}"));
            next += 1;
        }
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.map_err(|e| io("making", &path, e))?;
        let mut events = EventFile { path, file };
        let version = Some("brain.Event:2".to_owned());
        events.write(Event {
            wall_time: wall_time(),
            file_version: version,
            ..Event::default()
        })?;
        if done > 0 {
            let session_log = Some(SessionLog { status: START });
            let step = i64::try_from(done + 1).unwrap_or(i64::MAX);
            events.write(Event {
                wall_time: wall_time(),
                step,
                session_log,
                ..Event::default()
            })?;
        }
        Ok(events)
    }

    /// Adds the numbers of a step, named after its phase: `rl/reward`.
    ///
    /// # Errors
    /// [`Error::is_io`] when the disk does not take it, [`Error::is_invalid`] when they are no JSON.
    pub fn add(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.add_record(&Record::of(metrics)?)
    }

    /// The same of a line of `metrics.jsonl`.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn add_record(&mut self, record: &Record) -> Result<()> {
        let scalar = |(name, value): (&String, &f64)| Scalar {
            tag: format!("{}/{name}", record.phase),
            simple_value: *value as f32,
        };
        self.write(Event {
            wall_time: wall_time(),
            step: i64::try_from(record.step).unwrap_or(i64::MAX),
            summary: Some(Summary { value: record.values.iter().map(scalar).collect() }),
            ..Event::default()
        })
    }

    fn write(&mut self, event: Event) -> Result<()> {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked(&length).to_le_bytes());
        record.extend_from_slice(&data);
        record.extend_from_slice(&masked(&data).to_le_bytes());
        let path = &self.path;
        let written = self.file.write_all(&record);
        written.map_err(|e| Error::io(format!("writing {}", path.display()), e))
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The checksum of a record, turned and shifted so that a checksum of data that holds checksums is still one.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Phase;

    /// Records as TensorBoard reads them.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]).to_le_bytes());
            let data = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked(data).to_le_bytes());
            events.push(Event::decode(data).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn what_is_written_is_what_tensorboard_reads() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path(), 3).unwrap();
        let mut metrics = StepMetrics::new(4, Phase::Rl);
        metrics.reward = Some(0.25);
        metrics.more.insert("ratio_max".to_owned(), 1.5);
        file.add(&metrics).unwrap();
        let events = read(&file.path);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!((events[1].step, events[1].session_log.as_ref().unwrap().status), (4, 1));
        let values = &events[2].summary.as_ref().unwrap().value;
        let named = |name: &str| values.iter().find(|one| one.tag == name).unwrap().simple_value;
        assert_eq!((events[2].step, named("rl/reward"), named("rl/ratio_max")), (4, 0.25, 1.5));
        assert!(EventFile::create(folder.path(), 0).is_ok());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    /// The known check value of CRC-32C.
    #[test]
    fn checksums() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
