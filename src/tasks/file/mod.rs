//! Problems from a file: lines of JSON, a JSON array, CSV or Parquet, with a prompt and an answer per record.
//!
//! The whole file is read and checked before training starts, so that line 40000 cannot end a run after an hour. `format`
//! tells the format and gives `records`, rows of named values in which a number keeps its text. `columns` says which column is
//! what, `conversion` makes a problem of a record, `problems` is the task, and a [`fingerprint()`] tells whether a file is still
//! the one that a run began with.

mod columns;
mod conversation;
mod conversion;
mod csv;
mod fingerprint;
mod format;
mod json_array;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(feature = "parquet")]
mod parquet_limits;
mod problems;
mod records;
mod settings;
#[cfg(feature = "parquet")]
mod thrift;

pub use columns::GUESS;
pub use conversion::part;
pub use fingerprint::fingerprint;
pub use format::records;
pub use problems::{FileProblems, Opened, bytes, left_out};
pub use records::{BadRecord, Record, Records, Source, Unit, value_at};
pub use settings::{FileFormat, FileSettings, HeldOutFile};
