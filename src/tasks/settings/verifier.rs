//! Which verifier: a name, or a table that starts from a name.

use super::named::{Named, name_or_table};
use crate::error::{Error, Result};
use crate::tasks::command::{CommandSettings, CommandVerifier, OnFailure};
use crate::tasks::equality::Percent;
use crate::tasks::exact::ExactMatch;
use crate::tasks::final_answer::FinalAnswer;
use crate::tasks::refusal;
use crate::tasks::steps::Segmentation;
use crate::tasks::verifier::Verifier;
use serde::{Deserialize, Deserializer, Serialize};
use std::path::PathBuf;

/// Which verifier.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "preset", rename_all = "snake_case")]
pub enum VerifierSettings {
    /// The final answer in the text is the known one.
    Answer {
        /// Phrases that count as a refusal to answer.
        refusals: Vec<String>,
        /// What a percent sign means: nothing (`50%` is 50), hundredths (`50%` is 0.5), or either.
        percent: Percent,
    },
    /// The completion is the answer and nothing else.
    Exact,
    /// A program judges.
    Command(CommandSettings),
}

impl VerifierSettings {
    /// The verifier; a program is started.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings that make no sense, [`Error::is_io`] for a program that cannot be started.
    pub fn open(&self) -> Result<Box<dyn Verifier>> {
        Ok(match self {
            VerifierSettings::Answer { refusals, percent } => {
                Box::new(FinalAnswer::new(refusals.clone(), *percent))
            }
            VerifierSettings::Exact => Box::new(ExactMatch),
            VerifierSettings::Command(settings) => {
                Box::new(CommandVerifier::start(settings.clone())?)
            }
        })
    }

    /// The folder that a program is started in: the present one, where none was given.
    pub(super) fn directory_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            VerifierSettings::Command(settings) => {
                Some(settings.directory.get_or_insert_with(|| PathBuf::from(".")))
            }
            _ => None,
        }
    }

    /// True when it compares with the known answer and so needs one.
    pub(super) fn compares(&self) -> bool {
        !matches!(self, VerifierSettings::Command(_))
    }
}

/// The keys of every verifier.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    preset: Option<String>,
    refusals: Option<Vec<String>>,
    percent: Option<Percent>,
    command: Option<Vec<String>>,
    directory: Option<PathBuf>,
    rewards: Option<Vec<String>>,
    label: Option<bool>,
    steps: Option<Segmentation>,
    in_flight: Option<usize>,
    time_limit: Option<f64>,
    start_limit: Option<f64>,
    restarts: Option<u32>,
    on_failure: Option<OnFailure>,
}

impl Fields {
    /// The keys of a command that are there.
    fn of_a_command(&self) -> impl Iterator<Item = &'static str> + use<> {
        [
            ("command", self.command.is_some()),
            ("directory", self.directory.is_some()),
            ("rewards", self.rewards.is_some()),
            ("label", self.label.is_some()),
            ("steps", self.steps.is_some()),
            ("in_flight", self.in_flight.is_some()),
            ("time_limit", self.time_limit.is_some()),
            ("start_limit", self.start_limit.is_some()),
            ("restarts", self.restarts.is_some()),
            ("on_failure", self.on_failure.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
    }
}

impl Named for Fields {
    type Settings = VerifierSettings;
    const EXPECTED: &str = "the name of a verifier or a table of its settings";

    fn named(name: &str) -> Fields {
        Fields { preset: Some(name.to_owned()), ..Fields::default() }
    }

    fn settings(self) -> Result<VerifierSettings> {
        let implied = if self.command.is_some() { "command" } else { "answer" };
        let name = self.preset.as_deref().unwrap_or(implied);
        let of_answer = match (&self.refusals, self.percent) {
            (Some(_), _) => Some("refusals"),
            (None, Some(_)) => Some("percent"),
            (None, None) => None,
        };
        let foreign = match name {
            "answer" => self.of_a_command().next(),
            "exact" => self.of_a_command().next().or(of_answer),
            "command" => of_answer,
            _ => {
                return Err(Error::invalid(format!(
                    "no verifier is called `{name}`; there are answer, exact, command"
                )));
            }
        };
        if let Some(key) = foreign {
            return Err(Error::invalid(match name {
                "command" | "exact" => format!("`{name}` has no `{key}`"),
                _ => format!(
                    "`{name}` has no `{key}`; a program is `{{ preset = \"command\", command = [..] }}`"
                ),
            }));
        }
        if name == "answer" {
            let phrases = || refusal::PHRASES.map(str::to_owned).to_vec();
            return Ok(VerifierSettings::Answer {
                refusals: self.refusals.unwrap_or_else(phrases),
                percent: self.percent.unwrap_or_default(),
            });
        }
        if name == "exact" {
            return Ok(VerifierSettings::Exact);
        }
        let base = CommandSettings::default();
        Ok(VerifierSettings::Command(CommandSettings {
            command: self.command.unwrap_or(base.command),
            directory: self.directory.or(base.directory),
            rewards: self.rewards.unwrap_or(base.rewards),
            label: self.label.unwrap_or(base.label),
            steps: self.steps.or(base.steps),
            in_flight: self.in_flight.unwrap_or(base.in_flight),
            time_limit: self.time_limit.unwrap_or(base.time_limit),
            start_limit: self.start_limit.or(base.start_limit),
            restarts: self.restarts.unwrap_or(base.restarts),
            on_failure: self.on_failure.unwrap_or(base.on_failure),
        }))
    }
}

impl<'de> Deserialize<'de> for VerifierSettings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<VerifierSettings, D::Error> {
        name_or_table::<D, Fields>(from)
    }
}

/// One verifier as itself, several as a list.
pub(super) mod one_or_several {
    use super::VerifierSettings;
    use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer, StrDeserializer};
    use serde::de::{MapAccess, SeqAccess, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::fmt;

    pub(in super::super) fn serialize<S: Serializer>(
        verifiers: &[VerifierSettings],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match verifiers {
            [one] => one.serialize(to),
            several => several.serialize(to),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<VerifierSettings>, D::Error> {
        struct OneOrSeveral;
        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = Vec<VerifierSettings>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a verifier or a table of its settings, or a list of such")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
                Ok(vec![VerifierSettings::deserialize(StrDeserializer::new(name))?])
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Ok(vec![VerifierSettings::deserialize(MapAccessDeserializer::new(map))?])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, all: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(all))
            }
        }
        from.deserialize_any(OneOrSeveral)
    }
}
