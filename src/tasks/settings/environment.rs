//! Which environment: a name, or a table that starts from a name.

use super::named::{Named, name_or_table};
use crate::error::{Error, Result};
use crate::tasks::calculator::{Calculator, CalculatorConfig};
use crate::tasks::environment::Environment;
use serde::{Deserialize, Deserializer, Serialize};

/// Which environment.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "preset", rename_all = "snake_case")]
pub enum EnvironmentSettings {
    /// A calculator that the policy may call.
    Calculator(CalculatorConfig),
}

impl EnvironmentSettings {
    /// The environment.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings that make no sense.
    pub fn open(&self) -> Result<Box<dyn Environment>> {
        match self {
            EnvironmentSettings::Calculator(config) => {
                Ok(Box::new(Calculator::new(config.clone())?))
            }
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    preset: Option<String>,
    open: Option<String>,
    close: Option<String>,
    before: Option<String>,
    after: Option<String>,
    most_calls: Option<usize>,
    instruction: Option<String>,
}

impl Named for Fields {
    type Settings = EnvironmentSettings;
    const EXPECTED: &str = "the name of an environment or a table of its settings";

    fn named(name: &str) -> Fields {
        Fields { preset: Some(name.to_owned()), ..Fields::default() }
    }

    fn settings(self) -> Result<EnvironmentSettings> {
        if let Some(name) = self.preset.filter(|name| name != "calculator") {
            return Err(Error::invalid(format!(
                "no environment is called `{name}`; there is calculator"
            )));
        }
        let base = CalculatorConfig::default();
        Ok(EnvironmentSettings::Calculator(CalculatorConfig {
            open: self.open.unwrap_or(base.open),
            close: self.close.unwrap_or(base.close),
            before: self.before.unwrap_or(base.before),
            after: self.after.unwrap_or(base.after),
            most_calls: self.most_calls.unwrap_or(base.most_calls),
            instruction: self.instruction.unwrap_or(base.instruction),
        }))
    }
}

impl<'de> Deserialize<'de> for EnvironmentSettings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<EnvironmentSettings, D::Error> {
        name_or_table::<D, Fields>(from)
    }
}
