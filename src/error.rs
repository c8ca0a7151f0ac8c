//! The one error type of the library.
//!
//! [`Error`] is opaque: a private kind and a short message that carries the operation, the shapes and the dtypes.
//! Ask it what it is with the predicates ([`Error::is_shape`], …). Nothing here formats for a terminal; the program
//! does that.

use std::fmt;

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one or two lines: what, where, what to do.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    source: Option<std::io::Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Shape,
    Dtype,
    Index,
    Invalid,
    Unsupported,
    Format,
    Io,
    Numeric,
    State,
    Interrupted,
}

macro_rules! kinds {
    ($($make:ident, $is:ident, $kind:ident, $doc:literal;)*) => {$(
        #[doc = concat!("Makes an error: ", $doc, ".")]
        pub fn $make(message: impl Into<String>) -> Error {
            Error(Box::new(Inner { kind: Kind::$kind, message: message.into(), source: None }))
        }
        #[doc = concat!("True for ", $doc, ".")]
        pub fn $is(&self) -> bool {
            self.0.kind == Kind::$kind
        }
    )*};
}

impl Error {
    kinds! {
        shape, is_shape, Shape, "a length or shape that does not fit";
        dtype, is_dtype, Dtype, "an element type that the operation does not take";
        index, is_index, Index, "an index, id or offset out of range";
        invalid, is_invalid, Invalid, "an argument, option or config value that is not allowed";
        unsupported, is_unsupported, Unsupported, "something well formed that this library does not do";
        format, is_format, Format, "a file whose content cannot be read as what it should be";
        numeric, is_numeric, Numeric, "a NaN or infinity where training cannot go on";
        state, is_state, State, "a call out of order, such as a second backward through a freed graph";
        interrupted, is_interrupted, Interrupted, "a run that was asked to stop";
    }

    /// Makes an error from the operating system's, naming what was being done (`"reading config.json"`).
    pub fn io(doing: impl fmt::Display, source: std::io::Error) -> Error {
        let message = format!("{doing}: {source}");
        Error(Box::new(Inner { kind: Kind::Io, message, source: Some(source) }))
    }

    /// True for an error of the operating system (a missing file, a full disk).
    pub fn is_io(&self) -> bool {
        self.0.kind == Kind::Io
    }

    /// The same error with `place: ` before its message, for callers that know the file or the step.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Error {
        self.0.message = format!("{place}: {}", self.0.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_and_message_survive() {
        let error = Error::shape("matmul: [2, 3] x [4, 5]").at("layer 7");
        assert!(error.is_shape() && !error.is_io());
        assert_eq!(error.to_string(), "layer 7: matmul: [2, 3] x [4, 5]");
    }

    #[test]
    fn io_keeps_its_source() {
        let error = Error::io("reading x", std::io::Error::from(std::io::ErrorKind::NotFound));
        assert!(error.is_io());
        assert!(std::error::Error::source(&error).is_some());
    }
}
