//! The base policy of a seed: taught on noisy chains, so that it is unsure where reinforcement is to improve it.

use super::settings::ExGrpoSettings;
use crate::error::Result;
use crate::models::{Gpt, GptConfig};
use crate::optim::AdamWSettings;
use crate::rl::episode::Scored;
use crate::rng;
use crate::tasks::permutation_chain::{LEVELS, PROMPT, PermutationChain, RESPONSE};
use crate::train::supervised::Imitation;

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
    let mut model = Gpt::random(config, seed)?;
    let mut imitation = Imitation::new(&model, optimizer, 50)?;
    let mut draws = rng::Sequence::new(seed, rng::Stream::Free, 2);
    for step in 0..settings.imitation_steps {
        let examples: Vec<(Vec<i32>, Vec<i32>)> = (0..settings.imitation_batch)
            .map(|i| {
                let (question, response) = task.noisy_chain(i % LEVELS, &mut draws);
                (task.vocabulary().prompt(&question), response)
            })
            .collect();
        let scored: Vec<Scored<'_>> =
            examples.iter().map(|(prompt, response)| Scored::new(prompt, response)).collect();
        let late = step as f64 >= 0.7 * settings.imitation_steps as f64;
        imitation.step(&mut model, &scored, if late { 0.3 } else { 1.0 })?;
    }
    Ok(Start { model, task })
}
