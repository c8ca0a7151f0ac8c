//! Softmax and log-softmax over the last dimension.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::softmax as kernel;
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record_one};

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
        let mut dx = Buffer::recycled(grad.len());
        kernel::backward(self.y.f32s()?, grad.f32s()?, grad.last_dim(), self.log, &mut dx)?;
        Ok(vec![Some(Tensor::from_buffer(dx, grad.shape(), DType::F32)?)])
    }
}
