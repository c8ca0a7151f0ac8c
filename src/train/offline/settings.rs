//! The settings of a run that learns from demonstrations or preferences: what a recipe gives defaults for.

use crate::error::{Error, Result};
use crate::optim::{AdamWSettings, Schedule};
use crate::rl::preference::{Cpo, Dpo, Kto, Orpo};
use crate::tasks::{Prompting, Template};
use crate::train::settings::{CheckpointSettings, ModelSettings};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that decides a run. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfflineSettings {
    /// The seed of every random draw.
    pub seed: u64,
    /// Passes over the records, where `steps` does not say how long the run is.
    pub epochs: f64,
    /// Optimizer updates; absent: as many as `epochs` takes. A run writes down what it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Records a step.
    pub batch: usize,
    /// Tokens run through the model at once, whole records; gradients are accumulated over these micro-batches.
    pub micro_batch_tokens: usize,
    /// Recompute activations in the backward pass instead of keeping them.
    pub recompute: bool,
    /// The model folder that is trained.
    pub model: ModelSettings,
    /// The records.
    pub data: OfflineData,
    /// What is minimised.
    pub objective: OfflineObjective,
    /// The model folder of the reference policy; absent: the model as it is before training. Its log-probs are computed
    /// once, before the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<PathBuf>,
    /// The optimizer.
    pub optimizer: AdamWSettings,
    /// Its learning-rate schedule.
    pub schedule: Schedule,
    /// Measurements on held-out records.
    pub evaluation: OfflineEvaluation,
    /// What is kept on the disk.
    pub checkpoint: CheckpointSettings,
}

/// A file of records and how to read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OfflineData {
    /// The file: lines of JSON, a JSON array, CSV or Parquet.
    pub path: PathBuf,
    /// Length and SHA-256 of the file when the run began; a file that has others is refused. Absent: it is not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// A file of its own for evaluation. All of its records are held out, and none of the other file's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<OfflineHeldOut>,
    /// What its columns are called.
    pub columns: OfflineColumns,
    /// How a prompt is put to the model: `auto` (the chat template of the model folder, where it has one), `chat`, `none`, the
    /// path of a chat template (`*.jinja`), or a text that is written around it, in which `{prompt}` stands for it.
    pub template: Template,
    /// What the system says before a prompt, for a chat template; empty: nothing.
    pub system: String,
    /// How many of the last records are held out; 0: a tenth of them, at least one.
    pub held_out: usize,
    /// The most tokens of a prompt and its completion; 0: as many as the model's context holds.
    pub max_length: usize,
    /// What is done with a record that is longer.
    pub too_long: TooLong,
    /// Leaves records out that cannot be used, and says how many; without it they end the run before it begins.
    pub skip_bad: bool,
}

impl Default for OfflineData {
    fn default() -> OfflineData {
        OfflineData {
            path: PathBuf::new(),
            fingerprint: None,
            evaluation: None,
            columns: OfflineColumns::default(),
            template: Template::Auto,
            system: String::new(),
            held_out: 0,
            max_length: 0,
            too_long: TooLong::Refuse,
            skip_bad: false,
        }
    }
}

/// A file of which all records are held out. It is read as the file that is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfflineHeldOut {
    /// The file.
    pub path: PathBuf,
    /// Length and SHA-256 of the file when the run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

impl OfflineData {
    /// The paths of the files.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        std::iter::once(&mut self.path).chain(self.evaluation.as_mut().map(|file| &mut file.path))
    }

    /// Takes the files as they are now: what they were when the run began is forgotten.
    pub fn accept_changes(&mut self) {
        self.fingerprint = None;
        if let Some(evaluation) = &mut self.evaluation {
            evaluation.fingerprint = None;
        }
    }

    /// How its prompts are put to the model.
    pub fn prompting(&self) -> Prompting {
        Prompting { template: self.template.clone(), system: self.system.clone() }
    }

    /// How they are put to the model of a checkpoint, which has the template with which it was trained among its files.
    pub fn resumed_prompting(&self) -> Prompting {
        let mut prompting = self.prompting();
        if let Template::File(_) = prompting.template {
            prompting.template = Template::Chat;
        }
        prompting
    }
}

