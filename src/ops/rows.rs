//! Moving rows about: slices, joins, gathers, reshapes. The leading dimension counts rows.

use crate::DType;
use crate::device::Device;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::DeviceBuffer;
use crate::error::{Error, Result};
use crate::kernels::rows::launch;
use crate::tensor::autograd::{Backward, Grads, record, record_one};
use crate::tensor::{Storage, Tensor};
use std::ops::Range;

/// The same elements in another shape.
///
/// # Errors
/// [`Error::is_shape`] when the element counts differ.
pub fn reshape(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let output = x.view(shape)?;
    Ok(record_one(&[x], output, || Reshape { shape: x.shape().to_vec() }))
}

struct Reshape {
    shape: Vec<usize>,
}

impl Backward for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        Ok(vec![Some(grad.view(&self.shape)?)])
    }
}

/// Rows `range` of the leading dimension: a view.
///
/// # Errors
/// [`Error::is_index`] when the range does not lie inside.
pub fn rows(x: &Tensor, range: Range<usize>) -> Result<Tensor> {
    let output = x.rows(range.clone())?;
    Ok(record_one(&[x], output, || Rows { shape: x.shape().to_vec(), first: range.start }))
}

struct Rows {
    shape: Vec<usize>,
    first: usize,
}

impl Backward for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        let width: usize = self.shape[1..].iter().product();
        if grad.gpu().is_some() {
            let mut out = Tensor::zeros_on(&self.shape, DType::F32, &grad.device())?;
            let start = self.first * width;
            let mut part = out.device_slice_mut()?;
            part.slice_mut(start..start + grad.len())?.copy_from(grad.device_slice()?)?;
            return Ok(vec![Some(out)]);
        }
        let mut out = Buffer::zeroed(self.shape.iter().product());
        out[self.first * width..self.first * width + grad.len()].copy_from_slice(grad.f32s()?);
        Ok(vec![Some(Tensor::from_buffer(out, &self.shape, DType::F32)?)])
    }
}

/// Cuts `x` into its first `sizes[0]` rows, the next `sizes[1]`, and so on: views, whose gradients are joined once.
///
/// # Errors
/// [`Error::is_shape`] when the sizes do not sum to the rows of `x`.
pub fn split(x: &Tensor, sizes: &[usize]) -> Result<Vec<Tensor>> {
    if x.shape().is_empty() || sizes.iter().sum::<usize>() != x.leading() {
        return Err(Error::shape(format!("split: {x:?} into rows of {sizes:?}")));
    }
    let mut start = 0;
    let mut outputs = Vec::with_capacity(sizes.len());
    for size in sizes {
        outputs.push(x.rows(start..start + size)?);
        start += size;
    }
    let row = x.shape()[1..].to_vec();
    Ok(record(&[x], outputs, || Split { row, sizes: sizes.to_vec(), device: x.device() }))
}

struct Split {
    /// The shape of a row.
    row: Vec<usize>,
    sizes: Vec<usize>,
    device: Device,
}

impl Backward for Split {
    fn name(&self) -> &'static str {
        "split"
    }

    fn backward(self: Box<Self>, grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let parts = grads.into_iter().zip(&self.sizes).map(|(grad, size)| match grad {
            Some(grad) => Ok(grad),
            None => {
                let shape: Vec<usize> = std::iter::once(*size).chain(self.row.clone()).collect();
                Tensor::zeros_on(&shape, DType::F32, &self.device)
            }
        });
        let parts: Vec<Tensor> = parts.collect::<Result<_>>()?;
        Ok(vec![Some(concat(&parts.iter().collect::<Vec<_>>())?)])
    }
}

/// Joins tensors along the leading dimension.
///
/// # Errors
/// [`Error::is_shape`] for an empty list or rows of different shape, [`Error::is_dtype`] for different types.
pub fn concat(parts: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first().filter(|first| !first.shape().is_empty()) else {
        return Err(Error::shape("concat: no tensors, or scalars"));
    };
    for part in parts {
        if part.shape().get(1..) != first.shape().get(1..) || part.shape().is_empty() {
            return Err(Error::shape(format!("concat: rows of {first:?} and of {part:?}")));
        }
        if part.dtype() != first.dtype() {
            return Err(Error::dtype(format!("concat: {first:?} and {part:?}")));
        }
    }
    let mut shape = first.shape().to_vec();
    shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
    let save = || Concat { rows: parts.iter().map(|part| part.shape()[0]).collect() };
    if let Some(gpu) = Tensor::common_gpu("concat", parts)? {
        let mut output = Tensor::recycled_on(&shape, first.dtype(), gpu)?;
        let mut whole = output.device_slice_mut()?;
        let mut start = 0;
        for part in parts {
            whole.slice_mut(start..start + part.len())?.copy_from(part.device_slice()?)?;
            start += part.len();
        }
        return Ok(record_one(parts, output, save));
    }
    let mut storage = Storage::recycled(first.dtype(), shape.iter().product());
    let mut rest = storage.bytes_mut();
    for part in parts {
        let (here, after) = rest.split_at_mut(part.bytes()?.len());
        here.copy_from_slice(part.bytes()?);
        rest = after;
    }
    let output = Tensor::new(storage, &shape)?;
    Ok(record_one(parts, output, save))
}

