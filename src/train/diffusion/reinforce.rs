//! Reinforcement of a model that fills masked blocks: completions with advantages into gradients of any objective.

use crate::error::{Error, Result};
use crate::kernels::policy_loss::{Metrics, Objective, Totals};
use crate::models::Decoder;
use crate::rl::masked_policy::{Likelihood, Masked, logprobs};
use crate::tensor::{Gradients, Tensor};
use crate::train::policy_gradient::{Batch, Completion, Minimised, Pending};

/// How a diffusion model is measured as a policy.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// What stands for the log-prob of a token.
    pub likelihood: Likelihood,
    /// That of the sampling.
    pub temperature: f32,
    /// The seed of the masks; the same for the old, the current and the reference policy.
    pub seed: u64,
}

/// A completion with everything its gradient needs.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The completion.
    pub masked: Masked<'a>,
    /// The log-prob of each of its tokens under the policy that sampled, by the same [`Likelihood`]; for
    /// [`Likelihood::Trajectory`] what decoding recorded.
    pub old_logprob: &'a [f32],
    /// The same under the reference policy, f32 `[tokens]`, anywhere; needed where the objective has a KL term.
    pub reference_logprob: Option<&'a Tensor>,
    /// The advantage of the completion.
    pub advantage: f32,
}

/// Adds the gradient of the objective over `samples`, `together` completions at a time.
///
/// # Errors
/// As [`logprobs`] and [`forward_backward`](crate::kernels::policy_loss::forward_backward); [`Error::is_shape`] when old
/// log-probs do not fit.
pub fn gradients(
    model: &Decoder,
    samples: &[Sample<'_>],
    objective: &Objective,
    measure: Measure,
    together: usize,
    gradients: &mut Gradients,
) -> Result<Metrics> {
    let live: usize = samples.iter().map(|sample| sample.masked.filled.tokens.len()).sum();
    let answered = samples.iter().filter(|sample| !sample.masked.filled.tokens.is_empty()).count();
    let totals = Totals { tokens: Some(live as f64), sequences: Some(answered as f64), scale: 1.0 };
    let what = Minimised { objective, totals, selected: None };
    let mut pending = Vec::new();
    for part in samples.chunks(together.max(1)) {
        pending.push(micro_batch(model, part, what, measure, gradients)?);
    }
    // Read when everything has been started: a device is waited for once.
    let mut metrics: Option<Metrics> = None;
    for one in pending {
        let one = one.metrics()?;
        metrics = Some(metrics.map_or(one, |sum| sum.merge(&one)));
    }
    metrics.ok_or_else(|| Error::invalid("reinforcement: no samples"))
}

fn micro_batch(
    model: &Decoder,
    samples: &[Sample<'_>],
    what: Minimised<'_>,
    measure: Measure,
    gradients: &mut Gradients,
) -> Result<Pending> {
    let masked: Vec<Masked<'_>> = samples.iter().map(|sample| sample.masked).collect();
    let Measure { likelihood, temperature, seed } = measure;
    let (logprob, entropy) = logprobs(model, &masked, likelihood, temperature, seed)?;
    let completions: Vec<Completion<'_>> = samples
        .iter()
        .map(|sample| Completion {
            tokens: sample.masked.filled.tokens.len(),
            old_logprob: sample.old_logprob,
            reference_logprob: sample.reference_logprob,
            advantage: sample.advantage,
        })
        .collect();
    Batch::new(&completions, &logprob.device())?.backward(what, logprob, entropy, gradients)
}
