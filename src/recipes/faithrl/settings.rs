//! Every number of the FaithRL recipe.

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
    /// Held-out problems that results are measured on; as many others give the baseline.
    pub problems: usize,
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
            problems: 1000,
        }
    }
}

impl FaithRlSettings {
    /// A task on which the baseline's precision is far above one half, and many prompts have a chance between the two:
    /// there the geometric reward refuses where the ternary one answers.
    pub fn precise() -> FaithRlSettings {
        let mild = NoiseConfig {
            fabricated: 0.04,
            answer: 0.04,
            refuse_first_missing: 0.6,
            refuse_second_missing: 0.6,
            refuse_worn: 0.35,
            refuse_answerable: 0.03,
            ..NoiseConfig::default()
        };
        FaithRlSettings {
            task: TwoHopConfig {
                unanswerable: 0.16,
                faint: 0.0,
                smudged: 0.3,
                smudged_truth: 0.62,
                ..TwoHopConfig::default()
            },
            noise: mild,
            ..FaithRlSettings::default()
        }
    }

    /// So small that it shows nothing but that everything runs.
    #[must_use]
    pub fn quick(self) -> FaithRlSettings {
        let few = |imitation: Imitation, steps| Imitation { steps, batch: 16, ..imitation };
        FaithRlSettings {
            width: 32,
            heads: 2,
            clean: few(self.clean, 150),
            looks_up: 0.0,
            noisy: few(self.noisy, 20),
            rl: Reinforcement { steps: 3, prompts: 4, group: 4, ..self.rl },
            problems: 24,
            ..self
        }
    }
}