struct Concat {
    rows: Vec<usize>,
}

impl Backward for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None; self.rows.len()]) };
        let mut start = 0;
        let mut parts = Vec::with_capacity(self.rows.len());
        for (count, wanted) in self.rows.iter().zip(wanted) {
            let range = start..start + count;
            parts.push(if *wanted { Some(grad.rows(range)?) } else { None });
            start += count;
        }
        Ok(parts)
    }
}

/// Rows of `x` in the order of `index`, repeats allowed: `[index.len(), ..]`.
///
/// # Errors
/// [`Error::is_index`] naming the first index that is out of range.
pub fn gather(x: &Tensor, index: &[usize]) -> Result<Tensor> {
    let Some((count, rest)) = x.shape().split_first() else {
        return Err(Error::shape("gather from a scalar"));
    };
    if let Some((at, row)) = index.iter().enumerate().find(|(_, row)| *row >= count) {
        return Err(Error::index(format!("gather: row {row} (entry {at}) of {x:?}")));
    }
    if let Some(gpu) = x.gpu() {
        let wide: Vec<i64> = index.iter().map(|row| *row as i64).collect();
        let index = DeviceBuffer::upload(gpu, DType::I64, bytemuck::cast_slice(&wide))?;
        return rows_on_device("gather", x, index);
    }
    let mut shape = x.shape().to_vec();
    shape[0] = index.len();
    let size = rest.iter().product::<usize>() * x.dtype().size();
    let mut storage = Storage::recycled(x.dtype(), shape.iter().product());
    if size > 0 {
        for (out, row) in storage.bytes_mut().chunks_mut(size).zip(index) {
            out.copy_from_slice(&x.bytes()?[row * size..(row + 1) * size]);
        }
    }
    let output = Tensor::new(storage, &shape)?;
    Ok(record_one(&[x], output, || Gather { shape: x.shape().to_vec(), index: index.to_vec() }))
}

struct Gather {
    shape: Vec<usize>,
    index: Vec<usize>,
}

impl Backward for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    /// Adds in the order of `index`, on one thread: the order is the result.
    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        let width: usize = self.shape[1..].iter().product();
        let mut out = Buffer::zeroed(self.shape.iter().product());
        if width > 0 {
            for (g, row) in grad.f32s()?.chunks(width).zip(&self.index) {
                let sum = &mut out[row * width..(row + 1) * width];
                sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
            }
        }
        Ok(vec![Some(Tensor::from_buffer(out, &self.shape, DType::F32)?)])
    }
}

/// Rows of `table` by an index on its device, kept there for the backward pass.
pub(super) fn rows_on_device(
    name: &'static str,
    table: &Tensor,
    index: DeviceBuffer,
) -> Result<Tensor> {
    let width = table.shape().iter().skip(1).product();
    let mut shape = table.shape().to_vec();
    if let Some(first) = shape.first_mut() {
        *first = index.len();
    }
    let mut output = Tensor::recycled_on(&shape, table.dtype(), index.gpu())?;
    launch::gather(table.device_slice()?, index.whole(), width, output.device_slice_mut()?)?;
    let save = || RowsOnDevice { name, shape: table.shape().to_vec(), width, index };
    Ok(record_one(&[table], output, save))
}

struct RowsOnDevice {
    name: &'static str,
    shape: Vec<usize>,
    width: usize,
    index: DeviceBuffer,
}

impl Backward for RowsOnDevice {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        let mut out = Tensor::recycled_on(&self.shape, DType::F32, self.index.gpu())?;
        let (x, index) = (grad.device_slice()?, self.index.whole());
        launch::scatter_add(x, index, self.width, out.device_slice_mut()?)?;
        Ok(vec![Some(out)])
    }
}
