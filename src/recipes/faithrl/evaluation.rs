//! Measuring a policy on held-out problems, with the truth about what is answerable.

use crate::error::Result;
use crate::rl::policy::Policy;
use crate::rl::sampling::Sampling;
use crate::rng::Stream;
use crate::tasks::two_hop::{self, Class, Exercise, Outcome, Verdict, verdict};

/// Problems decoded together: more do not fit the second-level cache.
const TOGETHER: usize = 128;

/// Draws for evaluation are none that training uses.
const EVALUATION: u64 = 1 << 62;

/// Rates over some problems. NaN where there is nothing to divide by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sampled {
    /// Right answers.
    pub correct: f64,
    /// Wrong answers, any answer where a fact is missing, and what is malformed.
    pub hallucinated: f64,
    /// Refusals.
    pub refused: f64,
    /// Refusals where a fact is missing.
    pub correctly_refused: f64,
    /// Refusals among the problems of each class, as [`Class::ALL`] orders them.
    pub refused_of: [f64; 5],
    /// Steps that are not supported, of all steps.
    pub unsupported: f64,
    /// Responses with a third step, of those that answer.
    pub third_step: f64,
}

/// Sums that become [`Sampled`].
#[derive(Default)]
pub(super) struct Counted {
    problems: f64,
    correct: f64,
    refused: f64,
    correctly_refused: f64,
    steps: f64,
    unsupported: f64,
    third: f64,
    answered: f64,
    of_class: [f64; 5],
    refused_of: [f64; 5],
}

impl Counted {
    pub(super) fn add(&mut self, problem: &Exercise, judged: &Verdict) {
        let class = Class::ALL.iter().position(|class| *class == problem.class).unwrap_or(0);
        let unanswerable = problem.class.is_unanswerable();
        let is = |outcome| f64::from(u8::from(judged.outcome == outcome));
        let refused = is(Outcome::Refused);
        self.problems += 1.0;
        self.of_class[class] += 1.0;
        self.refused_of[class] += refused;
        self.refused += refused;
        if unanswerable {
            self.correctly_refused += refused;
        } else {
            self.correct += is(Outcome::Correct);
        }
        self.steps += judged.steps.len() as f64;
        self.unsupported += judged.unsupported() as f64;
        self.answered += is(Outcome::Correct) + is(Outcome::Wrong);
        self.third += f64::from(u8::from(judged.steps.len() == 3));
    }

    pub(super) fn rates(&self) -> Sampled {
        let of = |count: f64| count / self.problems;
        Sampled {
            correct: of(self.correct),
            hallucinated: of(self.problems - self.correct - self.refused),
            refused: of(self.refused),
            correctly_refused: of(self.correctly_refused),
            refused_of: std::array::from_fn(|i| self.refused_of[i] / self.of_class[i]),
            unsupported: self.unsupported / self.steps,
            third_step: self.third / self.answered,
        }
    }
}

/// The rates of one response to each problem, drawn at a temperature (0: the most likely one).
pub(super) fn sampled(
    policy: &dyn Policy,
    problems: &[Exercise],
    temperature: f32,
    seed: u64,
) -> Result<Sampled> {
    let mut counted = Counted::default();
    for (i, part) in problems.chunks(TOGETHER).enumerate() {
        let prompts: Vec<Vec<i32>> = part.iter().map(Exercise::prompt).collect();
        let sampling = Sampling {
            temperature,
            truncation: Default::default(),
            max_new_tokens: two_hop::RESPONSE,
            stop: vec![two_hop::END],
            banned: Vec::new(),
            seed,
            stream: Stream::Sample,
            first_sequence: EVALUATION + (i * TOGETHER) as u64,
            activity: Default::default(),
        };
        let drawn = policy.generate(&prompts, &vec![1; part.len()], &sampling, None)?;
        for (problem, response) in part.iter().zip(&drawn) {
            counted.add(problem, &verdict(problem, &response.tokens, !response.truncated));
        }
    }
    Ok(counted.rates())
}
