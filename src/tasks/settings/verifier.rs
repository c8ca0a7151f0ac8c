//! Which verifier: a name, or a table that starts from a name.

use crate::error::{Error, Result};
use crate::tasks::exact::ExactMatch;
use crate::tasks::final_answer::FinalAnswer;
use crate::tasks::refusal;
use crate::tasks::verifier::Verifier;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Which verifier.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "preset", rename_all = "snake_case")]
pub enum VerifierSettings {
    /// The final answer in the text is the known one.
    Answer {
        /// Phrases that count as a refusal to answer.
        refusals: Vec<String>,
    },
    /// The completion is the answer and nothing else.
    Exact,
}

impl VerifierSettings {
    /// The verifier.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings that make no sense.
    pub fn open(&self) -> Result<Box<dyn Verifier>> {
        Ok(match self {
            VerifierSettings::Answer { refusals } => Box::new(FinalAnswer::new(refusals.clone())),
            VerifierSettings::Exact => Box::new(ExactMatch),
        })
    }
}

/// A verifier as a settings file has it.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    preset: Option<String>,
    refusals: Option<Vec<String>>,
}

impl Fields {
    fn settings(self) -> Result<VerifierSettings> {
        match (self.preset.as_deref().unwrap_or("answer"), self.refusals) {
            ("answer", refusals) => Ok(VerifierSettings::Answer {
                refusals: refusals.unwrap_or_else(|| refusal::PHRASES.map(str::to_owned).to_vec()),
            }),
            ("exact", None) => Ok(VerifierSettings::Exact),
            ("exact", Some(_)) => Err(Error::invalid("`exact` knows no refusals")),
            (name, _) => Err(Error::invalid(format!(
                "no verifier is called `{name}`; there are answer, exact"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for VerifierSettings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<VerifierSettings, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = VerifierSettings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a verifier or a table of its settings")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<VerifierSettings, E> {
                let fields = Fields { preset: Some(name.to_owned()), ..Fields::default() };
                fields.settings().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<VerifierSettings, A::Error> {
                let fields = Fields::deserialize(MapAccessDeserializer::new(map))?;
                fields.settings().map_err(serde::de::Error::custom)
            }
        }
        from.deserialize_any(NameOrTable)
    }
}
