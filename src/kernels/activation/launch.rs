//! Activations on a device: checks and launches of `kernels/activation.cu`.

use super::{Activation, same};
use crate::device::gpu::{DeviceSlice, DeviceSliceMut};
use crate::error::Result;
use crate::kernels::args::{self, ActivationArgs, ActivationGradientArgs};
use crate::kernels::rms_norm::launch::one_type;
use crate::kernels::row_walk;
use crate::typed_kernel;
use std::ptr::{null, null_mut};

fn code(f: Activation) -> u32 {
    match f {
        Activation::Silu => args::ACTIVATION_SILU,
        Activation::Gelu => args::ACTIVATION_GELU,
        Activation::GeluTanh => args::ACTIVATION_GELU_TANH,
    }
}

/// `y = f(x)`, or `f(x) · up` where there is an `up`. All of one float type and length.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape), [`Error::is_dtype`](crate::Error::is_dtype), and what the device
/// reports.
pub fn forward(
    f: Activation,
    x: DeviceSlice<'_>,
    up: Option<DeviceSlice<'_>>,
    mut y: DeviceSliceMut<'_>,
) -> Result<()> {
    let gate = up.unwrap_or(x);
    same("activation", &[x.len(), y.len(), gate.len()])?;
    one_type("activation", &[x.dtype(), y.dtype(), gate.dtype()])?;
    let kernel = typed_kernel!("activation", "activation", x.dtype())?;
    let gpu = x.gpu();
    let aligned = row_walk::aligned(&[x.address(), gate.address(), y.address()]);
    let args = ActivationArgs {
        x: x.ptr(),
        up: up.map_or(null(), DeviceSlice::ptr),
        y: y.ptr(),
        len: x.len() as i64,
        function: code(f),
        aligned: u32::from(aligned),
    };
    let group = 16 / x.dtype().size();
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&row_walk::groups(gpu, kernel, x.len(), group), &args) }
}

/// The gradients of [`forward`], each written where wanted: `dx = f'(x) · dy`, times `up` where there is one; then also
/// `dup = f(x) · dy`.
///
/// # Shapes
/// `x` and `up` of one float type; `dy`, `dx`, `dup` f32; all of one length.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    f: Activation,
    x: DeviceSlice<'_>,
    up: Option<DeviceSlice<'_>>,
    dy: DeviceSlice<'_>,
    dx: Option<DeviceSliceMut<'_>>,
    dup: Option<DeviceSliceMut<'_>>,
) -> Result<()> {
    let gate = up.unwrap_or(x);
    one_type("activation backward", &[x.dtype(), gate.dtype()])?;
    let kernel = typed_kernel!("activation", "activation_gradient", x.dtype())?;
    let mut lengths = vec![x.len(), gate.len(), dy.len()];
    let mut addresses = vec![x.address(), gate.address(), dy.address()];
    let mut written = |out: Option<DeviceSliceMut<'_>>| match out {
        None => Ok(null_mut()),
        Some(mut out) => {
            lengths.push(out.len());
            addresses.push(out.address());
            out.typed::<f32>()
        }
    };
    let (dx, dup) = (written(dx)?, written(dup)?);
    same("activation backward", &lengths)?;
    let gpu = x.gpu();
    let args = ActivationGradientArgs {
        x: x.ptr(),
        up: up.map_or(null(), DeviceSlice::ptr),
        dy: dy.typed::<f32>()?,
        dx,
        dup,
        len: x.len() as i64,
        function: code(f),
        aligned: u32::from(row_walk::aligned(&addresses)),
    };
    let group = 16 / x.dtype().size();
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&row_walk::groups(gpu, kernel, x.len(), group), &args) }
}
