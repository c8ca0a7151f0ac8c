//! The formats of files: which one a file has, and its records.

use super::records::{Records, Source, Unit, line_at};
use super::{csv, json_array, jsonl};
use crate::error::{Error, Result};
use std::fmt;
use std::path::Path;

/// The formats of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    JsonLines,
    JsonArray,
    Csv { delimiter: u8 },
    Parquet,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::JsonLines => "lines of JSON",
            Format::JsonArray => "a JSON array",
            Format::Csv { delimiter: b'\t' } => "TSV",
            Format::Csv { .. } => "CSV",
            Format::Parquet => "Parquet",
        })
    }
}

/// Reads a file from memory. Its format is told by its first bytes and, for CSV, by the end of its name.
///
/// # Errors
/// [`Error::is_format`] with the name, and the line where there is one, for a file that is none of the formats, not what its
/// name says, or damaged as a whole; [`Error::is_unsupported`] for Parquet where the feature `parquet` is off. A record that
/// alone cannot be read is in [`Records::bad`].
pub fn records(bytes: Vec<u8>, path: &Path) -> Result<Records> {
    let name = path.display().to_string();
    let format = format_of(&bytes, path).map_err(|e| e.at(&name))?;
    let unit = if format == Format::Parquet { Unit::Row } else { Unit::Line };
    let source = Source { name, unit };
    if format == Format::Parquet {
        let good = parquet(bytes).map_err(|e| e.at(&source.name))?;
        return Ok(Records { source, good, bad: Vec::new() });
    }
    let text = text(&bytes, &source)?;
    let mut records = match format {
        Format::JsonArray => json_array::read(text, source)?,
        Format::Csv { delimiter } => csv::read(text, delimiter, source)?,
        _ => jsonl::read(text, source)?,
    };
    records.bad.sort_by_key(|one| one.number);
    Ok(records)
}

#[cfg(feature = "parquet")]
fn parquet(bytes: Vec<u8>) -> Result<Vec<super::records::Record>> {
    super::parquet::read(bytes)
}

#[cfg(not(feature = "parquet"))]
fn parquet(_: Vec<u8>) -> Result<Vec<super::records::Record>> {
    Err(Error::unsupported("a Parquet file, and this build is without the feature `parquet`"))
}

/// The format, by content first: a name may lie.
fn format_of(bytes: &[u8], path: &Path) -> Result<Format> {
    let extension = path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase());
    let named = match extension.as_deref() {
        Some("csv") => Some(Format::Csv { delimiter: b',' }),
        Some("tsv") => Some(Format::Csv { delimiter: b'\t' }),
        Some("parquet" | "pq") => Some(Format::Parquet),
        Some("jsonl" | "ndjson") => Some(Format::JsonLines),
        _ => None,
    };
    for (magic, what) in [
        (&b"\x1f\x8b"[..], "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        (b"BZh", "compressed with bzip2"),
        (b"\xfd7zXZ", "compressed with xz"),
        (b"PK\x03\x04", "a ZIP archive or a spreadsheet"),
        (b"ARROW1", "an Arrow file"),
        (b"\xff\xff\xff\xff", "an Arrow stream"),
        (b"SQLite format 3", "an SQLite database"),
    ] {
        if bytes.starts_with(magic) {
            return Err(Error::format(format!("{what}; {WANTED}")));
        }
    }
    if bytes.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    let found = match first {
        Some(b'{') => Some(Format::JsonLines),
        Some(b'[') => Some(Format::JsonArray),
        _ => None,
    };
    match (named, found) {
        // A file without anything in it has no problem, whatever it is called.
        (_, None) if first.is_none() => Ok(Format::JsonLines),
        (Some(Format::Parquet), _) => {
            Err(Error::format("the name says Parquet, but the file does not begin with PAR1"))
        }
        (Some(named @ Format::Csv { .. }), Some(found)) if !text.starts_with(b"[") => {
            Err(Error::format(format!("the name says {named}, but the file begins like {found}")))
        }
        (Some(named), None) => Ok(named),
        (Some(named @ Format::Csv { .. }), Some(_)) => Ok(named),
        (_, Some(found)) => Ok(found),
        (None, None) => Err(Error::format(format!("of no known format; {WANTED}"))),
    }
}

const WANTED: &str = "wanted are lines of JSON objects, a JSON array of them, CSV (in a file whose name ends with .csv or .tsv), or \
                      Parquet";

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The file as text, without the mark of its byte order.
fn text<'a>(bytes: &'a [u8], source: &Source) -> Result<&'a str> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|e| {
        let place = source.place(line_at(bytes, e.valid_up_to()));
        let utf_16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
        let advice = if utf_16 { " (it looks like UTF-16)" } else { "" };
        Error::format(format!("{place}: not UTF-8{advice}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<Records> {
        records(bytes.to_vec(), Path::new(name))
    }

    #[test]
    fn the_content_tells_the_format() {
        let line = b"{\"a\": 1}\n";
        for name in ["p.jsonl", "p.json", "p", "p.txt"] {
            assert_eq!(read(name, line).unwrap().good.len(), 1);
            let array = read(name, b" [{\"a\": 1}, {\"a\": 2}]").unwrap();
            assert_eq!((array.good.len(), array.columns()), (2, vec!["a"]));
        }
        assert_eq!(read("p.CSV", b"a,b\n1,2\n").unwrap().columns(), ["a", "b"]);
        assert_eq!(read("p.tsv", b"a,b\tc\n1\t2\n").unwrap().columns(), ["a,b", "c"]);
        // A prompt may begin with a bracket.
        assert_eq!(read("p.csv", b"[a],b\n1,2\n").unwrap().columns(), ["[a]", "b"]);
    }

    #[test]
    fn a_file_of_another_kind_is_named() {
        for (name, bytes, says) in [
            (
                "p.jsonl.gz",
                &b"\x1f\x8b\x08\0"[..],
                "p.jsonl.gz: compressed with gzip; wanted are lines of JSON",
            ),
            ("p.xlsx", b"PK\x03\x04", "a ZIP archive or a spreadsheet"),
            ("p.arrow", b"ARROW1\0\0", "an Arrow file"),
            ("p.txt", b"1+1=2\n", "p.txt: of no known format; wanted are"),
            (
                "p.parquet",
                b"{\"a\": 1}\n",
                "the name says Parquet, but the file does not begin with PAR1",
            ),
            ("p.csv", b"{\"a\": 1}\n", "the name says CSV, but the file begins like lines of JSON"),
            ("p.json", b"{\"a\": 1}\n\xff\n", "p.json:2: not UTF-8"),
            ("p.jsonl", b"\xff\xfe{\0", "p.jsonl:1: not UTF-8 (it looks like UTF-16)"),
        ] {
            let error = read(name, bytes).unwrap_err();
            assert!(error.is_format() && error.to_string().contains(says), "{error}");
        }
        for name in ["p.jsonl", "p.csv", "p.json", "p.parquet"] {
            assert!(read(name, b" \n").unwrap().good.is_empty());
        }
    }
}
