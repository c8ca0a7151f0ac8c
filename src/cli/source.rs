//! Where a command that only uses a model takes it from.

use super::terminal;
use crate::error::{Error, Result};
use crate::train::RunDir;
use crate::train::best::Best;
use crate::train::checkpoint::Checkpoint;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A run directory or a model folder, one of them.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["run", "model"])))]
pub(super) struct ModelArgs {
    /// A run directory; its newest checkpoint is used, unless --checkpoint says which
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// With --run: newest, best (on held-out data) or the number of a step
    #[arg(long, default_value = "newest", value_name = "WHICH", requires = "run")]
    checkpoint: Which,
    /// A model folder: config.json, tokenizer.json, *.safetensors
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
}

impl ModelArgs {
    /// The folder with the weights and the tokenizer.
    pub(super) fn folder(&self) -> Result<PathBuf> {
        if let Some(model) = &self.model {
            return Ok(model.clone());
        }
        let run = RunDir::open(self.run.as_deref().unwrap_or(Path::new(".")))?;
        Ok(self.checkpoint.of(&run)?.path)
    }
}

/// Which checkpoint of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Newest,
    Best,
    Step(u64),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Which, String> {
        match text {
            "newest" => Ok(Which::Newest),
            "best" => Ok(Which::Best),
            step => step
                .parse()
                .map(Which::Step)
                .map_err(|_| format!("`{text}` is none of newest, best and the number of a step")),
        }
    }
}

impl Which {
    fn of(self, run: &RunDir) -> Result<Checkpoint> {
        let place = run.root().display();
        let wanted = match self {
            Which::Newest => {
                let (found, damaged) = run.checkpoints(0).latest()?;
                for error in damaged {
                    terminal::note(&format!("passing over a damaged checkpoint: {error}"));
                }
                return found.ok_or_else(|| Error::state(format!("{place} has no checkpoint yet")));
            }
            Which::Step(step) => step,
            Which::Best => {
                let best = Best::of_run(&run.metrics()?);
                let none = || Error::state(format!("no step of {place} has an evaluation yet"));
                best.ok_or_else(none)?.step
            }
        };
        let all = run.checkpoints(0).list()?;
        let found = all.iter().find(|one| one.step == wanted).cloned().ok_or_else(|| {
            let steps: Vec<String> = all.iter().map(|one| one.step.to_string()).collect();
            Error::state(format!(
                "{place} has no checkpoint of step {wanted} (there are: {}); checkpoint.best = true keeps the best one",
                steps.join(", ")
            ))
        })?;
        found.check()?;
        Ok(found)
    }
}
