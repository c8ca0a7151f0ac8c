//! The settings of a run of reinforcement: what a recipe gives defaults for and a TOML file overrides.

use crate::error::{Error, Result};
use crate::kernels::advantage::Estimator;
use crate::kernels::policy_loss::Objective;
use crate::kernels::sample::Truncation;
use crate::optim::{AdamWSettings, Schedule};
use crate::rl::critic::CriticSettings;
use crate::rl::dynamic_sampling::DynamicSampling;
use crate::rl::entropy_control::EntropyControl;
use crate::rl::filling_policy::Filling;
use crate::rl::length::OverlongShaping;
use crate::rl::process_reward::ProcessRewardSettings;
use crate::rl::replay::ReplaySettings;
use crate::rl::resampling::Resampling;
use crate::rl::stage::correction::CorrectionSettings;
use crate::rl::stage::credit::CreditSettings;
use crate::rl::stage::logprobs::ReferenceSettings;
use crate::rl::stage::reward::RewardSettings;
use crate::tasks::TaskSettings;
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
    /// How what verifiers say becomes one reward.
    #[serde(default)]
    pub reward: RewardSettings,
    /// How rewards become advantages.
    pub advantage: Estimator,
    /// A value per token, for `advantage = "gae"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critic: Option<CriticSettings>,
    /// An implicit process reward per token, for `advantage = "prime"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_reward: Option<ProcessRewardSettings>,
    /// What verdicts about steps do to advantages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit: Option<CreditSettings>,
    /// Importance weights and rejections between what sampled and what is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction: Option<CorrectionSettings>,
    /// The policy that KL terms measure from.
    #[serde(default)]
    pub reference: ReferenceSettings,
    /// Past successes that come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<ReplaySettings>,
    /// What is minimised.
    pub objective: Objective,
    /// A coefficient of the entropy bonus that follows the entropy; it starts as that of the objective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy_control: Option<EntropyControl>,
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
    /// A new small GPT whose embedding sums an n-gram, for tasks that are made of ids.
    Ids {
        /// Width of the residual stream.
        width: usize,
        /// Blocks.
        layers: usize,
        /// Attention heads.
        heads: usize,
        /// Tokens that an embedding sums.
        ngram: usize,
    },
    /// A folder in the layout of Hugging Face: `config.json`, `tokenizer.json`, `*.safetensors`.
    Folder {
        /// The folder.
        path: PathBuf,
        /// The type to hold the weights in; absent: that of the files, and where they have several, that of `config.json`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dtype: Option<String>,
        /// The day, as `2026-11-29`, that a chat template which writes the date is told; a run writes down that on which it began.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        date: Option<String>,
    },
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
    /// Only the `top_k` most likely tokens are drawn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Only the fewest most likely tokens whose probabilities reach `top_p` are drawn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Only tokens that are at least `min_p` times as likely as the likeliest one are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
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
    /// The batch is drawn again from itself, with chances by score (PF-PPO, arXiv 2409.06957).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resampling: Option<Resampling>,
    /// In which order a finite task's problems are asked.
    #[serde(default)]
    pub order: Order,
    /// How a model that fills masked blocks writes and is scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filling: Option<Filling>,
}

impl RolloutSettings {
    /// What part of the distribution is drawn from.
    pub fn truncation(&self) -> Truncation {
        Truncation { top_k: self.top_k, top_p: self.top_p, min_p: self.min_p }
    }
}

/// In which order a finite task's problems are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The task's own order, a function of the seed and a counter.
    #[default]
    Task,
    /// Every problem once in an epoch, in an order drawn as the run goes on; what replay has retired is passed over.
    Epochs,
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
    /// Compute the old log-probs again before the first update instead of taking those that sampling recorded.
    #[serde(default)]
    pub recompute_old: bool,
    /// No update where no group has two different rewards: the entropy bonus alone, through Adam, would undo what was
    /// learned.
    #[serde(default)]
    pub skip_degenerate: bool,
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
    /// The step that was the best on held-out data is saved and kept beside the newest.
    #[serde(default)]
    pub best: bool,
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
        if self.rollout.group == 1 && self.steps > 0 && self.advantage.compares_within_groups() {
            return Err(Error::invalid(format!(
                "rollout.group = 1 with advantage `{}`: each completion is compared with the others of its group, so that alone it \
                 has advantage 0 and nothing is learned. Set rollout.group to 2 or more (8 is usual), or take an advantage that \
                 does not compare (reinforce_plus_plus, remax, gae with a critic)",
                self.advantage.kind()
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
        self.reward.check()?;
        self.critic.as_ref().map_or(Ok(()), CriticSettings::check)?;
        self.process_reward.as_ref().map_or(Ok(()), ProcessRewardSettings::check)?;
        self.credit.as_ref().map_or(Ok(()), CreditSettings::check).map_err(|e| e.at("credit"))?;
        self.correction.as_ref().map_or(Ok(()), |one| one.named().map(|_| ()))?;
        self.replay.as_ref().map_or(Ok(()), |replay| replay.check(self.rollout.group))?;
        if let Some(control) = &self.entropy_control {
            control.start(f64::from(self.objective.entropy_coefficient))?;
        }
        self.advantage.check()?;
        self.objective.check()
    }

    /// Steps of both phases.
    pub fn total_steps(&self) -> u64 {
        self.warmup.steps + self.steps
    }
}
