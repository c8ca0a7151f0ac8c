//! The tokens of one sequence: their log-ratios, what these sum to, and the weights that come of it.
//!
//! In blocks of [`BLOCK`] tokens, loop by loop, so that each loop becomes vector instructions. Sums are kept in [`LANES`]
//! accumulators and merged in a fixed tree: a function of the sequence alone.

use super::diagnostics::Sums;
use super::settings::{Bound, Level, Over, Rejection, RolloutCorrection, Statistic};
use crate::device::cpu::math;
use crate::device::cpu::simd::simd_fn;

/// Exponents are cut to `-LIMIT..=LIMIT`.
const LIMIT: f64 = 20.0;

/// Tokens that a loop goes over.
const BLOCK: usize = 64;
const LANES: usize = 8;

type Block = [f64; BLOCK];

/// `d = log policy - log sampler` of a sequence's tokens, NaN where there is nothing to compare, and `exp(d)` with the
/// exponent cut, 1 there; both up to a whole number of blocks.
#[derive(Default)]
pub(super) struct Ratios {
    gaps: Vec<Block>,
    ratios: Vec<Block>,
}

/// Sums over the live tokens of a sequence.
#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    tokens: f64,
    dropped: u64,
    sum: f64,
    k2: f64,
    k3: f64,
    k2_max: f64,
    k3_max: f64,
}

/// What a sequence's weights are made by: of the correction and of the sequence.
struct Rule<'a> {
    /// The weight of every token before the bound; `None`: its own ratio.
    raw: Option<f64>,
    least: f64,
    most: f64,
    /// What a weight below `least` becomes, and one above `most`.
    outside: (f64, f64),
    /// No rejection took the sequence.
    keeps: bool,
    rejections: &'a [Rejection],
}

#[inline(always)]
fn cut(exponent: f64) -> f64 {
    let below = if exponent > LIMIT { LIMIT } else { exponent };
    if -LIMIT > below { -LIMIT } else { below }
}

#[inline(always)]
fn k2(gap: f64) -> f64 {
    0.5 * cut(gap) * cut(gap)
}

/// `exp(d) - 1 - d`.
#[inline(always)]
fn k3(gap: f64, ratio: f64) -> f64 {
    ratio - 1.0 - cut(gap)
}

/// Accumulators of a sum or a largest value.
#[derive(Clone, Copy)]
struct Lanes([f64; LANES]);

impl Lanes {
    const ZERO: Lanes = Lanes([0.0; LANES]);

    #[inline(always)]
    fn add(&mut self, values: &Block) {
        for values in values.as_chunks::<LANES>().0 {
            for (lane, value) in self.0.iter_mut().zip(values) {
                *lane += value;
            }
        }
    }

    #[inline(always)]
    fn raise(&mut self, values: &Block) {
        for values in values.as_chunks::<LANES>().0 {
            for (lane, value) in self.0.iter_mut().zip(values) {
                *lane = if *value > *lane { *value } else { *lane };
            }
        }
    }

    fn total(self) -> f64 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    fn largest(self) -> f64 {
        self.0.into_iter().fold(0.0, f64::max)
    }
}

/// `f(i)` for every token of a block.
#[inline(always)]
fn each(f: impl Fn(usize) -> f64) -> Block {
    let mut out = [0.0; BLOCK];
    for (i, out) in out.iter_mut().enumerate() {
        *out = f(i);
    }
    out
}

/// 1 where `d` is a number.
#[inline(always)]
fn live(gaps: &Block) -> Block {
    each(|i| if gaps[i].is_nan() { 0.0 } else { 1.0 })
}

/// The gaps of live tokens, NaN elsewhere and beyond the end.
#[inline(always)]
fn gaps(policy: &[f32], sampler: Option<&[f32]>, mask: &[u8]) -> Block {
    let mut gaps = [f64::NAN; BLOCK];
    match sampler {
        Some(sampler) => {
            for (((gap, policy), sampler), mask) in
                gaps.iter_mut().zip(policy).zip(sampler).zip(mask)
            {
                let d = f64::from(*policy) - f64::from(*sampler);
                let d = if d.abs() == f64::INFINITY { LIMIT.copysign(d) } else { d };
                *gap = if *mask != 0 { d } else { f64::NAN };
            }
        }
        None => {
            for (gap, mask) in gaps.iter_mut().zip(mask) {
                *gap = if *mask != 0 { 0.0 } else { f64::NAN };
            }
        }
    }
    gaps
}

