//! A policy objective on tensors, straight from hidden states and an output head.

use super::linear_logprob::HeadInputs;
use super::logprob::SoftmaxOptions;
use super::policy_loss::{PolicyColumns, PolicyLoss, PolicyMetrics, Uploaded, roots};
use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::Gpu;
use crate::error::Result;
use crate::kernels::linear_logprob::{Gradients, launch as head_launch};
use crate::kernels::linear_policy_loss::{self as kernel, Workspace, launch};
use crate::kernels::policy_loss::Objective;
use crate::tensor::Tensor;
use crate::tensor::autograd::recording;
use std::sync::Arc;

/// The loss of an objective over the log-probs and entropies of [`linear_logprob`](super::linear_logprob()), and its gradient
/// by hidden states, weight and bias, without the logits in memory.
///
/// An objective that is [token by token](Objective::is_token_by_token) costs three products of the head, every other one
/// four. Gradients that autograd does not ask for are not computed.
///
/// # Shapes
/// `hidden [tokens, n]`, `weight [vocab, n]`, `bias [vocab]`, `targets [tokens]`, of which a negative one leaves its token
/// out; the columns as [`PolicyColumns`] says.
///
/// # Errors
/// As [`policy_loss`](super::policy_loss()) and [`linear_logprob`](super::linear_logprob()).
pub fn linear_policy_loss(
    objective: &Objective,
    columns: &PolicyColumns<'_>,
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &[i32],
    options: &SoftmaxOptions,
) -> Result<PolicyLoss> {
    let of = [Some(hidden), Some(weight), bias];
    let wanted = of.map(|input| input.filter(|input| recording(&[input])));
    let inputs = HeadInputs::new(hidden, weight, bias, targets, options);
    let operands: Vec<&Tensor> = of.into_iter().flatten().collect();
    let done = match columns.common_gpu(&operands)? {
        None => on_host(objective, columns, &inputs, wanted)?,
        Some(gpu) => on_device(gpu, objective, columns, &inputs, wanted)?,
    };
    let Computed { metrics, logprob, entropy, gradients } = done;
    Ok(PolicyLoss { metrics, logprob, entropy, roots: roots(&of, gradients) })
}

struct Computed {
    metrics: PolicyMetrics,
    logprob: Tensor,
    entropy: Tensor,
    /// By hidden states, weight and bias.
    gradients: [Option<Tensor>; 3],
}

fn on_host(
    objective: &Objective,
    columns: &PolicyColumns<'_>,
    inputs: &HeadInputs,
    [hidden, weight, bias]: [Option<&Tensor>; 3],
) -> Result<Computed> {
    let mut dhidden = hidden.map(|of| Buffer::recycled(of.len()));
    let mut dweight = weight.map(|of| Buffer::zeroed(of.len()));
    let mut dbias = bias.map(|of| Buffer::zeroed(of.len()));
    let mut workspace = Workspace::default();
    let into = Gradients {
        dhidden: dhidden.as_deref_mut(),
        dweight: dweight.as_deref_mut(),
        dbias: dbias.as_deref_mut(),
    };
    let loss = columns.on_host(objective)?;
    let metrics = kernel::forward_backward(&inputs.head()?, &loss, &mut workspace, into)?;
    let pack = |values: Option<Buffer<f32>>, of: Option<&Tensor>| {
        let shaped =
            |(values, of): (_, &Tensor)| Tensor::from_buffer(values, of.shape(), DType::F32);
        values.zip(of).map(shaped).transpose()
    };
    let Workspace { logprob, entropy, .. } = workspace;
    let shape = [logprob.len()];
    Ok(Computed {
        metrics: PolicyMetrics::on_host(metrics),
        logprob: Tensor::from_f32(logprob, &shape)?,
        entropy: Tensor::from_f32(entropy, &shape)?,
        gradients: [pack(dhidden, hidden)?, pack(dweight, weight)?, pack(dbias, bias)?],
    })
}

fn on_device(
    gpu: &Arc<Gpu>,
    objective: &Objective,
    columns: &PolicyColumns<'_>,
    inputs: &HeadInputs,
    [hidden, weight, bias]: [Option<&Tensor>; 3],
) -> Result<Computed> {
    let (plan, uploaded) = (inputs.plan_on(gpu)?, Uploaded::new(gpu, columns)?);
    let new = |of: &Tensor| Tensor::recycled_on(of.shape(), DType::F32, gpu);
    let zeros = |of: &Tensor| Tensor::zeros_on(of.shape(), DType::F32, &of.device());
    let mut dhidden = hidden.map(new).transpose()?;
    let mut dweight = weight.map(zeros).transpose()?;
    let mut dbias = bias.map(zeros).transpose()?;
    let into = head_launch::Gradients {
        dhidden: dhidden.as_mut().map(Tensor::device_slice_mut).transpose()?,
        dweight: dweight.as_mut().map(Tensor::device_slice_mut).transpose()?,
        dbias: dbias.as_mut().map(Tensor::device_slice_mut).transpose()?,
    };
    let loss = columns.on_device(objective, &uploaded)?;
    let done = launch::forward_backward(&inputs.head_on(&plan)?, &loss, into)?;
    let shape = [done.logprob.len()];
    Ok(Computed {
        metrics: PolicyMetrics::on_device(done.metrics),
        logprob: Tensor::from_device(done.logprob, &shape)?,
        entropy: Tensor::from_device(done.entropy, &shape)?,
        gradients: [dhidden, dweight, dbias],
    })
}
