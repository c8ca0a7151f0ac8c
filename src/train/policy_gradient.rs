//! The objective over the log-probs of a micro-batch, where they are: the gradient by each of them goes on into the
//! model, the metrics stay on the device until somebody reads them.
//!
//! Not here: who computes the log-probs (`update` for completions, `diffusion::reinforce` for filled masks), and which
//! tokens are selected.

use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, DeviceSlice, Gpu};
use crate::error::{Error, Result};
use crate::kernels::policy_loss::launch::{self, DeviceMetrics};
use crate::kernels::policy_loss::{
    self, Advantages, Inputs, Metrics, Objective, Surrogate, Totals,
};
use crate::ops;
use crate::tensor::autograd::{self, no_grad};
use crate::tensor::{Gradients, Tensor};
use std::sync::Arc;

/// A completion as the objective sees it.
pub(in crate::train) struct Completion<'a> {
    /// Its tokens that are scored.
    pub tokens: usize,
    /// The log-prob of each when it was sampled.
    pub old_logprob: &'a [f32],
    /// `[tokens]` f32 under the reference policy, anywhere.
    pub reference_logprob: Option<&'a Tensor>,
    /// Its advantage.
    pub advantage: f32,
}

/// What is minimised over a micro-batch.
#[derive(Clone, Copy)]
pub(in crate::train) struct Minimised<'a> {
    pub objective: &'a Objective,
    pub totals: Totals,
    /// The tokens of the micro-batch that a selection picked.
    pub selected: Option<Selected<'a>>,
}

