//! The records of a file, whatever its format: rows of named values, each with the place where it stands.

use crate::tasks::json::{Json, Object};

/// A row of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The line on which it begins, or the number of its row where the format has no lines; from 1.
    pub number: usize,
    /// Its values by column.
    pub fields: Object,
}

/// A record that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// As [`Record::number`].
    pub number: usize,
    /// What is wrong with it.
    pub fault: String,
}

/// What numbers of records count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Lines of a text.
    Line,
    /// Rows of a table.
    Row,
}

/// A file as it is called in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its path, as it was given.
    pub name: String,
    /// What numbers of records count.
    pub unit: Unit,
}

impl Source {
    /// Where a record stands.
    pub fn place(&self, number: usize) -> String {
        match self.unit {
            Unit::Line => format!("{}:{number}", self.name),
            Unit::Row => format!("{}, row {number}", self.name),
        }
    }
}

/// The records of a file.
#[derive(Clone, Debug)]
pub struct Records {
    /// The file.
    pub source: Source,
    /// Those that were read.
    pub good: Vec<Record>,
    /// Those that have not the form of a record.
    pub bad: Vec<BadRecord>,
}

impl Records {
    /// The names of the columns, in the order in which they occur.
    pub fn columns(&self) -> Vec<&str> {
        let mut all = indexmap::IndexSet::new();
        all.extend(self.good.iter().flat_map(|record| record.fields.keys().map(String::as_str)));
        all.into_iter().collect()
    }
}

/// The line, from 1, on which a byte stands.
pub(super) fn line_at(bytes: &[u8], at: usize) -> usize {
    1 + bytes.iter().take(at).filter(|byte| **byte == b'\n').count()
}

/// The value of a column, or of a value inside one: `reward_model.ground_truth`.
pub fn value_at<'a>(fields: &'a Object, path: &str) -> Option<&'a Json> {
    if let Some(value) = fields.get(path) {
        return Some(value);
    }
    path.match_indices('.').find_map(|(at, _)| match fields.get(&path[..at]) {
        Some(Json::Object(inner)) => value_at(inner, &path[at + 1..]),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_goes_into_objects() {
        let Json::Object(fields) =
            Json::parse(r#"{"a.b": 1, "a": {"b": 2, "c": {"d": 3}, "c.e": 4}}"#).unwrap()
        else {
            unreachable!()
        };
        let at = |path| value_at(&fields, path).map(Json::to_string);
        assert_eq!(at("a.b").as_deref(), Some("1"));
        assert_eq!(at("a.c.d").as_deref(), Some("3"));
        assert_eq!(at("a.c.e").as_deref(), Some("4"));
        assert_eq!((at("a.x"), at("x"), at("a.b.c"), at("")), (None, None, None, None));
    }
}
