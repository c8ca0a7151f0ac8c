//! The loss of a value function: one small function beside the policy's, on the same pass.

use super::aggregation::{Aggregation, Totals};
use super::formula::Value;
use super::metrics::Metrics;
use super::objective::Objective;
use super::pass;
use super::run::Sequences;
use super::steps::{Rule, SurrogateRule};
use super::{Advantages, Gradients, Inputs, check_lengths, sequence, within};
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// `½ Σ c_i max((v - target)², (clip(v, old - clip, old + clip) - target)²)` over live tokens.
///
/// The gradient passes where the plain error is the larger one, ties included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValueLoss {
    /// How far a value may move from what it was when it was sampled; `None`: any way (a plain squared error).
    pub clip: Option<f32>,
    /// How token losses become one number.
    pub aggregation: Aggregation,
}

impl Default for ValueLoss {
    fn default() -> ValueLoss {
        ValueLoss { clip: Some(0.2), aggregation: Aggregation::TokenMean {} }
    }
}

impl ValueLoss {
    pub(super) fn check(&self) -> Result<()> {
        if let Some(clip) = self.clip {
            within("value clip", clip, f32::MIN_POSITIVE, f32::MAX)?;
        }
        let length = self.aggregation.length();
        length.map_or(Ok(()), |length| {
            within("aggregation.length", length, f32::MIN_POSITIVE, f32::MAX)
        })
    }

    pub(super) fn clip(&self) -> f32 {
        self.clip.unwrap_or(f32::INFINITY)
    }

    /// What the pass needs beside the formula: an objective without any other part.
    pub(super) fn carrier(&self) -> Objective {
        Objective { aggregation: self.aggregation.clone(), ..Objective::default() }
    }
}

/// What [`value_loss`] reads. `[tokens]` unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct ValueInputs<'a> {
    /// The values now.
    pub value: &'a [f32],
    /// The values when the tokens were sampled.
    pub old_value: &'a [f32],
    /// The returns.
    pub target: &'a [f32],
    /// Non-zero: the token counts.
    pub mask: &'a [u8],
    /// `[sequences + 1]`.
    pub offsets: &'a [i64],
    /// What this call must know of the whole batch.
    pub totals: Totals,
}

/// Where it writes: `[tokens]`, the loss's derivative by each value.
pub type ValueGradient<'a> = &'a mut [f32];

/// What it reports. Means are over live tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ValueMetrics {
    /// The loss.
    pub loss: f64,
    /// Fraction of tokens whose clipped error is the larger one.
    pub clip_fraction: f64,
    /// Mean value.
    pub value_mean: f64,
    /// Mean of `old_value - value`.
    pub change_mean: f64,
    /// Tokens that are not masked.
    pub live_tokens: u64,
}

impl ValueMetrics {
    pub(super) fn of(metrics: &Metrics) -> ValueMetrics {
        ValueMetrics {
            loss: metrics.loss,
            clip_fraction: metrics.clip_fraction,
            value_mean: metrics.ratio_mean,
            change_mean: metrics.approx_kl,
            live_tokens: metrics.live_tokens,
        }
    }
}

/// The loss of a value function, its gradient and its metrics.
///
/// A masked token has gradient 0 and is not read. No live token: loss 0.
///
/// # Errors
/// As [`forward_backward`](super::forward_backward).
///
/// # Source
/// verl `compute_value_loss`, after TRL's PPO trainer.
pub fn value_loss(
    loss: &ValueLoss,
    inputs: &ValueInputs<'_>,
    gradient: ValueGradient<'_>,
) -> Result<ValueMetrics> {
    loss.check()?;
    inputs.totals.check()?;
    let tokens = inputs.value.len();
    let of_target = Advantages::PerToken(inputs.target);
    let base = Inputs::new(inputs.value, inputs.old_value, of_target, inputs.mask, inputs.offsets);
    let gradients = Gradients { logprob: gradient, entropy: None };
    let offsets =
        crate::kernels::offsets::checked("value_loss", "sequence", inputs.offsets, tokens)?;
    check_lengths(&base, Some(&gradients), tokens, offsets.len() - 1)?;
    let live = sequence::count_live(inputs.mask, &offsets);
    let coefficients = loss.aggregation.coefficients(&live, &inputs.totals);
    let sequences = Sequences {
        offsets: &offsets,
        coefficients: &coefficients,
        kl_coefficients: &coefficients,
        entropy_coefficients: &coefficients,
        shared: None,
    };
    let rule = Rule {
        surrogate: SurrogateRule::Value(Value { clip: loss.clip() }),
        log_ratio_limit: f32::INFINITY,
        ..Rule::of(&loss.carrier())
    };
    let sums = pass::tokens(&rule, &base, gradients, &sequences);
    Ok(ValueMetrics::of(&sums.report(&live, [0.0; 3])))
}