/// What the columns of a file are called; `a.b` is the value `b` in the object `a`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OfflineColumns {
    /// Whole conversations: lists of messages with `role` and `content`.
    pub messages: String,
    /// Running text.
    pub text: String,
    /// Prompts: strings or lists of messages.
    pub prompt: String,
    /// What is to be written after a prompt: strings or lists of messages.
    pub completion: String,
    /// The better completion of a pair.
    pub chosen: String,
    /// The worse completion of a pair.
    pub rejected: String,
    /// Whether a completion is desirable.
    pub label: String,
}

impl Default for OfflineColumns {
    fn default() -> OfflineColumns {
        OfflineColumns {
            messages: "messages".into(),
            text: "text".into(),
            prompt: "prompt".into(),
            completion: "completion".into(),
            chosen: "chosen".into(),
            rejected: "rejected".into(),
            label: "label".into(),
        }
    }
}

/// What is done with a record that has more tokens than fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// It is a record that cannot be used.
    #[default]
    Refuse,
    /// It is left out.
    LeaveOut,
    /// The end of its completion is cut off.
    Cut,
}

/// What is minimised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OfflineObjective {
    /// The mean negative log-prob of the completions' tokens.
    Sft(Sft),
    /// Losses of pairs that measure from a reference policy: DPO and its kin.
    Dpo(Dpo),
    /// Losses of pairs without a reference policy: CPO, SimPO, AlphaPO.
    Cpo(Cpo),
    /// Supervised learning with a penalty by odds ratios.
    Orpo(Orpo),
    /// A loss of completions that are desirable or not.
    Kto(Kto),
}

/// Supervised fine-tuning has no settings of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sft {}

impl OfflineObjective {
    /// True where it measures from a reference policy.
    pub fn has_reference(&self) -> bool {
        matches!(self, OfflineObjective::Dpo(_) | OfflineObjective::Kto(_))
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        match self {
            OfflineObjective::Sft(_) => Ok(()),
            OfflineObjective::Dpo(dpo) => dpo.check(),
            OfflineObjective::Cpo(cpo) => cpo.check(),
            OfflineObjective::Orpo(orpo) => orpo.check(),
            OfflineObjective::Kto(kto) => kto.check(),
        }
        .map_err(|e| e.at("objective"))
    }
}

/// Measurements on held-out records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfflineEvaluation {
    /// Every so many steps, and at the end; 0: at the end only.
    pub every: u64,
    /// Held-out records that are measured; 0: none.
    pub records: usize,
    /// Prompts of held-out records that are answered by greedy decoding, for `rollouts.jsonl`.
    pub completions: usize,
    /// The longest such answer, tokens.
    pub max_new_tokens: usize,
}

impl OfflineSettings {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        if self.batch == 0 || self.micro_batch_tokens == 0 {
            return Err(Error::invalid("batch and micro_batch_tokens must be at least 1"));
        }
        if self.steps.is_none() && !(self.epochs > 0.0 && self.epochs.is_finite()) {
            return Err(Error::invalid(format!("epochs is {}; it must be positive", self.epochs)));
        }
        if self.steps == Some(0) {
            return Err(Error::invalid("steps is 0; it must be at least 1"));
        }
        if self.evaluation.completions > 0 && self.evaluation.max_new_tokens == 0 {
            return Err(Error::invalid("evaluation.max_new_tokens is 0; it must be at least 1"));
        }
        if !matches!(self.model, ModelSettings::Folder { .. }) {
            return Err(Error::invalid(
                "model.kind must be \"folder\": what is written down needs a model with a tokenizer (--model DIR)",
            ));
        }
        if self.reference.is_some() && !self.objective.has_reference() {
            return Err(Error::invalid("reference is set, and this objective measures from none"));
        }
        if self.data.evaluation.is_some() && self.data.held_out > 0 {
            return Err(Error::invalid(
                "data.held_out takes records of the training file, and data.evaluation is a file of its own: give one",
            ));
        }
        self.optimizer.check().map_err(|e| e.at("optimizer"))?;
        self.objective.check()
    }

    /// Optimizer updates of a run on so many records.
    pub fn total_steps(&self, records: usize) -> u64 {
        let derived = (self.epochs * records as f64 / self.batch.max(1) as f64).ceil() as u64;
        self.steps.unwrap_or(derived.max(1))
    }
}
