//! Chains of transpositions, every state written out: difficulty is the length of the chain.
//!
//! A state is a permutation of four symbols, one token. The prompt gives a state and one to five transpositions, the
//! response must give the state after each; it is right when all of them are. With more than one spelling of a state
//! there are several right responses. [`PermutationChain::noisy_chain`] makes responses in which the rarer
//! transpositions mostly go wrong, so that a policy trained on them is unsure and not confidently wrong: that is what
//! reinforcement can improve.

use crate::error::{Error, Result};
use crate::rng::{Sequence, Stream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Levels: chains of 1 to this many transpositions.
pub const LEVELS: usize = 5;
/// States.
pub const STATES: usize = 24;
/// Transpositions of four symbols.
pub const OPERATIONS: usize = 6;
/// Tokens of a prompt: a state, the transpositions padded to five, the level.
pub const PROMPT: usize = 1 + LEVELS + 1;
/// Tokens of the longest response.
pub const RESPONSE: usize = LEVELS + 1;

/// The places that each transposition swaps.
const SWAPS: [[usize; 2]; OPERATIONS] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];

/// The transpositions that each level draws from.
const ALLOWED: [&[usize]; LEVELS] =
    [&[0, 1, 2], &[0, 1, 2, 3], &[1, 2, 3, 4], &[2, 3, 4, 5], &[3, 4, 5]];

/// How many problems there are, and how hard the base policy's examples make them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainConfig {
    /// Probability that each transposition is carried out right in a noisy chain.
    pub reliability: [f32; OPERATIONS],
    /// Training questions of each level.
    pub training: [usize; LEVELS],
    /// Most held-out questions of each level; never more than a quarter of all there are.
    pub held_out: usize,
    /// Tokens that mean the same state.
    pub spellings: usize,
}

impl Default for ChainConfig {
    fn default() -> ChainConfig {
        ChainConfig {
            reliability: [0.9, 0.75, 0.5, 0.35, 0.25, 0.15],
            training: [30, 100, 300, 500, 700],
            held_out: 120,
            spellings: 1,
        }
    }
}

/// A state and what to do with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The state to begin with.
    pub start: usize,
    /// Transpositions, one after another.
    pub operations: Vec<usize>,
}

impl Question {
    /// The state after each transposition.
    pub fn states(&self) -> Vec<usize> {
        let mut state = self.start;
        let next = |operation: &usize| {
            state = apply(state, *operation);
            state
        };
        self.operations.iter().map(next).collect()
    }
}

/// Questions of a seed, split into those trained on and those held out.
pub struct PermutationChain {
    config: ChainConfig,
    training: Vec<Question>,
    held_out: Vec<Question>,
}

