//! Standard output and standard error.

use crate::error::{Error, Result};
use std::io::{ErrorKind, Write};

/// Writes text to standard output and flushes it.
///
/// # Errors
/// [`Error::is_io`]; see [`is_closed_pipe`].
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Error::io("writing to standard output", e))
}

/// True when the reader of our output went away (`gradstone … | head`).
pub(super) fn is_closed_pipe(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    source.is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

/// Writes `error: ` and a message of one or two lines to standard error.
pub(super) fn complain(message: &str) {
    let indented = message.trim_end().replace('\n', "\n       ");
    note(&format!("error: {indented}"));
}

/// Writes a line to standard error; there is nobody to tell when that fails.
pub(super) fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
