//! Comma- or tab-separated values with a row of names first; every value is text.

use super::records::{BadRecord, Record, Records, Source};
use crate::error::{Error, Result};
use crate::tasks::json::{Json, Object};
use csv::{ReaderBuilder, StringRecord};

/// Reads every row after the names. A value in quotes may have line feeds; the number of a record is the line on which it
/// begins.
///
/// # Errors
/// [`Error::is_format`] with the line for names that occur twice and for a quote that is never closed.
pub(super) fn read(text: &str, delimiter: u8, source: Source) -> Result<Records> {
    let mut reader =
        ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text.as_bytes());
    let broken = |e: csv::Error| Error::format(format!("{}: not CSV: {e}", source.name));
    let names: Vec<String> =
        reader.headers().map_err(broken)?.iter().map(|name| name.trim().to_owned()).collect();
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        let place = source.place(1);
        return Err(Error::format(format!("{place}: two columns are called `{}`", twice.1)));
    }
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let (mut row, mut last) = (StringRecord::new(), (1, 0));
    // A line feed in front of a record is no part of it, but its position may be before it.
    while reader.read_record(&mut row).map_err(broken)? {
        let at = row.position().map_or(0, |position| position.byte() as usize);
        let blank = text[at..].bytes().take_while(|byte| matches!(byte, b'\n' | b'\r'));
        let blank = blank.filter(|byte| *byte == b'\n').count();
        let number = row.position().map_or(1, |position| position.line() as usize) + blank;
        last = (number, at);
        if row.len() != names.len() {
            let fault = format!("{} values, but there are {} columns", row.len(), names.len());
            bad.push(BadRecord { number, fault });
            continue;
        }
        let values = row.iter().map(|value| Json::Text(value.to_owned()));
        let fields: Object = names.iter().cloned().zip(values).collect();
        good.push(Record { number, fields });
    }
    if ends_in_quotes(&text[last.1..], delimiter) {
        let place = source.place(last.0);
        return Err(Error::format(format!("{place}: a quote is opened here and never closed")));
    }
    Ok(Records { source, good, bad })
}

/// True where a row that is written after the last one would still belong to it.
fn ends_in_quotes(last: &str, delimiter: u8) -> bool {
    let continued = format!("{last}\n|");
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .has_headers(false)
        .from_reader(continued.as_bytes());
    let last = reader.records().last();
    !last.is_some_and(|row| row.is_ok_and(|row| row.iter().eq(["|"])))
}

#[cfg(test)]
mod tests {
    use super::super::records::Unit;
    use super::*;

    fn read_text(text: &str) -> Result<Records> {
        read(text, b',', Source { name: "p".to_owned(), unit: Unit::Line })
    }

    fn row(record: &Record) -> (usize, Vec<String>) {
        let text = |value: &Json| match value {
            Json::Text(text) => text.clone(),
            other => other.to_string(),
        };
        (record.number, record.fields.values().map(text).collect())
    }

    #[test]
    fn quotes_line_feeds_and_numbers_of_lines() {
        let all =
            read_text("a, b\r\n\"x,\ny \"\"z\"\"\",007\r\n\n1e400,\n5\" pipe,\"\"\n").unwrap();
        assert_eq!(all.columns(), ["a", "b"]);
        let rows: Vec<_> = all.good.iter().map(row).collect();
        let text = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let expected =
            [(2, text("x,\ny \"z\"", "007")), (5, text("1e400", "")), (6, text("5\" pipe", ""))];
        assert_eq!(rows, expected);
        assert!(read_text("a,b\n").unwrap().good.is_empty());
    }

    #[test]
    fn a_row_of_another_length_is_told_apart() {
        let all = read_text("a,b\n1\n\"2\n2\",3\n4,5,6\n7,8").unwrap();
        assert_eq!(all.good.iter().map(|one| one.number).collect::<Vec<_>>(), [3, 6]);
        let bad: Vec<_> = all.bad.iter().map(|one| (one.number, one.fault.as_str())).collect();
        assert_eq!(
            bad,
            [(2, "1 values, but there are 2 columns"), (5, "3 values, but there are 2 columns")]
        );
    }

    #[test]
    fn what_would_swallow_the_file_is_an_error() {
        for (text, says) in [
            ("a,b\n1,2\n3,\"4\n5,6\n", "p:3: a quote is opened here"),
            ("a,b\n1,\"2", "p:2: a quote is opened here"),
            ("\"a,b\n1,2\n", "p:1: a quote is opened here"),
            ("a,a\n1,2\n", "p:1: two columns are called `a`"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.is_format() && error.to_string().contains(says), "{error}");
        }
        for text in ["a,b\n1,\"2\"", "a,b\n1,\"2\"\n\n", "a,b\n1,5\" x", "a,b\n1,\"2\"\"\"\n"] {
            assert_eq!(read_text(text).unwrap().good.len(), 1, "{text}");
        }
    }
}
