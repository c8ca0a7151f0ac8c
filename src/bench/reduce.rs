//! Sums of rows and of columns.

use super::operation::operation;
use super::reference::{host, places, row, worst};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::device::cpu::memory::Buffer;
use crate::error::Result;
use crate::kernels::reduce;
use crate::ops;
use crate::tensor::Tensor;

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let shape = size(device, quick, [[130, 67], [4096, 4096], [32_768, 4096]]);
    let [rows, width] = shape;
    // Of the largest sum: rounding grows with what is summed.
    let allowed = |terms: usize| 1e-6 * terms as f64;
    for dtype in [DType::F32, DType::Bf16] {
        let x = inputs::tensor(device, dtype, &shape, 1)?;
        let read = x.clone();
        let error = move |sums: &Tensor| {
            let sums = host(sums)?;
            places(rows).into_iter().try_fold(0f64, |largest, at| {
                let pair = (f64::from(sums[at]), row(&x, at)?.iter().sum());
                Ok(largest.max(worst([pair], allowed(width), 1e-5)))
            })
        };
        let work = operation(move || ops::sum_last(&read), error);
        give(Case::bytes("rows", &shape, dtype, rows * (width * dtype.size() + 4), work))?;
    }
    let x = inputs::tensor(device, DType::F32, &shape, 1)?;
    let read = x.clone();
    let error = move |sums: &Tensor| {
        let (sums, x) = (host(sums)?, host(&x)?);
        let of = |column: usize| x.chunks(width).map(|row| f64::from(row[column])).sum();
        let pairs = places(width).into_iter().map(|at| (f64::from(sums[at]), of(at)));
        Ok(worst(pairs, allowed(rows), 1e-5))
    };
    let work = operation(move || columns(&read), error);
    give(Case::bytes("columns", &shape, DType::F32, 4 * (rows + 1) * width, work))
}

/// Sums over the rows of `x [rows, width]`, which gradients of weights are: no operation of its own.
fn columns(x: &Tensor) -> Result<Tensor> {
    let width = x.last_dim();
    let Some(gpu) = x.gpu() else {
        let mut sums = Buffer::zeroed(width);
        reduce::columns(&mut sums, x.f32s()?)?;
        return Tensor::from_buffer(sums, &[width], DType::F32);
    };
    let mut sums = Tensor::recycled_on(&[width], DType::F32, gpu)?;
    reduce::launch::columns(x.device_slice()?, sums.device_slice_mut()?)?;
    Ok(sums)
}
