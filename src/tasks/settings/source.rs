//! Where problems come from.

use crate::error::Result;
use crate::tasks::arithmetic::{Arithmetic, ArithmeticConfig};
use crate::tasks::jsonl::{Jsonl, JsonlConfig};
use crate::tasks::permutation_chain::{ChainConfig, PermutationChain};
use crate::tasks::task::Task;
use crate::tasks::template::Prompting;
use crate::tasks::two_hop::{TwoHop, TwoHopConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which problems.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// Sums made in code.
    Arithmetic(ArithmeticConfig),
    /// A file of problems.
    Jsonl(JsonlTask),
    /// Chains of transpositions.
    PermutationChain(ChainConfig),
    /// Look-ups in a small knowledge base.
    TwoHop(TwoHopConfig),
}

/// A file of problems and how to read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonlTask {
    /// The file.
    pub path: PathBuf,
    /// How to read it.
    #[serde(default)]
    pub format: JsonlConfig,
}

impl Source {
    /// The task. The seed splits the questions of a task that has no split of its own.
    ///
    /// # Errors
    /// What the task reports of its configuration or its file.
    pub fn open(&self, seed: u64) -> Result<Box<dyn Task>> {
        Ok(match self {
            Source::Arithmetic(config) => Box::new(Arithmetic::new(config.clone())?),
            Source::Jsonl(file) => Box::new(Jsonl::load(&file.path, &file.format)?),
            Source::PermutationChain(config) => {
                Box::new(PermutationChain::new(config.clone(), seed)?)
            }
            Source::TwoHop(config) => Box::new(TwoHop::new(config.clone())?),
        })
    }

    /// How its prompts are put to a model that reads text.
    pub fn prompting(&self) -> Prompting {
        match self {
            Source::Jsonl(JsonlTask { format, .. }) => {
                Prompting { template: format.template.clone(), system: format.system.clone() }
            }
            _ => Prompting::default(),
        }
    }
}
