//! Activations, alone and as a gate.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::activation::{self, Activation};
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record_one};

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
    let mut y = Buffer::recycled(x.len());
    activation::forward(f, &x.to_f32s()?, None, &mut y)?;
    let output = Tensor::from_buffer(y, x.shape(), x.dtype())?;
    Ok(record_one(&[x], output, || Alone { f, x: x.detach() }))
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
    let mut y = Buffer::recycled(gate.len());
    activation::forward(f, &gate.to_f32s()?, Some(&up.to_f32s()?), &mut y)?;
    let output = Tensor::from_buffer(y, gate.shape(), gate.dtype())?;
    Ok(record_one(&[gate, up], output, || Gated { f, gate: gate.detach(), up: up.detach() }))
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
        let (mut dgate, mut dup) = (Buffer::recycled(grad.len()), Buffer::recycled(grad.len()));
        let (gate, up) = (self.gate.to_f32s()?, self.up.to_f32s()?);
        activation::gated_backward(self.f, &gate, &up, grad.f32s()?, &mut dgate, &mut dup)?;
        Ok(vec![
            Some(Tensor::from_buffer(dgate, grad.shape(), DType::F32)?).filter(|_| wanted[0]),
            Some(Tensor::from_buffer(dup, grad.shape(), DType::F32)?).filter(|_| wanted[1]),
        ])
    }
}
