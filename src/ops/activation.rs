//! Activations, alone and as a gate.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::activation::{self, Activation};
use crate::ops::gradient::{gradient_of, writable};
use crate::tensor::autograd::{Backward, Grads, record_one};
use crate::tensor::{Storage, Tensor};

/// `x · sigmoid(x)`. Errors: [`Error::is_dtype`] for integers.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    alone(Activation::Silu, x)
}

/// `x · Φ(x)`, with the error function. Errors: [`Error::is_dtype`] for integers.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    alone(Activation::Gelu, x)
}

/// GELU in its tanh form. Errors: [`Error::is_dtype`] for integers.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    alone(Activation::GeluTanh, x)
}

/// `silu(gate) · up`: SwiGLU. Errors: [`Error::is_shape`] when they differ, [`Error::is_dtype`] for integers.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated(Activation::Silu, gate, up)
}

/// `gelu_tanh(gate) · up`: GeGLU. Errors: [`Error::is_shape`] when they differ, [`Error::is_dtype`] for integers.
pub fn gelu_tanh_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated(Activation::GeluTanh, gate, up)
}

fn alone(f: Activation, x: &Tensor) -> Result<Tensor> {
    let save = || Alone { f, x: x.detach() };
    if let Some(gpu) = x.gpu() {
        let mut y = Tensor::recycled_on(x.shape(), x.dtype(), gpu)?;
        activation::launch::forward(f, x.device_slice()?, None, y.device_slice_mut()?)?;
        return Ok(record_one(&[x], y, save));
    }
    Ok(record_one(&[x], on_cpu(f, x, None)?, save))
}

/// The value, in the storage type of `x`.
fn on_cpu(f: Activation, x: &Tensor, up: Option<&Tensor>) -> Result<Tensor> {
    let read = x.floats()?;
    let up = up.map(Tensor::floats).transpose()?;
    let mut y = Storage::recycled(x.dtype(), x.len());
    if let Some(y) = y.floats_mut() {
        activation::forward_stored(f, read, up, y)?;
    }
    Tensor::new(y, x.shape())
}

struct Alone {
    f: Activation,
    x: Tensor,
}

impl Backward for Alone {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        if let Some(gpu) = grad.gpu() {
            let mut dx = gradient_of(&self.x, gpu, true)?;
            let (x, dy) = (self.x.device_slice()?, grad.device_slice()?);
            activation::launch::backward(self.f, x, None, dy, writable(&mut dx)?, None)?;
            return Ok(vec![dx]);
        }
        let mut dx = Buffer::recycled(grad.len());
        activation::backward(self.f, &self.x.to_f32s()?, grad.f32s()?, &mut dx)?;
        Ok(vec![Some(Tensor::from_buffer(dx, grad.shape(), DType::F32)?)])
    }
}

fn gated(f: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        return Err(Error::shape(format!(
            "gated activation: {:?} and {:?}",
            gate.shape(),
            up.shape()
        )));
    }
    let save = || Gated { f, gate: gate.detach(), up: up.detach() };
    if let Some(gpu) = Tensor::common_gpu("gated activation", &[gate, up])? {
        let mut y = Tensor::recycled_on(gate.shape(), gate.dtype(), gpu)?;
        let (x, factor) = (gate.device_slice()?, up.device_slice()?);
        activation::launch::forward(f, x, Some(factor), y.device_slice_mut()?)?;
        return Ok(record_one(&[gate, up], y, save));
    }
    Ok(record_one(&[gate, up], on_cpu(f, gate, Some(up))?, save))
}

struct Gated {
    f: Activation,
    gate: Tensor,
    up: Tensor,
}

impl Backward for Gated {
    fn name(&self) -> &'static str {
        "gated activation"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None, None]) };
        if let Some(gpu) = grad.gpu() {
            let mut dgate = gradient_of(&self.gate, gpu, wanted[0])?;
            let mut dup = gradient_of(&self.up, gpu, wanted[1])?;
            activation::launch::backward(
                self.f,
                self.gate.device_slice()?,
                Some(self.up.device_slice()?),
                grad.device_slice()?,
                writable(&mut dgate)?,
                writable(&mut dup)?,
            )?;
            return Ok(vec![dgate, dup]);
        }
        let (mut dgate, mut dup) = (Buffer::recycled(grad.len()), Buffer::recycled(grad.len()));
        let (gate, up) = (self.gate.to_f32s()?, self.up.to_f32s()?);
        activation::gated_backward(self.f, &gate, &up, grad.f32s()?, &mut dgate, &mut dup)?;
        Ok(vec![
            Some(Tensor::from_buffer(dgate, grad.shape(), DType::F32)?).filter(|_| wanted[0]),
            Some(Tensor::from_buffer(dup, grad.shape(), DType::F32)?).filter(|_| wanted[1]),
        ])
    }
}
