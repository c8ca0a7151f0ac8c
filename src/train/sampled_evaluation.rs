//! An evaluation by sampling: several attempts at every problem, counted.

use super::pass_at_k::{Estimate, pass_at_k};
use super::world::World;
use crate::error::{Error, Result};
use crate::kernels::sample::Truncation;
use crate::rl::policy::Policy;
use crate::rl::sampling::Sampling;
use crate::rng::Stream;
use crate::tasks::{Faults, Judgement, Label, Problem};
use serde::Serialize;

/// What is done at every problem.
pub struct SampledEvaluation<'a> {
    /// The policy.
    pub policy: &'a dyn Policy,
    /// What it works on.
    pub world: &'a World,
    /// `[functions]` weights of the named rewards.
    pub weights: Vec<f64>,
    /// Attempts at a problem.
    pub samples: usize,
    /// Divides the logits; 0: the most likely token, of which one attempt is all there is.
    pub temperature: f32,
    /// What part of the distribution is drawn from.
    pub truncation: Truncation,
    /// The longest completion, tokens.
    pub max_new_tokens: usize,
    /// Completions generated side by side.
    pub batch: usize,
    /// The seed of every draw.
    pub seed: u64,
}

/// A verifier without labels says that an attempt is right with a weighted reward above this.
const RIGHT_ABOVE: f64 = 0.5;

/// What became of the attempts at a problem.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// The prompt as text.
    pub prompt: String,
    /// The known answer.
    pub answer: String,
    /// Attempts that were judged; where a verifier failed, fewer than were drawn.
    pub samples: usize,
    /// Attempts that are right.
    pub right: usize,
    /// Attempts that refuse to answer and are not right with it.
    pub refused: usize,
    /// Attempts that were cut off at the length limit.
    pub truncated: usize,
    /// The sum of the weighted rewards.
    pub reward: f64,
    /// Tokens of all attempts.
    pub tokens: usize,
}

/// What an evaluation found.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// One per problem.
    pub problems: Vec<Tally>,
    /// What verifiers got wrong.
    pub faults: Faults,
}

impl SampledEvaluation<'_> {
    /// Attempts every problem; `progress` is told how many are done. The result is a function of the weights, the problems and
    /// the seed.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for no samples, several of which all would be the same, or a temperature that is no number from 0
    /// up; what the policy and the verifier report.
    pub fn run(&self, problems: &[Problem], progress: &mut dyn FnMut(usize)) -> Result<Evaluated> {
        if self.samples == 0 || !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::invalid(format!(
                "{} samples at temperature {}: at least 1, at a number from 0 up",
                self.samples, self.temperature
            )));
        }
        if self.samples > 1 && self.temperature == 0.0 {
            return Err(Error::invalid(format!(
                "temperature 0 always takes the most likely token: all {} samples would be the same",
                self.samples
            )));
        }
        let mut evaluated = Evaluated { problems: Vec::new(), faults: Faults::default() };
        let mut sampling = Sampling {
            temperature: self.temperature,
            truncation: self.truncation,
            max_new_tokens: self.max_new_tokens,
            stop: self.world.stop.clone(),
            banned: self.world.codec.banned(),
            seed: self.seed,
            stream: Stream::HeldOut,
            first_sequence: 0,
            activity: Default::default(),
        };
        for part in problems.chunks((self.batch / self.samples).max(1)) {
            let of: Vec<&Problem> = part.iter().collect();
            let attempts = self.world.attempts(self.policy, &of, self.samples, &sampling)?;
            sampling.first_sequence += attempts.episodes.len() as u64;
            evaluated.faults = evaluated.faults.plus(&attempts.judged.faults);
            let judged = attempts.episodes.iter().zip(&attempts.judged.judgements);
            let mut tallies: Vec<Tally> = part.iter().map(Tally::new).collect();
            for (episode, judgement) in judged {
                let tally = &mut tallies[episode.prompt];
                tally.truncated += usize::from(episode.truncated);
                tally.tokens += episode.tokens.len();
                if let Some(judgement) = judgement {
                    self.count(judgement, tally);
                }
            }
            evaluated.problems.append(&mut tallies);
            progress(evaluated.problems.len());
        }
        Ok(evaluated)
    }

    fn count(&self, judgement: &Judgement, tally: &mut Tally) {
        let terms = judgement.rewards.iter().zip(&self.weights);
        let reward: f64 = terms.map(|(reward, weight)| f64::from(*reward) * weight).sum();
        let right = match judgement.label {
            Some(label) => label == Label::Right,
            None => reward > RIGHT_ABOVE,
        };
        tally.samples += 1;
        tally.reward += reward;
        tally.right += usize::from(right);
        tally.refused += usize::from(judgement.label == Some(Label::Refused));
    }
}

impl Tally {
    fn new(problem: &Problem) -> Tally {
        let (prompt, answer) = (problem.prompt().into_owned(), problem.answer.clone());
        Tally { prompt, answer, ..Tally::default() }
    }
}

impl Evaluated {
    /// pass@k over the problems that have at least `k` judged attempts; `None` where none has. k = 1 is the mean accuracy.
    pub fn pass_at(&self, k: usize, seed: u64) -> Option<Estimate> {
        let each = self.problems.iter().filter_map(|one| pass_at_k(one.samples, one.right, k));
        Estimate::of(&each.collect::<Vec<f64>>(), seed)
    }

    /// A count of all problems together.
    pub fn total(&self, count: impl Fn(&Tally) -> usize) -> usize {
        self.problems.iter().map(count).sum()
    }

    /// The mean weighted reward of the attempts that were judged.
    pub fn mean_reward(&self) -> f64 {
        let sum: f64 = self.problems.iter().map(|one| one.reward).sum();
        sum / self.total(|one| one.samples).max(1) as f64
    }
}