impl PermutationChain {
    /// The questions of a seed.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for no spelling, a reliability outside `0..=1`, or more training questions than there are.
    pub fn new(config: ChainConfig, seed: u64) -> Result<PermutationChain> {
        if config.spellings == 0 || !config.reliability.iter().all(|q| (0.0..=1.0).contains(q)) {
            return Err(Error::invalid(format!(
                "permutation_chain: {} spellings, reliability {:?}",
                config.spellings, config.reliability
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
        Ok(PermutationChain { config, training, held_out })
    }

    /// Questions to train on, easy ones first.
    pub fn training(&self) -> &[Question] {
        &self.training
    }

    /// Questions that no training sees, neither as a question nor as an example.
    pub fn held_out(&self) -> &[Question] {
        &self.held_out
    }

    /// Token ids.
    pub fn vocab(&self) -> usize {
        STATES * self.config.spellings + OPERATIONS + LEVELS + 2
    }

    /// The token that ends a response.
    pub fn end(&self) -> i32 {
        self.vocab() as i32 - 2
    }

    /// The token that stands for no transposition in a prompt, and nowhere else.
    pub fn padding(&self) -> i32 {
        self.vocab() as i32 - 1
    }

    /// The tokens of a question.
    pub fn prompt(&self, question: &Question) -> Vec<i32> {
        let first_operation = (STATES * self.config.spellings) as i32;
        let mut tokens = vec![question.start as i32];
        tokens.extend(question.operations.iter().map(|op| first_operation + *op as i32));
        tokens.resize(1 + LEVELS, self.padding());
        tokens.push(first_operation + (OPERATIONS + question.operations.len()) as i32 - 1);
        tokens
    }

    /// True when a response is the chain of states, in any spelling, and ends there.
    pub fn is_right(&self, question: &Question, response: &[i32]) -> bool {
        let Some((end, states)) = response.split_last() else { return false };
        let spelled = 0..(STATES * self.config.spellings) as i32;
        *end == self.end()
            && states.len() == question.operations.len()
            && states
                .iter()
                .zip(question.states())
                .all(|(token, state)| spelled.contains(token) && *token as usize % STATES == state)
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
            response.push((state + STATES * spelling) as i32);
        }
        response.push(self.end());
        (question, response)
    }
}

/// Every question of a level, each once.
fn every(level: usize) -> Vec<Question> {
    let mut chains: BTreeSet<Vec<usize>> = BTreeSet::from([Vec::new()]);
    for _ in 0..=level {
        let longer = |chain: &Vec<usize>| {
            let chain = chain.clone();
            ALLOWED[level].iter().map(move |operation| {
                let mut chain = chain.clone();
                chain.push(*operation);
                chain
            })
        };
        chains = chains.iter().flat_map(longer).collect();
    }
    let question =
        |start, operations: &Vec<usize>| Question { start, operations: operations.clone() };
    (0..STATES).flat_map(|start| chains.iter().map(move |ops| question(start, ops))).collect()
}

/// A permutation by its number in lexicographic order.
fn permutation(number: usize) -> [usize; 4] {
    let mut left = vec![0, 1, 2, 3];
    let mut rest = number % STATES;
    [6, 2, 1, 1].map(|size| {
        let symbol = left.remove((rest / size).min(left.len() - 1));
        rest %= size;
        symbol
    })
}

fn number(permutation: [usize; 4]) -> usize {
    (0..4)
        .map(|at| {
            let smaller = permutation[at + 1..].iter().filter(|s| **s < permutation[at]).count();
            smaller * [6, 2, 1, 1][at]
        })
        .sum()
}

fn apply(state: usize, operation: usize) -> usize {
    let mut symbols = permutation(state);
    let [a, b] = SWAPS[operation % OPERATIONS];
    symbols.swap(a, b);
    number(symbols)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_numbered() {
        for state in 0..STATES {
            assert_eq!(number(permutation(state)), state);
            for operation in 0..OPERATIONS {
                let next = apply(state, operation);
                assert!(next != state && apply(next, operation) == state);
            }
        }
        assert_eq!(permutation(23), [3, 2, 1, 0]);
    }

    #[test]
    fn questions_are_split_once() {
        let task = PermutationChain::new(ChainConfig::default(), 4).unwrap();
        let of = |questions: &[Question], n| {
            questions.iter().filter(|q| q.operations.len() == n).count()
        };
        assert_eq!([1, 2, 3, 4, 5].map(|n| of(task.held_out(), n)), [18, 96, 120, 120, 120]);
        assert_eq!([1, 2, 3, 4, 5].map(|n| of(task.training(), n)), [30, 100, 300, 500, 700]);
        let all: BTreeSet<&Question> = task.training().iter().chain(task.held_out()).collect();
        assert_eq!(all.len(), task.training().len() + task.held_out().len());
        let mut draws = Sequence::new(1, Stream::Free, 0);
        for i in 0..500 {
            let (question, response) = task.noisy_chain(i % LEVELS, &mut draws);
            assert!(!task.held_out().contains(&question));
            assert_eq!(response.len(), question.operations.len() + 1);
        }
        let too_many = ChainConfig { training: [60, 100, 300, 500, 700], ..ChainConfig::default() };
        assert!(PermutationChain::new(too_many, 4).err().is_some_and(|e| e.is_invalid()));
    }

    #[test]
    fn the_whole_chain_is_checked_in_any_spelling() {
        let config = ChainConfig { spellings: 2, ..ChainConfig::default() };
        let task = PermutationChain::new(config, 4).unwrap();
        let question = Question { start: 0, operations: vec![0, 0] };
        let states = question.states();
        assert_eq!(states[1], 0);
        let (a, end) = (states[0] as i32, task.end());
        assert!(task.is_right(&question, &[a, 0, end]));
        assert!(task.is_right(&question, &[a + 24, 24, end]));
        for wrong in [
            &[a, 0][..],
            &[a, 1, end],
            &[a + 1, 0, end],
            &[a, 0, 0, end],
            &[end],
            &[],
            &[-a, 0, end],
        ] {
            assert!(!task.is_right(&question, wrong), "{wrong:?}");
        }
        let prompt = task.prompt(&question);
        let padding = task.padding();
        assert_eq!((task.vocab(), prompt.len()), (61, PROMPT));
        assert_eq!(prompt, [0, 48, 48, padding, padding, padding, 55]);
    }
}
