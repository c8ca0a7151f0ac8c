//! The settings of a run's problems: where they come from, what the policy works on them in, and what judges it.

mod source;
mod verifier;

pub use source::{JsonlTask, Source};
pub use verifier::VerifierSettings;

use super::environment::{Environment, OneShot};
use super::task::Task;
use super::verifier::Verifier;
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// The table `task` of a run's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSettings {
    /// Where the problems come from; its `kind` and its keys stand beside `verifier` in one table.
    #[serde(flatten)]
    pub source: Source,
    /// What judges; absent: what the task's answers are meant for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier: Option<VerifierSettings>,
}

/// A task in memory, with what goes with it.
pub struct OpenTask {
    /// The problems.
    pub task: Box<dyn Task>,
    /// What a policy works on them in.
    pub environment: Box<dyn Environment>,
    /// What judges it.
    pub verifier: Box<dyn Verifier>,
}

impl TaskSettings {
    /// A task with the verifier that it is meant for.
    pub fn new(source: Source) -> TaskSettings {
        TaskSettings { source, verifier: None }
    }

    /// Opens the task of a run with a seed.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) for settings that make no sense, and what reading a file reports.
    pub fn open(&self, seed: u64) -> Result<OpenTask> {
        let task = self.source.open(seed)?;
        let verifier = match &self.verifier {
            None => task.verifier(),
            Some(settings) => settings.open()?,
        };
        Ok(OpenTask { task, environment: Box::new(OneShot), verifier })
    }
}