/// u8 `[tokens]`, 1 where a token was picked; where the log-probs are.
#[derive(Clone, Copy)]
pub(in crate::train) enum Selected<'a> {
    Host(&'a [u8]),
    Device(DeviceSlice<'a>),
}

/// What the objective reads beside the log-probs and entropies of now.
pub(in crate::train) struct Batch {
    offsets: Vec<i64>,
    old_logprob: Vec<f32>,
    reference: Option<Tensor>,
    advantage: Vec<f32>,
}

/// What a micro-batch gave, where it was computed.
pub(in crate::train) struct Pending {
    metrics: Computed,
    logprob: Tensor,
    old_logprob: Vec<f32>,
}

enum Computed {
    Host(Box<Metrics>),
    Device(DeviceMetrics),
}

/// Metrics, and the loss's gradient by each log-prob and, where the objective has a bonus, by each entropy.
type Loss = (Computed, Tensor, Option<Tensor>);

impl Batch {
    /// The completions of a micro-batch in order. The reference's log-probs are taken when every completion has them.
    ///
    /// # Errors
    /// [`Error::is_shape`] for log-probs that do not fit their completion, and what the device reports.
    pub fn new(completions: &[Completion<'_>], device: &Device) -> Result<Batch> {
        let mut offsets = vec![0i64];
        let mut old_logprob = Vec::new();
        for one in completions {
            let of_reference = one.reference_logprob.map_or(one.tokens, Tensor::len);
            if one.old_logprob.len() != one.tokens || of_reference != one.tokens {
                return Err(Error::shape(format!(
                    "policy gradient: {} old and {of_reference} reference log-probs for {} tokens",
                    one.old_logprob.len(),
                    one.tokens
                )));
            }
            offsets.push(offsets[offsets.len() - 1] + one.tokens as i64);
            old_logprob.extend_from_slice(one.old_logprob);
        }
        let parts: Option<Vec<&Tensor>> =
            completions.iter().map(|one| one.reference_logprob).collect();
        let reference = parts.map(|parts| joined(&parts, device)).transpose()?;
        let advantage = completions.iter().map(|one| one.advantage).collect();
        Ok(Batch { offsets, old_logprob, reference, advantage })
    }

    /// Adds the gradient of the objective by the model's parameters, through `logprob` and `entropy`, f32 `[tokens]`.
    ///
    /// # Errors
    /// As [`policy_loss::forward_backward`] and the backward pass.
    pub fn backward(
        self,
        what: Minimised<'_>,
        logprob: Tensor,
        entropy: Tensor,
        gradients: &mut Gradients,
    ) -> Result<Pending> {
        if self.old_logprob.len() != logprob.len() {
            return Err(Error::shape(format!(
                "policy gradient: {} old log-probs for {} tokens",
                self.old_logprob.len(),
                logprob.len()
            )));
        }
        let (metrics, dlogprob, dentropy) = match logprob.device() {
            Device::Cpu => self.loss(what, &logprob, &entropy)?,
            Device::Gpu(gpu) => self.loss_on(&gpu, what, &logprob, &entropy)?,
        };
        let pending = Pending { metrics, logprob: logprob.detach(), old_logprob: self.old_logprob };
        if logprob.is_tracked() {
            let mut roots = vec![(logprob, dlogprob)];
            roots.extend(dentropy.filter(|_| entropy.is_tracked()).map(|d| (entropy, d)));
            autograd::backward_from(roots, gradients)?;
        }
        Ok(pending)
    }

    fn loss(&self, what: Minimised<'_>, logprob: &Tensor, entropy: &Tensor) -> Result<Loss> {
        let objective = what.objective;
        let mut dlogprob = vec![0f32; logprob.len()];
        let mut dentropy = vec![0f32; logprob.len()];
        let wants_entropy = objective.entropy_coefficient != 0.0;
        let mask = vec![1u8; logprob.len()];
        let selected = match what.selected {
            None => None,
            Some(Selected::Host(selected)) => Some(selected),
            Some(Selected::Device(_)) => {
                return Err(Error::state("policy gradient: a selection on another device"));
            }
        };
        let metrics = policy_loss::forward_backward(
            objective,
            &Inputs {
                reference_logprob: self.reference.as_ref().map(Tensor::f32s).transpose()?,
                entropy: Some(entropy.f32s()?),
                // The completions are the sampler's, and what ratios compare with.
                sampler_logprob: Some(&self.old_logprob),
                selected,
                totals: what.totals,
                ..Inputs::new(
                    logprob.f32s()?,
                    &self.old_logprob,
                    Advantages::PerSequence(&self.advantage),
                    &mask,
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
        let old_logprob = uploaded(gpu, &self.old_logprob)?;
        let advantage = uploaded(gpu, &self.advantage)?;
        let mask = DeviceBuffer::upload(gpu, DType::U8, &vec![1u8; logprob.len()])?;
        let offsets = DeviceBuffer::upload(gpu, DType::I64, bytemuck::cast_slice(&self.offsets))?;
        let selected = match what.selected {
            None => None,
            Some(Selected::Device(selected)) => Some(selected),
            Some(Selected::Host(_)) => {
                return Err(Error::state("policy gradient: a selection on another device"));
            }
        };
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
                reference_logprob: self.reference.as_ref().map(Tensor::device_slice).transpose()?,
                entropy: Some(entropy.device_slice()?),
                weight: None,
                sampler_logprob: Some(old_logprob.whole()),
                off_policy: None,
                selected,
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

impl Pending {
    /// The objective's metrics: on a device waits for all that was started.
    pub fn metrics(&self) -> Result<Metrics> {
        match &self.metrics {
            Computed::Host(metrics) => Ok(**metrics),
            Computed::Device(metrics) => metrics.read(),
        }
    }

    /// The largest |log-prob now − log-prob when sampled|; waits as [`Pending::metrics`] does.
    pub fn mismatch(&self) -> Result<f32> {
        let now = self.logprob.to_device(&Device::Cpu)?;
        let distance = |(a, b): (&f32, &f32)| (a - b).abs();
        Ok(now.f32s()?.iter().zip(&self.old_logprob).map(distance).fold(0f32, |worst, d| {
            // Not `max`: a NaN must stay visible.
            if d <= worst { worst } else { d }
        }))
    }
}

/// Floats in device memory.
pub(in crate::train) fn uploaded(gpu: &Arc<Gpu>, values: &[f32]) -> Result<DeviceBuffer> {
    DeviceBuffer::upload(gpu, DType::F32, bytemuck::cast_slice(values))
}

/// Tensors `[n]` one behind the other, on `device`.
pub(in crate::train) fn joined(parts: &[&Tensor], device: &Device) -> Result<Tensor> {
    if parts.is_empty() {
        return Tensor::zeros_on(&[0], DType::F32, device);
    }
    let there = parts.iter().map(|part| part.to_device(device)).collect::<Result<Vec<_>>>()?;
    no_grad(|| ops::concat(&there.iter().collect::<Vec<_>>()))
}

/// The bounds that a clip leaves ratios in; Clip-Cov leaves the others alone.
pub(in crate::train) fn clip_of(objective: &Objective) -> (f32, f32) {
    match objective.surrogate {
        Surrogate::PpoClip { clip_low, clip_high, .. } => (1.0 - clip_low, 1.0 + clip_high),
        _ => (0.0, f32::INFINITY),
    }
}
