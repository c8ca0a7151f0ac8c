//! Normalisation of rows.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::rms_norm::Norm;
use crate::kernels::{layer_norm, rms_norm as kernel};
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record_one};

fn check(op: &str, x: &Tensor, parameters: &[&Tensor], epsilon: f32) -> Result<()> {
    for parameter in parameters {
        if parameter.shape() != [x.last_dim()] || x.shape().is_empty() {
            return Err(Error::shape(format!(
                "{op}: weight {:?} for rows of {:?}",
                parameter.shape(),
                x.shape()
            )));
        }
    }
    if !(epsilon >= 0.0 && epsilon.is_finite()) {
        return Err(Error::invalid(format!("{op}: epsilon {epsilon}")));
    }
    Ok(())
}

/// `x · rsqrt(mean(x²) + epsilon) · w` over the last dimension, `1 + w` in place of `w` where `unit_offset` (Gemma).
///
/// # Shapes
/// `x [.., n]`, `weight [n]`; the result is of `x`'s shape and dtype.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`] for integers, [`Error::is_invalid`] for a negative epsilon.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32, unit_offset: bool) -> Result<Tensor> {
    check("rms_norm", x, &[weight], epsilon)?;
    let norm = Norm { epsilon, offset: if unit_offset { 1.0 } else { 0.0 } };
    let mut y = Buffer::recycled(x.len());
    let mut inverse = Buffer::recycled(x.leading());
    kernel::forward(&x.to_f32s()?, &weight.to_f32s()?, norm, &mut y, &mut inverse)?;
    let output = Tensor::from_buffer(y, x.shape(), x.dtype())?;
    Ok(record_one(&[x, weight], output, || RmsNorm {
        x: x.detach(),
        weight: weight.detach(),
        inverse,
        offset: norm.offset,
    }))
}

struct RmsNorm {
    x: Tensor,
    weight: Tensor,
    inverse: Buffer<f32>,
    offset: f32,
}

impl Backward for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None, None]) };
        let (x, weight) = (self.x.to_f32s()?, self.weight.to_f32s()?);
        let saved =
            kernel::Saved { x: &x, weight: &weight, inverse: &self.inverse, offset: self.offset };
        let mut dweight = Buffer::zeroed(weight.len());
        let mut dx = if wanted[0] { Some(Buffer::recycled(x.len())) } else { None };
        kernel::backward(saved, grad.f32s()?, dx.as_mut().map(|dx| &mut dx[..]), &mut dweight)?;
        let dx = dx.map(|dx| Tensor::from_buffer(dx, self.x.shape(), DType::F32)).transpose()?;
        let dweight = Tensor::from_buffer(dweight, self.weight.shape(), DType::F32)?;
        Ok(vec![dx, Some(dweight).filter(|_| wanted[1])])
    }
}

/// `(x - mean) · rsqrt(var + epsilon) · w + b` over the last dimension.
///
/// # Shapes
/// `x [.., n]`, `weight [n]`, `bias [n]`; the result is of `x`'s shape and dtype.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`] for integers, [`Error::is_invalid`] for a negative epsilon.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f32) -> Result<Tensor> {
    check("layer_norm", x, &[weight, bias], epsilon)?;
    let mut y = Buffer::recycled(x.len());
    let mut statistics = vec![[0f32; 2]; x.leading()];
    layer_norm::forward(
        &x.to_f32s()?,
        &weight.to_f32s()?,
        &bias.to_f32s()?,
        epsilon,
        &mut y,
        &mut statistics,
    )?;
    let output = Tensor::from_buffer(y, x.shape(), x.dtype())?;
    Ok(record_one(&[x, weight, bias], output, || LayerNorm {
        x: x.detach(),
        weight: weight.detach(),
        statistics,
    }))
}

struct LayerNorm {
    x: Tensor,
    weight: Tensor,
    statistics: Vec<[f32; 2]>,
}

impl Backward for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None; 3]) };
        let (x, weight) = (self.x.to_f32s()?, self.weight.to_f32s()?);
        let saved = layer_norm::Saved { x: &x, weight: &weight, statistics: &self.statistics };
        let mut dx = Buffer::recycled(x.len());
        let (mut dweight, mut dbias) = (Buffer::zeroed(weight.len()), Buffer::zeroed(weight.len()));
        layer_norm::backward(saved, grad.f32s()?, &mut dx, &mut dweight, &mut dbias)?;
        let shape = self.weight.shape();
        Ok(vec![
            Some(Tensor::from_buffer(dx, self.x.shape(), DType::F32)?).filter(|_| wanted[0]),
            Some(Tensor::from_buffer(dweight, shape, DType::F32)?).filter(|_| wanted[1]),
            Some(Tensor::from_buffer(dbias, shape, DType::F32)?).filter(|_| wanted[2]),
        ])
    }
}
