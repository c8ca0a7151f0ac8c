//! Which id of a row is taken.

use super::{Sample, Truncation};
use crate::dtype::Float;
use crate::kernels::logprob::{Choose, Distribution};
use crate::rng;
use std::cmp::Ordering;

/// In place of an id: a logit is NaN or +inf.
pub(super) const BROKEN: i32 = -2;
/// In place of an id: no id has a probability.
pub(super) const NOTHING: i32 = -1;

pub(super) struct Choice<'a> {
    pub args: &'a Sample<'a>,
    pub greedy: bool,
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
            match self.args.truncation {
                Truncation { top_k: None, top_p: None } => from_all(from, unit),
                Truncation { top_k: None, top_p: Some(p) } if p >= 1.0 => from_all(from, unit),
                truncation => from_most_likely(from, unit, &truncation),
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

/// A capped logit and its id.
type Candidate = (f32, usize);

/// The likeliest first; of equal ones the lower id.
fn by_likelihood(a: &Candidate, b: &Candidate) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// A draw from what top-k and top-p leave.
fn from_most_likely<T: Float>(
    from: &mut Distribution<'_, T>,
    unit: f64,
    truncation: &Truncation,
) -> Option<usize> {
    let max = from.max();
    let p = truncation.top_p.filter(|p| *p < 1.0).map_or(f64::INFINITY, f64::from);
    let mut kept = match truncation.top_k {
        Some(k) => top_k(from, k as usize),
        None => nucleus(from, p),
    };
    kept.sort_unstable_by(by_likelihood);
    let weights: Vec<f64> = kept.iter().map(|(logit, _)| from.weight(*logit, max)).collect();
    let whole = match truncation.top_k {
        Some(_) => weights.iter().sum(),
        None => from.whole(),
    };
    // Up to the id with which the sum reaches p of the whole.
    let (mut sum, mut count) = (0f64, 0);
    while count < kept.len() && sum < p * whole {
        sum += weights[count];
        count += 1;
    }
    passes(weights[..count].iter().copied(), unit * sum).map(|(i, _)| kept[i].1)
}

/// The `k` largest logits.
fn top_k<T: Float>(from: &mut Distribution<'_, T>, k: usize) -> Vec<Candidate> {
    // No fewer than k logits are at least the k-th largest of the pieces' largest.
    let mut bounds: Vec<f32> = (0..from.pieces()).map(|piece| from.largest(piece)).collect();
    bounds.sort_unstable_by(|a, b| b.total_cmp(a));
    let least = bounds.get(k - 1).copied().unwrap_or(f32::NEG_INFINITY);
    let mut kept = at_least(from, least);
    if kept.len() > k {
        kept.select_nth_unstable_by(k - 1, by_likelihood);
        kept.truncate(k);
    }
    kept
}

/// All logits down to one below which less than `1 - p` of the weight lies.
fn nucleus<T: Float>(from: &mut Distribution<'_, T>, p: f64) -> Vec<Candidate> {
    let (max, whole) = (from.max(), from.whole());
    let mut depth = 8.0;
    loop {
        // A little more than p: the sum in another order must reach p too.
        let kept = at_least(from, from.logit_of(-depth, max));
        let weight: f64 = kept.iter().map(|(logit, _)| from.weight(*logit, max)).sum();
        if weight > (p + 1e-9) * whole || depth > 300.0 {
            return kept;
        }
        depth *= 2.0;
    }
}

/// Every id with a weight whose logit is at least `least`.
fn at_least<T: Float>(from: &mut Distribution<'_, T>, least: f32) -> Vec<Candidate> {
    let max = from.max();
    let mut kept = Vec::new();
    for piece in 0..from.pieces() {
        if from.largest(piece) < least {
            continue;
        }
        let all = from.weights(piece, max);
        let candidates = all.logits.iter().enumerate();
        kept.extend(
            candidates
                .filter(|(_, logit)| **logit >= least && **logit > f32::NEG_INFINITY)
                .map(|(i, logit)| (*logit, all.first + i)),
        );
    }
    kept
}
