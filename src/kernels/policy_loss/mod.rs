//! Policy-gradient losses over packed sequences: the loss, its exact gradient and its metrics in one pass.
//!
//! Contract: f32 tokens `[tokens]`, a byte mask, CSR offsets of the sequences, caller-owned gradients. The objective is
//! data ([`Objective`]); a masked token is never read into arithmetic, so NaN in padding does not matter. Log-probs
//! come from `kernels::logprob`, advantages from [`super::advantage`].
//!
//! Floor: 17 bytes read and 4 written a token without a reference and entropies. Algorithm: a sequence pass counts live
//! tokens (1 byte a token) and turns the aggregation into one coefficient a sequence; a token pass walks fixed blocks
//! of `pass::BLOCK` tokens, each cut where sequences end, and leaves one record of sums a block; the records are
//! added in order. Blocks are a function of the token count alone, so bits do not depend on the thread count; a
//! token's gradient depends on its own sequence's coefficient only. Objectives whose ratio is a sequence's (GSPO,
//! GMPO) are to extend the sequence pass.
//!
//! The body keeps one `u32` and one `f32` a sequence and one record a block on the host heap, and nothing else.

mod aggregation;
mod kl;
pub mod launch;
mod metrics;
mod objective;
mod pass;
mod tile;

pub use aggregation::{Aggregation, Rows, Totals};
pub use kl::{Clamp, Estimator as KlEstimator, Kl};
pub use metrics::Metrics;
pub use objective::{ImportanceLevel, LogRatio, Objective, Surrogate};

use crate::error::{Error, Result};

/// The advantages: one a token, or one a sequence.
#[derive(Clone, Copy, Debug)]
pub enum Advantages<'a> {
    /// `[tokens]`.
    PerToken(&'a [f32]),
    /// `[sequences]`, the same for each of its tokens.
    PerSequence(&'a [f32]),
}

/// What [`forward_backward`] reads. `[tokens]` unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Log-prob of each taken token under the policy, nats.
    pub logprob: &'a [f32],
    /// The same under the policy that ratios compare with.
    pub old_logprob: &'a [f32],
    /// Advantages, no gradient.
    pub advantage: Advantages<'a>,
    /// Non-zero: the token counts.
    pub mask: &'a [u8],
    /// `[sequences + 1]`: sequence `i` is the tokens `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [i64],
    /// The same under the reference policy; needed when the objective has a `kl`, not read otherwise.
    pub reference_logprob: Option<&'a [f32]>,
    /// Entropy of each token's distribution, nats; needed when the objective has an entropy coefficient.
    pub entropy: Option<&'a [f32]>,
    /// Factors of the surrogate, no gradient: importance weights between the sampler and the old policy.
    pub weight: Option<&'a [f32]>,
    /// What this call must know of the whole batch.
    pub totals: Totals,
}

/// Where [`forward_backward`] writes. `[tokens]`; masked tokens get 0.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// The loss's derivative by each log-prob.
    pub logprob: &'a mut [f32],
    /// The loss's derivative by each entropy; `None`: not wanted.
    pub entropy: Option<&'a mut [f32]>,
}

/// The loss of an objective, its gradient and its metrics.
///
/// A masked token has gradient 0 and counts nowhere. No live token: loss 0, gradients 0. NaN or infinity in a live
/// token reaches the loss and that token's gradient.
///
/// # Shapes
/// As [`Inputs`] and [`Gradients`] say.
///
/// # Errors
/// [`Error::is_shape`] for a length that does not fit, [`Error::is_index`] for offsets that fall,
/// [`Error::is_invalid`] for an objective out of range or one that needs an input that is missing.
///
/// # Source
/// PPO: arXiv 1707.06347; aggregations and clamps as verl and TRL publish them (see each type).
pub fn forward_backward(
    objective: &Objective,
    inputs: &Inputs<'_>,
    gradients: Gradients<'_>,
) -> Result<Metrics> {
    objective.check()?;
    inputs.totals.check()?;
    let tokens = inputs.logprob.len();
    let offsets = super::offsets::checked("policy_loss", "sequence", inputs.offsets, tokens)?;
    check_lengths(inputs, &gradients, tokens, offsets.len() - 1)?;
    check_needs(objective, inputs.reference_logprob.is_some(), inputs.entropy.is_some())?;

    let live = pass::count_live(inputs.mask, &offsets);
    let coefficients = objective.aggregation.coefficients(&live, &inputs.totals);
    let of_entropy = objective.entropy_aggregation.as_ref();
    let of_entropy = of_entropy.map(|mode| mode.coefficients(&live, &inputs.totals));
    let sequences = pass::Sequences {
        offsets: &offsets,
        coefficients: &coefficients,
        entropy_coefficients: of_entropy.as_deref().unwrap_or(&coefficients),
    };
    let sums = pass::tokens(objective, inputs, gradients, &sequences);
    let kl_coefficient = objective.kl.as_ref().map_or(0.0, |kl| kl.coefficient);
    Ok(sums.report(&live, kl_coefficient, objective.entropy_coefficient))
}

fn check_lengths(
    inputs: &Inputs<'_>,
    gradients: &Gradients<'_>,
    tokens: usize,
    sequences: usize,
) -> Result<()> {
    let (advantage, advantages) = match inputs.advantage {
        Advantages::PerToken(values) => (values.len(), tokens),
        Advantages::PerSequence(values) => (values.len(), sequences),
    };
    let lengths = [
        ("old_logprob", Some(inputs.old_logprob.len()), tokens),
        ("advantage", Some(advantage), advantages),
        ("mask", Some(inputs.mask.len()), tokens),
        ("reference_logprob", inputs.reference_logprob.map(<[f32]>::len), tokens),
        ("entropy", inputs.entropy.map(<[f32]>::len), tokens),
        ("weight", inputs.weight.map(<[f32]>::len), tokens),
        ("gradient of logprob", Some(gradients.logprob.len()), tokens),
        ("gradient of entropy", gradients.entropy.as_ref().map(|g| g.len()), tokens),
    ];
    check_each(lengths, tokens, sequences)
}

/// Each given length against the one it must be.
fn check_each(
    lengths: [(&str, Option<usize>, usize); 8],
    tokens: usize,
    sequences: usize,
) -> Result<()> {
    for (name, got, want) in lengths {
        if let Some(got) = got.filter(|got| *got != want) {
            return Err(Error::shape(format!(
                "policy_loss: {name} has {got} elements, not {want} \
                 ({tokens} tokens in {sequences} sequences)"
            )));
        }
    }
    Ok(())
}

fn check_needs(objective: &Objective, has_reference: bool, has_entropy: bool) -> Result<()> {
    if objective.kl.is_some() && !has_reference {
        return Err(Error::invalid(
            "policy_loss: the objective has a KL penalty, so reference_logprob is needed",
        ));
    }
    if objective.entropy_coefficient != 0.0 && !has_entropy {
        return Err(Error::invalid(
            "policy_loss: the objective has an entropy coefficient, so entropy is needed",
        ));
    }
    Ok(())
}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/kernels/policy_loss.md")]
mod page {}
