//! Normalisation of rows.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::rms_norm::Norm;
use crate::kernels::{layer_norm, rms_norm as kernel};
use crate::ops::gradient::{gradient_of, writable};
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
    let save = |inverse: Tensor| RmsNorm {
        x: x.detach(),
        weight: weight.detach(),
        inverse,
        offset: norm.offset,
    };
    if let Some(gpu) = Tensor::common_gpu("rms_norm", &[x, weight])? {
        let mut y = Tensor::recycled_on(x.shape(), x.dtype(), gpu)?;
        let mut inverse = Tensor::recycled_on(&[x.leading()], DType::F32, gpu)?;
        kernel::launch::forward(
            x.device_slice()?,
            weight.device_slice()?,
            norm,
            y.device_slice_mut()?,
            inverse.device_slice_mut()?,
        )?;
        return Ok(record_one(&[x, weight], y, || save(inverse)));
    }
    let mut y = Buffer::recycled(x.len());
    let mut inverse = Buffer::recycled(x.leading());
    kernel::forward(&x.to_f32s()?, &weight.to_f32s()?, norm, &mut y, &mut inverse)?;
    let output = Tensor::from_buffer(y, x.shape(), x.dtype())?;
    let inverse = Tensor::from_buffer(inverse, &[x.leading()], DType::F32)?;
    Ok(record_one(&[x, weight], output, || save(inverse)))
}

struct RmsNorm {
    x: Tensor,
    weight: Tensor,
    inverse: Tensor,
    offset: f32,
}

impl Backward for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None, None]) };
        let offset = self.offset;
        if let Some(gpu) = grad.gpu() {
            let saved = kernel::launch::Saved {
                x: self.x.device_slice()?,
                weight: self.weight.device_slice()?,
                inverse: self.inverse.device_slice()?,
                offset,
            };
            let mut dx = gradient_of(&self.x, gpu, wanted[0])?;
            let mut dweight = gradient_of(&self.weight, gpu, wanted[1])?;
            let (to_x, to_weight) = (writable(&mut dx)?, writable(&mut dweight)?);
            kernel::launch::backward(saved, grad.device_slice()?, to_x, to_weight)?;
            return Ok(vec![dx, dweight]);
        }
        let (x, weight) = (self.x.to_f32s()?, self.weight.to_f32s()?);
        let inverse = self.inverse.f32s()?;
        let saved = kernel::Saved { x: &x, weight: &weight, inverse, offset };
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
    let save =
        |statistics: Tensor| LayerNorm { x: x.detach(), weight: weight.detach(), statistics };
    if let Some(gpu) = Tensor::common_gpu("layer_norm", &[x, weight, bias])? {
        let mut y = Tensor::recycled_on(x.shape(), x.dtype(), gpu)?;
        let mut statistics = Tensor::recycled_on(&[x.leading(), 2], DType::F32, gpu)?;
        layer_norm::launch::forward(
            x.device_slice()?,
            weight.device_slice()?,
            bias.device_slice()?,
            epsilon,
            y.device_slice_mut()?,
            statistics.device_slice_mut()?,
        )?;
        return Ok(record_one(&[x, weight, bias], y, || save(statistics)));
    }
    let mut y = Buffer::recycled(x.len());
    let mut statistics = Buffer::recycled(2 * x.leading());
    layer_norm::forward(
        &x.to_f32s()?,
        &weight.to_f32s()?,
        &bias.to_f32s()?,
        epsilon,
        &mut y,
        statistics.as_chunks_mut().0,
    )?;
    let output = Tensor::from_buffer(y, x.shape(), x.dtype())?;
    let statistics = Tensor::from_buffer(statistics, &[x.leading(), 2], DType::F32)?;
    Ok(record_one(&[x, weight, bias], output, || save(statistics)))
}

struct LayerNorm {
    x: Tensor,
    weight: Tensor,
    statistics: Tensor,
}

impl Backward for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None; 3]) };
        if let Some(gpu) = grad.gpu() {
            let saved = layer_norm::launch::Saved {
                x: self.x.device_slice()?,
                weight: self.weight.device_slice()?,
                statistics: self.statistics.device_slice()?,
            };
            let mut dx = gradient_of(&self.x, gpu, wanted[0])?;
            let mut dweight = gradient_of(&self.weight, gpu, wanted[1])?;
            let mut dbias = gradient_of(&self.weight, gpu, wanted[2])?;
            layer_norm::launch::backward(
                saved,
                grad.device_slice()?,
                writable(&mut dx)?,
                writable(&mut dweight)?,
                writable(&mut dbias)?,
            )?;
            return Ok(vec![dx, dweight, dbias]);
        }
        let (x, weight) = (self.x.to_f32s()?, self.weight.to_f32s()?);
        let statistics = self.statistics.f32s()?.as_chunks().0;
        let saved = layer_norm::Saved { x: &x, weight: &weight, statistics };
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
