//! Chains of transpositions, every state written out: difficulty is the length of the chain.
//!
//! A state is a permutation of four symbols, one id. The prompt gives a state and one to five transpositions, the
//! response must give the state after each; it is right when all of them are. With more than one spelling of a state
//! there are several right responses. Worked examples are responses in which the rarer transpositions mostly go wrong, so
//! that a policy trained on them is unsure and not confidently wrong: that is what reinforcement can improve.

mod question;
mod verifier;
mod vocabulary;

pub use question::{LEVELS, OPERATIONS, Question, STATES};
pub use verifier::ChainVerifier;
pub use vocabulary::{PROMPT, RESPONSE, Vocabulary};

use super::episode::Example;
use super::epochs::Epochs;
use super::in_order::InOrder;
use super::problem::{Part, Problem, written};
use super::task::{Language, Task};
use super::verifier::Verifier;
use crate::error::{Error, Result};
use crate::rng::{Sequence, Stream};
use question::{ALLOWED, apply, every};
use serde::{Deserialize, Serialize};

/// How many problems there are, and how hard the base policy's examples make them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainConfig {
    /// Probability that each transposition is carried out right in a worked example.
    pub reliability: [f32; OPERATIONS],
    /// Training questions of each level.
    pub training: [usize; LEVELS],
    /// Most held-out questions of each level; never more than a quarter of all there are.
    pub held_out: usize,
    /// Ids that mean the same state.
    pub spellings: usize,
    /// Worked examples take the levels in turn and begin again with the easiest after so many of them.
    pub round: u64,
}

impl Default for ChainConfig {
    fn default() -> ChainConfig {
        ChainConfig {
            reliability: [0.9, 0.75, 0.5, 0.35, 0.25, 0.15],
            training: [30, 100, 300, 500, 700],
            held_out: 120,
            spellings: 1,
            round: 64,
        }
    }
}

/// Questions, split into those trained on and those held out.
#[derive(Debug)]
pub struct PermutationChain {
    config: ChainConfig,
    training: Vec<Question>,
    held_out: Vec<Question>,
    epochs: Epochs,
    examples: InOrder,
}

impl PermutationChain {
    /// The questions, split by a seed.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for no spelling, an empty round, a reliability outside `0..=1`, no training question at all, or
    /// more training questions than there are.
    pub fn new(config: ChainConfig, seed: u64) -> Result<PermutationChain> {
        if config.spellings == 0
            || config.round == 0
            || config.training.iter().all(|count| *count == 0)
            || !config.reliability.iter().all(|q| (0.0..=1.0).contains(q))
        {
            return Err(Error::invalid(format!(
                "permutation_chain: {} spellings, rounds of {}, training questions {:?}, reliability {:?}",
                config.spellings, config.round, config.training, config.reliability
            )));
        }
        let (mut training, mut held_out) = (Vec::new(), Vec::new());
        for level in 0..LEVELS {
            let mut all = every(level);
            Sequence::new(seed, Stream::Shuffle, level as u64).shuffle(&mut all);
            let outside = (all.len() / 4).min(config.held_out);
            let wanted = config.training[level];
            if all.len() - outside < wanted {
                return Err(Error::invalid(format!(
                    "permutation_chain: {wanted} training questions of level {}, there are {}",
                    level + 1,
                    all.len() - outside
                )));
            }
            held_out.extend_from_slice(&all[..outside]);
            training.extend_from_slice(&all[outside..outside + wanted]);
        }
        let epochs = Epochs::new(training.len() as u32);
        let examples = InOrder::new(Stream::Free, 2);
        Ok(PermutationChain { config, training, held_out, epochs, examples })
    }

    /// Questions to train on, easy ones first: the id of each is its index.
    pub fn questions(&self) -> &[Question] {
        &self.training
    }

    /// Questions that no training sees, neither as a question nor as an example; easy ones first.
    pub fn held_out_questions(&self) -> &[Question] {
        &self.held_out
    }

    /// Its ids.
    pub fn vocabulary(&self) -> Vocabulary {
        Vocabulary { spellings: self.config.spellings }
    }

    /// A question of a level and a response to imitate, in which each transposition goes wrong as the configuration
    /// says: left out or replaced by a random state, and the chain goes on from there. Never a held-out question.
    pub fn noisy_chain(&self, level: usize, draws: &mut Sequence) -> (Question, Vec<i32>) {
        let allowed = ALLOWED[level.min(LEVELS - 1)];
        let question = loop {
            let start = draws.below(STATES as u32) as usize;
            let operation =
                |draws: &mut Sequence| allowed[draws.below(allowed.len() as u32) as usize];
            let operations = (0..=level.min(LEVELS - 1)).map(|_| operation(draws)).collect();
            let question = Question { start, operations };
            if !self.held_out.contains(&question) {
                break question;
            }
        };
        let vocabulary = self.vocabulary();
        let mut state = question.start;
        let mut response = Vec::new();
        for operation in &question.operations {
            state = if draws.next_unit() < self.config.reliability[*operation] {
                apply(state, *operation)
            } else if draws.next_unit() < 0.5 {
                state
            } else {
                draws.below(STATES as u32) as usize
            };
            let spelling = draws.below(self.config.spellings as u32) as usize;
            response.push(vocabulary.spelled(state, spelling));
        }
        response.push(vocabulary.end());
        (question, response)
    }

