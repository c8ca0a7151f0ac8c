//! Log-prob and entropy straight from hidden states and a head: the logits are never all in memory.

use super::logprob::{SoftmaxOptions, pair};
use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::linear_logprob::{self as kernel, Gradients, Head, Saved};
use crate::kernels::logprob::Outputs;
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record, recording};

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
    let saved = Inputs {
        hidden: hidden.detach(),
        weight: weight.detach(),
        bias: bias.map(Tensor::detach),
        targets: targets.to_vec(),
        options: options.clone(),
    };
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
    let mut inputs = vec![hidden, weight];
    inputs.extend(bias);
    let saved_entropy = if recording(&inputs) { entropy.clone() } else { Buffer::recycled(0) };
    let outputs = vec![
        Tensor::from_buffer(logprob, &[rows], DType::F32)?,
        Tensor::from_buffer(entropy, &[rows], DType::F32)?,
    ];
    let save = || LinearLogProb { inputs: saved, logsumexp, entropy: saved_entropy };
    pair(record(&inputs, outputs, save))
}

struct Inputs {
    hidden: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    targets: Vec<i32>,
    options: SoftmaxOptions,
}

impl Inputs {
    fn head(&self) -> Result<Head<'_>> {
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

struct LinearLogProb {
    inputs: Inputs,
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
