//! What turns on token ids and positions: embedding and rotary positions.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::DeviceBuffer;
use crate::error::{Error, Result};
use crate::kernels::rope::{self as kernel, Angles, Layout};
use crate::kernels::rows as table_rows;
use crate::ops::rows::rows_on_device;
use crate::tensor::autograd::{Backward, Grads, record_one};
use crate::tensor::{Storage, Tensor};
use std::sync::Arc;

/// Rows of `table` by token id.
///
/// # Shapes
/// `table [vocab, n]`; `[ids, n]` in the table's dtype.
///
/// # Errors
/// [`Error::is_index`] naming an id outside the vocabulary, [`Error::is_shape`] for a table of other rank.
pub fn embedding(table: &Tensor, ids: &[i32]) -> Result<Tensor> {
    let [_, width] = *table.shape() else {
        return Err(Error::shape(format!("embedding: table {:?}", table.shape())));
    };
    if let Some(gpu) = table.gpu() {
        table_rows::check_ids(ids, table.shape()[0])?;
        let index = DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(ids))?;
        return rows_on_device("embedding", table, index);
    }
    let mut rows = Storage::recycled(table.dtype(), ids.len() * width);
    table_rows::gather(table.bytes()?, ids, width * table.dtype().size(), rows.bytes_mut())?;
    let output = Tensor::new(rows, &[ids.len(), width])?;
    Ok(record_one(&[table], output, || Embedding {
        shape: [table.shape()[0], width],
        ids: ids.to_vec(),
    }))
}

struct Embedding {
    shape: [usize; 2],
    ids: Vec<i32>,
}

impl Backward for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        let mut dtable = Buffer::zeroed(self.shape[0] * self.shape[1]);
        table_rows::scatter_add(&mut dtable, &self.ids, self.shape[1], grad.f32s()?)?;
        Ok(vec![Some(Tensor::from_buffer(dtable, &self.shape, DType::F32)?)])
    }
}

/// Rotary positions (rotate-half) on every head: see [`rope_with`], which takes angles that are made once.
///
/// # Errors
/// As [`rope_with`].
pub fn rope(x: &Tensor, positions: &[i32], frequencies: &[f32], factor: f32) -> Result<Tensor> {
    let angles = Arc::new(Angles::new(positions, frequencies, factor));
    rope_with(x, &angles, Layout::RotateHalf)
}

/// Rotary positions on every head.
///
/// # Shapes
/// `x [T, heads, head_dim]`, `angles` of T tokens and at most `head_dim / 2` pairs; the result is of `x`'s shape and
/// dtype.
///
/// # Errors
/// [`Error::is_shape`] when they do not fit, [`Error::is_dtype`] for integers.
pub fn rope_with(x: &Tensor, angles: &Arc<Angles>, layout: Layout) -> Result<Tensor> {
    let [_, heads, head_dim] = *x.shape() else {
        return Err(Error::shape(format!(
            "rope: {:?} is not [tokens, heads, head_dim]",
            x.shape()
        )));
    };
    let save = || Rope { angles: Arc::clone(angles), heads: [heads, head_dim], layout };
    if let Some(gpu) = x.gpu() {
        let mut y = Tensor::recycled_on(x.shape(), x.dtype(), gpu)?;
        let (from, to) = (x.device_slice()?, y.device_slice_mut()?);
        kernel::launch::rotate(from, [heads, head_dim], angles, layout, false, to)?;
        return Ok(record_one(&[x], y, save));
    }
    let mut y = Buffer::recycled(x.len());
    kernel::rotate(&x.to_f32s()?, [heads, head_dim], angles, layout, false, &mut y)?;
    let output = Tensor::from_buffer(y, x.shape(), x.dtype())?;
    Ok(record_one(&[x], output, save))
}

struct Rope {
    angles: Arc<Angles>,
    heads: [usize; 2],
    layout: Layout,
}

impl Backward for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    /// Turning back is the gradient: a rotation's transpose is its inverse (the factor on both is the same).
    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        if let Some(gpu) = grad.gpu() {
            let mut dx = Tensor::recycled_on(grad.shape(), DType::F32, gpu)?;
            let (from, to) = (grad.device_slice()?, dx.device_slice_mut()?);
            kernel::launch::rotate(from, self.heads, &self.angles, self.layout, true, to)?;
            return Ok(vec![Some(dx)]);
        }
        let mut dx = Buffer::recycled(grad.len());
        kernel::rotate(grad.f32s()?, self.heads, &self.angles, self.layout, true, &mut dx)?;
        Ok(vec![Some(Tensor::from_buffer(dx, grad.shape(), DType::F32)?)])
    }
}
