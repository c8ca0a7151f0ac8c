//! The sequence pass: live tokens of each sequence, and what objectives need of a whole sequence before its tokens.

use super::objective::Objective;
use super::steps::BLOCK;
use super::surrogate::{ImportanceLevel, Surrogate};
use super::{Advantages, Inputs};
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::kernels::token_selection::Selection;
use rayon::prelude::*;
use std::ops::Range;

/// What the tokens of a sequence share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Factors {
    /// GSPO's or GMPO's ratio.
    pub ratio: f32,
    /// A clamp of its logarithm acts.
    pub stopped: bool,
    /// VESPO's φ for `A >= 0`.
    pub phi_positive: f32,
    /// VESPO's φ for `A < 0`.
    pub phi_negative: f32,
    /// GSPO: mean of the importance weights, dropped tokens as 0. GMPO: their geometric mean.
    pub weight: f32,
    /// The off-policy mask drops the tokens with `A < 0`.
    pub drop_negative: bool,
}

impl Factors {
    /// Of a sequence without anything.
    pub const NEUTRAL: Factors = Factors {
        ratio: 1.0,
        stopped: false,
        phi_positive: 1.0,
        phi_negative: 1.0,
        weight: 1.0,
        drop_negative: false,
    };
}

/// Live tokens of each sequence.
pub(super) fn count_live(mask: &[u8], offsets: &[usize]) -> Vec<u32> {
    each(mask, offsets, 1, |_, range| count_nonzero(&mask[range]))
}

/// `of` every sequence, given its number and its tokens.
fn each<T: Send>(
    mask: &[u8],
    offsets: &[usize],
    bytes_a_token: usize,
    of: impl Fn(usize, Range<usize>) -> T + Sync + Send,
) -> Vec<T> {
    let sequences = offsets.len() - 1;
    let mean_bytes = bytes_a_token * mask.len() / sequences.max(1) + 1;
    let one = |(i, bounds): (usize, &[usize])| of(i, bounds[0]..bounds[1]);
    pool::install(|| {
        offsets
            .par_windows(2)
            .enumerate()
            .with_min_len(pool::rows_per_task(mean_bytes))
            .map(one)
            .collect()
    })
}

simd_fn! {
    fn count_nonzero(mask: &[u8]) -> u32 {
        mask.chunks(128)
            .map(|chunk| u32::from(chunk.iter().map(|byte| u8::from(*byte != 0)).sum::<u8>()))
            .sum()
    }
}

/// Lanes of a sum; part of the result's bits.
const LANES: usize = 16;
/// Tokens whose f32 sums become an f64.
const CHUNK: usize = 1024;

/// A difference of log-probs, kept in an interval, summed over live tokens.
struct Differences<'a> {
    of: &'a [f32],
    less: &'a [f32],
    mask: &'a [u8],
    low: f32,
    high: f32,
}

/// One difference, 0 where masked. Read first and selected then: a read that depends on the mask would not vectorise.
#[inline(always)]
fn kept(of: f32, less: f32, mask: u8, within: &Differences<'_>) -> f32 {
    let d = of - less;
    let d = if d > within.high { within.high } else { d };
    let d = if d < within.low { within.low } else { d };
    if mask != 0 { d } else { 0.0 }
}

simd_fn! {
    fn sum_differences(from: &Differences<'_>) -> f64 {
        let mut total = 0f64;
        let chunks = from.of.chunks(CHUNK).zip(from.less.chunks(CHUNK)).zip(from.mask.chunks(CHUNK));
        for ((of, less), mask) in chunks {
            let mut lanes = [0f32; LANES];
            let (of, of_rest) = of.as_chunks::<LANES>();
            let (less, less_rest) = less.as_chunks::<LANES>();
            let (mask, mask_rest) = mask.as_chunks::<LANES>();
            for ((of, less), mask) in of.iter().zip(less).zip(mask) {
                for lane in 0..LANES {
                    lanes[lane] += kept(of[lane], less[lane], mask[lane], from);
                }
            }
            let rest = of_rest.iter().zip(less_rest).zip(mask_rest);
            for (lane, ((of, less), mask)) in lanes.iter_mut().zip(rest) {
                *lane += kept(*of, *less, *mask, from);
            }
            total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
        }
        total
    }
}

/// What an objective needs of every sequence.
pub(super) struct Shared<'a> {
    objective: &'a Objective,
    live: &'a [u32],
    /// Of the sequences that no block holds whole.
    spanning: Vec<Factors>,
}

impl Shared<'_> {
    /// Of the sequence `i`, whose tokens are `range`. What a block holds whole is computed here, just before its tokens
    /// are read again: they are in the cache then.
    pub fn of(&self, i: usize, range: Range<usize>, inputs: &Inputs<'_>) -> Factors {
        if self.live[i] == 0 {
            return Factors::NEUTRAL;
        }
        if spans(&range) {
            return self.spanning[i];
        }
        let (objective, live) = (self.objective, f64::from(self.live[i]));
        Tokens { objective, inputs, range, live }.factors(i)
    }
}

/// It lies in more than one block.
fn spans(range: &Range<usize>) -> bool {
    range.start / BLOCK != range.end.max(1).div_ceil(BLOCK) - 1
}

