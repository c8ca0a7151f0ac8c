//! Reinforcement of a model that fills masked blocks: completions with advantages into gradients of any objective.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::policy_loss::{
    self, Advantages, Gradients as LossGradients, Inputs, Metrics, Objective, Totals,
};
use crate::models::Decoder;
use crate::rl::masked_policy::{Likelihood, Masked, logprobs};
use crate::tensor::{Gradients, Tensor, autograd};

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
    /// The same under the reference policy, where the objective has a KL term.
    pub reference_logprob: Option<&'a [f32]>,
    /// The advantage of the completion.
    pub advantage: f32,
}

/// Adds the gradient of the objective over `samples`, `together` completions at a time.
///
/// # Errors
/// As [`logprobs`] and [`policy_loss::forward_backward`]; [`Error::is_shape`] when old log-probs do not fit.
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
    let mut metrics: Option<Metrics> = None;
    for part in samples.chunks(together.max(1)) {
        let one = micro_batch(model, part, objective, measure, totals, gradients)?;
        metrics = Some(metrics.map_or(one, |sum| sum.merge(&one)));
    }
    metrics.ok_or_else(|| Error::invalid("reinforcement: no samples"))
}

fn micro_batch(
    model: &Decoder,
    samples: &[Sample<'_>],
    objective: &Objective,
    measure: Measure,
    totals: Totals,
    gradients: &mut Gradients,
) -> Result<Metrics> {
    let masked: Vec<Masked<'_>> = samples.iter().map(|sample| sample.masked).collect();
    let Measure { likelihood, temperature, seed } = measure;
    let (logprob, entropy) = logprobs(model, &masked, likelihood, temperature, seed)?;
    let mut offsets = vec![0i64];
    for one in &masked {
        offsets.push(offsets[offsets.len() - 1] + one.filled.tokens.len() as i64);
    }
    let old_logprob: Vec<f32> = samples.iter().flat_map(|s| s.old_logprob).copied().collect();
    if old_logprob.len() != logprob.len() {
        return Err(Error::shape(format!(
            "reinforcement: {} old log-probs for {} tokens",
            old_logprob.len(),
            logprob.len()
        )));
    }
    let reference: Option<Vec<f32>> = samples
        .iter()
        .map(|sample| sample.reference_logprob)
        .collect::<Option<Vec<_>>>()
        .map(|parts| parts.concat());
    let advantage: Vec<f32> = samples.iter().map(|sample| sample.advantage).collect();
    let mask = vec![1u8; logprob.len()];
    let (now, entropies) = (logprob.to_device(&Device::Cpu)?, entropy.to_device(&Device::Cpu)?);
    let (mut dlogprob, mut dentropy) = (vec![0f32; logprob.len()], vec![0f32; logprob.len()]);
    let wants_entropy = objective.entropy_coefficient != 0.0;
    let metrics = policy_loss::forward_backward(
        objective,
        &Inputs {
            logprob: now.f32s()?,
            old_logprob: &old_logprob,
            advantage: Advantages::PerSequence(&advantage),
            mask: &mask,
            offsets: &offsets,
            reference_logprob: reference.as_deref(),
            entropy: Some(entropies.f32s()?),
            weight: None,
            off_policy: None,
            sampler_logprob: None,
            selected: None,
            totals,
        },
        LossGradients {
            logprob: &mut dlogprob,
            entropy: Some(&mut dentropy).filter(|_| wants_entropy).map(|d| &mut d[..]),
        },
    )?;
    if logprob.is_tracked() {
        let back = |values: Vec<f32>, of: &Tensor| {
            Tensor::from_f32(values, of.shape())?.to_device(&of.device())
        };
        let upstream = back(dlogprob, &logprob)?;
        let mut roots = vec![(logprob, upstream)];
        if wants_entropy && entropy.is_tracked() {
            let upstream = back(dentropy, &entropy)?;
            roots.push((entropy, upstream));
        }
        autograd::backward_from(roots, gradients)?;
    }
    Ok(metrics)
}
