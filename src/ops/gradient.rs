//! Device memory for the gradients of a backward pass: only for inputs that want one.

use crate::DType;
use crate::device::gpu::{DeviceSliceMut, Gpu};
use crate::error::Result;
use crate::tensor::Tensor;
use std::sync::Arc;

/// An f32 tensor of `of`'s shape to be written whole, where it is wanted.
pub(super) fn gradient_of(of: &Tensor, gpu: &Arc<Gpu>, wanted: bool) -> Result<Option<Tensor>> {
    if !wanted {
        return Ok(None);
    }
    Tensor::recycled_on(of.shape(), DType::F32, gpu).map(Some)
}

/// What a launch writes to.
pub(super) fn writable(gradient: &mut Option<Tensor>) -> Result<Option<DeviceSliceMut<'_>>> {
    gradient.as_mut().map(Tensor::device_slice_mut).transpose()
}
