//! Log-prob and entropy of one target a row, from logits.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::{Error, Result};
use crate::kernels::logprob::{self as kernel, Softmax, Temperature, launch};
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record, recording};
use std::sync::Arc;

/// How logits become a distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxOptions {
    /// Capped logits are divided by it; > 0.
    pub temperature: f32,
    /// `cap · tanh(logits / cap)` first.
    pub softcap: Option<f32>,
    /// Ids of probability zero.
    pub banned: Vec<i32>,
}

impl Default for SoftmaxOptions {
    fn default() -> SoftmaxOptions {
        SoftmaxOptions { temperature: 1.0, softcap: None, banned: Vec::new() }
    }
}

impl SoftmaxOptions {
    pub(super) fn kernel(&self) -> Softmax<'_> {
        Softmax {
            temperature: Temperature::Same(self.temperature),
            softcap: self.softcap,
            banned: &self.banned,
        }
    }
}

/// The log-prob of `targets[i]` and the entropy of row i, both in nats and differentiable.
///
/// A negative target leaves its row out: 0, and no gradient. In the backward pass the logits' own memory becomes their
/// gradient where nothing else holds it.
///
/// # Shapes
/// `logits [rows, vocab]`, `targets [rows]`; two f32 tensors `[rows]`.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_index`] for a target outside the vocabulary, [`Error::is_invalid`] for a
/// temperature or softcap that is not positive.
pub fn logprob(
    logits: &Tensor,
    targets: &[i32],
    options: &SoftmaxOptions,
) -> Result<(Tensor, Tensor)> {
    let [rows, vocab] = *logits.shape() else {
        return Err(Error::shape(format!("logprob: logits {:?}", logits.shape())));
    };
    if let Some(gpu) = logits.gpu() {
        return on_device(gpu, logits, targets, options);
    }
    let (mut logprob, mut entropy) = (Buffer::recycled(rows), Buffer::recycled(rows));
    let mut logsumexp = Buffer::recycled(rows);
    kernel::forward(
        &kernel::Forward {
            logits: logits.floats()?,
            targets,
            rows,
            vocab,
            softmax: options.kernel(),
        },
        kernel::Outputs {
            logprob: &mut logprob,
            entropy: Some(&mut entropy),
            logsumexp: &mut logsumexp,
            argmax: None,
        },
    )?;
    let saved_entropy = if recording(&[logits]) { Some(entropy.clone()) } else { None };
    let outputs = vec![
        Tensor::from_buffer(logprob, &[rows], DType::F32)?,
        Tensor::from_buffer(entropy, &[rows], DType::F32)?,
    ];
    let outputs = record(&[logits], outputs, || LogProb {
        logits: logits.detach(),
        targets: targets.to_vec(),
        options: options.clone(),
        logsumexp,
        entropy: saved_entropy,
    });
    pair(outputs)
}

/// [`logprob`] of logits on a device.
fn on_device(
    gpu: &Arc<Gpu>,
    logits: &Tensor,
    targets: &[i32],
    options: &SoftmaxOptions,
) -> Result<(Tensor, Tensor)> {
    let (rows, vocab) = (logits.leading(), logits.last_dim());
    // The host sees targets and options: it checks them as it does for its own kernels.
    kernel::check("logprob", [rows, vocab], targets, options.kernel())?;
    let plan = DevicePlan::new(gpu, targets, vocab, options)?;
    let new = || Tensor::recycled_on(&[rows], DType::F32, gpu);
    let (mut logprob, mut entropy, mut logsumexp) = (new()?, new()?, new()?);
    let outputs = launch::Outputs {
        logprob: logprob.device_slice_mut()?,
        entropy: Some(entropy.device_slice_mut()?),
        logsumexp: logsumexp.device_slice_mut()?,
        argmax: None,
    };
    launch::forward(logits.device_slice()?, &plan.rows(rows, vocab), outputs)?;
    let saved_entropy = entropy.detach();
    let save =
        || DeviceLogProb { logits: logits.detach(), plan, logsumexp, entropy: saved_entropy };
    pair(record(&[logits], vec![logprob, entropy], save))
}

/// Targets and options on a device.
pub(super) struct DevicePlan {
    pub(super) targets: DeviceBuffer,
    banned: Option<DeviceBuffer>,
    temperature: f32,
    softcap: Option<f32>,
}

