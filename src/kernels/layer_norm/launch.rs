//! LayerNorm on a device: checks and launches of `kernels/layer_norm.cu`.

use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::args::{LayerNormArgs, LayerNormGradientArgs, LayerNormWeightArgs};
use crate::kernels::rms_norm::{check, launch::one_type};
use crate::kernels::{reduce, row_walk};
use crate::typed_kernel;

/// Normalises every row.
///
/// # Shapes
/// `x`, `y` `[rows, width]`, `weight` and `bias` `[width]`, all of one float type; `statistics [rows, 2]` f32 gets mean
/// and factor of each row for the backward pass.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape), [`Error::is_dtype`](crate::Error::is_dtype), and what the device
/// reports.
pub fn forward(
    x: DeviceSlice<'_>,
    weight: DeviceSlice<'_>,
    bias: DeviceSlice<'_>,
    epsilon: f32,
    mut y: DeviceSliceMut<'_>,
    mut statistics: DeviceSliceMut<'_>,
) -> Result<()> {
    let (width, rows) = (weight.len(), statistics.len() / 2);
    check("layer_norm", width, rows, &[x.len(), y.len()])?;
    check("layer_norm", width, 1, &[bias.len()])?;
    one_type("layer_norm", &[x.dtype(), weight.dtype(), bias.dtype(), y.dtype()])?;
    let kernel = typed_kernel!("layer_norm", "layer_norm", x.dtype())?;
    let statistics = statistics.typed::<f32>()?;
    if x.is_empty() {
        return Ok(());
    }
    let addresses = [x.address(), weight.address(), bias.address(), y.address()];
    let gpu = x.gpu();
    let args = LayerNormArgs {
        x: x.ptr(),
        weight: weight.ptr(),
        bias: bias.ptr(),
        y: y.ptr(),
        statistics,
        rows: rows as i64,
        width: width as i64,
        epsilon,
        aligned: row_walk::aligned_rows(&addresses, width, x.dtype().size()),
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
    /// `[rows, 2]` f32, from [`forward`].
    pub statistics: DeviceSlice<'a>,
}

/// The gradients of [`forward`], each written where wanted.
///
/// # Shapes
/// `dy`, `dx` `[rows, width]`, `dweight` and `dbias` `[width]`, all f32.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    saved: Saved<'_>,
    dy: DeviceSlice<'_>,
    dx: Option<DeviceSliceMut<'_>>,
    dweight: Option<DeviceSliceMut<'_>>,
    dbias: Option<DeviceSliceMut<'_>>,
) -> Result<()> {
    let Saved { x, weight, statistics } = saved;
    let (width, rows) = (weight.len(), statistics.len() / 2);
    check("layer_norm backward", width, rows, &[x.len(), dy.len()])?;
    one_type("layer_norm backward", &[x.dtype(), weight.dtype()])?;
    let (moments, upstream) = (statistics.typed::<f32>()?, dy.typed::<f32>()?);
    let gpu = x.gpu();
    if let Some(mut dx) = dx {
        check("layer_norm backward", width, rows, &[dx.len()])?;
        let addresses = [x.address(), weight.address(), dy.address(), dx.address()];
        let args = LayerNormGradientArgs {
            x: x.ptr(),
            weight: weight.ptr(),
            statistics: moments,
            dy: upstream,
            dx: dx.typed::<f32>()?,
            rows: rows as i64,
            width: width as i64,
            aligned: row_walk::aligned_rows(&addresses, width, x.dtype().size()),
            unused: 0,
        };
        let kernel = typed_kernel!("layer_norm", "layer_norm_gradient", x.dtype())?;
        if !x.is_empty() {
            // SAFETY: types and lengths were checked.
            unsafe { gpu.launch(&row_walk::rows(gpu, kernel, rows, width), &args)? };
        }
    }
    if let Some(dweight) = dweight {
        check("layer_norm backward", width, 1, &[dweight.len()])?;
        weight_gradient(saved, dy, dweight)?;
    }
    match dbias {
        Some(dbias) => {
            check("layer_norm backward", width, 1, &[dbias.len()])?;
            if width == 0 { Ok(()) } else { reduce::launch::columns(dy, dbias) }
        }
        None => Ok(()),
    }
}

fn weight_gradient(
    saved: Saved<'_>,
    dy: DeviceSlice<'_>,
    mut dweight: DeviceSliceMut<'_>,
) -> Result<()> {
    let Saved { x, weight, statistics } = saved;
    let (gpu, width, rows) = (x.gpu(), weight.len(), statistics.len() / 2);
    if x.is_empty() {
        return dweight.fill_bytes(0);
    }
    let mut partial = DeviceBuffer::recycled(gpu, DType::F32, row_walk::weight_sums(rows) * width)?;
    let args = LayerNormWeightArgs {
        x: x.ptr(),
        statistics: statistics.typed::<f32>()?,
        dy: dy.typed::<f32>()?,
        partial: partial.whole_mut().typed::<f32>()?,
        rows: rows as i64,
        width: width as i64,
    };
    let kernel = typed_kernel!("layer_norm", "layer_norm_weight", x.dtype())?;
    // SAFETY: types and lengths were checked; the partial sums are as many as the kernel writes.
    unsafe { gpu.launch(&row_walk::weights(kernel, rows, width)?, &args)? };
    reduce::launch::columns(partial.whole(), dweight)
}