/// What `objective` needs of every sequence; `None`: nothing.
pub(super) fn shared<'a>(
    objective: &'a Objective,
    inputs: &Inputs<'_>,
    offsets: &[usize],
    live: &'a [u32],
) -> Option<Shared<'a>> {
    if objective.is_token_by_token() {
        return None;
    }
    let spanning = each(inputs.mask, offsets, 9, |i, range| {
        if live[i] == 0 || !spans(&range) {
            return Factors::NEUTRAL;
        }
        Tokens { objective, inputs, range, live: f64::from(live[i]) }.factors(i)
    });
    Some(Shared { objective, live, spanning })
}

/// A sequence with a live token.
struct Tokens<'a> {
    objective: &'a Objective,
    inputs: &'a Inputs<'a>,
    range: Range<usize>,
    live: f64,
}

impl Tokens<'_> {
    fn factors(&self, sequence: usize) -> Factors {
        let mut factors = Factors::NEUTRAL;
        let limit = self.objective.log_ratio.limit();
        match &self.objective.surrogate {
            Surrogate::Gmpo { clip_low, clip_high } => {
                let a = match self.inputs.advantage {
                    Advantages::PerSequence(values) => values[sequence],
                    Advantages::PerToken(_) => 0.0,
                };
                let (low, high) = if a > 0.0 {
                    (-limit, clip_high.min(limit))
                } else if a < 0.0 {
                    ((-clip_low).max(-limit), limit)
                } else {
                    (0.0, 0.0)
                };
                factors.ratio = (self.log_ratio(low, high) / self.live).exp() as f32;
                let log = |weight: f32| (f64::from(weight) + SMALLEST_WEIGHT).ln();
                factors.weight = (self.mean_weight(log, 0.0)).exp() as f32;
            }
            Surrogate::Vespo { k_positive, lambda_positive, k_negative, lambda_negative } => {
                let (low, high) = LOG_SEQUENCE_RATIO;
                let log = |weight: f32| f64::from(weight).ln().clamp(low, high);
                let of_weights = self.mean_weight(log, 0.0) * self.live;
                let sum = (self.log_ratio(-20.0, 20.0) + of_weights).clamp(low, high);
                factors.phi_positive = phi(sum, *k_positive, *lambda_positive);
                factors.phi_negative = phi(sum, *k_negative, *lambda_negative);
            }
            _ if self.objective.importance_level != ImportanceLevel::Token => {
                let highest = f64::from(self.objective.log_ratio.sequence_limit());
                let mean = self.log_ratio(f32::NEG_INFINITY, f32::INFINITY) / self.live;
                factors.stopped = mean > highest;
                factors.ratio = (if mean > highest { highest } else { mean }).exp() as f32;
                factors.weight = self.mean_weight(f64::from, 1.0) as f32;
            }
            _ => {}
        }
        if let Some(threshold) = self.objective.off_policy_threshold {
            let sampler = self.inputs.sampler_logprob.unwrap_or(self.inputs.old_logprob);
            let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
            let distance = self.sum(sampler, self.inputs.logprob, low, high) / self.live;
            // A mean that is NaN drops nothing: the tokens show it.
            factors.drop_negative = distance > f64::from(threshold);
        }
        factors
    }

    fn sum(&self, of: &[f32], less: &[f32], low: f32, high: f32) -> f64 {
        let range = self.range.clone();
        sum_differences(&Differences {
            of: &of[range.clone()],
            less: &less[range.clone()],
            mask: &self.inputs.mask[range],
            low,
            high,
        })
    }

    fn log_ratio(&self, low: f32, high: f32) -> f64 {
        self.sum(self.inputs.logprob, self.inputs.old_logprob, low, high)
    }

    /// The mean of `of` the weights over live tokens, 0 for those that a selection drops; `without` where nothing would
    /// change it.
    fn mean_weight(&self, of: impl Fn(f32) -> f64, without: f64) -> f64 {
        let keeps = matches!(self.objective.selection, Some(Selection::TopEntropy { .. }));
        let selected = self.inputs.selected.filter(|_| keeps);
        if self.inputs.weight.is_none() && selected.is_none() {
            return without;
        }
        let value = |token: usize| {
            let kept = selected.is_none_or(|selected| selected[token] != 0);
            if kept { self.inputs.weight.map_or(1.0, |weight| weight[token]) } else { 0.0 }
        };
        let live = self.range.clone().filter(|token| self.inputs.mask[*token] != 0);
        live.map(|token| of(value(token))).sum::<f64>() / self.live
    }
}

/// Keeps the logarithm of a weight of 0 finite (verl).
const SMALLEST_WEIGHT: f64 = 1e-10;
/// `ln 1e-8..=20`: bounds of VESPO's log ratio of a sequence, and of the logarithm of a weight.
const LOG_SEQUENCE_RATIO: (f64, f64) = (-18.420_680_743_952_367, 20.0);

/// `e^λ W^k e^{-λ W}` from `ln W`; 0 where that is infinite. NaN stays, so that a NaN log-prob is seen.
fn phi(log_ratio: f64, k: f32, lambda: f32) -> f32 {
    let (k, lambda) = (f64::from(k), f64::from(lambda));
    let value = (lambda + k * log_ratio - lambda * log_ratio.exp()).exp() as f32;
    if value.is_infinite() { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phi_is_one_on_the_policy_and_falls_on_both_sides() {
        assert_eq!(phi(0.0, 2.0, 3.0), 1.0);
        assert!(phi(-1.0, 2.0, 3.0) < 1.0 && phi(1.0, 2.0, 3.0) < 1.0);
        assert_eq!(phi(20.0, 2.0, 3.0), 0.0);
        assert!(phi(f64::NAN, 2.0, 3.0).is_nan());
    }
}
