//! Which id of a row is taken.

use super::{Sample, likely};
use crate::dtype::Float;
use crate::kernels::logprob::{Choose, Distribution};
use crate::rng;
use std::sync::atomic::{AtomicU32, Ordering};

/// In place of an id: a logit is NaN or +inf.
pub(super) const BROKEN: i32 = -2;
/// In place of an id: no id has a probability.
pub(super) const NOTHING: i32 = -1;

pub(super) struct Choice<'a> {
    pub args: &'a Sample<'a>,
    pub greedy: bool,
    /// `[rows]` bits of the mass that a truncation keeps; empty: not wanted.
    pub kept_mass: &'a [AtomicU32],
}

impl Choose for Choice<'_> {
    fn choose<T: Float>(&self, row: usize, from: &mut Distribution<'_, T>) -> i32 {
        if from.is_broken() {
            return BROKEN;
        }
        let id = if self.greedy {
            most_likely(from)
        } else {
            let unit = self.unit(row);
            let truncation = self.args.truncation;
            if truncation.is_none() {
                from_all(from, unit)
            } else {
                let depth = truncation.depth(self.args.temperature);
                likely::draw(from, unit, &truncation, depth).map(|(id, mass)| {
                    if let Some(kept) = self.kept_mass.get(row) {
                        kept.store((mass as f32).to_bits(), Ordering::Relaxed);
                    }
                    id
                })
            }
        };
        id.map_or(NOTHING, |id| id as i32)
    }
}

impl Choice<'_> {
    /// The random number of a row, in `[0, 1)`.
    fn unit(&self, row: usize) -> f64 {
        let Sample { seed, stream, sequences, positions, .. } = *self.args;
        let [high, low, ..] = rng::bits(seed, stream, sequences[row], positions[row]);
        let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

/// The first id of the largest logit.
fn most_likely<T: Float>(from: &mut Distribution<'_, T>) -> Option<usize> {
    let max = from.max();
    let (mut best, mut found) = (f32::NEG_INFINITY, None);
    for piece in 0..from.pieces() {
        if from.largest(piece) <= best {
            continue;
        }
        let all = from.weights(piece, max);
        for (i, logit) in all.logits.iter().enumerate() {
            if *logit > best {
                (best, found) = (*logit, Some(all.first + i));
            }
        }
    }
    found
}

/// The id at which the cumulative weight passes `unit` of the whole.
fn from_all<T: Float>(from: &mut Distribution<'_, T>, unit: f64) -> Option<usize> {
    let max = from.max();
    if max == f32::NEG_INFINITY {
        return None;
    }
    let masses: Vec<f64> = (0..from.pieces()).map(|piece| from.mass(piece, max)).collect();
    let goal = unit * masses.iter().sum::<f64>();
    let (piece, before) = passes(masses.iter().copied(), goal)?;
    let all = from.weights(piece, max);
    let goal = (goal - before) / all.factor;
    passes(all.weights.iter().map(|w| f64::from(*w)), goal).map(|(i, _)| all.first + i)
}

/// The first place where the running sum of `weights` is above `goal`, and the sum before it. Where rounding lets none
/// be, the last place with a weight.
fn passes(weights: impl Iterator<Item = f64>, goal: f64) -> Option<(usize, f64)> {
    let (mut sum, mut last) = (0f64, None);
    for (i, weight) in weights.enumerate() {
        if weight > 0.0 {
            last = Some((i, sum));
            sum += weight;
            if sum > goal {
                break;
            }
        }
    }
    last
}
