//! The settings of a GRPO run: what a recipe gives defaults for and a TOML file overrides.

use crate::error::{Error, Result};
use crate::kernels::advantage::{Estimator, Need};
use crate::kernels::policy_loss::Objective;
use crate::optim::{AdamWSettings, Schedule};
use crate::rl::dynamic_sampling::DynamicSampling;
use crate::rl::length::OverlongShaping;
use crate::tasks::arithmetic::ArithmeticConfig;
use crate::tasks::jsonl::JsonlConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that decides a run. Unknown keys are errors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The seed of every random draw.
    pub seed: u64,
    /// Reinforcement-learning steps, after the warm-up.
    pub steps: u64,
    /// The model that is trained.
    pub model: ModelSettings,
    /// The problems.
    pub task: TaskSettings,
    /// Supervised learning before the first rollout.
    pub warmup: WarmupSettings,
    /// How completions are drawn.
    pub rollout: RolloutSettings,
    /// How rewards become advantages.
    pub advantage: Estimator,
    /// What is minimised.
    pub objective: Objective,
    /// How one batch of rollouts becomes optimizer updates.
    pub update: UpdateSettings,
    /// The optimizer of the reinforcement-learning phase.
    pub optimizer: AdamWSettings,
    /// Its learning-rate schedule, over all updates of the phase.
    pub schedule: Schedule,
    /// Measurements on held-out problems.
    pub evaluation: EvaluationSettings,
    /// What is kept on the disk.
    pub checkpoint: CheckpointSettings,
}

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelSettings {
    /// A new one with random weights.
    Small {
        /// Its family, as `gradstone list models` names it.
        architecture: String,
        /// Width of the residual stream.
        hidden_size: usize,
        /// Blocks.
        layers: usize,
        /// Attention heads.
        heads: usize,
        /// The longest sequence, tokens.
        context: usize,
        /// `f32` or `bf16`.
        dtype: String,
    },
    /// A folder in the layout of Hugging Face: `config.json`, `tokenizer.json`, `*.safetensors`.
    Folder {
        /// The folder.
        path: PathBuf,
        /// The type to hold the weights in; absent: that of the files.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dtype: Option<String>,
    },
}

/// Which problems.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TaskSettings {
    /// Sums made in code.
    Arithmetic(ArithmeticConfig),
    /// A file of problems.
    Jsonl(JsonlTask),
}

/// A file of problems and how to read it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonlTask {
    /// The file.
    pub path: PathBuf,
    /// How to read it.
    #[serde(default)]
    pub format: JsonlConfig,
}

/// Supervised learning on worked examples before the first rollout.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupSettings {
    /// Steps; 0 for none.
    pub steps: u64,
    /// Worked examples a step.
    pub examples: usize,
    /// Its own optimizer.
    pub optimizer: AdamWSettings,
    /// Its learning-rate schedule.
    pub schedule: Schedule,
}

/// How completions are drawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutSettings {
    /// Problems a step.
    pub prompts: usize,
    /// Completions of each.
    pub group: usize,
    /// Logits are divided by it; > 0.
    pub temperature: f32,
    /// The longest completion, tokens.
    pub max_new_tokens: usize,
    /// Completions generated side by side; memory, not results, depends on it.
    pub batch: usize,
    /// Rollouts of each step that are written to `rollouts.jsonl`.
    pub logged: usize,
    /// Completions that were cut at the limit count in their group's statistics and not in the loss (TRL
    /// `mask_truncated_completions`).
    #[serde(default)]
    pub mask_truncated: bool,
    /// Groups whose answers are all right or all wrong are left out and others drawn in their place (DAPO, arXiv
    /// 2503.14476).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dynamic_sampling: Option<DynamicSampling>,
    /// A penalty for completions near the length limit (DAPO).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlong: Option<OverlongShaping>,
}

/// How one batch of rollouts becomes optimizer updates.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateSettings {
    /// Passes over the batch.
    pub epochs: usize,
    /// Optimizer updates a pass, each over an equal share of the prompts.
    pub minibatches: usize,
    /// Tokens run through the model at once; gradients are accumulated over these micro-batches.
    pub micro_batch_tokens: usize,
    /// Recompute activations in the backward pass instead of keeping them.
    pub recompute: bool,
}

/// Measurements on held-out problems.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSettings {
    /// Every so many steps of the reinforcement-learning phase, and at its end; 0: only after each phase.
    pub every: u64,
    /// Held-out problems, answered by greedy decoding.
    pub problems: usize,
}

/// What is kept on the disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSettings {
    /// Every so many steps, and at the end; 0: only at the end.
    pub every: u64,
    /// How many of the newest are kept; 0: all.
    pub keep: usize,
}

impl Settings {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("rollout.prompts", self.rollout.prompts),
            ("rollout.group", self.rollout.group),
            ("rollout.max_new_tokens", self.rollout.max_new_tokens),
            ("rollout.batch", self.rollout.batch),
            ("update.epochs", self.update.epochs),
            ("update.minibatches", self.update.minibatches),
            ("update.micro_batch_tokens", self.update.micro_batch_tokens),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid(format!("{name} is 0; it must be at least 1")));
        }
        if !(self.rollout.temperature > 0.0 && self.rollout.temperature.is_finite()) {
            return Err(Error::invalid(format!(
                "rollout.temperature is {}; it must be positive (greedy rollouts have no gradient)",
                self.rollout.temperature
            )));
        }
        if !self.rollout.prompts.is_multiple_of(self.update.minibatches) {
            return Err(Error::invalid(format!(
                "update.minibatches = {} does not divide rollout.prompts = {}",
                self.update.minibatches, self.rollout.prompts
            )));
        }
        if self.warmup.steps > 0 && self.warmup.examples == 0 {
            return Err(Error::invalid("warmup.examples is 0; it must be at least 1"));
        }
        if self.rollout.dynamic_sampling.is_some_and(|sampling| sampling.max_rounds == 0) {
            return Err(Error::invalid(
                "rollout.dynamic_sampling.max_rounds is 0; a run would never end once every problem is solved",
            ));
        }
        if let Some(overlong) = &self.rollout.overlong {
            overlong.check().map_err(|e| e.at("rollout.overlong"))?;
        }
        self.optimizer.check().map_err(|e| e.at("optimizer"))?;
        self.warmup.optimizer.check().map_err(|e| e.at("warmup.optimizer"))?;
        self.advantage.check_available(&[Need::Lengths], "the trainer")?;
        self.objective.check()
    }

    /// Steps of both phases.
    pub fn total_steps(&self) -> u64 {
        self.warmup.steps + self.steps
    }
}
