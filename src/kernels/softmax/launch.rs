//! Softmax on a device: checks and launches of `kernels/softmax.cu`.

use crate::device::engine::Kernel;
use crate::device::gpu::{DeviceSlice, DeviceSliceMut};
use crate::error::Result;
use crate::kernels::args::{SoftmaxArgs, SoftmaxGradientArgs};
use crate::kernels::rms_norm::{check, launch::one_type};
use crate::kernels::row_walk;
use crate::typed_kernel;
use std::ptr::null_mut;

/// `y = softmax(x)` over rows of `width`, or its logarithm where `log`; `exact` gets the unrounded result, which the
/// gradient is taken from (for f32 `y` itself is that).
///
/// # Shapes
/// `x`, `y` of one float type and of one length, whole rows; `exact` f32 of that length.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape), [`Error::is_dtype`](crate::Error::is_dtype), and what the device
/// reports.
pub fn forward(
    x: DeviceSlice<'_>,
    width: usize,
    log: bool,
    mut y: DeviceSliceMut<'_>,
    exact: Option<DeviceSliceMut<'_>>,
) -> Result<()> {
    let rows = x.len() / width.max(1);
    let exact_len = exact.as_ref().map_or(x.len(), DeviceSliceMut::len);
    check("softmax", width, rows, &[x.len(), y.len(), exact_len])?;
    one_type("softmax", &[x.dtype(), y.dtype()])?;
    let kernel = typed_kernel!("softmax", "softmax", x.dtype())?;
    let mut addresses = vec![x.address(), y.address()];
    let exact = match exact {
        Some(mut exact) => {
            addresses.push(exact.address());
            exact.typed::<f32>()?
        }
        None => null_mut(),
    };
    if x.is_empty() {
        return Ok(());
    }
    let gpu = x.gpu();
    let args = SoftmaxArgs {
        x: x.ptr(),
        y: y.ptr(),
        exact,
        rows: rows as i64,
        width: width as i64,
        log: u32::from(log),
        aligned: row_walk::aligned_rows(&addresses, width, x.dtype().size()),
    };
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&row_walk::rows(gpu, kernel, rows, width), &args) }
}

/// The gradient of [`forward`] from its unrounded result `y`. All f32 and of one length.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    y: DeviceSlice<'_>,
    dy: DeviceSlice<'_>,
    width: usize,
    log: bool,
    mut dx: DeviceSliceMut<'_>,
) -> Result<()> {
    let rows = y.len() / width.max(1);
    check("softmax backward", width, rows, &[y.len(), dy.len(), dx.len()])?;
    let addresses = [y.address(), dy.address(), dx.address()];
    let args = SoftmaxGradientArgs {
        y: y.typed::<f32>()?,
        dy: dy.typed::<f32>()?,
        dx: dx.typed::<f32>()?,
        rows: rows as i64,
        width: width as i64,
        log: u32::from(log),
        aligned: row_walk::aligned_rows(&addresses, width, size_of::<f32>()),
    };
    if y.is_empty() {
        return Ok(());
    }
    let (gpu, kernel) = (y.gpu(), Kernel::new("softmax", "softmax_gradient_f32"));
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&row_walk::rows(gpu, kernel, rows, width), &args) }
}
