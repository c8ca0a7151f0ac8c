//! The exercises as a task.

use super::ids::IDS;
use super::source::TwoHop;
use super::trace::{clean_trace, noisy_trace};
use super::verifier::TwoHopVerifier;
use crate::tasks::episode::Example;
use crate::tasks::problem::{Part, Problem};
use crate::tasks::task::{Language, Task};
use crate::tasks::verifier::Verifier;

/// Exercises of noisy examples, and those of reinforcement, are others than those of sound examples.
const NOISY_FROM: u64 = 1 << 32;
const REINFORCED_FROM: u64 = 2 << 32;

impl Task for TwoHop {
    fn name(&self) -> &str {
        "two_hop"
    }

    fn problem(&self, seed: u64, index: u64) -> Problem {
        self.exercise(seed, REINFORCED_FROM.wrapping_add(index)).problem(index)
    }

    /// An id is an index.
    fn by_id(&self, seed: u64, id: u64) -> Option<Problem> {
        Some(self.problem(seed, id))
    }

    /// Held-out exercises `0..count` of a seed. They are drawn from so many that no two are equal in practice.
    fn held_out(&self, seed: u64, count: usize) -> Vec<Problem> {
        (0..count as u64).map(|id| self.held_out_exercise(seed, id).problem(id)).collect()
    }

    fn worked_example(&self, seed: u64, index: u64) -> Option<Example> {
        let (exercise, response) = match &self.config.noise {
            None => {
                let exercise = self.exercise(seed, index);
                let response = clean_trace(&exercise);
                (exercise, response)
            }
            Some(noise) => self.noisy.item(seed, index, |index, draws| {
                let exercise = self.exercise(seed, NOISY_FROM.wrapping_add(index));
                let response = noisy_trace(&exercise, noise, draws);
                (exercise, response)
            }),
        };
        // An example is no problem of reinforcement, so it has no id.
        Some(Example::one_shot(exercise.problem(u64::MAX), Part::Tokens(response)))
    }

    fn verifier(&self) -> Box<dyn Verifier> {
        Box::new(TwoHopVerifier { flagged: self.config.flagged })
    }

    fn language(&self) -> Language<'_> {
        Language::Ids(IDS)
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::TwoHopConfig;
    use super::super::trace::NoiseConfig;
    use super::*;
    use crate::rng::{Sequence, Stream};

    #[test]
    fn it_is_a_task() {
        let task = TwoHop::new(TwoHopConfig::default()).unwrap();
        let held_out = task.held_out(5, 50);
        for index in [0, 1, 77, u64::MAX] {
            let problem = task.problem(5, index);
            assert!(held_out.iter().all(|other| other.parts != problem.parts));
            assert_eq!(task.by_id(5, problem.id), Some(problem));
        }
        assert_eq!((task.size(), held_out.len()), (None, 50));
    }

    #[test]
    fn worked_examples_are_the_draws_of_one_stream() {
        let noise = NoiseConfig::default();
        let config = TwoHopConfig { noise: Some(noise.clone()), ..TwoHopConfig::default() };
        let task = TwoHop::new(config).unwrap();
        let mut draws = Sequence::new(8, Stream::Free, 1);
        for index in 0..40 {
            let exercise = task.exercise(8, NOISY_FROM + index);
            let response = noisy_trace(&exercise, &noise, &mut draws);
            let example = task.worked_example(8, index).unwrap();
            assert_eq!(example.problem.parts, exercise.problem(0).parts);
            assert_eq!(example.turns[0].part, Part::Tokens(response));
        }
        let sound = TwoHop::new(TwoHopConfig::default()).unwrap();
        let example = sound.worked_example(8, 3).unwrap();
        let response = clean_trace(&sound.exercise(8, 3));
        assert_eq!(example.turns[0].part, Part::Tokens(response));
    }
}
