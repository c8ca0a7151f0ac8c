//! Rollout correction: importance weights and rejections for tokens that a sampler drew and another policy learns from.
//!
//! Contract: packed tokens with a mask and CSR offsets; log-probs of policy and sampler, of the full distribution at the
//! sampling temperature, in nats. Out come a weight a token, which [`policy_loss`](super::policy_loss) takes as its `weight`,
//! and a new mask. No gradient. A masked token is never read into arithmetic. Off-policy sequence masks that look at the
//! advantage are the objective's.

mod diagnostics;
pub mod launch;
mod settings;

pub use diagnostics::Diagnostics;
pub use settings::{
    Bound, Level, MAX_REJECTIONS, Over, PRESETS, Preset, Rejection, RolloutCorrection, Statistic,
    Weight,
};

use crate::error::{Error, Result};
use crate::kernels::offsets;
use diagnostics::Sums;

/// Exponents are cut to `-LIMIT..=LIMIT`.
const LIMIT: f64 = 20.0;

/// What [`forward`] reads, `[tokens]` unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Log-prob of each token under the policy that is corrected to: the old policy, or the current one where the objective
    /// compares with the sampler itself.
    pub policy_logprob: &'a [f32],
    /// Log-prob under the sampler; `None`: it is the policy, and every weight is 1.
    pub sampler_logprob: Option<&'a [f32]>,
    /// Non-zero: live.
    pub mask: &'a [u8],
    /// `[sequences + 1]`, from 0 to `tokens`.
    pub offsets: &'a [i64],
}

/// Where [`forward`] writes, `[tokens]`.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// The weight of each token; 0 where the new mask is 0.
    pub weight: &'a mut [f32],
    /// The new mask, 0 or 1: without the tokens that were rejected or dropped.
    pub mask: &'a mut [u8],
}

/// Weights, the new mask and what to watch.
///
/// With `d = log policy - log sampler` of a live token: NaN drops the token from the mask, an infinite `d` (a token that the
/// sampler had cut off) counts as ±20, exponents are cut to ±20. Rejected tokens leave the mask, so that they leave every
/// mean; masked weights ([`Bound::Mask`]) are 0 and stay.
///
/// # Shapes
/// As [`Inputs`] and [`Outputs`] say.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_index`] for lengths and offsets that do not fit, [`Error::is_invalid`] for an option.
///
/// # Source
/// verl `rollout_corr_helper.py`; TRL `GRPOTrainer`, `vllm_importance_sampling_correction`.
pub fn forward(
    correction: &RolloutCorrection,
    inputs: &Inputs<'_>,
    out: Outputs<'_>,
) -> Result<Diagnostics> {
    correction.check()?;
    let tokens = inputs.policy_logprob.len();
    let offsets = offsets::checked("rollout_correction", "sequence", inputs.offsets, tokens)?;
    check_lengths(
        tokens,
        &[
            ("sampler_logprob", inputs.sampler_logprob.map(<[f32]>::len)),
            ("mask", Some(inputs.mask.len())),
            ("output `weight`", Some(out.weight.len())),
            ("output `mask`", Some(out.mask.len())),
        ],
    )?;
    let mut total = Sums::default();
    for bounds in offsets.windows(2) {
        let tokens = bounds[0]..bounds[1];
        let sequence = Sequence::of(inputs, tokens.clone());
        let here = (&mut out.weight[tokens.clone()], &mut out.mask[tokens]);
        total.add(&sequence.write(correction, here.0, here.1));
    }
    if let Some(weight) = correction.weight.filter(|weight| weight.normalize) {
        let mean = match weight.level {
            Level::Token => total.weight / total.tokens as f64,
            _ => total.sequence_weight / total.sequences as f64,
        };
        if mean > 1e-8 {
            out.weight.iter_mut().for_each(|w| *w = (f64::from(*w) / mean) as f32);
        }
    }
    Ok(total.diagnostics())
}

fn check_lengths(tokens: usize, lengths: &[(&str, Option<usize>)]) -> Result<()> {
    for (name, got) in lengths {
        if let Some(got) = got.filter(|got| *got != tokens) {
            return Err(Error::shape(format!(
                "rollout_correction: {name} has {got} elements for {tokens} tokens"
            )));
        }
    }
    Ok(())
}

/// A token's `d`.
#[derive(Clone, Copy)]
enum Gap {
    Masked,
    Dropped,
    Live(f64),
}

fn cut(exponent: f64) -> f64 {
    exponent.clamp(-LIMIT, LIMIT)
}

fn k2(d: f64) -> f64 {
    0.5 * cut(d) * cut(d)
}

fn k3(d: f64) -> f64 {
    cut(d).exp() - 1.0 - cut(d)
}

/// The gaps of one sequence and their sums.
struct Sequence {
    gaps: Vec<Gap>,
    tokens: f64,
    sum: f64,
    k2: f64,
    k3: f64,
    k2_max: f64,
    k3_max: f64,
}

