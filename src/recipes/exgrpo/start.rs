//! The base policy of a seed: taught on noisy chains, so that it is unsure where reinforcement is to improve it.

use super::settings::ExGrpoSettings;
use crate::error::Result;
use crate::models::{Gpt, GptConfig};
use crate::optim::AdamWSettings;
use crate::rl::small_policy::Sequence;
use crate::rng;
use crate::tasks::permutation_chain::{LEVELS, PROMPT, PermutationChain, RESPONSE};
use crate::train::small_learner::SmallLearner;

/// What every arm of a seed goes on from.
pub struct Start {
    pub(super) model: Gpt,
    pub(super) task: PermutationChain,
}

/// Trains the base policy.
pub(super) fn start(settings: &ExGrpoSettings, seed: u64) -> Result<Start> {
    let task = PermutationChain::new(settings.task.clone(), seed)?;
    let config = GptConfig {
        vocab: task.vocabulary().size(),
        width: settings.width,
        layers: settings.layers,
        heads: settings.heads,
        context: PROMPT + RESPONSE,
        ngram: 1,
    };
    let optimizer = AdamWSettings {
        learning_rate: settings.imitation_rate,
        beta2: 0.99,
        ..AdamWSettings::default()
    };
    let mut learner = SmallLearner::new(Gpt::random(config, seed)?, optimizer, 50)?;
    let mut draws = rng::Sequence::new(seed, rng::Stream::Free, 2);
    for step in 0..settings.imitation_steps {
        let examples: Vec<Vec<i32>> = (0..settings.imitation_batch)
            .map(|i| {
                let (question, response) = task.noisy_chain(i % LEVELS, &mut draws);
                let mut tokens = task.vocabulary().prompt(&question);
                tokens.extend(response);
                tokens
            })
            .collect();
        let sequences: Vec<Sequence<'_>> =
            examples.iter().map(|tokens| Sequence { tokens, prompt: PROMPT }).collect();
        let late = step as f64 >= 0.7 * settings.imitation_steps as f64;
        learner.imitate(&sequences, if late { 0.3 } else { 1.0 })?;
    }
    Ok(Start { model: learner.model, task })
}
