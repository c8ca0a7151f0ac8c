//! The settings of a verifier that is a program.

use crate::error::{Error, Result};
use crate::tasks::steps::Segmentation;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

/// The longest time limit, seconds: four months.
const LONGEST_LIMIT: f64 = 1e7;

/// A program that judges, and how much is expected of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommandSettings {
    /// The program and its arguments. No shell is involved: write `["sh", "-c", "…"]` for one.
    pub command: Vec<String>,
    /// The folder that it is started in, from which its arguments may be relative paths. Absent: where the trainer is; a run
    /// that is resumed elsewhere starts it where it was first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The names of its rewards. An answer has each of them under `rewards`, or a single one as `reward`.
    pub rewards: Vec<String>,
    /// Every answer must have a `label`.
    pub label: bool,
    /// Steps are sent, and every answer must have a verdict about each. Absent: neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Segmentation>,
    /// Most attempts that wait for an answer at one time.
    pub in_flight: usize,
    /// Longest time between two answers while an attempt waits, seconds.
    pub time_limit: f64,
    /// Longest time until a program that was just started gives its first answer, seconds. Absent: `time_limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_limit: Option<f64>,
    /// How often it may fail in a row (end, keep silent, flood) and be started again without an answer in between. One
    /// failure more ends the run.
    pub restarts: u32,
    /// What an attempt without a verdict costs.
    pub on_failure: OnFailure,
}

/// What an attempt without a verdict costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Itself: it is left out and counted.
    #[default]
    Exclude,
    /// The run, which ends with an error.
    End,
}

impl Default for CommandSettings {
    fn default() -> CommandSettings {
        CommandSettings {
            command: Vec::new(),
            directory: None,
            rewards: vec!["reward".to_owned()],
            label: false,
            steps: None,
            in_flight: 8,
            time_limit: 30.0,
            start_limit: None,
            restarts: 5,
            on_failure: OnFailure::Exclude,
        }
    }
}

impl CommandSettings {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(what));
        if self.command.first().is_none_or(String::is_empty) {
            return bad("`command` names no program".to_owned());
        }
        let distinct: HashSet<&String> = self.rewards.iter().collect();
        if distinct.is_empty()
            || distinct.len() < self.rewards.len()
            || distinct.contains(&String::new())
        {
            return bad(format!("`rewards` is {:?}; it needs different names", self.rewards));
        }
        if self.in_flight == 0 {
            return bad("`in_flight` is 0; it must be at least 1".to_owned());
        }
        for (name, seconds) in
            [("time_limit", Some(self.time_limit)), ("start_limit", self.start_limit)]
        {
            if let Some(seconds) = seconds
                && !(seconds > 0.0 && seconds <= LONGEST_LIMIT)
            {
                return bad(format!(
                    "`{name}` is {seconds}; it must be above 0 and at most {LONGEST_LIMIT} seconds"
                ));
            }
        }
        Ok(())
    }

    /// How long it may take to answer; `fresh`: it was just started.
    pub(super) fn limit(&self, fresh: bool) -> Duration {
        let seconds = self.start_limit.filter(|_| fresh).unwrap_or(self.time_limit);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// The command as one line, for messages.
    pub(super) fn shown(&self) -> String {
        self.command.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_named() {
        let good = || CommandSettings { command: vec!["judge".to_owned()], ..Default::default() };
        good().check().unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        for (settings, says) in [
            (CommandSettings::default(), "`command`"),
            (CommandSettings { command: names(&[""]), ..good() }, "`command`"),
            (CommandSettings { rewards: names(&[]), ..good() }, "`rewards`"),
            (CommandSettings { rewards: names(&["a", "a"]), ..good() }, "`rewards`"),
            (CommandSettings { rewards: names(&["a", ""]), ..good() }, "`rewards`"),
            (CommandSettings { in_flight: 0, ..good() }, "`in_flight`"),
            (CommandSettings { time_limit: 0.0, ..good() }, "`time_limit`"),
            (CommandSettings { time_limit: f64::NAN, ..good() }, "`time_limit`"),
            (CommandSettings { time_limit: f64::INFINITY, ..good() }, "`time_limit`"),
            (CommandSettings { start_limit: Some(1e300), ..good() }, "`start_limit`"),
            (CommandSettings { start_limit: Some(-1.0), ..good() }, "`start_limit`"),
        ] {
            let error = settings.check().unwrap_err();
            assert!(error.is_invalid() && error.to_string().starts_with(says), "{error}");
        }
    }

    #[test]
    fn a_fresh_program_may_have_its_own_limit() {
        let mut settings = CommandSettings { time_limit: 2.0, ..Default::default() };
        assert_eq!(settings.limit(true), Duration::from_secs(2));
        settings.start_limit = Some(60.0);
        assert_eq!([true, false].map(|fresh| settings.limit(fresh).as_secs()), [60, 2]);
    }
}
