//! Every number of the ExGRPO recipe.

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
    /// Updates over which the learning rate rises.
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
    /// Held-out accuracy is measured every so many rollouts.
    pub measured_every: usize,
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
            warmup: 10,
            max_grad_norm: 1.0,
            entropy_coefficient: 1e-3,
            clip: 0.2,
            replayed: 0.5,
            kept: 8,
            measured_every: 1600,
        }
    }
}

impl ExGrpoSettings {
    /// Two tokens for every state: a question has several right answers, so that there are trajectories to choose from.
    pub fn spelled() -> ExGrpoSettings {
        let task = ChainConfig { spellings: 2, ..ChainConfig::default() };
        ExGrpoSettings { task, ..ExGrpoSettings::default() }
    }

    /// A weaker base policy and smaller batches: runs may collapse.
    pub fn stress() -> ExGrpoSettings {
        let task = ChainConfig {
            reliability: [0.85, 0.65, 0.42, 0.3, 0.22, 0.13],
            training: [20, 70, 300, 550, 750],
            ..ChainConfig::default()
        };
        ExGrpoSettings { task, prompts: 32, rollouts: 20_000, ..ExGrpoSettings::default() }
    }

    /// So small that it shows nothing but that everything runs.
    #[must_use]
    pub fn quick(self) -> ExGrpoSettings {
        let task =
            ChainConfig { training: [12, 12, 12, 12, 12], held_out: 6, round: 32, ..self.task };
        ExGrpoSettings {
            width: 16,
            heads: 2,
            task,
            imitation_steps: 60,
            imitation_batch: 32,
            prompts: 8,
            rollouts: 160,
            measured_every: 80,
            ..self
        }
    }
}

/// Replay as one arm does it. `None` of these: on-policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Replaying {
    /// Which questions come back.
    pub law: BucketLaw,
    /// Of a question's trajectories the one of lowest mean entropy comes back; otherwise any.
    pub lowest_entropy: bool,
    /// The gain of the shaping `w/(w+0.1)`; `None`: the plain ratio `w`.
    pub gain: Option<f32>,
    /// Replay begins when a batch of rollouts succeeds this often.
    pub starts_at: f64,
    /// Fresh rollouts keep PPO's clip when replay has begun.
    pub clipped: bool,
}
