//! Every number of the FaithRL recipe.

use crate::error::{Error, Result};
use crate::kernels::step_credit::{Labelling, StepCredit};
use crate::tasks::two_hop::{NoiseConfig, TwoHopConfig};
use serde::{Deserialize, Serialize};

/// The model, its two trainings before reinforcement, and reinforcement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaithRlSettings {
    /// Width of the model.
    pub width: usize,
    /// Its blocks.
    pub layers: usize,
    /// Its heads.
    pub heads: usize,
    /// The problems.
    pub task: TwoHopConfig,
    /// The problems on which the model learns to look up.
    pub clean_task: TwoHopConfig,
    /// Learning to look up and to refuse, on sound responses.
    pub clean: Imitation,
    /// Share of right answers and right refusals that ends it; until then it begins again on more problems, from the
    /// weights that it has.
    pub looks_up: f64,
    /// The noisy responses that make the base policy.
    pub noise: NoiseConfig,
    /// Learning these.
    pub noisy: Imitation,
    /// Reinforcement.
    pub rl: Reinforcement,
    /// What an outcome is worth.
    pub reward: Reward,
    /// Advantages are divided by their group's standard deviation (GRPO); otherwise only the mean is taken off.
    pub scaled: bool,
    /// What the verdicts on steps do to advantages.
    pub credit: StepCredit,
    /// How the token that opens a step is labelled.
    pub labelling: Labelling,
    /// The trainer is told which prompts miss a fact: there a refusal is the correct answer and nothing else is.
    pub flagged: bool,
    /// Held-out problems that results are measured on; as many others give the baseline.
    pub problems: usize,
}

/// The reward of an outcome, its baseline still to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reward {
    /// 1 for a correct answer, else 0.
    Binary,
    /// 1 correct, 0 refused, -1 hallucinated (TruthRL).
    Ternary,
    /// By the rates of the start: `y0` correct, 0 refused, `-x0` hallucinated (FaithRL).
    Geometric,
}

/// Supervised training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Imitation {
    /// Updates.
    pub steps: u64,
    /// Examples of an update.
    pub batch: usize,
    /// The largest learning rate; it falls to a tenth over the second half.
    pub learning_rate: f64,
}

impl Default for Imitation {
    fn default() -> Imitation {
        Imitation { steps: 300, batch: 64, learning_rate: 3e-3 }
    }
}

/// Policy gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reinforcement {
    /// Batches of rollouts.
    pub steps: u64,
    /// Prompts of a batch.
    pub prompts: usize,
    /// Rollouts of a prompt.
    pub group: usize,
    /// Updates a batch is cut into.
    pub minibatches: usize,
    /// The learning rate.
    pub learning_rate: f64,
    /// Updates over which it rises.
    pub warmup: u64,
    /// How far a ratio may go from 1.
    pub clip: f32,
    /// The largest gradient norm.
    pub max_grad_norm: f64,
}

impl Default for Reinforcement {
    fn default() -> Reinforcement {
        Reinforcement {
            steps: 60,
            prompts: 32,
            group: 8,
            minibatches: 2,
            learning_rate: 5e-4,
            warmup: 10,
            clip: 0.2,
            max_grad_norm: 0.5,
        }
    }
}

impl Default for FaithRlSettings {
    fn default() -> FaithRlSettings {
        FaithRlSettings {
            width: 64,
            layers: 2,
            heads: 4,
            task: TwoHopConfig { faint: 0.05, ..TwoHopConfig::default() },
            clean_task: TwoHopConfig {
                unanswerable: 0.5,
                faint: 0.08,
                smudged: 0.12,
                ..TwoHopConfig::default()
            },
            clean: Imitation::default(),
            looks_up: 0.9,
            noise: NoiseConfig::default(),
            noisy: Imitation { steps: 150, learning_rate: 2e-3, ..Imitation::default() },
            rl: Reinforcement::default(),
            reward: Reward::Binary,
            scaled: true,
            // Alpha 1 changes nothing: arms without modulation go through the same code.
            credit: StepCredit::Modulate { alpha: 1.0, alpha_failed: None },
            labelling: Labelling::Verdict,
            flagged: false,
            problems: 1000,
        }
    }
}

impl FaithRlSettings {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("clean.batch", self.clean.batch),
            ("noisy.batch", self.noisy.batch),
            ("rl.prompts", self.rl.prompts),
            ("rl.group", self.rl.group),
            ("rl.minibatches", self.rl.minibatches),
            ("problems", self.problems),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid(format!("{key} is 0; it must be at least 1")));
        }
        let rates = [
            ("clean.learning_rate", self.clean.learning_rate),
            ("noisy.learning_rate", self.noisy.learning_rate),
            ("rl.learning_rate", self.rl.learning_rate),
            ("rl.max_grad_norm", self.rl.max_grad_norm),
        ];
        match rates.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((key, value)) => Err(Error::invalid(format!("{key} is {value}, not positive"))),
            None => Ok(()),
        }
    }
}
