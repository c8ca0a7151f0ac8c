//! One batch of rollouts into gradients: log-probs again, the objective, the backward pass, in micro-batches.

use super::supervised::micro_batches;
use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::{Error, Result};
use crate::kernels::policy_loss::launch::{self, DeviceMetrics};
use crate::kernels::policy_loss::{
    self, Advantages, Inputs, Metrics, Objective, Surrogate, Totals,
};
use crate::kernels::token_selection::{self, Selection};
use crate::models::Decoder;
use crate::rl::scoring::{Scored, logprobs};
use crate::tensor::autograd::no_grad;
use crate::tensor::{Gradients, Tensor, autograd};
use std::sync::Arc;

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

/// What the random choices of a step's tokens depend on: a seed, and a number that no other update of it has.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// The seed.
    pub seed: u64,
    /// The number.
    pub number: u64,
}

/// Adds the gradient of the objective over `samples`, `micro_batch_tokens` at a time. How the samples are cut into
/// micro-batches changes the order of additions, nothing else.
///
/// An objective with a selection of tokens (Clip-Cov, KL-Cov, the top of the entropies) looks at the whole batch before
/// its first token: that is one more forward pass.
///
/// # Errors
/// As [`logprobs`] and [`policy_loss::forward_backward`].
pub fn gradients(
    model: &Decoder,
    samples: &[Sample<'_>],
    objective: &Objective,
    temperature: f32,
    micro_batch_tokens: usize,
    draw: Draw,
    gradients: &mut Gradients,
) -> Result<Updated> {
    let live: usize = samples.iter().map(|s| s.scored.completion.len()).sum();
    let totals = Totals {
        tokens: Some(live as f64),
        sequences: Some(samples.iter().filter(|s| !s.scored.completion.is_empty()).count() as f64),
        scale: 1.0,
    };
    let scored: Vec<Scored<'_>> = samples.iter().map(|s| s.scored).collect();
    let selected = match &objective.selection {
        Some(selection) => {
            let parts = micro_batches(&scored, micro_batch_tokens);
            let clip = clip_of(objective);
            Some(select(model, samples, parts, selection, clip, temperature, draw)?)
        }
        None => None,
    };
    let mut pending = Vec::new();
    let (mut first, mut token) = (0, 0);
    for part in micro_batches(&scored, micro_batch_tokens) {
        let members = &samples[first..first + part.len()];
        first += part.len();
        let tokens = token..token + part.iter().map(|one| one.completion.len()).sum::<usize>();
        token = tokens.end;
        let what =
            Minimised { objective, totals, selected: selected.as_ref().map(|all| &all[tokens]) };
        pending.push(micro_batch(model, members, part, what, temperature, gradients)?);
    }
    // Read when everything has been started: a device is waited for once.
    let mut result: Option<Updated> = None;
    for one in pending {
        let one = one.read()?;
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

/// The bounds that a clip leaves ratios in; Clip-Cov leaves the others alone.
fn clip_of(objective: &Objective) -> (f32, f32) {
    match objective.surrogate {
        Surrogate::PpoClip { clip_low, clip_high, .. } => (1.0 - clip_low, 1.0 + clip_high),
        _ => (0.0, f32::INFINITY),
    }
}

/// The tokens that a selection picks of the whole batch, from the log-probs and entropies of now.
fn select(
    model: &Decoder,
    samples: &[Sample<'_>],
    parts: Vec<&[Scored<'_>]>,
    selection: &Selection,
    clip: (f32, f32),
    temperature: f32,
    draw: Draw,
) -> Result<Vec<u8>> {
    let (mut logprob, mut entropy) = (Vec::new(), Vec::new());
    for part in parts {
        let (now, of_now) = no_grad(|| logprobs(model, part, temperature))?;
        logprob.extend_from_slice(now.to_device(&Device::Cpu)?.f32s()?);
        entropy.extend_from_slice(of_now.to_device(&Device::Cpu)?.f32s()?);
    }
    let old: Vec<f32> = samples.iter().flat_map(|s| s.old_logprob).copied().collect();
    let each = |s: &Sample<'_>| std::iter::repeat_n(s.advantage, s.scored.completion.len());
    let advantage: Vec<f32> = samples.iter().flat_map(each).collect();
    let mut selected = vec![0u8; logprob.len()];
    let inputs = token_selection::Inputs {
        logprob: &logprob,
        old_logprob: &old,
        advantage: &advantage,
        entropy: &entropy,
        mask: &vec![1; logprob.len()],
        clip,
        draw: (draw.seed, draw.number),
    };
    token_selection::select(selection, &inputs, &mut selected)?;
    Ok(selected)
}

/// What is minimised over a micro-batch.
#[derive(Clone, Copy)]
struct Minimised<'a> {
    objective: &'a Objective,
    totals: Totals,
    /// `[tokens]` of the micro-batch.
    selected: Option<&'a [u8]>,
}

/// What a micro-batch gave, where it was computed.
struct Pending {
    metrics: Computed,
    logprob: Tensor,
    old_logprob: Vec<f32>,
    tokens: usize,
}

enum Computed {
    Host(Box<Metrics>),
    Device(DeviceMetrics),
}

impl Pending {
    fn read(self) -> Result<Updated> {
        let metrics = match self.metrics {
            Computed::Host(metrics) => *metrics,
            Computed::Device(metrics) => metrics.read()?,
        };
        let now = self.logprob.to_device(&Device::Cpu)?;
        let distance = |(a, b): (&f32, &f32)| (a - b).abs();
        let mismatch =
            now.f32s()?.iter().zip(&self.old_logprob).map(distance).fold(0f32, |worst, d| {
                // Not `max`: a NaN must stay visible.
                if d <= worst { worst } else { d }
            });
        Ok(Updated { metrics, mismatch, tokens: self.tokens })
    }
}

fn micro_batch(
    model: &Decoder,
    members: &[Sample<'_>],
    scored: &[Scored<'_>],
    what: Minimised<'_>,
    temperature: f32,
    gradients: &mut Gradients,
) -> Result<Pending> {
    let (logprob, entropy) = logprobs(model, scored, temperature)?;
    let mut offsets = vec![0i64];
    for sample in members {
        offsets.push(offsets[offsets.len() - 1] + sample.scored.completion.len() as i64);
    }
    let old_logprob: Vec<f32> = members.iter().flat_map(|s| s.old_logprob).copied().collect();
    let reference: Option<Vec<f32>> = members
        .iter()
        .map(|s| s.reference_logprob)
        .collect::<Option<Vec<_>>>()
        .map(|parts| parts.concat());
    let tokens = logprob.len();
    if old_logprob.len() != tokens {
        return Err(Error::shape(format!(
            "update: {} old log-probs for {tokens} tokens",
            old_logprob.len(),
        )));
    }
    let batch = Batch {
        offsets,
        old_logprob,
        reference,
        advantage: members.iter().map(|s| s.advantage).collect(),
        mask: vec![1u8; tokens],
    };
    let (metrics, dlogprob, dentropy) = match logprob.device() {
        Device::Cpu => batch.loss(what, &logprob, &entropy)?,
        Device::Gpu(gpu) => batch.loss_on(&gpu, what, &logprob, &entropy)?,
    };
    let pending = Pending {
        metrics,
        logprob: logprob.detach(),
        old_logprob: batch.old_logprob,
        tokens: scored.iter().map(Scored::tokens).sum(),
    };
    if logprob.is_tracked() {
        let mut roots = vec![(logprob, dlogprob)];
        if let Some(dentropy) = dentropy {
            roots.push((entropy, dentropy));
        }
        autograd::backward_from(roots, gradients)?;
    }
    Ok(pending)
}

/// What the objective reads beside the log-probs of now, on the host.
struct Batch {
    offsets: Vec<i64>,
    old_logprob: Vec<f32>,
    reference: Option<Vec<f32>>,
    advantage: Vec<f32>,
    mask: Vec<u8>,
}

/// Metrics, and the loss's gradient by each log-prob and, where the objective has a bonus, by each entropy.
type Loss = (Computed, Tensor, Option<Tensor>);

impl Batch {
    fn loss(&self, what: Minimised<'_>, logprob: &Tensor, entropy: &Tensor) -> Result<Loss> {
        let objective = what.objective;
        let mut dlogprob = vec![0f32; logprob.len()];
        let mut dentropy = vec![0f32; logprob.len()];
        let wants_entropy = objective.entropy_coefficient != 0.0;
        let metrics = policy_loss::forward_backward(
            objective,
            &Inputs {
                reference_logprob: self.reference.as_deref(),
                entropy: Some(entropy.f32s()?),
                // The rollouts are the sampler's, and what ratios compare with.
                sampler_logprob: Some(&self.old_logprob),
                selected: what.selected,
                totals: what.totals,
                ..Inputs::new(
                    logprob.f32s()?,
                    &self.old_logprob,
                    Advantages::PerSequence(&self.advantage),
                    &self.mask,
                    &self.offsets,
                )
            },
            policy_loss::Gradients {
                logprob: &mut dlogprob,
                entropy: Some(&mut dentropy).filter(|_| wants_entropy).map(|d| &mut d[..]),
            },
        )?;
        let dlogprob = Tensor::from_f32(dlogprob, logprob.shape())?;
        let dentropy = Tensor::from_f32(dentropy, logprob.shape())?;
        Ok((Computed::Host(Box::new(metrics)), dlogprob, Some(dentropy).filter(|_| wants_entropy)))
    }

    fn loss_on(
        &self,
        gpu: &Arc<Gpu>,
        what: Minimised<'_>,
        logprob: &Tensor,
        entropy: &Tensor,
    ) -> Result<Loss> {
        let objective = what.objective;
        let floats =
            |values: &[f32]| DeviceBuffer::upload(gpu, DType::F32, bytemuck::cast_slice(values));
        let old_logprob = floats(&self.old_logprob)?;
        let advantage = floats(&self.advantage)?;
        let reference = self.reference.as_deref().map(floats).transpose()?;
        let mask = DeviceBuffer::upload(gpu, DType::U8, &self.mask)?;
        let bytes = |bytes: &[u8]| DeviceBuffer::upload(gpu, DType::U8, bytes);
        let selected = what.selected.map(bytes).transpose()?;
        let offsets = DeviceBuffer::upload(gpu, DType::I64, bytemuck::cast_slice(&self.offsets))?;
        let device = Device::Gpu(Arc::clone(gpu));
        let fresh = || Tensor::zeros_on(logprob.shape(), DType::F32, &device);
        let mut dlogprob = fresh()?;
        let mut dentropy = if objective.entropy_coefficient != 0.0 { Some(fresh()?) } else { None };
        let metrics = launch::forward_backward(
            objective,
            &launch::Inputs {
                logprob: logprob.device_slice()?,
                old_logprob: old_logprob.whole(),
                advantage: launch::Advantages::PerSequence(advantage.whole()),
                mask: mask.whole(),
                offsets: offsets.whole(),
                reference_logprob: reference.as_ref().map(DeviceBuffer::whole),
                entropy: Some(entropy.device_slice()?),
                weight: None,
                sampler_logprob: Some(old_logprob.whole()),
                off_policy: None,
                selected: selected.as_ref().map(DeviceBuffer::whole),
                totals: what.totals,
            },
            launch::Gradients {
                logprob: dlogprob.device_slice_mut()?,
                entropy: dentropy.as_mut().map(Tensor::device_slice_mut).transpose()?,
            },
        )?;
        Ok((Computed::Device(metrics), dlogprob, dentropy))
    }
}
