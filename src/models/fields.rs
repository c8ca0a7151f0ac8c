//! Typed access to the fields of a `config.json`, with errors that name them.

use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The fields of one file.
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn wrong(name: &str, value: &Value) -> Error {
        Error::format(format!("config.json: {name} is {value}"))
    }

    /// A size of at least 1 (`max_window_layers` may be 0); `None` where it is absent or null.
    pub fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            // 2^31: beyond it no dimension is meant, and products of two fit an address.
            Some(value) => match value.as_u64().filter(|n| *n < 1 << 31) {
                Some(0) if name != "max_window_layers" => Err(Fields::wrong(name, value)),
                Some(n) => Ok(Some(n as usize)),
                None => Err(Fields::wrong(name, value)),
            },
        }
    }

    /// A size that must be there.
    pub fn size(&self, name: &str) -> Result<usize> {
        self.optional_size(name)?
            .ok_or_else(|| Error::format(format!("config.json: {name} is missing")))
    }

    /// A number.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, Value::as_f64)
    }

    /// A truth value.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, Value::as_bool)
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.typed(name, Value::as_str)
    }

    /// A token id, several, or none.
    pub fn ids(&self, name: &str) -> Result<Vec<i32>> {
        let one = |value: &Value| {
            let id = value.as_i64().and_then(|id| i32::try_from(id).ok()).filter(|id| *id >= 0);
            id.ok_or_else(|| Error::format(format!("{name} {value} is no token id")))
        };
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    fn typed<T>(&self, name: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| Fields::wrong(name, value)),
        }
    }
}
