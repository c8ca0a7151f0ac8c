//! RMSNorm on a device: checks and launches of `kernels/rms_norm.cu`.

use super::{Norm, check};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::args::{RmsNormArgs, RmsNormGradientArgs, RmsNormWeightArgs};
use crate::kernels::{reduce, row_walk};
use crate::typed_kernel;

/// Storage types are not mixed on a device.
pub(in crate::kernels) fn one_type(op: &str, dtypes: &[DType]) -> Result<()> {
    match dtypes.windows(2).find(|pair| pair[0] != pair[1]) {
        None => Ok(()),
        Some(pair) => Err(Error::dtype(format!(
            "{op}: {} and {} on a device, where storage types are not mixed",
            pair[0], pair[1]
        ))),
    }
}

/// Normalises every row.
///
/// # Shapes
/// `x`, `y` `[rows, width]` and `weight [width]` of one float type; `inverse [rows]` f32 gets the factor of each row for
/// the backward pass.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], and what the device reports.
pub fn forward(
    x: DeviceSlice<'_>,
    weight: DeviceSlice<'_>,
    norm: Norm,
    mut y: DeviceSliceMut<'_>,
    mut inverse: DeviceSliceMut<'_>,
) -> Result<()> {
    let (width, rows) = (weight.len(), inverse.len());
    check("rms_norm", width, rows, &[x.len(), y.len()])?;
    one_type("rms_norm", &[x.dtype(), weight.dtype(), y.dtype()])?;
    let kernel = typed_kernel!("rms_norm", "rms_norm", x.dtype())?;
    let inverse = inverse.typed::<f32>()?;
    if x.is_empty() {
        return Ok(());
    }
    let addresses = [x.address(), weight.address(), y.address()];
    let gpu = x.gpu();
    let args = RmsNormArgs {
        x: x.ptr(),
        weight: weight.ptr(),
        y: y.ptr(),
        inverse,
        rows: rows as i64,
        width: width as i64,
        epsilon: norm.epsilon,
        offset: norm.offset,
        aligned: row_walk::aligned_rows(&addresses, width, x.dtype().size()),
        unused: 0,
    };
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&row_walk::rows(gpu, kernel, rows, width), &args) }
}

/// What [`backward`] reads.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// `[rows, width]`
    pub x: DeviceSlice<'a>,
    /// `[width]` of `x`'s type
    pub weight: DeviceSlice<'a>,
    /// `[rows]` f32, from [`forward`].
    pub inverse: DeviceSlice<'a>,
    /// Added to the weight.
    pub offset: f32,
}

/// The gradients of [`forward`], each written where wanted.
///
/// # Shapes
/// `dy`, `dx` `[rows, width]`, `dweight [width]`, all f32.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    saved: Saved<'_>,
    dy: DeviceSlice<'_>,
    dx: Option<DeviceSliceMut<'_>>,
    dweight: Option<DeviceSliceMut<'_>>,
) -> Result<()> {
    let Saved { x, weight, inverse, offset } = saved;
    let (width, rows) = (weight.len(), inverse.len());
    check("rms_norm backward", width, rows, &[x.len(), dy.len()])?;
    one_type("rms_norm backward", &[x.dtype(), weight.dtype()])?;
    let (factors, upstream) = (inverse.typed::<f32>()?, dy.typed::<f32>()?);
    let gpu = x.gpu();
    if let Some(mut dx) = dx {
        check("rms_norm backward", width, rows, &[dx.len()])?;
        let addresses = [x.address(), weight.address(), dy.address(), dx.address()];
        let args = RmsNormGradientArgs {
            x: x.ptr(),
            weight: weight.ptr(),
            inverse: factors,
            dy: upstream,
            dx: dx.typed::<f32>()?,
            rows: rows as i64,
            width: width as i64,
            offset,
            aligned: row_walk::aligned_rows(&addresses, width, x.dtype().size()),
        };
        let kernel = typed_kernel!("rms_norm", "rms_norm_gradient", x.dtype())?;
        if !x.is_empty() {
            // SAFETY: types and lengths were checked.
            unsafe { gpu.launch(&row_walk::rows(gpu, kernel, rows, width), &args)? };
        }
    }
    let Some(mut dweight) = dweight else { return Ok(()) };
    check("rms_norm backward", width, 1, &[dweight.len()])?;
    if x.is_empty() {
        return dweight.fill_bytes(0);
    }
    let mut partial = DeviceBuffer::recycled(gpu, DType::F32, row_walk::weight_sums(rows) * width)?;
    let args = RmsNormWeightArgs {
        x: x.ptr(),
        inverse: factors,
        dy: upstream,
        partial: partial.whole_mut().typed::<f32>()?,
        rows: rows as i64,
        width: width as i64,
    };
    let kernel = typed_kernel!("rms_norm", "rms_norm_weight", x.dtype())?;
    // SAFETY: as above; the partial sums are as many as the kernel writes.
    unsafe { gpu.launch(&row_walk::weights(kernel, rows, width)?, &args)? };
    reduce::launch::columns(partial.whole(), dweight)
}