simd_fn! {
    /// Reads a sequence.
    pub(super) fn read(policy: &[f32], sampler: Option<&[f32]>, mask: &[u8], into: &mut Ratios) -> Totals {
        let Ratios { gaps: all_gaps, ratios: all_ratios } = into;
        all_gaps.clear();
        all_ratios.clear();
        let mut masked_in = 0;
        let [mut tokens, mut sum, mut sum_k2, mut sum_k3, mut k2_max, mut k3_max] = [Lanes::ZERO; 6];
        for (i, mask) in mask.chunks(BLOCK).enumerate() {
            let here = i * BLOCK..i * BLOCK + mask.len();
            masked_in += mask.iter().map(|mask| u32::from(*mask != 0)).sum::<u32>() as u64;
            let gaps = gaps(&policy[here.clone()], sampler.map(|sampler| &sampler[here]), mask);
            let exponents = each(|i| if gaps[i].is_nan() { 0.0 } else { cut(gaps[i]) });
            let ratios = each(|i| math::exp_f64::<FMA>(exponents[i]));
            let (of_k2, of_k3) = (each(|i| k2(exponents[i])), each(|i| k3(exponents[i], ratios[i])));
            tokens.add(&live(&gaps));
            sum.add(&each(|i| if gaps[i].is_nan() { 0.0 } else { gaps[i] }));
            sum_k2.add(&of_k2);
            sum_k3.add(&of_k3);
            k2_max.raise(&of_k2);
            k3_max.raise(&of_k3);
            all_gaps.push(gaps);
            all_ratios.push(ratios);
        }
        let tokens = tokens.total();
        Totals {
            tokens,
            dropped: masked_in - tokens as u64,
            sum: sum.total(),
            k2: sum_k2.total(),
            k3: sum_k3.total(),
            k2_max: k2_max.largest(),
            k3_max: k3_max.largest(),
        }
    }
}

impl Ratios {
    /// Writes weights and mask of the sequence that was read last.
    pub(super) fn write(
        &self,
        correction: &RolloutCorrection,
        of: &Totals,
        weights: &mut [f32],
        mask: &mut [u8],
    ) -> Sums {
        let (raw, bound) = match &correction.weight {
            Some(weight) => (of.raw_weight(weight.level), weight.bound),
            None => (Some(1.0), Bound::Truncate { max: f64::INFINITY, min: None }),
        };
        let (least, most) = bound.limits();
        let rule = Rule {
            raw,
            least,
            most,
            outside: match bound {
                Bound::Mask { .. } => (0.0, 0.0),
                Bound::Truncate { .. } => (least, most),
            },
            keeps: correction.reject.iter().all(|rule| of.keeps(rule)),
            rejections: &correction.reject,
        };
        let mut sums = write(self, &rule, weights, mask);
        sums.dropped = of.dropped;
        if of.tokens > 0.0 {
            sums.divergence = 0.0 - of.sum;
            sums.k3 = of.k3;
            sums.sequences = 1;
            sums.rejected_sequences = u64::from(sums.rejected == sums.tokens);
            sums.sequence_weight = sums.weight / of.tokens;
            sums.perplexity = cut(-of.sum / of.tokens).exp();
            sums.chi_squared = (2.0 * cut(of.sum)).exp();
        }
        sums
    }
}

