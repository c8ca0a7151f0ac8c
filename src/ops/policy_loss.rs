//! A policy objective on tensors, from log-probs and entropies.
//!
//! A policy loss is computed together with its gradient, so it is no node of the graph: autograd goes on from
//! [`PolicyLoss::roots`].

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::{DeviceBuffer, DeviceSlice, Gpu};
use crate::error::Result;
use crate::kernels::linear_policy_loss::{self as linear, Loss};
use crate::kernels::policy_loss::{self as kernel, Metrics, Objective, Totals, launch};
use crate::tensor::Tensor;
use crate::tensor::autograd::recording;
use std::sync::Arc;

/// Advantages, no gradient.
#[derive(Clone, Copy)]
pub enum Advantages<'a> {
    /// `[tokens]`.
    PerToken(&'a Tensor),
    /// `[sequences]`, the same for each token of a sequence.
    PerSequence(&'a [f32]),
}

/// What an objective reads of packed sequences beside the log-probs and entropies of now: f32 tensors `[tokens]` unless said
/// otherwise, all on one device.
#[derive(Clone, Copy)]
pub struct PolicyColumns<'a> {
    /// Log-probs under the policy that ratios compare with; `None`: those of now, so that every ratio is 1.
    pub old_logprob: Option<&'a Tensor>,
    /// Advantages.
    pub advantage: Advantages<'a>,
    /// u8: non-zero where the token counts.
    pub mask: &'a Tensor,
    /// `[sequences + 1]`: sequence i is the tokens `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [i64],
    /// Needed when the objective has a `kl`.
    pub reference_logprob: Option<&'a Tensor>,
    /// Importance weights.
    pub weight: Option<&'a Tensor>,
    /// Read by the off-policy mask; `None`: the old ones.
    pub sampler_logprob: Option<&'a Tensor>,
    /// u8: non-zero where replayed.
    pub off_policy: Option<&'a Tensor>,
    /// u8: non-zero where picked by the objective's selection.
    pub selected: Option<&'a Tensor>,
    /// What this call must know of the whole batch.
    pub totals: Totals,
}

/// A loss that was computed together with its gradient.
pub struct PolicyLoss {
    /// The loss and what to watch beside it, perhaps still being computed.
    pub metrics: PolicyMetrics,
    /// f32 `[tokens]`, outside the graph.
    pub logprob: Tensor,
    /// f32 `[tokens]` nats, outside the graph.
    pub entropy: Tensor,
    /// The tracked tensors among the arguments, each with the gradient of the loss by it: for
    /// [`backward_from`](crate::tensor::autograd::backward_from). None inside [`no_grad`](crate::tensor::autograd::no_grad).
    pub roots: Vec<(Tensor, Tensor)>,
}

/// Metrics that are read when they are wanted.
pub struct PolicyMetrics(Place);

enum Place {
    Host(Box<Metrics>),
    Device(launch::DeviceMetrics),
}

impl PolicyMetrics {
    /// The metrics: on a device waits for all that was started before.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self) -> Result<Metrics> {
        match &self.0 {
            Place::Host(metrics) => Ok(**metrics),
            Place::Device(metrics) => metrics.read(),
        }
    }

    pub(super) fn on_host(metrics: Metrics) -> PolicyMetrics {
        PolicyMetrics(Place::Host(Box::new(metrics)))
    }

    pub(super) fn on_device(metrics: launch::DeviceMetrics) -> PolicyMetrics {
        PolicyMetrics(Place::Device(metrics))
    }
}

/// The loss of an objective over log-probs and entropies, and its gradient by them.
///
/// # Shapes
/// `logprob [tokens]`, `entropy [tokens]`, f32; the columns as [`PolicyColumns`] says.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape) for a length that does not fit,
/// [`Error::is_invalid`](crate::Error::is_invalid) for an objective out of range or one that needs a column that is missing,
/// [`Error::is_unsupported`](crate::Error::is_unsupported) for tensors on different devices.
pub fn policy_loss(
    objective: &Objective,
    columns: &PolicyColumns<'_>,
    logprob: &Tensor,
    entropy: &Tensor,
) -> Result<PolicyLoss> {
    let wants_entropy = objective.entropy_coefficient != 0.0;
    let (metrics, gradients) = match columns.common_gpu(&[logprob, entropy])? {
        None => {
            let mut dlogprob = Buffer::recycled(logprob.len());
            let mut dentropy = wants_entropy.then(|| Buffer::recycled(entropy.len()));
            let loss = columns.on_host(objective)?;
            let metrics = kernel::forward_backward(
                objective,
                &loss.inputs(logprob.f32s()?, entropy.f32s()?),
                kernel::Gradients { logprob: &mut dlogprob, entropy: dentropy.as_deref_mut() },
            )?;
            let pack = |values, of: &Tensor| Tensor::from_buffer(values, of.shape(), DType::F32);
            let dentropy = dentropy.map(|values| pack(values, entropy)).transpose()?;
            (PolicyMetrics::on_host(metrics), [Some(pack(dlogprob, logprob)?), dentropy])
        }
        Some(gpu) => {
            let new = || Tensor::recycled_on(logprob.shape(), DType::F32, gpu);
            let mut dlogprob = new()?;
            let mut dentropy = wants_entropy.then(new).transpose()?;
            let uploaded = Uploaded::new(gpu, columns)?;
            let loss = columns.on_device(objective, &uploaded)?;
            let metrics = launch::forward_backward(
                objective,
                &loss.inputs(logprob.device_slice()?, entropy.device_slice()?),
                launch::Gradients {
                    logprob: dlogprob.device_slice_mut()?,
                    entropy: dentropy.as_mut().map(Tensor::device_slice_mut).transpose()?,
                },
            )?;
            (PolicyMetrics::on_device(metrics), [Some(dlogprob), dentropy])
        }
    };
    let roots = roots(&[Some(logprob), Some(entropy)], gradients);
    Ok(PolicyLoss { metrics, logprob: logprob.detach(), entropy: entropy.detach(), roots })
}

