//! The base policy of a seed: a small model that can look facts up and refuse, made unreliable by noisy examples, and the
//! rates at which it is right and hallucinates.

use super::evaluation::{Sampled, sampled};
use super::settings::{FaithRlSettings, Imitation};
use crate::error::{Error, Result};
use crate::models::{Gpt, GptConfig};
use crate::optim::AdamWSettings;
use crate::rl::faithful::Baseline;
use crate::rl::small_policy::Sequence;
use crate::rng;
use crate::tasks::two_hop::{self, Problem, TwoHop, clean_trace, noisy_trace};
use crate::train::small_learner::SmallLearner;

/// What arms of a seed go on from: a base policy.
pub struct Start {
    pub(super) model: Gpt,
    pub(super) task: TwoHop,
    /// Measured by sampling on held-out problems that are not reported on.
    pub(super) baseline: Baseline,
}

/// Problems of the noisy phase and of reinforcement are others than those before.
const NOISY_FROM: u64 = 1 << 32;
pub(super) const RL_FROM: u64 = 2 << 32;

/// Trains the base policies and measures them: first one model that looks things up, by the first settings, then from it
/// one base policy for each of the settings.
pub(super) fn starts(settings: &[&FaithRlSettings], seed: u64) -> Result<Vec<Start>> {
    let Some(first) = settings.first() else { return Ok(Vec::new()) };
    let config = GptConfig {
        vocab: two_hop::VOCAB,
        width: first.width,
        layers: first.layers,
        heads: first.heads,
        context: two_hop::PROMPT + two_hop::RESPONSE,
        ngram: 3,
    };
    let task = TwoHop::new(first.clean_task.clone())?;
    let model = looking_up(Gpt::random(config, seed)?, first, &task, seed)?;
    settings.iter().map(|settings| base(settings, &model, seed)).collect()
}

/// Most rounds of the clean phase.
const ROUNDS: u64 = 5;

/// A model that looks facts up. Some seeds need more than one round: looking up is learned in a sudden step, whose moment
/// varies, and a model that has not taken it says nothing about rewards.
fn looking_up(mut model: Gpt, settings: &FaithRlSettings, task: &TwoHop, seed: u64) -> Result<Gpt> {
    let problems: Vec<Problem> =
        (0..settings.problems as u64).map(|i| task.held_out(seed, i)).collect();
    let examples = settings.clean.steps * settings.clean.batch as u64;
    for round in 0..ROUNDS {
        model = imitate(model, &settings.clean, |index| {
            let problem = task.problem(seed, round * examples + index);
            let trace = clean_trace(&problem);
            (problem, trace)
        })?;
        let Sampled { correct, correctly_refused, .. } = sampled(&model, &problems, 0.0, seed)?;
        if correct + correctly_refused >= settings.looks_up {
            return Ok(model);
        }
    }
    Err(Error::state(format!(
        "faithrl: the model of seed {seed} did not learn to look facts up in {ROUNDS} rounds"
    )))
}

fn base(settings: &FaithRlSettings, clean: &Gpt, seed: u64) -> Result<Start> {
    let task = TwoHop::new(settings.task.clone())?;
    let mut draws = rng::Sequence::new(seed, rng::Stream::Free, 1);
    let model = imitate(clean.copy()?, &settings.noisy, |index| {
        let problem = task.problem(seed, NOISY_FROM + index);
        let trace = noisy_trace(&problem, &settings.noise, &mut draws);
        (problem, trace)
    })?;
    let others: Vec<Problem> = (0..settings.problems as u64)
        .map(|i| task.held_out(seed, settings.problems as u64 + i))
        .collect();
    let Sampled { correct, correctly_refused, hallucinated, .. } =
        sampled(&model, &others, 1.0, seed)?;
    let baseline = Baseline { correct: correct + correctly_refused, hallucinated }.at_least(0.01);
    Ok(Start { model, task, baseline })
}

fn imitate(
    model: Gpt,
    imitation: &Imitation,
    mut example: impl FnMut(u64) -> (Problem, Vec<i32>),
) -> Result<Gpt> {
    let settings = AdamWSettings {
        learning_rate: imitation.learning_rate,
        beta2: 0.99,
        max_grad_norm: 1.0,
        ..AdamWSettings::default()
    };
    let mut learner = SmallLearner::new(model, settings, 30)?;
    for step in 0..imitation.steps {
        let examples: Vec<Vec<i32>> = (0..imitation.batch as u64)
            .map(|i| {
                let (problem, trace) = example(step * imitation.batch as u64 + i);
                let mut tokens = problem.prompt;
                tokens.extend(trace);
                tokens
            })
            .collect();
        let sequences: Vec<Sequence<'_>> =
            examples.iter().map(|tokens| Sequence { tokens, prompt: two_hop::PROMPT }).collect();
        let half = imitation.steps as f64 / 2.0;
        let past = ((step as f64 - half) / half).max(0.0);
        learner.imitate(&sequences, 1.0 - 0.9 * past)?;
    }
    Ok(learner.model)
}