impl Totals {
    /// True when no rejection of sequences takes it.
    fn keeps(&self, rule: &Rejection) -> bool {
        let (sum, most) = match rule.statistic {
            Statistic::K1 { .. } => (self.sum, 0.0),
            Statistic::K2 { .. } => (self.k2, self.k2_max),
            Statistic::K3 { .. } => (self.k3, self.k3_max),
        };
        let value = match rule.over {
            Over::Token => return true,
            Over::SequenceSum => sum,
            Over::SequenceMean => sum / self.tokens,
            Over::SequenceMax => most,
        };
        let (low, high) = rule.interval();
        value >= low && value <= high
    }

    fn raw_weight(&self, level: Level) -> Option<f64> {
        match level {
            Level::Token => None,
            Level::Sequence => Some(cut(self.sum).exp()),
            Level::Geometric => Some(cut(self.sum / self.tokens).exp()),
        }
    }
}

/// 1 for the tokens that a rejection does not take by themselves.
#[inline(always)]
fn kept_by(rule: &Rejection, gaps: &Block, ratios: &Block) -> Block {
    let (low, high) = rule.interval();
    let inside = |value: f64| if (value >= low) & (value <= high) { 1.0 } else { 0.0 };
    match rule.statistic {
        Statistic::K1 { .. } => each(|i| inside(gaps[i])),
        Statistic::K2 { .. } => each(|i| inside(k2(gaps[i]))),
        Statistic::K3 { .. } => each(|i| inside(k3(gaps[i], ratios[i]))),
    }
}

simd_fn! {
    fn write(of: &Ratios, rule: &Rule<'_>, weights: &mut [f32], mask: &mut [u8]) -> Sums {
        let [mut tokens, mut high, mut low, mut kept_tokens] = [Lanes::ZERO; 4];
        let [mut ratio, mut ratio_squared, mut weight, mut weight_squared, mut weight_max] = [Lanes::ZERO; 5];
        let blocks = of.gaps.iter().zip(&of.ratios);
        for (out, (gaps, ratios)) in weights.chunks_mut(BLOCK).zip(mask.chunks_mut(BLOCK)).zip(blocks) {
            let live = live(gaps);
            let raw = match rule.raw {
                Some(raw) => [raw; BLOCK],
                None => *ratios,
            };
            let is_high = each(|i| if raw[i] > rule.most { live[i] } else { 0.0 });
            let is_low = each(|i| if raw[i] < rule.least { live[i] } else { 0.0 });
            let bounded = each(|i| if raw[i] > rule.most { rule.outside.1 } else { raw[i] });
            let bounded = each(|i| if raw[i] < rule.least { rule.outside.0 } else { bounded[i] });
            // Rounded as it is written. Selected, not multiplied: the mean of a sequence without a live token is NaN.
            let bounded = each(|i| if live[i] != 0.0 { f64::from(bounded[i] as f32) } else { 0.0 });
            let mut kept = if rule.keeps { live } else { [0.0; BLOCK] };
            for rejection in rule.rejections {
                if rejection.over == Over::Token {
                    let by = kept_by(rejection, gaps, ratios);
                    kept = each(|i| kept[i] * by[i]);
                }
            }
            for (out, (weight, kept)) in out.0.iter_mut().zip(bounded.iter().zip(&kept)) {
                *out = (weight * kept) as f32;
            }
            for (out, kept) in out.1.iter_mut().zip(&kept) {
                *out = u8::from(*kept != 0.0);
            }
            tokens.add(&live);
            high.add(&is_high);
            low.add(&is_low);
            kept_tokens.add(&kept);
            let of_live = each(|i| ratios[i] * live[i]);
            ratio.add(&of_live);
            ratio_squared.add(&each(|i| of_live[i] * of_live[i]));
            weight.add(&bounded);
            weight_squared.add(&each(|i| bounded[i] * bounded[i]));
            weight_max.raise(&bounded);
        }
        let count = |lanes: Lanes| lanes.total() as u64;
        Sums {
            tokens: count(tokens),
            high: count(high),
            low: count(low),
            rejected: count(tokens) - count(kept_tokens),
            ratio: ratio.total(),
            ratio_squared: ratio_squared.total(),
            weight: weight.total(),
            weight_squared: weight_squared.total(),
            weight_max: weight_max.largest(),
            ..Sums::default()
        }
    }
}
