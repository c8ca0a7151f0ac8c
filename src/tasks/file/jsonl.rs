//! A JSON object per line.

use super::records::{BadRecord, Record, Records, Source};
use crate::error::{Error, Result};
use crate::tasks::json::Json;

/// Reads every line that is not blank.
///
/// # Errors
/// [`Error::is_format`] for a single object that is spread over lines: it is no list of records.
pub(super) fn read(text: &str, source: Source) -> Result<Records> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (line, number) in text.split('\n').zip(1..) {
        if line.trim().is_empty() {
            continue;
        }
        let fault = match Json::parse(line) {
            Ok(Json::Object(fields)) => {
                good.push(Record { number, fields });
                continue;
            }
            Ok(_) => "not a JSON object".to_owned(),
            Err(e) => format!("not a JSON object: {}", syntax(&e)),
        };
        bad.push(BadRecord { number, fault });
    }
    if good.is_empty()
        && bad.len() > 1
        && let Ok(Json::Object(fields)) = Json::parse(text)
    {
        let names: Vec<&str> = fields.keys().map(String::as_str).take(8).collect();
        return Err(Error::format(format!(
            "{}: one JSON object with {}; wanted is an object per line, or an array of objects",
            source.name,
            names.join(", ")
        )));
    }
    Ok(Records { source, good, bad })
}

/// What is wrong with a line. serde_json counts from line 1 of what it was given; only the column means something here.
fn syntax(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    match error.column() {
        0 => what.to_owned(),
        column => format!("{what} (column {column})"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::Unit;
    use super::*;

    fn read_text(text: &str) -> Result<Records> {
        read(text, Source { name: "p".to_owned(), unit: Unit::Line })
    }

    #[test]
    fn lines_that_are_no_objects_are_told_apart() {
        let all = read_text("{\"a\": 1}\r\n\n[1, 2]\nnonsense\n {\"a\": 2e999} \n{\"a\"").unwrap();
        assert_eq!(all.good.iter().map(|one| one.number).collect::<Vec<_>>(), [1, 5]);
        assert_eq!(all.good[1].fields["a"], Json::Number("2e999".to_owned()));
        let bad: Vec<_> = all.bad.iter().map(|one| (one.number, one.fault.as_str())).collect();
        assert_eq!(bad[0], (3, "not a JSON object"));
        assert!(
            bad[1].0 == 4 && bad[1].1.starts_with("not a JSON object: expected ident"),
            "{bad:?}"
        );
        assert!(bad[2].0 == 6 && bad[2].1.starts_with("not a JSON object: EOF"), "{bad:?}");
    }

    #[test]
    fn one_object_over_lines_is_named() {
        let error = read_text("{\n\"data\": [\n1\n],\n\"version\": 2\n}\n").unwrap_err();
        assert!(error.to_string().contains("one JSON object with data, version"), "{error}");
    }
}
