//! Sums and means.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::reduce;
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record_one};

/// `Σ x` as an f32 scalar.
///
/// # Errors
/// [`Error::is_dtype`] for integers.
pub fn sum(x: &Tensor) -> Result<Tensor> {
    all(x, "sum", 1.0)
}

/// The mean of all elements as an f32 scalar; 0 for an empty tensor.
///
/// # Errors
/// [`Error::is_dtype`] for integers.
pub fn mean(x: &Tensor) -> Result<Tensor> {
    all(x, "mean", 1.0 / x.len().max(1) as f32)
}

fn all(x: &Tensor, name: &'static str, factor: f32) -> Result<Tensor> {
    let value = match x.gpu() {
        None => Tensor::scalar(reduce::sum(&x.to_f32s()?) * factor),
        Some(gpu) => {
            let mut value = Tensor::recycled_on(&[], DType::F32, gpu)?;
            reduce::launch::sum(x.device_slice()?, factor, value.device_slice_mut()?)?;
            value
        }
    };
    Ok(record_one(&[x], value, || Sum { name, shape: x.shape().to_vec(), width: x.len(), factor }))
}

/// Sums over the last dimension: `[.., n]` to `[..]`, f32.
///
/// # Errors
/// [`Error::is_shape`] for a scalar, [`Error::is_dtype`] for integers.
pub fn sum_last(x: &Tensor) -> Result<Tensor> {
    over_last(x, "sum_last", 1.0)
}

/// Means over the last dimension: `[.., n]` to `[..]`, f32.
///
/// # Errors
/// [`Error::is_shape`] for a scalar, [`Error::is_dtype`] for integers.
pub fn mean_last(x: &Tensor) -> Result<Tensor> {
    over_last(x, "mean_last", 1.0 / x.last_dim().max(1) as f32)
}

fn over_last(x: &Tensor, name: &'static str, factor: f32) -> Result<Tensor> {
    let Some((width, shape)) = x.shape().split_last() else {
        return Err(Error::shape(format!("{name} of a scalar")));
    };
    let value = match x.gpu() {
        None => {
            let mut out = Buffer::recycled(x.leading());
            reduce::last(&mut out, &x.to_f32s()?, *width)?;
            out.iter_mut().for_each(|value| *value *= factor);
            Tensor::from_buffer(out, shape, DType::F32)?
        }
        Some(gpu) => {
            let mut value = Tensor::recycled_on(shape, DType::F32, gpu)?;
            reduce::launch::last(x.device_slice()?, *width, factor, value.device_slice_mut()?)?;
            value
        }
    };
    Ok(record_one(&[x], value, || Sum { name, shape: x.shape().to_vec(), width: *width, factor }))
}

/// The gradient of a sum: each output's, repeated over the `width` elements that it summed.
struct Sum {
    name: &'static str,
    shape: Vec<usize>,
    width: usize,
    factor: f32,
}

impl Backward for Sum {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        if let Some(gpu) = grad.gpu() {
            let mut out = Tensor::recycled_on(&self.shape, DType::F32, gpu)?;
            reduce::launch::spread(grad.device_slice()?, self.factor, out.device_slice_mut()?)?;
            return Ok(vec![Some(out)]);
        }
        let mut out = Buffer::recycled(self.shape.iter().product());
        for (out, g) in out.chunks_mut(self.width.max(1)).zip(grad.f32s()?) {
            out.fill(g * self.factor);
        }
        Ok(vec![Some(Tensor::from_buffer(out, &self.shape, DType::F32)?)])
    }
}
