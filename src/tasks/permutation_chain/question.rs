//! Permutations of four symbols, their transpositions, and questions made of both.

use std::collections::BTreeSet;

/// Levels: chains of 1 to this many transpositions.
pub const LEVELS: usize = 5;
/// States.
pub const STATES: usize = 24;
/// Transpositions of four symbols.
pub const OPERATIONS: usize = 6;

/// The positions that each transposition swaps.
const SWAPS: [[usize; 2]; OPERATIONS] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];

/// The transpositions that each level draws from.
pub(super) const ALLOWED: [&[usize]; LEVELS] =
    [&[0, 1, 2], &[0, 1, 2, 3], &[1, 2, 3, 4], &[2, 3, 4, 5], &[3, 4, 5]];

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

/// Every question of a level, each once.
pub(super) fn every(level: usize) -> Vec<Question> {
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

/// The state after one transposition.
pub(super) fn apply(state: usize, operation: usize) -> usize {
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
    fn a_level_has_every_chain_once() {
        for level in 0..LEVELS {
            let all = every(level);
            let distinct: BTreeSet<&Question> = all.iter().collect();
            assert_eq!(all.len(), STATES * ALLOWED[level].len().pow(level as u32 + 1));
            assert_eq!(distinct.len(), all.len());
        }
    }
}
