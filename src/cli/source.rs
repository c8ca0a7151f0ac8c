//! Where a command that only uses a model takes it from.

use super::terminal;
use crate::error::{Error, Result};
use crate::train::RunDir;
use std::path::{Path, PathBuf};

/// A run directory or a model folder, one of them.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["run", "model"])))]
pub(super) struct ModelArgs {
    /// A run directory; its newest checkpoint is used
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
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
        let (found, damaged) = run.checkpoints(0).latest()?;
        for error in damaged {
            terminal::note(&format!("passing over a damaged checkpoint: {error}"));
        }
        found
            .map(|checkpoint| checkpoint.path)
            .ok_or_else(|| Error::state(format!("{} has no checkpoint yet", run.root().display())))
    }
}
