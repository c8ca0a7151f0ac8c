//! What a run of ExGRPO is measured by: accuracy on held-out questions against what it cost.

use crate::error::Result;
use crate::rl::policy::Policy;
use crate::rl::sampling::Sampling;
use crate::rng::Stream;
use crate::tasks::permutation_chain::{ChainVerifier, LEVELS, PermutationChain, RESPONSE};

/// Draws for measurement are none that training uses.
const MEASUREMENT: u64 = 1 << 62;

/// Responses to each held-out question of the easiest level, which has few; the others get one.
const RESPONSES_OF_THE_FIRST: usize = 5;

/// Accuracy at one moment.
#[derive(Clone, Copy, Debug)]
struct Point {
    rollouts: f64,
    updates: f64,
    levels: [f64; LEVELS],
}

impl Point {
    fn mean(&self) -> f64 {
        self.levels.iter().sum::<f64>() / LEVELS as f64
    }
}

/// A run's course.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    points: Vec<Point>,
    /// `(rollouts, nats)`
    pub entropy: Vec<(f64, f64)>,
    pub updates: u64,
    pub groups: u64,
    /// Groups in which all rewards are equal.
    pub degenerate: u64,
    /// Groups in which only what came back is right.
    pub only_replayed: u64,
    pub largest_ratio: f64,
    pub unscored: u64,
    pub skipped: u64,
    pub retired: usize,
}

impl Measured {
    pub(super) fn note(&mut self, rollouts: u64, updates: u64, levels: [f64; LEVELS]) {
        self.points.push(Point { rollouts: rollouts as f64, updates: updates as f64, levels });
    }

    /// Mean accuracy over the levels, each point the mean of itself and its neighbours.
    fn smooth(&self) -> Vec<f64> {
        let values: Vec<f64> = self.points.iter().map(Point::mean).collect();
        (0..values.len())
            .map(|i| {
                let around = &values[i.saturating_sub(1)..(i + 2).min(values.len())];
                around.iter().sum::<f64>() / around.len() as f64
            })
            .collect()
    }

    /// What it took to reach an accuracy: `(rollouts, updates)`, between measurements in proportion; infinite: never.
    pub(super) fn reached(&self, accuracy: f64) -> (f64, f64) {
        let smooth = self.smooth();
        for i in 0..smooth.len() {
            if smooth[i] >= accuracy {
                let at = &self.points[i];
                let Some(before) = i.checked_sub(1) else { return (at.rollouts, at.updates) };
                let part = (accuracy - smooth[before]) / (smooth[i] - smooth[before]);
                let from = &self.points[before];
                let between = |a: f64, b: f64| a + part * (b - a);
                return (between(from.rollouts, at.rollouts), between(from.updates, at.updates));
            }
        }
        (f64::INFINITY, f64::INFINITY)
    }

    /// The accuracy of the two hardest levels after a number of rollouts, between measurements in proportion.
    pub(super) fn hardest_at(&self, rollouts: f64) -> f64 {
        let hard = |point: &Point| (point.levels[LEVELS - 2] + point.levels[LEVELS - 1]) / 2.0;
        let after = self.points.iter().position(|point| point.rollouts >= rollouts);
        match after {
            None => self.points.last().map_or(f64::NAN, hard),
            Some(0) => hard(&self.points[0]),
            Some(i) => {
                let (a, b) = (&self.points[i - 1], &self.points[i]);
                let part = (rollouts - a.rollouts) / (b.rollouts - a.rollouts);
                hard(a) + part * (hard(b) - hard(a))
            }
        }
    }

    /// Accuracy of each level at the end: the mean of the last three measurements.
    pub(super) fn at_end(&self) -> [f64; LEVELS] {
        let last = &self.points[self.points.len().saturating_sub(3)..];
        std::array::from_fn(|level| {
            last.iter().map(|point| point.levels[level]).sum::<f64>() / last.len() as f64
        })
    }

    pub(super) fn at_start(&self) -> f64 {
        self.points.first().map_or(f64::NAN, Point::mean)
    }

    /// The best smoothed accuracy.
    pub(super) fn peak(&self) -> f64 {
        self.smooth().into_iter().fold(0.0, f64::max)
    }

    /// `(rollouts, mean accuracy)` and `(updates, mean accuracy)`.
    pub(super) fn curves(&self) -> [Vec<(f64, f64)>; 2] {
        let by = |place: fn(&Point) -> f64| {
            self.points.iter().map(|point| (place(point), point.mean())).collect()
        };
        [by(|point| point.rollouts), by(|point| point.updates)]
    }
}

/// The share of right responses to held-out questions of each level, drawn at temperature 1.
pub(super) fn accuracy(
    policy: &dyn Policy,
    task: &PermutationChain,
    seed: u64,
) -> Result<[f64; LEVELS]> {
    let vocabulary = task.vocabulary();
    let verifier = ChainVerifier { vocabulary };
    let (mut right, mut all) = ([0f64; LEVELS], [0f64; LEVELS]);
    for (i, part) in task.held_out_questions().chunks(128).enumerate() {
        let prompts: Vec<Vec<i32>> =
            part.iter().map(|question| vocabulary.prompt(question)).collect();
        let responses = |level: usize| if level == 1 { RESPONSES_OF_THE_FIRST } else { 1 };
        let counts: Vec<usize> =
            part.iter().map(|question| responses(question.operations.len())).collect();
        let sampling = Sampling {
            temperature: 1.0,
            truncation: Default::default(),
            max_new_tokens: RESPONSE,
            stop: vec![vocabulary.end()],
            banned: vec![vocabulary.padding()],
            seed,
            stream: Stream::Sample,
            first_sequence: MEASUREMENT + (i as u64) * 100_000,
            activity: Default::default(),
        };
        for episode in policy.generate(&prompts, &counts, &sampling, None)? {
            let question = &part[episode.prompt];
            let level = question.operations.len() - 1;
            all[level] += 1.0;
            right[level] += f64::from(u8::from(verifier.is_right(question, &episode.tokens)));
        }
    }
    Ok(std::array::from_fn(|level| right[level] / all[level]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(accuracies: &[f64]) -> Measured {
        let mut measured = Measured::default();
        for (i, accuracy) in accuracies.iter().enumerate() {
            measured.note(100 * i as u64, 10 * i as u64, [*accuracy; LEVELS]);
        }
        measured
    }

    #[test]
    fn an_accuracy_is_reached_between_measurements() {
        let run = measured(&[0.0, 0.0, 0.3, 0.6, 0.6, 0.6]);
        // Smoothed: 0, 0.1, 0.3, 0.5, 0.6, 0.6.
        let (rollouts, updates) = run.reached(0.4);
        assert!((rollouts - 250.0).abs() < 1e-6 && (updates - 25.0).abs() < 1e-6);
        assert_eq!(run.reached(0.7).0, f64::INFINITY);
        assert_eq!(measured(&[0.5, 0.5]).reached(0.4).0, 0.0);
        assert!((run.hardest_at(250.0) - 0.45).abs() < 1e-9);
        assert_eq!((run.hardest_at(1e9), run.hardest_at(0.0)), (0.6, 0.0));
        assert!((run.at_end()[0] - 0.6).abs() < 1e-9 && (run.peak() - 0.6).abs() < 1e-9);
    }
}
