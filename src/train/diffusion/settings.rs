//! The settings of a run that teaches a model to fill masked blocks: what a recipe gives defaults for.

use super::noising::Noising;
use crate::error::{Error, Result};
use crate::optim::{AdamWSettings, Schedule};
use crate::rl::unmasking::{Confidence, Selection};
use crate::tasks::source_text::TextSettings;
use crate::train::settings::{CheckpointSettings, ModelSettings};
use serde::{Deserialize, Serialize};

/// Everything that decides a run. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionSettings {
    /// The seed of every random draw.
    pub seed: u64,
    /// Tokens of a block.
    pub block: usize,
    /// Position i − 1 predicts token i.
    pub shift: bool,
    /// The mask's id, where neither the model nor its tokenizer names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_id: Option<i32>,
    /// Tokens of a row, whole blocks.
    pub length: usize,
    /// Rows a step.
    pub rows: usize,
    /// Tokens run through the model at once.
    pub micro_batch_tokens: usize,
    /// Recompute activations in the backward pass instead of keeping them.
    pub recompute: bool,
    /// The text.
    pub text: TextSettings,
    /// Ids for the text of a new model; a model folder brings its own.
    pub tokenizer: TokenizerSettings,
    /// The model.
    pub model: ModelSettings,
    /// Next-token prediction first.
    pub next_token: PhaseSettings,
    /// Then masked blocks.
    pub diffusion: PhaseSettings,
    /// The noise of the second phase.
    pub noising: Noising,
    /// Measurements on held-out text.
    pub evaluation: HeldOutSettings,
    /// What is kept on the disk.
    pub checkpoint: CheckpointSettings,
}

/// How text becomes ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenizerSettings {
    /// One id a character of the made programs.
    Characters,
    /// One id a byte.
    Bytes,
    /// Byte pairs, merged by how often they occur in the text.
    BytePairs {
        /// Ids in all.
        vocab_size: usize,
    },
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSettings {
    /// Steps; 0 for none.
    pub steps: u64,
    /// Its own optimizer.
    pub optimizer: AdamWSettings,
    /// Its learning-rate schedule.
    pub schedule: Schedule,
}

/// Measurements on held-out text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutSettings {
    /// Every so many steps of the second phase, and at the end of each; 0: at the ends only.
    pub every: u64,
    /// Rows that are measured; 0: none.
    pub rows: usize,
    /// Rows that are completed and logged.
    pub completions: usize,
    /// Tokens of a row that are given, the rest is completed.
    pub prompt: usize,
    /// How blocks are filled.
    pub selection: Selection,
    /// What places are ranked by.
    pub confidence: Confidence,
}

impl DiffusionSettings {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(what));
        if self.block == 0 || self.rows == 0 || self.micro_batch_tokens == 0 {
            return bad("block, rows and micro_batch_tokens must be at least 1".into());
        }
        if self.length < 2 || !self.length.is_multiple_of(self.block) {
            return bad(format!(
                "length = {} is not a whole number of blocks of {}",
                self.length, self.block
            ));
        }
        if self.evaluation.completions > 0 && self.evaluation.prompt >= self.length {
            return bad(format!(
                "evaluation.prompt = {} leaves nothing of a row of {}",
                self.evaluation.prompt, self.length
            ));
        }
        if matches!(&self.model, ModelSettings::Folder { date: Some(_), .. }) {
            return bad("model.date is for chat templates; running text is read as it is".into());
        }
        self.next_token.optimizer.check().map_err(|e| e.at("next_token.optimizer"))?;
        self.diffusion.optimizer.check().map_err(|e| e.at("diffusion.optimizer"))?;
        self.evaluation.selection.check(self.evaluation.confidence)?;
        self.noising.check()
    }

    /// Steps of both phases.
    pub fn total_steps(&self) -> u64 {
        self.next_token.steps + self.diffusion.steps
    }
}
