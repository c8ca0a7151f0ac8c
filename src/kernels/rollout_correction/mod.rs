//! Rollout correction: importance weights and rejections for tokens that a sampler drew and another policy learns from.
//!
//! Contract: packed tokens with a mask and CSR offsets; log-probs of policy and sampler, of the full distribution at the
//! sampling temperature, in nats. Out come a weight a token, which [`policy_loss`](super::policy_loss) takes as its `weight`,
//! and a new mask. No gradient. A masked token is never read into arithmetic. Off-policy sequence masks that look at the
//! advantage are the objective's.
//!
#![doc = include_str!("../../../docs/kernels/rollout_correction.md")]

mod diagnostics;
pub mod launch;
mod sequence;
mod settings;

pub use diagnostics::Diagnostics;
pub use settings::{
    Bound, Level, MAX_REJECTIONS, Over, PRESETS, Preset, Rejection, RolloutCorrection, Statistic,
    Weight,
};

use crate::device::cpu::pool;
use crate::error::{Error, Result};
use crate::kernels::offsets;
use diagnostics::Sums;
use sequence::Ratios;

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
    let mut sequences = Vec::with_capacity(offsets.len() - 1);
    let (mut weight, mut mask) = (&mut *out.weight, out.mask);
    for bounds in offsets.windows(2) {
        let (here, rest) = weight.split_at_mut(bounds[1] - bounds[0]);
        let (here_mask, rest_mask) = mask.split_at_mut(bounds[1] - bounds[0]);
        sequences.push((bounds[0]..bounds[1], here, here_mask, Sums::default()));
        (weight, mask) = (rest, rest_mask);
    }
    // Two log-probs and a mask in, a weight and a mask out.
    let together = pool::rows_per_task(14 * tokens / sequences.len().max(1));
    pool::each_with(sequences.iter_mut(), together, Ratios::default, |ratios, _, sequence| {
        let (tokens, weight, mask, sums) = sequence;
        let sampler = inputs.sampler_logprob.map(|sampler| &sampler[tokens.clone()]);
        let policy = &inputs.policy_logprob[tokens.clone()];
        let totals = sequence::read(policy, sampler, &inputs.mask[tokens.clone()], ratios);
        *sums = ratios.write(correction, &totals, weight, mask);
    });
    let mut total = Sums::default();
    sequences.iter().for_each(|(_, _, _, sums)| total.add(sums));
    if let Some(weight) = correction.weight.filter(|weight| weight.normalize) {
        let mean = match weight.level {
            Level::Token => total.weight / total.tokens as f64,
            _ => total.sequence_weight / total.sequences as f64,
        };
        if mean > 1e-8 {
            pool::blocks(out.weight, pool::GRAIN, |_, weights| {
                weights.iter_mut().for_each(|w| *w = (f64::from(*w) / mean) as f32);
            });
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