impl Sequence {
    fn of(inputs: &Inputs<'_>, tokens: std::ops::Range<usize>) -> Sequence {
        let gap = |token: usize| {
            if inputs.mask[token] == 0 {
                return Gap::Masked;
            }
            let Some(sampler) = inputs.sampler_logprob else { return Gap::Live(0.0) };
            let d = f64::from(inputs.policy_logprob[token]) - f64::from(sampler[token]);
            match d {
                _ if d.is_nan() => Gap::Dropped,
                _ if d.is_infinite() => Gap::Live(cut(d)),
                _ => Gap::Live(d),
            }
        };
        let gaps: Vec<Gap> = tokens.map(gap).collect();
        let mut of = Sequence {
            gaps: Vec::new(),
            tokens: 0.0,
            sum: 0.0,
            k2: 0.0,
            k3: 0.0,
            k2_max: 0.0,
            k3_max: 0.0,
        };
        for gap in &gaps {
            if let Gap::Live(d) = *gap {
                of.tokens += 1.0;
                of.sum += d;
                of.k2 += k2(d);
                of.k3 += k3(d);
                of.k2_max = of.k2_max.max(k2(d));
                of.k3_max = of.k3_max.max(k3(d));
            }
        }
        Sequence { gaps, ..of }
    }

    /// True when no rejection of sequences takes it.
    fn keeps(&self, rule: &Rejection) -> bool {
        let (sum, most) = match rule.statistic {
            Statistic::K1 { .. } => (self.sum, 0.0),
            Statistic::K2 { .. } => (self.k2, self.k2_max),
            Statistic::K3 { .. } => (self.k3, self.k3_max),
        };
        match rule.over {
            Over::Token => true,
            Over::SequenceSum => rule.holds(sum),
            Over::SequenceMean => rule.holds(sum / self.tokens),
            Over::SequenceMax => rule.holds(most),
        }
    }

    fn raw_weight(&self, level: Level, d: f64) -> f64 {
        match level {
            Level::Token => cut(d).exp(),
            Level::Sequence => cut(self.sum).exp(),
            Level::Geometric => cut(self.sum / self.tokens).exp(),
        }
    }

    fn write(&self, correction: &RolloutCorrection, weights: &mut [f32], mask: &mut [u8]) -> Sums {
        let keeps = correction.reject.iter().all(|rule| self.keeps(rule));
        let mut sums = Sums::default();
        for ((gap, weight_out), mask_out) in self.gaps.iter().zip(weights).zip(mask) {
            (*weight_out, *mask_out) = (0.0, 0);
            let d = match *gap {
                Gap::Live(d) => d,
                Gap::Dropped => {
                    sums.dropped += 1;
                    continue;
                }
                Gap::Masked => continue,
            };
            let (raw, weight, (least, most)) = match &correction.weight {
                Some(weight) => {
                    let raw = self.raw_weight(weight.level, d);
                    (raw, weight.bound.apply(raw) as f32, weight.bound.limits())
                }
                None => (1.0, 1.0, (0.0, f64::INFINITY)),
            };
            let kept = keeps && correction.reject.iter().all(|rule| rule.keeps_token(d));
            if kept {
                (*weight_out, *mask_out) = (weight, 1);
            }
            let ratio = cut(d).exp();
            let weight = f64::from(weight);
            sums.tokens += 1;
            sums.high += u64::from(raw > most);
            sums.low += u64::from(raw < least);
            sums.rejected += u64::from(!kept);
            sums.ratio += ratio;
            sums.ratio_squared += ratio * ratio;
            sums.weight += weight;
            sums.weight_squared += weight * weight;
            sums.weight_max = sums.weight_max.max(weight);
        }
        if self.tokens > 0.0 {
            sums.divergence = 0.0 - self.sum;
            sums.k3 = self.k3;
            sums.sequences = 1;
            sums.rejected_sequences = u64::from(sums.rejected == sums.tokens);
            sums.sequence_weight = sums.weight / self.tokens;
            sums.perplexity = cut(-self.sum / self.tokens).exp();
            sums.chi_squared = (2.0 * cut(self.sum)).exp();
        }
        sums
    }
}

impl Rejection {
    fn holds(&self, value: f64) -> bool {
        let (low, high) = self.interval();
        value >= low && value <= high
    }

    /// True when it does not take a token of gap `d` by itself.
    fn keeps_token(&self, d: f64) -> bool {
        let value = match self.statistic {
            Statistic::K1 { .. } => d,
            Statistic::K2 { .. } => k2(d),
            Statistic::K3 { .. } => k3(d),
        };
        self.over != Over::Token || self.holds(value)
    }
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.divergence += other.divergence;
        self.k3 += other.k3;
        self.ratio += other.ratio;
        self.ratio_squared += other.ratio_squared;
        self.weight += other.weight;
        self.weight_squared += other.weight_squared;
        self.weight_max = self.weight_max.max(other.weight_max);
        self.sequence_weight += other.sequence_weight;
        self.perplexity += other.perplexity;
        self.chi_squared += other.chi_squared;
        self.tokens += other.tokens;
        self.sequences += other.sequences;
        self.dropped += other.dropped;
        self.high += other.high;
        self.low += other.low;
        self.rejected += other.rejected;
        self.rejected_sequences += other.rejected_sequences;
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/kernels/rollout_correction.md")]
mod page {}
