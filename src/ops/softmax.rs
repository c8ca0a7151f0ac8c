//! Softmax and log-softmax over the last dimension.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::softmax as kernel;
use crate::ops::gradient::{gradient_of, writable};
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record_one, recording};

/// `e^x / Σ e^x` over the last dimension. Errors: [`Error::is_shape`] for a scalar, [`Error::is_dtype`] for integers.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    over_rows(x, false)
}

/// `log softmax(x)` over the last dimension. Errors as [`softmax`].
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    over_rows(x, true)
}

fn over_rows(x: &Tensor, log: bool) -> Result<Tensor> {
    if x.shape().is_empty() {
        return Err(Error::shape("softmax of a scalar"));
    }
    if let Some(gpu) = x.gpu() {
        let mut output = Tensor::recycled_on(x.shape(), x.dtype(), gpu)?;
        let rounded = x.dtype() != DType::F32;
        let mut exact = gradient_of(x, gpu, rounded && recording(&[x]))?;
        let (from, to) = (x.device_slice()?, output.device_slice_mut()?);
        kernel::launch::forward(from, x.last_dim(), log, to, writable(&mut exact)?)?;
        let y = exact.unwrap_or_else(|| output.clone());
        return Ok(record_one(&[x], output, || Softmax { y, log }));
    }
    let mut y = Buffer::recycled(x.len());
    kernel::forward(&x.to_f32s()?, x.last_dim(), log, &mut y)?;
    let exact = Tensor::from_buffer(y, x.shape(), DType::F32)?;
    let output = match x.dtype() {
        DType::F32 => exact.clone(),
        dtype => crate::ops::cast(&exact, dtype)?,
    };
    // The gradient is taken from the unrounded result.
    Ok(record_one(&[x], output, || Softmax { y: exact, log }))
}

struct Softmax {
    y: Tensor,
    log: bool,
}

impl Backward for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        if let Some(gpu) = grad.gpu() {
            let mut dx = Tensor::recycled_on(grad.shape(), DType::F32, gpu)?;
            let (y, dy, width) = (self.y.device_slice()?, grad.device_slice()?, grad.last_dim());
            kernel::launch::backward(y, dy, width, self.log, dx.device_slice_mut()?)?;
            return Ok(vec![Some(dx)]);
        }
        let mut dx = Buffer::recycled(grad.len());
        kernel::backward(self.y.f32s()?, grad.f32s()?, grad.last_dim(), self.log, &mut dx)?;
        Ok(vec![Some(Tensor::from_buffer(dx, grad.shape(), DType::F32)?)])
    }
}
