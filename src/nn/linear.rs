//! Linear layers, and logits.

use super::builder::Builder;
use super::prepared;
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::Tensor;

/// `y = x · weightᵀ + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    weight: usize,
    bias: Option<usize>,
}

impl Linear {
    /// Adds `name.weight [out, in]` and, where there is one, `name.bias [out]`.
    ///
    /// # Errors
    /// As [`Builder::tensor`].
    pub fn new(
        builder: &mut Builder<'_>,
        name: &str,
        [out, input]: [usize; 2],
        bias: bool,
    ) -> Result<Linear> {
        let weight = builder.tensor(&format!("{name}.weight"), &[out, input])?;
        let bias = if bias { Some(builder.tensor(&format!("{name}.bias"), &[out])?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// The index of its weight.
    pub fn weight(self) -> usize {
        self.weight
    }

    /// The indices of its parameters.
    pub fn indices(self) -> impl Iterator<Item = usize> {
        [Some(self.weight), self.bias].into_iter().flatten()
    }

    /// `x [.., in]`; `[.., out]` in `x`'s dtype.
    ///
    /// # Errors
    /// As [`ops::linear`].
    pub fn forward(self, weights: Weights<'_>, x: &Tensor) -> Result<Tensor> {
        linears(weights, x, [self]).map(|[y]| y)
    }
}

/// [`Linear::forward`] of several layers of one input, to the same bits and with one sum of the input's gradients.
///
/// # Errors
/// As [`ops::linears`].
pub fn linears<const N: usize>(
    weights: Weights<'_>,
    x: &Tensor,
    layers: [Linear; N],
) -> Result<[Tensor; N]> {
    let bias = |layer: &Linear| layer.bias.map(|bias| weights.get(bias));
    let found = layers.map(|layer| weights.prepared(layer.weight));
    if found.iter().all(Option::is_some) {
        let given = layers.iter().zip(found.iter().flatten());
        let outputs: Vec<Tensor> = given
            .map(|(layer, weight)| prepared::linear(x, weight, bias(layer).as_ref(), x.dtype()))
            .collect::<Result<_>>()?;
        return outputs.try_into().map_err(|_| Error::state("linear: as many outputs as weights"));
    }
    let tensors = layers.map(|layer| (weights.get(layer.weight), bias(&layer)));
    ops::linears(x, std::array::from_fn(|i| (&tensors[i].0, tensors[i].1.as_ref())))
}

/// Logits in f32 of hidden states, by the head with this index; no gradients.
///
/// # Shapes
/// `hidden [rows, width]`, the head `[vocab, width]`; `[rows, vocab]`.
///
/// # Errors
/// [`Error::is_shape`] when the width differs.
pub fn logits(weights: Weights<'_>, head: usize, hidden: &Tensor) -> Result<Tensor> {
    match weights.prepared(head) {
        Some(weight) => prepared::linear(hidden, weight, None, crate::DType::F32),
        None => ops::logits(hidden, &weights.get(head)),
    }
}
