//! How completions are drawn, and what their log-probs are log-probs of.

use super::activity::Activity;
use crate::kernels::sample::Truncation;
use crate::ops::SoftmaxOptions;
use crate::rng::Stream;

/// How completions are drawn.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the most likely tokens are drawn from.
    pub truncation: Truncation,
    /// The longest completion, in tokens.
    pub max_new_tokens: usize,
    /// Ids that end a completion (they are part of it).
    pub stop: Vec<i32>,
    /// Ids that are never drawn.
    pub banned: Vec<i32>,
    /// The seed of every draw.
    pub seed: u64,
    /// What the draws are for.
    pub stream: Stream,
    /// The number of the first completion: completion i is sequence `first_sequence + i`.
    pub first_sequence: u64,
    /// Told of every completion that has ended.
    pub activity: Activity,
}

impl Sampling {
    /// True where a part of the distribution cannot be drawn, so that a draw's log-prob is larger than that of the whole.
    pub fn cuts(&self) -> bool {
        self.temperature > 0.0 && !self.truncation.is_none()
    }

    /// What the recorded log-probs are of: the tempered distribution over the whole vocabulary. Truncation and bans
    /// change which tokens can be drawn, not what is recorded.
    pub fn distribution(&self) -> Distribution {
        let greedy = self.temperature == 0.0;
        Distribution { temperature: if greedy { 1.0 } else { self.temperature } }
    }
}

/// The distribution that the log-probs of a batch belong to. The sampler puts it into the batch and whoever scores the
/// batch again reads it there, so that both see the same one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// Logits are divided by it; > 0.
    pub temperature: f32,
}

impl Default for Distribution {
    fn default() -> Distribution {
        Distribution { temperature: 1.0 }
    }
}

impl Distribution {
    /// The softmax of a model whose logits are capped at `softcap`.
    pub fn of(self, softcap: Option<f32>) -> SoftmaxOptions {
        SoftmaxOptions { temperature: self.temperature, softcap, banned: Vec::new() }
    }
}
