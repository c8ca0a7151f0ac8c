//! Conversion on a device: checks and launches of `kernels/cast.cu`.

use crate::DType::{Bf16, F16, F32};
use crate::device::engine::Kernel;
use crate::device::gpu::{DeviceSlice, DeviceSliceMut};
use crate::error::{Error, Result};
use crate::kernels::args::{CAST_GROUP, CastArgs};
use crate::kernels::row_walk;

/// `to[i] = from[i]`: widened exactly, or rounded to nearest even; a copy where the types are the same.
///
/// # Errors
/// [`Error::is_shape`] when the lengths differ, [`Error::is_dtype`] for integers, and what the device reports.
pub fn convert(from: DeviceSlice<'_>, mut to: DeviceSliceMut<'_>) -> Result<()> {
    if from.len() != to.len() {
        return Err(Error::shape(format!("cast: {} elements into {}", from.len(), to.len())));
    }
    let kernel = Kernel::new(
        "cast",
        match (from.dtype(), to.dtype()) {
            (F32, Bf16) => "cast_f32_bf16",
            (F32, F16) => "cast_f32_f16",
            (Bf16, F32) => "cast_bf16_f32",
            (Bf16, F16) => "cast_bf16_f16",
            (F16, F32) => "cast_f16_f32",
            (F16, Bf16) => "cast_f16_bf16",
            (a, b) if a == b && a.is_float() => return to.copy_from(from),
            (a, b) => return Err(Error::dtype(format!("cast of {a} to {b}"))),
        },
    );
    let aligned = row_walk::aligned(&[from.address(), to.address()]);
    let args = CastArgs {
        x: from.ptr(),
        out: to.ptr(),
        len: from.len() as i64,
        aligned: u32::from(aligned),
        unused: 0,
    };
    let gpu = from.gpu();
    let launch = row_walk::groups(gpu, kernel, from.len(), CAST_GROUP as usize);
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&launch, &args) }
}
