//! JSON whose numbers keep their text: what a record of a file holds, and what a program that judges reads of it.
//!
//! [`serde_json::Value`] keeps a number as an f64 where it is no 64-bit integer, which changes 36893488147419103232 and
//! 0.1000000000000000055511151231257827. Its feature `arbitrary_precision` would keep them, but then a number reaches every
//! internally tagged or flattened type as a map, and the tokenizers' files are full of such types. So a value is read level by
//! level, and a number is never read at all.

use indexmap::IndexMap;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Error, Value};
use std::fmt;

/// The deepest nesting that is read.
const DEEPEST: usize = 128;

/// The fields of a record, in the order of the file.
pub type Object = IndexMap<String, Json>;

/// A JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as JSON writes it.
    Number(String),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object. Where a key occurs twice the last one counts.
    Object(Object),
}

impl Json {
    /// Reads one value, and nothing else but blanks around it.
    ///
    /// # Errors
    /// What is wrong with the text; its column counts from the begin of the innermost value that was entered.
    pub fn parse(text: &str) -> Result<Json, Error> {
        Json::at_depth(text, 0)
    }

    fn at_depth(text: &str, depth: usize) -> Result<Json, Error> {
        let first = text.trim_start().as_bytes().first().copied();
        if depth >= DEEPEST && matches!(first, Some(b'{' | b'[')) {
            return Err(<Error as serde::de::Error>::custom(format!(
                "nested deeper than {DEEPEST} levels"
            )));
        }
        match first {
            Some(b'{') => {
                let fields: IndexMap<String, &RawValue> = serde_json::from_str(text)?;
                let read = |(name, value): (String, &RawValue)| {
                    Ok((name, Json::at_depth(value.get(), depth + 1)?))
                };
                fields.into_iter().map(read).collect::<Result<_, Error>>().map(Json::Object)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                let read = |value: &&RawValue| Json::at_depth(value.get(), depth + 1);
                items.iter().map(read).collect::<Result<_, Error>>().map(Json::List)
            }
            Some(b'-' | b'0'..=b'9') => {
                let number: &RawValue = serde_json::from_str(text)?;
                Ok(Json::Number(number.get().to_owned()))
            }
            _ => Ok(match serde_json::from_str(text)? {
                Value::Bool(value) => Json::Bool(value),
                Value::String(text) => Json::Text(text),
                _ => Json::Null,
            }),
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => to.serialize_unit(),
            Json::Bool(value) => to.serialize_bool(*value),
            Json::Number(text) => {
                RawValue::from_string(text.clone()).map_err(S::Error::custom)?.serialize(to)
            }
            Json::Text(text) => to.serialize_str(text),
            Json::List(items) => items.serialize(to),
            Json::Object(fields) => fields.serialize(to),
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_read_is_written_again() {
        for text in [
            "null",
            "true",
            "36893488147419103232",
            "-0.1000000000000000055511151231257827",
            "1E400",
            "\"a \\\" b\"",
            "[]",
            "{}",
            "{\"b\":[1.50,{\"a\":-0}],\"a\":{\"c\":[[\"x\"],null,false]}}",
        ] {
            assert_eq!(Json::parse(text).unwrap().to_string(), text);
            assert_eq!(Json::parse(&format!(" {text}\n")).unwrap().to_string(), text);
        }
        let twice = Json::parse("{\"a\":1,\"b\":2,\"a\":3}").unwrap();
        assert_eq!(twice.to_string(), "{\"a\":3,\"b\":2}");
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            " ",
            "01",
            "1.",
            ".5",
            "1e",
            "+1",
            "NaN",
            "[1,]",
            "{\"a\":}",
            "{a:1}",
            "\"\\ud800\"",
            "1 2",
            "nul",
            "[\"\\x\"]",
            "{\"a\":[}]",
            "\"a\nb\"",
        ] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
        for depth in [129, 1_000_000] {
            assert!(Json::parse(&"[".repeat(depth)).is_err());
            let error = Json::parse(&("[".repeat(depth) + &"]".repeat(depth))).unwrap_err();
            assert!(error.to_string().contains("deeper than 128"), "{error}");
        }
        let deepest = "[".repeat(128) + &"]".repeat(128);
        assert_eq!(Json::parse(&deepest).unwrap().to_string(), deepest);
    }

    proptest! {
        #[test]
        fn it_reads_what_serde_json_reads(
            pieces in proptest::collection::vec(proptest::sample::select(&[
                "{", "}", "[", "]", ",", ":", "\"a\"", "\"\\u00e9\"", "1", "-2.5e3", "0", "null", "true", " ", "\"", "\\",
            ][..]), 0..12),
        ) {
            let text = pieces.concat();
            let theirs: Result<Value, _> = serde_json::from_str(&text);
            let ours = Json::parse(&text);
            prop_assert_eq!(theirs.is_ok(), ours.is_ok(), "{}", text);
            if let (Ok(theirs), Ok(ours)) = (theirs, ours) {
                prop_assert_eq!(theirs, serde_json::from_str::<Value>(&ours.to_string()).unwrap());
            }
        }
    }
}
