//! The config of a case, read field by field: what nobody asked for is a failure.

use serde_json::Value;
use std::collections::BTreeSet;

pub struct Config {
    fields: serde_json::Map<String, Value>,
    read: BTreeSet<String>,
}

impl Config {
    pub fn parse(text: &str) -> Result<Config, String> {
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Config { fields, read: BTreeSet::new() }),
            _ => Err("config is not a JSON object".to_string()),
        }
    }

    fn get<T>(
        &mut self,
        name: &str,
        what: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        self.read.insert(name.to_string());
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match convert(value) {
                Some(value) => Ok(Some(value)),
                None => Err(format!("config field `{name}` is {value}, not {what}")),
            },
        }
    }

    pub fn number(&mut self, name: &str) -> Result<Option<f64>, String> {
        self.get(name, "a number", Value::as_f64)
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, String> {
        self.get(name, "true or false", Value::as_bool)
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        self.get(name, "a string", |value| value.as_str().map(str::to_string))
    }

    pub fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, String> {
        self.get(name, "a list of strings", |value| {
            value.as_array()?.iter().map(|item| Some(item.as_str()?.to_string())).collect()
        })
    }

    pub fn object(&mut self, name: &str) -> Result<Option<serde_json::Map<String, Value>>, String> {
        self.get(name, "an object", |value| value.as_object().cloned())
    }

    /// A number that must be there.
    pub fn need(&mut self, name: &str) -> Result<f64, String> {
        self.number(name)?.ok_or_else(|| format!("config field `{name}` is missing"))
    }

    /// A string, one of `known`; the first of them when it is absent.
    pub fn one_of(&mut self, name: &str, known: &[&str]) -> Result<String, String> {
        match self.text(name)? {
            None => Ok(known[0].to_string()),
            Some(value) if known.contains(&value.as_str()) => Ok(value),
            Some(value) => Err(format!("config field `{name}` has the unknown value `{value}`")),
        }
    }

    /// A number that only ever had one value, or none.
    pub fn always(&mut self, name: &str, only: f64) -> Result<(), String> {
        match self.number(name)? {
            Some(value) if value != only => {
                Err(format!("config field `{name}` is {value}; only {only} is known"))
            }
            _ => Ok(()),
        }
    }

    /// Fields that only say how inputs were drawn: the inputs say the same themselves, so any value may stand there.
    pub fn labels(&mut self, names: &[&str]) {
        self.read.extend(names.iter().map(|name| (*name).to_string()));
    }

    pub fn finish(&self) -> Result<(), String> {
        match self.fields.keys().find(|name| !self.read.contains(*name)) {
            Some(name) => Err(format!("config field `{name}` was not used")),
            None => Ok(()),
        }
    }
}
