//! Log-prob and entropy straight from hidden states and a head: the logits are never all in memory.

use super::logprob::{DevicePlan, SoftmaxOptions, pair, upstream};
use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::Gpu;
use crate::error::{Error, Result};
use crate::kernels::linear_logprob::{self as kernel, Gradients, Head, Saved, launch};
use crate::kernels::logprob::{self, Outputs};
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record, recording};
use std::sync::Arc;

/// [`logprob`](super::logprob()) of `hidden · weightᵀ + bias`, to the same bits, without the logits in memory.
///
/// The backward pass computes the logits again, chunk by chunk. Rows that are left out (a negative target) and rows
/// whose gradient is zero cost nothing.
///
/// # Shapes
/// `hidden [rows, n]`, `weight [vocab, n]`, `bias [vocab]`, `targets [rows]`; two f32 tensors `[rows]`.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_index`] for a target outside the vocabulary, [`Error::is_invalid`] for a
/// temperature or softcap that is not positive.
pub fn linear_logprob(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &[i32],
    options: &SoftmaxOptions,
) -> Result<(Tensor, Tensor)> {
    let saved = HeadInputs::new(hidden, weight, bias, targets, options);
    let mut inputs = vec![hidden, weight];
    inputs.extend(bias);
    if let Some(gpu) = Tensor::common_gpu("linear_logprob", &inputs)? {
        return on_device(gpu, &inputs, saved);
    }
    let rows = hidden.leading();
    let (mut logprob, mut entropy) = (Buffer::recycled(rows), Buffer::recycled(rows));
    let mut logsumexp = Buffer::recycled(rows);
    kernel::forward(
        &saved.head()?,
        Outputs {
            logprob: &mut logprob,
            entropy: Some(&mut entropy),
            logsumexp: &mut logsumexp,
            argmax: None,
        },
    )?;
    let saved_entropy = if recording(&inputs) { entropy.clone() } else { Buffer::recycled(0) };
    let outputs = vec![
        Tensor::from_buffer(logprob, &[rows], DType::F32)?,
        Tensor::from_buffer(entropy, &[rows], DType::F32)?,
    ];
    let save = || LinearLogProb { inputs: saved, logsumexp, entropy: saved_entropy };
    pair(record(&inputs, outputs, save))
}

/// Hidden states and a head, outside the graph.
pub(super) struct HeadInputs {
    hidden: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    targets: Vec<i32>,
    options: SoftmaxOptions,
}

impl HeadInputs {
    pub(super) fn new(
        hidden: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        targets: &[i32],
        options: &SoftmaxOptions,
    ) -> HeadInputs {
        HeadInputs {
            hidden: hidden.detach(),
            weight: weight.detach(),
            bias: bias.map(Tensor::detach),
            targets: targets.to_vec(),
            options: options.clone(),
        }
    }

    /// `[vocab, width]` of the head, which fits the hidden states.
    fn shape(&self) -> Result<[usize; 2]> {
        let [vocab, width] = *self.weight.shape() else {
            return Err(Error::shape(format!("linear_logprob: weight {:?}", self.weight.shape())));
        };
        if self.hidden.last_dim() != width || self.hidden.shape().len() != 2 {
            return Err(Error::shape(format!(
                "linear_logprob: weight is {:?} {} but hidden is {:?} {} (the head's second dimension must equal its \
                 width)",
                self.weight.shape(),
                self.weight.dtype(),
                self.hidden.shape(),
                self.hidden.dtype()
            )));
        }
        Ok([vocab, width])
    }

    pub(super) fn head(&self) -> Result<Head<'_>> {
        let [vocab, width] = self.shape()?;
        Ok(Head {
            hidden: self.hidden.floats()?,
            weight: self.weight.floats()?,
            bias: self.bias.as_ref().map(Tensor::floats).transpose()?,
            targets: &self.targets,
            rows: self.hidden.leading(),
            width,
            vocab,
            softmax: self.options.kernel(),
            workspace: 0,
        })
    }
}

/// [`linear_logprob`] on a device.
fn on_device(gpu: &Arc<Gpu>, inputs: &[&Tensor], saved: HeadInputs) -> Result<(Tensor, Tensor)> {
    let rows = saved.hidden.leading();
    let plan = saved.plan_on(gpu)?;
    let new = || Tensor::recycled_on(&[rows], DType::F32, gpu);
    let (mut logprob, mut entropy, mut logsumexp) = (new()?, new()?, new()?);
    let outputs = launch::Outputs {
        logprob: logprob.device_slice_mut()?,
        entropy: Some(entropy.device_slice_mut()?),
        logsumexp: logsumexp.device_slice_mut()?,
        argmax: None,
    };
    launch::forward(&saved.head_on(&plan)?, outputs)?;
    let saved_entropy = entropy.detach();
    let save = || DeviceLinearLogProb { inputs: saved, plan, logsumexp, entropy: saved_entropy };
    pair(record(inputs, vec![logprob, entropy], save))
}

