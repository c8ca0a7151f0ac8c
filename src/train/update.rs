//! One batch of rollouts into gradients: log-probs again, the objective, the backward pass, in micro-batches.

use super::supervised::micro_batches;
use crate::error::{Error, Result};
use crate::kernels::policy_loss::{self, Advantages, Inputs, Metrics, Objective, Totals};
use crate::models::Decoder;
use crate::rl::scoring::{Scored, logprobs};
use crate::tensor::{Gradients, Tensor, autograd};

/// A completion with everything its gradient needs.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The tokens.
    pub scored: Scored<'a>,
    /// The log-prob of each completion token when it was sampled.
    pub old_logprob: &'a [f32],
    /// The log-prob under the reference policy; needed when the objective has a KL term.
    pub reference_logprob: Option<&'a [f32]>,
    /// The advantage of the completion.
    pub advantage: f32,
}

/// What one update's forward and backward gave.
#[derive(Clone, Debug)]
pub struct Updated {
    /// The objective's metrics over all tokens.
    pub metrics: Metrics,
    /// Largest |log-prob now − log-prob when sampled|: 0 exactly while the weights are those that sampled.
    pub mismatch: f32,
    /// Tokens run through the model.
    pub tokens: usize,
}

/// Adds the gradient of the objective over `samples`, `micro_batch_tokens` at a time. How the samples are cut into
/// micro-batches changes the order of additions, nothing else.
///
/// # Errors
/// As [`logprobs`] and [`policy_loss::forward_backward`].
pub fn gradients(
    model: &Decoder,
    samples: &[Sample<'_>],
    objective: &Objective,
    temperature: f32,
    micro_batch_tokens: usize,
    gradients: &mut Gradients,
) -> Result<Updated> {
    let live: usize = samples.iter().map(|s| s.scored.completion.len()).sum();
    let totals = Totals {
        tokens: Some(live as f64),
        sequences: Some(samples.iter().filter(|s| !s.scored.completion.is_empty()).count() as f64),
        scale: 1.0,
    };
    let scored: Vec<Scored<'_>> = samples.iter().map(|s| s.scored).collect();
    let mut result: Option<Updated> = None;
    let mut first = 0;
    for part in micro_batches(&scored, micro_batch_tokens) {
        let members = &samples[first..first + part.len()];
        first += part.len();
        let one = micro_batch(model, members, part, objective, temperature, totals, gradients)?;
        result = Some(match result {
            None => one,
            Some(sum) => Updated {
                metrics: sum.metrics.merge(&one.metrics),
                mismatch: sum.mismatch.max(one.mismatch),
                tokens: sum.tokens + one.tokens,
            },
        });
    }
    result.ok_or_else(|| Error::invalid("update: no samples"))
}

fn micro_batch(
    model: &Decoder,
    members: &[Sample<'_>],
    scored: &[Scored<'_>],
    objective: &Objective,
    temperature: f32,
    totals: Totals,
    gradients: &mut Gradients,
) -> Result<Updated> {
    let (logprob, entropy) = logprobs(model, scored, temperature)?;
    let mut offsets = vec![0i64];
    for sample in members {
        offsets.push(offsets[offsets.len() - 1] + sample.scored.completion.len() as i64);
    }
    let old: Vec<f32> = members.iter().flat_map(|s| s.old_logprob).copied().collect();
    let reference: Option<Vec<f32>> = members
        .iter()
        .map(|s| s.reference_logprob)
        .collect::<Option<Vec<_>>>()
        .map(|parts| parts.concat());
    let advantage: Vec<f32> = members.iter().map(|s| s.advantage).collect();
    let now = logprob.f32s()?;
    if old.len() != now.len() {
        return Err(Error::shape(format!(
            "update: {} old log-probs for {} tokens",
            old.len(),
            now.len()
        )));
    }
    let mask = vec![1u8; now.len()];
    let mut dlogprob = vec![0f32; now.len()];
    let mut dentropy = vec![0f32; now.len()];
    let wants_entropy = objective.entropy_coefficient != 0.0;
    let metrics = policy_loss::forward_backward(
        objective,
        &Inputs {
            logprob: now,
            old_logprob: &old,
            advantage: Advantages::PerSequence(&advantage),
            mask: &mask,
            offsets: &offsets,
            reference_logprob: reference.as_deref(),
            entropy: Some(entropy.f32s()?),
            weight: None,
            totals,
        },
        policy_loss::Gradients {
            logprob: &mut dlogprob,
            entropy: Some(&mut dentropy).filter(|_| wants_entropy).map(|d| &mut d[..]),
        },
    )?;
    let distance = |(a, b): (&f32, &f32)| (a - b).abs();
    let mismatch = now.iter().zip(&old).map(distance).fold(0f32, |worst, d| {
        // Not `max`: a NaN must stay visible.
        if d <= worst { worst } else { d }
    });
    let updated = Updated { mismatch, tokens: scored.iter().map(Scored::tokens).sum(), metrics };
    if logprob.is_tracked() {
        let shape = logprob.shape().to_vec();
        let mut roots = vec![(logprob, Tensor::from_f32(dlogprob, &shape)?)];
        if wants_entropy {
            roots.push((entropy, Tensor::from_f32(dentropy, &shape)?));
        }
        autograd::backward_from(roots, gradients)?;
    }
    Ok(updated)
}