impl DevicePlan {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        targets: &[i32],
        vocab: usize,
        options: &SoftmaxOptions,
    ) -> Result<DevicePlan> {
        Ok(DevicePlan {
            targets: DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(targets))?,
            banned: launch::banned_ids(gpu, &options.banned, vocab)?,
            temperature: options.temperature,
            softcap: options.softcap,
        })
    }

    pub(super) fn softmax(&self) -> launch::Softmax<'_> {
        launch::Softmax {
            temperature: launch::Temperature::Same(self.temperature),
            softcap: self.softcap,
            banned: self.banned.as_ref().map(DeviceBuffer::whole),
        }
    }

    fn rows(&self, rows: usize, vocab: usize) -> launch::Rows<'_> {
        let (targets, softmax) = (self.targets.whole(), self.softmax());
        launch::Rows { targets, row_of: None, rows, vocab, softmax }
    }
}

struct DeviceLogProb {
    logits: Tensor,
    plan: DevicePlan,
    logsumexp: Tensor,
    entropy: Tensor,
}

/// The two gradients of an operation with two outputs, as kernels take them.
pub(super) fn upstream(grads: &Grads) -> Result<launch::Upstream<'_>> {
    let [dlogprob, dentropy] = &grads[..] else {
        return Err(Error::state(format!("{} gradients instead of 2", grads.len())));
    };
    Ok(launch::Upstream {
        dlogprob: dlogprob.as_ref().map(Tensor::device_slice).transpose()?,
        dentropy: dentropy.as_ref().map(Tensor::device_slice).transpose()?,
    })
}

impl Backward for DeviceLogProb {
    fn name(&self) -> &'static str {
        "logprob"
    }

    fn backward(self: Box<Self>, grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let DeviceLogProb { mut logits, plan, logsumexp, entropy } = *self;
        let rows = plan.rows(logits.leading(), logits.last_dim());
        let upstream = upstream(&grads)?;
        let (lse, entropy) = (logsumexp.device_slice()?, Some(entropy.device_slice()?));
        if logits.dtype() == DType::F32 {
            // The logits' own memory becomes their gradient where nothing else holds it.
            let in_place = launch::Logits::InPlace(logits.device_slice_mut()?);
            launch::backward(in_place, &rows, lse, entropy, upstream)?;
            return Ok(vec![Some(logits)]);
        }
        let mut dlogits = Tensor::recycled_on(logits.shape(), DType::F32, plan.targets.gpu())?;
        let apart = launch::Logits::Apart {
            logits: logits.device_slice()?,
            dlogits: dlogits.device_slice_mut()?,
        };
        launch::backward(apart, &rows, lse, entropy, upstream)?;
        Ok(vec![Some(dlogits)])
    }
}

/// The two outputs of an operation that has two.
pub(super) fn pair(outputs: Vec<Tensor>) -> Result<(Tensor, Tensor)> {
    match <[Tensor; 2]>::try_from(outputs) {
        Ok([a, b]) => Ok((a, b)),
        Err(outputs) => Err(Error::state(format!("{} outputs instead of 2", outputs.len()))),
    }
}

struct LogProb {
    logits: Tensor,
    targets: Vec<i32>,
    options: SoftmaxOptions,
    logsumexp: Buffer<f32>,
    entropy: Option<Buffer<f32>>,
}

impl Backward for LogProb {
    fn name(&self) -> &'static str {
        "logprob"
    }

    fn backward(self: Box<Self>, grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let shape = self.logits.shape().to_vec();
        let slice = |grad: &Option<Tensor>| -> Result<Option<Vec<f32>>> {
            grad.as_ref().map(|grad| grad.f32s().map(<[f32]>::to_vec)).transpose()
        };
        let (dlogprob, dentropy) = match &grads[..] {
            [a, b] => (slice(a)?, slice(b)?),
            _ => return Err(Error::state("logprob backward: two gradients are expected")),
        };
        let mut dlogits = self.logits.into_buffer()?;
        kernel::backward(kernel::Backward {
            logits: crate::dtype::FloatSliceMut::F32(&mut dlogits),
            targets: &self.targets,
            rows: shape[0],
            vocab: shape[1],
            softmax: self.options.kernel(),
            logsumexp: &self.logsumexp,
            entropy: self.entropy.as_deref(),
            dlogprob: dlogprob.as_deref(),
            dentropy: dentropy.as_deref(),
        })?;
        Ok(vec![Some(Tensor::from_buffer(dlogits, &shape, DType::F32)?)])
    }
}
