//! One JSON array of objects.

use super::records::{BadRecord, Record, Records, Source, line_at};
use crate::error::{Error, Result};
use crate::tasks::json::Json;
use serde_json::value::RawValue;

/// Reads every element; a record's number is the line on which it begins.
///
/// # Errors
/// [`Error::is_format`] with the line where the text is no JSON array.
pub(super) fn read(text: &str, source: Source) -> Result<Records> {
    let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| {
        let what = e.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        let (place, column) = (source.place(e.line()), e.column());
        Error::format(format!("{place}: not a JSON array: {what} (column {column})"))
    })?;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let (mut number, mut counted) = (1, 0);
    for element in elements {
        // An element is a part of the text that was read.
        let at = (element.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        number += line_at(&text.as_bytes()[counted.min(at)..], at - counted.min(at)) - 1;
        counted = at;
        let fault = match Json::parse(element.get()) {
            Ok(Json::Object(fields)) => {
                good.push(Record { number, fields });
                continue;
            }
            Ok(_) => "not a JSON object".to_owned(),
            Err(e) => format!("not a JSON object: {e}"),
        };
        bad.push(BadRecord { number, fault });
    }
    Ok(Records { source, good, bad })
}

#[cfg(test)]
mod tests {
    use super::super::records::Unit;
    use super::*;

    fn read_text(text: &str) -> Result<Records> {
        read(text, Source { name: "p".to_owned(), unit: Unit::Line })
    }

    #[test]
    fn elements_know_their_lines() {
        let all = read_text("\n[{\"a\": 1}, {\n\"a\": 36893488147419103232},\n\n 7,{\"a\":3}]\n")
            .unwrap();
        assert_eq!(all.good.iter().map(|one| one.number).collect::<Vec<_>>(), [2, 2, 5]);
        assert_eq!(all.good[1].fields["a"], Json::Number("36893488147419103232".to_owned()));
        assert_eq!(all.bad, [BadRecord { number: 5, fault: "not a JSON object".to_owned() }]);
        assert!(read_text("[]").unwrap().good.is_empty());
    }

    #[test]
    fn a_torn_array_names_its_line() {
        let error = read_text("[{\"a\": 1},\n{\"a\": ").unwrap_err();
        assert!(
            error.is_format() && error.to_string().starts_with("p:2: not a JSON array: EOF"),
            "{error}"
        );
        assert!(read_text("[1] x").is_err());
    }
}
