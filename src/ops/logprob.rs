//! Log-prob and entropy of one target a row, from logits.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::logprob::{self as kernel, Softmax, Temperature};
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record, recording};

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
