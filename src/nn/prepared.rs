//! Weights laid out for generation: each transposed once a rollout, and widened to f32.
//!
//! A step of generation multiplies few rows by every weight. As they are stored (`[out, in]`), the matrix product first
//! copies a weight into panels, which costs as much as some ten rows of arithmetic, in every step; the transpose is read
//! where it lies. The sums are the same in the same order, so the bits are too.

use crate::device::cpu::convert::transpose;
use crate::device::cpu::gemm::plain;
use crate::device::cpu::memory::Buffer;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::Tensor;
use crate::with_float;

/// Bytes of transposed weights that a rollout may hold; models with more are read as they are stored.
pub const MOST_BYTES: usize = 1 << 30;

/// Transposed weights, by the index of the parameter. Those of a device, and of a model that is too large, are none.
#[derive(Default)]
pub struct Prepared {
    weights: Vec<Option<Buffer<f32>>>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} transposed weights", self.weights.iter().flatten().count())
    }
}

impl Prepared {
    /// Transposes the weights `[out, in]` with these indices, where all of them fit `MOST_BYTES` and lie in host memory.
    ///
    /// # Errors
    /// [`Error::is_dtype`] for integers.
    pub fn new<'a>(weights: impl Iterator<Item = (usize, &'a Tensor)> + Clone) -> Result<Prepared> {
        let elements =
            weights.clone().map(|(_, weight)| weight.len()).fold(0, usize::saturating_add);
        let on_host = weights.clone().all(|(_, weight)| weight.gpu().is_none());
        if !on_host || elements.saturating_mul(size_of::<f32>()) > MOST_BYTES {
            return Ok(Prepared::default());
        }
        let mut prepared = Prepared::default();
        for (index, weight) in weights {
            if prepared.weights.len() <= index {
                prepared.weights.resize_with(index + 1, || None);
            }
            let width = weight.last_dim();
            let mut transposed = Buffer::recycled(weight.len());
            with_float!(FloatSlice, weight.floats()?, |weight| {
                transpose(weight, width, &mut transposed)
            });
            prepared.weights[index] = Some(transposed);
        }
        Ok(prepared)
    }

    /// Bytes of all of them; 0 where weights are read as they are stored.
    pub fn bytes(&self) -> usize {
        self.weights.iter().flatten().map(|weight| weight.len() * size_of::<f32>()).sum()
    }

    /// The transpose of the weight with this index.
    pub(super) fn weight(&self, index: usize) -> Option<&[f32]> {
        self.weights.get(index)?.as_deref()
    }
}

/// `x · weight + bias` in `dtype`, of a weight `[in, out]` that has been transposed.
pub(super) fn linear(
    x: &Tensor,
    weight: &[f32],
    bias: Option<&Tensor>,
    dtype: DType,
) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    let out = shape.last_mut().ok_or_else(|| Error::shape("linear: a scalar"))?;
    *out = weight.len() / (*out).max(1);
    ops::product(x, plain(weight), bias, &shape, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::ops;

    #[test]
    fn a_transposed_weight_gives_the_bits_of_the_stored_one() {
        for dtype in [DType::F32, DType::Bf16] {
            for (rows, width, out) in
                [(1, 33, 7), (5, 128, 352), (32, 352, 128), (33, 64, 257), (200, 40, 96)]
            {
                let x = crate::nn::normal(1, 0, &[rows, width], 1.0, dtype).unwrap();
                let weight = crate::nn::normal(1, 1, &[out, width], 1.0, dtype).unwrap();
                let bias = crate::nn::normal(1, 2, &[out], 1.0, dtype).unwrap();
                let prepared = Prepared::new(std::iter::once((3, &weight))).unwrap();
                let given = prepared.weight(3).unwrap();
                let ours = linear(&x, given, Some(&bias), dtype).unwrap();
                let stored = ops::linear(&x, &weight, Some(&bias)).unwrap();
                assert_eq!(
                    ours.bytes().unwrap(),
                    stored.bytes().unwrap(),
                    "{rows} {width} {out} {dtype}"
                );
                assert!(prepared.weight(2).is_none() && prepared.weight(4).is_none());
            }
        }
    }
}
