//! A whole batch scored without gradients, in micro-batches.

use super::batch::{Batch, host};
use super::episode::{Scored, micro_batches};
use super::policy::{Policy, Scores};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::autograd::no_grad;

/// Log-probs and entropies of some episodes of a batch under a policy, f32 `[tokens]` where the policy is.
///
/// # Errors
/// As [`Policy::score`].
pub fn scores(
    policy: &dyn Policy,
    batch: &Batch,
    members: &[usize],
    micro_batch_tokens: usize,
) -> Result<Scores> {
    let scored: Vec<Scored<'_>> = members.iter().map(|i| batch.scored(*i)).collect();
    let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
    for part in micro_batches(&scored, micro_batch_tokens) {
        let scores = no_grad(|| policy.score(part, &batch.drawn))?;
        logprobs.push(scores.logprob);
        entropies.push(scores.entropy);
    }
    let device = policy.device();
    Ok(Scores { logprob: joined(&logprobs, &device)?, entropy: joined(&entropies, &device)? })
}

/// Tensors `[n]` one behind the other.
///
/// # Errors
/// What the device reports.
pub fn joined(parts: &[Tensor], device: &Device) -> Result<Tensor> {
    match parts {
        [] => Tensor::zeros_on(&[0], DType::F32, device),
        [one] => Ok(one.detach()),
        parts => no_grad(|| ops::concat(&parts.iter().collect::<Vec<_>>())),
    }
}

/// `fresh` log-probs for the episodes that this policy drew, the recorded ones for those that replay brought back: what an
/// older policy wrote keeps the log-prob under which it was drawn.
///
/// # Errors
/// What the device reports.
pub(super) fn with_recorded(batch: &Batch, fresh: Tensor) -> Result<Tensor> {
    if !batch.replayed.contains(&true) {
        return Ok(fresh);
    }
    let mut values = host(&fresh)?;
    for (i, bounds) in batch.offsets().windows(2).enumerate().filter(|(i, _)| batch.replayed[*i]) {
        values[bounds[0] as usize..bounds[1] as usize].copy_from_slice(&batch.episodes[i].logprob);
    }
    batch.column(values)
}
