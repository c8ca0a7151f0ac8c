//! Comparison of outputs with a reference: which parts of large ones, in f64, and how exactly.

use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;
use std::ops::Range;

/// Parts of an output that are compared.
const PARTS: usize = 8;
/// Elements of a part.
const RUN: usize = 512;

/// The largest of `|got - want| / (absolute + relative · |want|)`; infinite where either is not a number.
pub(super) fn worst(
    pairs: impl IntoIterator<Item = (f64, f64)>,
    absolute: f64,
    relative: f64,
) -> f64 {
    let error = |(got, want): (f64, f64)| {
        let off = (got - want).abs() / (absolute + relative * want.abs());
        if off.is_nan() { f64::INFINITY } else { off }
    };
    pairs.into_iter().map(error).fold(0.0, f64::max)
}

/// [`worst`] of two runs of numbers; infinite where their lengths differ.
pub(super) fn worst_of(got: &[f64], want: &[f64], absolute: f64, relative: f64) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    worst(got.iter().copied().zip(want.iter().copied()), absolute, relative)
}

/// 0 where two runs are equal, else infinite.
pub(super) fn differs<T: PartialEq>(got: &[T], want: &[T]) -> f64 {
    if got == want { 0.0 } else { f64::INFINITY }
}

/// What an output in a storage type may be off by, relatively.
pub(super) fn allowed(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 1e-2 }
}

/// Some of `count` places, the first and the last among them.
pub(super) fn places(count: usize) -> Vec<usize> {
    let parts = PARTS.min(count);
    (0..parts).map(|part| part * (count - 1) / (parts - 1).max(1)).collect()
}

/// Some runs of `len` elements, the first and the last among them.
pub(super) fn runs(len: usize) -> Vec<Range<usize>> {
    let starts = places((len + 1).saturating_sub(RUN).max(1));
    starts.into_iter().map(|start| start..(start + RUN).min(len)).collect()
}

/// f32 values of a tensor, in host memory.
pub(super) fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_device(&Device::Cpu)?.to_f32s()?.to_vec())
}

/// i32 values of a tensor, in host memory.
pub(super) fn host_ids(tensor: &Tensor) -> Result<Vec<i32>> {
    Ok(tensor.to_device(&Device::Cpu)?.i32s()?.to_vec())
}

/// Entries `range` of the leading dimension.
pub(super) fn part(tensor: &Tensor, range: Range<usize>) -> Result<Vec<f64>> {
    Ok(host(&tensor.rows(range)?)?.into_iter().map(f64::from).collect())
}

/// Entry `at` of the leading dimension.
pub(super) fn row(tensor: &Tensor, at: usize) -> Result<Vec<f64>> {
    part(tensor, at..at + 1)
}

/// Bytes of a u8 tensor, in host memory.
pub(super) fn host_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    Ok(tensor.to_device(&Device::Cpu)?.bytes()?.to_vec())
}