impl HeadInputs {
    /// Targets and options on a device. The host sees them: it checks them as it does for its own kernels.
    pub(super) fn plan_on(&self, gpu: &Arc<Gpu>) -> Result<DevicePlan> {
        let [vocab, _] = self.shape()?;
        let shape = [self.hidden.leading(), vocab];
        logprob::check("linear_logprob", shape, &self.targets, self.options.kernel())?;
        DevicePlan::new(gpu, &self.targets, vocab, &self.options)
    }

    pub(super) fn head_on<'a>(&'a self, plan: &'a DevicePlan) -> Result<launch::Head<'a>> {
        let [vocab, width] = self.shape()?;
        Ok(launch::Head {
            hidden: self.hidden.device_slice()?,
            weight: self.weight.device_slice()?,
            bias: self.bias.as_ref().map(Tensor::device_slice).transpose()?,
            targets: plan.targets.whole(),
            rows: self.hidden.leading(),
            width,
            vocab,
            softmax: plan.softmax(),
            live: Some(self.targets.iter().filter(|target| **target >= 0).count()),
            workspace: 0,
        })
    }
}

struct DeviceLinearLogProb {
    inputs: HeadInputs,
    plan: DevicePlan,
    logsumexp: Tensor,
    entropy: Tensor,
}

impl Backward for DeviceLinearLogProb {
    fn name(&self) -> &'static str {
        "linear_logprob"
    }

    fn backward(self: Box<Self>, grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let DeviceLinearLogProb { inputs, plan, logsumexp, entropy } = *self;
        let saved = launch::Saved {
            logsumexp: logsumexp.device_slice()?,
            entropy: Some(entropy.device_slice()?),
            upstream: upstream(&grads)?,
        };
        let want = |i: usize| wanted.get(i).copied().unwrap_or(false);
        let (gpu, of) = (plan.targets.gpu(), [Some(&inputs.hidden), Some(&inputs.weight)]);
        let mut gradients = Vec::new();
        for (i, input) in of.into_iter().chain([inputs.bias.as_ref()]).enumerate() {
            let new = |input: &Tensor| match i {
                0 => Tensor::recycled_on(input.shape(), DType::F32, gpu),
                _ => Tensor::zeros_on(input.shape(), DType::F32, &input.device()),
            };
            gradients.push(input.filter(|_| want(i)).map(new).transpose()?);
        }
        let [dhidden, dweight, dbias] = &mut gradients[..] else {
            return Err(Error::state("linear_logprob backward: three gradients are expected"));
        };
        let into = launch::Gradients {
            dhidden: dhidden.as_mut().map(Tensor::device_slice_mut).transpose()?,
            dweight: dweight.as_mut().map(Tensor::device_slice_mut).transpose()?,
            dbias: dbias.as_mut().map(Tensor::device_slice_mut).transpose()?,
        };
        launch::backward(&inputs.head_on(&plan)?, &saved, into)?;
        gradients.truncate(2 + usize::from(inputs.bias.is_some()));
        Ok(gradients)
    }
}

struct LinearLogProb {
    inputs: HeadInputs,
    logsumexp: Buffer<f32>,
    entropy: Buffer<f32>,
}

impl Backward for LinearLogProb {
    fn name(&self) -> &'static str {
        "linear_logprob"
    }

    fn backward(self: Box<Self>, grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let (dlogprob, dentropy) = match &grads[..] {
            [a, b] => (a.as_ref().map(Tensor::f32s), b.as_ref().map(Tensor::f32s)),
            _ => return Err(Error::state("linear_logprob backward: two gradients are expected")),
        };
        let saved = Saved {
            logsumexp: &self.logsumexp,
            entropy: Some(&self.entropy),
            dlogprob: dlogprob.transpose()?,
            dentropy: dentropy.transpose()?,
        };
        let want = |i: usize| wanted.get(i).copied().unwrap_or(false);
        let head = self.inputs.head()?;
        let mut dhidden = want(0).then(|| Buffer::recycled(head.rows * head.width));
        let mut dweight = want(1).then(|| Buffer::zeroed(head.vocab * head.width));
        let mut dbias = want(2).then(|| Buffer::zeroed(head.vocab));
        kernel::backward(
            &head,
            &saved,
            Gradients {
                dhidden: dhidden.as_deref_mut(),
                dweight: dweight.as_deref_mut(),
                dbias: dbias.as_deref_mut(),
            },
        )?;
        let pack = |values: Option<Buffer<f32>>, shape: &[usize]| {
            values.map(|values| Tensor::from_buffer(values, shape, DType::F32)).transpose()
        };
        let mut gradients = vec![
            pack(dhidden, self.inputs.hidden.shape())?,
            pack(dweight, self.inputs.weight.shape())?,
        ];
        if let Some(bias) = &self.inputs.bias {
            gradients.push(pack(dbias, bias.shape())?);
        }
        Ok(gradients)
    }
}