/// The gradients that autograd asks for, each with what it is the gradient of.
pub(super) fn roots<const N: usize>(
    of: &[Option<&Tensor>; N],
    gradients: [Option<Tensor>; N],
) -> Vec<(Tensor, Tensor)> {
    let pair = |(of, gradient): (&Option<&Tensor>, Option<Tensor>)| {
        of.filter(|of| recording(&[of])).cloned().zip(gradient)
    };
    of.iter().zip(gradients).filter_map(pair).collect()
}

/// The columns that begin on the host, on a device.
pub(super) struct Uploaded {
    offsets: DeviceBuffer,
    advantage: Tensor,
}

impl Uploaded {
    pub(super) fn new(gpu: &Arc<Gpu>, columns: &PolicyColumns<'_>) -> Result<Uploaded> {
        let upload = |dtype, bytes| DeviceBuffer::upload(gpu, dtype, bytes);
        let advantage = match columns.advantage {
            Advantages::PerToken(all) => all.detach(),
            Advantages::PerSequence(all) => {
                let uploaded = upload(DType::F32, bytemuck::cast_slice(all))?;
                Tensor::from_device(uploaded, &[all.len()])?
            }
        };
        let offsets = upload(DType::I64, bytemuck::cast_slice(columns.offsets))?;
        Ok(Uploaded { offsets, advantage })
    }
}

impl<'a> PolicyColumns<'a> {
    /// The device of the columns and of `others`; `None` for host memory.
    pub(super) fn common_gpu<'t>(&self, others: &[&'t Tensor]) -> Result<Option<&'t Arc<Gpu>>>
    where
        'a: 't,
    {
        let mut all: Vec<&'t Tensor> = others.to_vec();
        all.push(self.mask);
        if let Advantages::PerToken(advantage) = self.advantage {
            all.push(advantage);
        }
        let optional = [
            self.old_logprob,
            self.reference_logprob,
            self.weight,
            self.sampler_logprob,
            self.off_policy,
            self.selected,
        ];
        all.extend(optional.into_iter().flatten());
        Tensor::common_gpu("policy_loss", &all)
    }

    pub(super) fn on_host(&self, objective: &'a Objective) -> Result<Loss<'a>> {
        let floats = |column: Option<&'a Tensor>| column.map(Tensor::f32s).transpose();
        let bytes = |column: Option<&'a Tensor>| column.map(Tensor::bytes).transpose();
        Ok(Loss {
            objective,
            old_logprob: floats(self.old_logprob)?,
            advantage: match self.advantage {
                Advantages::PerToken(all) => kernel::Advantages::PerToken(all.f32s()?),
                Advantages::PerSequence(all) => kernel::Advantages::PerSequence(all),
            },
            mask: self.mask.bytes()?,
            offsets: self.offsets,
            reference_logprob: floats(self.reference_logprob)?,
            weight: floats(self.weight)?,
            sampler_logprob: floats(self.sampler_logprob)?,
            off_policy: bytes(self.off_policy)?,
            selected: bytes(self.selected)?,
            totals: self.totals,
        })
    }

    pub(super) fn on_device(
        &self,
        objective: &'a Objective,
        uploaded: &'a Uploaded,
    ) -> Result<linear::launch::Loss<'a>> {
        let optional = |column: Option<&'a Tensor>| -> Result<Option<DeviceSlice<'a>>> {
            column.map(Tensor::device_slice).transpose()
        };
        let advantage = uploaded.advantage.device_slice()?;
        Ok(linear::launch::Loss {
            objective,
            old_logprob: optional(self.old_logprob)?,
            advantage: match self.advantage {
                Advantages::PerToken(_) => launch::Advantages::PerToken(advantage),
                Advantages::PerSequence(_) => launch::Advantages::PerSequence(advantage),
            },
            mask: self.mask.device_slice()?,
            offsets: uploaded.offsets.whole(),
            reference_logprob: optional(self.reference_logprob)?,
            weight: optional(self.weight)?,
            sampler_logprob: optional(self.sampler_logprob)?,
            off_policy: optional(self.off_policy)?,
            selected: optional(self.selected)?,
            totals: self.totals,
        })
    }
}
