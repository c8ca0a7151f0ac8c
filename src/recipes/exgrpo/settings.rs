//! Every number of the ExGRPO recipe.

use crate::error::{Error, Result};
use crate::rl::replay::BucketLaw;
use crate::tasks::permutation_chain::ChainConfig;
use serde::{Deserialize, Serialize};

/// The model, the base policy, reinforcement and its measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExGrpoSettings {
    /// Width of the model.
    pub width: usize,
    /// Its blocks.
    pub layers: usize,
    /// Its heads.
    pub heads: usize,
    /// The problems, and how noisy the examples of the base policy are.
    pub task: ChainConfig,
    /// Updates on noisy examples.
    pub imitation_steps: u64,
    /// Examples of an update.
    pub imitation_batch: usize,
    /// Their learning rate; three tenths of it in the last 30 %.
    pub imitation_rate: f64,
    /// Questions of a batch.
    pub prompts: usize,
    /// Rollouts of a question, a replayed one among them.
    pub group: usize,
    /// Rollouts that a run may generate.
    pub rollouts: usize,
    /// The learning rate of reinforcement.
    pub learning_rate: f64,
    /// Updates over which it rises.
    pub warmup: u64,
    /// The largest gradient norm.
    pub max_grad_norm: f64,
    /// Weight of the entropy bonus.
    pub entropy_coefficient: f32,
    /// How far a ratio may go from 1 before replay begins; without a clip after.
    pub clip: f32,
    /// Share of a batch's questions that come from the pool, at most.
    pub replayed: f64,
    /// Most trajectories of a question in the pool.
    pub kept: usize,
    /// Questions solved by a whole group are not asked again.
    pub retire: bool,
    /// Which past successes come back, and how much they count.
    pub replay: ReplaySettings,
    /// Held-out accuracy is measured every so many rollouts.
    pub measured_every: usize,
}

/// Which past successes come back, and how much they count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplaySettings {
    /// Without, learning is on-policy and the other keys are not read.
    pub enabled: bool,
    /// Which questions come back.
    pub law: BucketLaw,
    /// Of a question's trajectories the one of lowest mean entropy comes back; otherwise any.
    pub lowest_entropy: bool,
    /// A replayed token's ratio `w` becomes `gain · w / (w + 0.1)`; otherwise it stays `w`.
    pub shaped: bool,
    /// The gain of the shaping. With 12.1 = (1 + 0.1)²/0.1 a replayed token at ratio 1 has the gradient of a fresh one;
    /// the released code has 1.
    pub gain: f32,
    /// Replay begins when a batch of rollouts succeeds this often.
    pub starts_at: f64,
    /// Fresh rollouts keep PPO's clip when replay has begun.
    pub clipped: bool,
}

impl Default for ReplaySettings {
    fn default() -> ReplaySettings {
        ReplaySettings {
            enabled: true,
            law: BucketLaw::Uniform {},
            lowest_entropy: true,
            shaped: true,
            gain: 12.1,
            starts_at: 0.06,
            clipped: false,
        }
    }
}

impl Default for ExGrpoSettings {
    fn default() -> ExGrpoSettings {
        ExGrpoSettings {
            width: 64,
            layers: 2,
            heads: 4,
            task: ChainConfig::default(),
            imitation_steps: 800,
            imitation_batch: 64,
            imitation_rate: 3e-3,
            prompts: 64,
            group: 4,
            rollouts: 32_000,
            learning_rate: 4e-3,
            warmup: 10,
            max_grad_norm: 1.0,
            entropy_coefficient: 1e-3,
            clip: 0.2,
            replayed: 0.5,
            kept: 8,
            retire: true,
            replay: ReplaySettings::default(),
            measured_every: 1600,
        }
    }
}

impl ExGrpoSettings {
    /// How replay is done, where it is.
    pub(super) fn replaying(&self) -> Option<ReplaySettings> {
        Some(self.replay).filter(|replay| replay.enabled)
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        let least = [
            ("width", self.width, 1),
            ("layers", self.layers, 1),
            ("heads", self.heads, 1),
            ("imitation_batch", self.imitation_batch, 1),
            ("prompts", self.prompts, 1),
            // Beside a replayed trajectory there must be a fresh one.
            ("group", self.group, 2),
            ("measured_every", self.measured_every, 1),
            ("task.training", self.task.training.iter().sum(), 1),
        ];
        if let Some((key, value, least)) = least.iter().find(|(_, value, least)| value < least) {
            return Err(Error::invalid(format!("{key} is {value}; it must be at least {least}")));
        }
        if !(0.0..=1.0).contains(&self.replayed) {
            return Err(Error::invalid(format!("replayed is {}, not in 0..1", self.replayed)));
        }
        let positive = [
            ("learning_rate", self.learning_rate),
            ("imitation_rate", self.imitation_rate),
            ("max_grad_norm", self.max_grad_norm),
        ];
        match positive.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((key, value)) => Err(Error::invalid(format!("{key} is {value}, not positive"))),
            None => Ok(()),
        }
    }
}