    fn problem_of(&self, id: u64, question: &Question) -> Problem {
        let states: Vec<i32> = question.states().iter().map(|state| *state as i32).collect();
        let prompt = self.vocabulary().prompt(question);
        let level = question.operations.len() as u32;
        Problem { level, ..Problem::new(id, Part::Tokens(prompt), written(&states)) }
    }
}

impl Task for PermutationChain {
    fn name(&self) -> &str {
        "permutation_chain"
    }

    fn problem(&self, seed: u64, index: u64) -> Problem {
        let id = self.epochs.item(seed, index);
        self.problem_of(u64::from(id), &self.training[id as usize])
    }

    fn size(&self) -> Option<u64> {
        Some(self.training.len() as u64)
    }

    fn by_id(&self, _seed: u64, id: u64) -> Option<Problem> {
        let question = self.training.get(usize::try_from(id).ok()?)?;
        Some(self.problem_of(id, question))
    }

    /// Fewer than all of them are of all levels, in the shares that the levels have among all.
    fn held_out(&self, _seed: u64, count: usize) -> Vec<Problem> {
        let all = self.held_out.len();
        let count = count.min(all);
        (0..count)
            .map(|i| i * all / count)
            .map(|at| self.problem_of((self.training.len() + at) as u64, &self.held_out[at]))
            .collect()
    }

    fn worked_example(&self, seed: u64, index: u64) -> Option<Example> {
        let (question, response) = self.examples.item(seed, index, |index, draws| {
            self.noisy_chain((index % self.config.round) as usize % LEVELS, draws)
        });
        // An example's question need not be a training question, so it has no id.
        let problem = self.problem_of(u64::MAX, &question);
        Some(Example::one_shot(problem, Part::Tokens(response)))
    }

    fn verifier(&self) -> Box<dyn Verifier> {
        Box::new(ChainVerifier { vocabulary: self.vocabulary() })
    }

    fn language(&self) -> Language<'_> {
        Language::Ids(self.vocabulary().ids())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn questions_are_split_once() {
        let task = PermutationChain::new(ChainConfig::default(), 4).unwrap();
        let of = |questions: &[Question], n| {
            questions.iter().filter(|q| q.operations.len() == n).count()
        };
        let (training, held_out) = (task.questions(), task.held_out_questions());
        assert_eq!([1, 2, 3, 4, 5].map(|n| of(held_out, n)), [18, 96, 120, 120, 120]);
        assert_eq!([1, 2, 3, 4, 5].map(|n| of(training, n)), [30, 100, 300, 500, 700]);
        let all: BTreeSet<&Question> = training.iter().chain(held_out).collect();
        assert_eq!(all.len(), training.len() + held_out.len());
        let mut draws = Sequence::new(1, Stream::Free, 0);
        for i in 0..500 {
            let (question, response) = task.noisy_chain(i % LEVELS, &mut draws);
            assert!(!held_out.contains(&question));
            assert_eq!(response.len(), question.operations.len() + 1);
        }
    }

    #[test]
    fn bad_configurations_are_errors() {
        let default = ChainConfig::default;
        for config in [
            ChainConfig { training: [60, 100, 300, 500, 700], ..default() },
            ChainConfig { training: [0; LEVELS], ..default() },
            ChainConfig { spellings: 0, ..default() },
            ChainConfig { round: 0, ..default() },
            ChainConfig { reliability: [1.5; OPERATIONS], ..default() },
        ] {
            let error = PermutationChain::new(config.clone(), 4).unwrap_err();
            assert!(error.is_invalid(), "{config:?}");
        }
    }

    #[test]
    fn it_is_a_task() {
        let task = PermutationChain::new(ChainConfig::default(), 4).unwrap();
        let size = task.size().unwrap();
        assert_eq!(size, 1630);
        let epoch: BTreeSet<u64> = (0..size).map(|i| task.problem(9, size + i).id).collect();
        assert_eq!(epoch.len(), 1630);
        for index in 0..50 {
            let problem = task.problem(9, index);
            let question = task.vocabulary().question(problem.tokens().unwrap()).unwrap();
            assert_eq!(task.questions()[problem.id as usize], question);
            assert_eq!(problem.level as usize, question.operations.len());
            assert_eq!(task.by_id(3, problem.id), Some(problem));
        }
        assert_eq!(task.by_id(3, size), None);
        let all = task.held_out(0, usize::MAX);
        assert_eq!(all.len(), task.held_out_questions().len());
        assert!(all.iter().map(|p| p.id).eq(size..size + all.len() as u64));
        let few = task.held_out(0, 20);
        let levels: BTreeSet<u32> = few.iter().map(|p| p.level).collect();
        assert_eq!((few.len(), levels.len()), (20, LEVELS));
    }

    #[test]
    fn worked_examples_are_the_draws_of_one_stream() {
        let task =
            PermutationChain::new(ChainConfig { round: 7, ..ChainConfig::default() }, 4).unwrap();
        let mut draws = Sequence::new(11, Stream::Free, 2);
        for index in 0..40 {
            let (question, response) = task.noisy_chain((index % 7) % LEVELS, &mut draws);
            let example = task.worked_example(11, index as u64).unwrap();
            assert_eq!(example.problem.tokens().unwrap(), task.vocabulary().prompt(&question));
            assert_eq!(example.turns[0].part, Part::Tokens(response));
        }
    }
}
