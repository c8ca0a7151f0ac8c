//! Where problems come from.

use crate::error::Result;
use crate::tasks::arithmetic::{Arithmetic, ArithmeticConfig};
use crate::tasks::file::{FileProblems, FileSettings};
use crate::tasks::permutation_chain::{ChainConfig, PermutationChain};
use crate::tasks::task::Task;
use crate::tasks::template::Prompting;
use crate::tasks::two_hop::{TwoHop, TwoHopConfig};
use serde::{Deserialize, Serialize};

/// Which problems.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// Sums made in code.
    Arithmetic(ArithmeticConfig),
    /// A file of problems: lines of JSON, a JSON array, CSV or Parquet.
    File(FileSettings),
    /// Chains of transpositions.
    PermutationChain(ChainConfig),
    /// Look-ups in a small knowledge base.
    TwoHop(TwoHopConfig),
}

/// A task that was opened.
pub(super) struct OpenSource {
    pub task: Box<dyn Task>,
    /// The settings with what was found in place of what they left open.
    pub source: Source,
    /// What the user should know of it.
    pub notices: Vec<String>,
}

impl Source {
    /// The task. The seed splits the questions of a task that has no split of its own.
    ///
    /// # Errors
    /// What the task reports of its configuration or its file.
    pub(super) fn open(&self, seed: u64) -> Result<OpenSource> {
        let task: Box<dyn Task> = match self {
            Source::Arithmetic(config) => Box::new(Arithmetic::new(config.clone())?),
            Source::File(file) => {
                let opened = FileProblems::open(file)?;
                return Ok(OpenSource {
                    task: Box::new(opened.problems),
                    source: Source::File(opened.settings),
                    notices: opened.notices,
                });
            }
            Source::PermutationChain(config) => {
                Box::new(PermutationChain::new(config.clone(), seed)?)
            }
            Source::TwoHop(config) => Box::new(TwoHop::new(config.clone())?),
        };
        Ok(OpenSource { task, source: self.clone(), notices: Vec::new() })
    }

    /// How its prompts are put to a model that reads text.
    pub fn prompting(&self) -> Prompting {
        match self {
            Source::File(FileSettings { format, .. }) => {
                Prompting { template: format.template.clone(), system: format.system.clone() }
            }
            _ => Prompting::default(),
        }
    }
}
