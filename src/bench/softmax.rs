//! Softmax of rows, and its gradient.

use super::operation::{backward, operation};
use super::reference::{places, row, worst_of};
use super::sizes::Sizes;
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::ops;
use crate::tensor::Tensor;

pub(super) fn cases(device: &Device, sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
    let own = size(device, sizes.quick, [[5, 130], [4096, 8192], [8192, 16_384]]);
    sizes.shapes(&[own]).into_iter().try_for_each(|shape| of_shape(device, shape, sizes, give))
}

fn of_shape(device: &Device, shape: [usize; 2], sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
    let [rows, width] = shape;
    let dtypes = sizes.dtypes(&[DType::F32, DType::Bf16]);
    for dtype in dtypes.iter().copied() {
        let x = inputs::tensor(device, dtype, &shape, 1)?;
        let read = x.clone();
        let relative = if dtype == DType::F32 { 2e-5 } else { 1e-2 };
        let error = move |y: &Tensor| {
            compare(y, |at| softmax(&row(&x, at)?), 1e-6 / width as f64, relative)
        };
        let work = operation(move || ops::softmax(&read), error);
        give(Case::bytes("forward", &shape, dtype, 2 * rows * width * dtype.size(), work))?;
    }
    // The gradient is made from f32, whatever the storage type: it is a row of that type alone.
    if !dtypes.contains(&DType::F32) {
        return Ok(());
    }
    let x = inputs::tensor(device, DType::F32, &shape, 1)?;
    let upstream = inputs::tensor(device, DType::F32, &shape, 2)?;
    let (known, dy) = (x.clone(), upstream.clone());
    let error = move |gradients: &[Tensor]| {
        let want = |at| {
            let (y, dy) = (softmax(&row(&known, at)?)?, row(&dy, at)?);
            let mean: f64 = y.iter().zip(&dy).map(|(y, dy)| y * dy).sum();
            Ok(y.iter().zip(&dy).map(|(y, dy)| y * (dy - mean)).collect())
        };
        compare(&gradients[0], want, 1e-4 / width as f64, 1e-4)
    };
    let work = backward(vec![x], upstream, |x| ops::softmax(&x[0]), error);
    give(Case::bytes("backward", &shape, DType::F32, 12 * rows * width, work))
}

fn softmax(x: &[f64]) -> Result<Vec<f64>> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = x.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    Ok(weights.iter().map(|weight| weight / sum).collect())
}

fn compare(
    got: &Tensor,
    want: impl Fn(usize) -> Result<Vec<f64>>,
    absolute: f64,
    relative: f64,
) -> Result<f64> {
    places(got.leading()).into_iter().try_fold(0f64, |largest, at| {
        Ok(largest.max(worst_of(&row(got, at)?, &want(at)?, absolute, relative)))
    })
}
