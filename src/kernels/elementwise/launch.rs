//! Arithmetic element by element on a device: checks and launches of `kernels/elementwise.cu`.

use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::args::{self, BinaryArgs, BinaryGradientArgs, UnaryArgs, UnaryGradientArgs};
use crate::kernels::row_walk;
use crate::typed_kernel;
use std::ptr::null_mut;

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `x + y`
    Add,
    /// `x - y`
    Sub,
    /// `x · y`
    Mul,
    /// `x / y`
    Div,
}

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// `x · c`
    Scale(f32),
    /// `x + c`
    Shift(f32),
    /// `e^x`
    Exp,
    /// The natural logarithm.
    Log,
    /// The square root.
    Sqrt,
    /// The hyperbolic tangent.
    Tanh,
    /// `c · tanh(x / c)`
    Softcap(f32),
}

impl Binary {
    fn code(self) -> u32 {
        match self {
            Binary::Add => args::BINARY_ADD,
            Binary::Sub => args::BINARY_SUB,
            Binary::Mul => args::BINARY_MUL,
            Binary::Div => args::BINARY_DIV,
        }
    }
}

impl Unary {
    fn code(self) -> (u32, f32) {
        match self {
            Unary::Scale(c) => (args::UNARY_SCALE, c),
            Unary::Shift(c) => (args::UNARY_SHIFT, c),
            Unary::Exp => (args::UNARY_EXP, 0.0),
            Unary::Log => (args::UNARY_LOG, 0.0),
            Unary::Sqrt => (args::UNARY_SQRT, 0.0),
            Unary::Tanh => (args::UNARY_TANH, 0.0),
            Unary::Softcap(c) => (args::UNARY_SOFTCAP, c),
        }
    }
}

fn same(op: &str, lengths: &[usize]) -> Result<()> {
    if lengths.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(());
    }
    Err(Error::shape(format!("{op}: runs of {lengths:?} elements")))
}

/// Elements of the storage type that a thread takes at once.
fn group(dtype: DType) -> usize {
    16 / dtype.size()
}

fn aligned(addresses: &[u64]) -> u32 {
    u32::from(row_walk::aligned(addresses))
}

fn period(op: Binary, x: usize, y: usize) -> Result<i64> {
    if x > 0 && (y == 0 || !x.is_multiple_of(y)) {
        return Err(Error::shape(format!("{op:?}: {y} elements over {x}")));
    }
    Ok(y as i64)
}

/// `out[i] = x[i] op y[i mod y.len()]`, all of one float type.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], and what the device reports.
pub fn binary(
    op: Binary,
    x: DeviceSlice<'_>,
    y: DeviceSlice<'_>,
    out: DeviceSliceMut<'_>,
) -> Result<()> {
    run(op, x, y, out)
}

/// `sum[i] += x[i]`, both of one float type.
///
/// # Errors
/// As [`binary`].
pub fn accumulate(sum: DeviceSliceMut<'_>, x: DeviceSlice<'_>) -> Result<()> {
    // Aliasing is fine: the kernel reads element i before it writes it, and no other element.
    let (gpu, address, len, dtype) = (sum.gpu().clone(), sum.address(), sum.len(), sum.dtype());
    // SAFETY: the run is valid as long as `sum` is, which outlives this call.
    let whole = unsafe { DeviceBuffer::borrowed(&gpu, dtype, address, len)? };
    run(Binary::Add, whole.whole(), x, sum)
}

fn run(
    op: Binary,
    x: DeviceSlice<'_>,
    y: DeviceSlice<'_>,
    mut out: DeviceSliceMut<'_>,
) -> Result<()> {
    same("binary", &[x.len(), out.len()])?;
    if x.dtype() != y.dtype() || x.dtype() != out.dtype() {
        return Err(Error::dtype(format!(
            "{op:?}: {} and {} into {} on a device, where storage types are not mixed",
            x.dtype(),
            y.dtype(),
            out.dtype()
        )));
    }
    let kernel = typed_kernel!("elementwise", "binary", x.dtype())?;
    let gpu = x.gpu();
    let args = BinaryArgs {
        x: x.ptr(),
        y: y.ptr(),
        out: out.ptr(),
        len: x.len() as i64,
        period: period(op, x.len(), y.len())?,
        op: op.code(),
        aligned: aligned(&[x.address(), y.address(), out.address()]),
    };
    let launch = row_walk::groups(gpu, kernel, x.len(), group(x.dtype()));
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&launch, &args) }
}

/// The gradients of [`binary`]: `dx [len]`, and `dy [len]` per element, before the sum over its repeats.
///
/// # Errors
/// As [`binary`].
pub fn binary_gradient(
    op: Binary,
    x: DeviceSlice<'_>,
    y: DeviceSlice<'_>,
    gradient: DeviceSlice<'_>,
    dx: Option<DeviceSliceMut<'_>>,
    dy: Option<DeviceSliceMut<'_>>,
) -> Result<()> {
    let outputs = [&dx, &dy].map(|out| out.as_ref().map_or(x.len(), DeviceSliceMut::len));
    same("binary gradient", &[x.len(), gradient.len(), outputs[0], outputs[1]])?;
    if x.dtype() != y.dtype() {
        return Err(Error::dtype(format!("{op:?}: {} and {}", x.dtype(), y.dtype())));
    }
    let mut addresses = vec![x.address(), y.address(), gradient.address()];
    let mut pointer = |out: Option<DeviceSliceMut<'_>>| match out {
        Some(mut out) => {
            addresses.push(out.address());
            out.typed::<f32>()
        }
        None => Ok(null_mut()),
    };
    let (dx, dy) = (pointer(dx)?, pointer(dy)?);
    let gpu = x.gpu();
    let args = BinaryGradientArgs {
        x: x.ptr(),
        y: y.ptr(),
        gradient: gradient.typed::<f32>()?,
        dx,
        dy,
        len: x.len() as i64,
        period: period(op, x.len(), y.len())?,
        op: op.code(),
        aligned: aligned(&addresses),
    };
    let kernel = typed_kernel!("elementwise", "binary_gradient", x.dtype())?;
    let launch = row_walk::groups(gpu, kernel, x.len(), group(x.dtype()));
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&launch, &args) }
}

/// `out[i] = f(x[i])`, both of one float type.
///
/// # Errors
/// As [`binary`].
pub fn unary(op: Unary, x: DeviceSlice<'_>, mut out: DeviceSliceMut<'_>) -> Result<()> {
    same("unary", &[x.len(), out.len()])?;
    if x.dtype() != out.dtype() {
        return Err(Error::dtype(format!("{op:?}: {} into {}", x.dtype(), out.dtype())));
    }
    let (code, constant) = op.code();
    let gpu = x.gpu();
    let args = UnaryArgs {
        x: x.ptr(),
        out: out.ptr(),
        len: x.len() as i64,
        constant,
        op: code,
        aligned: aligned(&[x.address(), out.address()]),
        unused: 0,
    };
    let kernel = typed_kernel!("elementwise", "unary", x.dtype())?;
    let launch = row_walk::groups(gpu, kernel, x.len(), group(x.dtype()));
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&launch, &args) }
}

/// `dx[i] = gradient[i] · f'`, from the input of the forward pass (`Log`) or its output (all others).
///
/// # Errors
/// As [`binary`].
pub fn unary_gradient(
    op: Unary,
    saved: DeviceSlice<'_>,
    gradient: DeviceSlice<'_>,
    mut dx: DeviceSliceMut<'_>,
) -> Result<()> {
    same("unary gradient", &[saved.len(), gradient.len(), dx.len()])?;
    let (code, constant) = op.code();
    let gpu = saved.gpu();
    let args = UnaryGradientArgs {
        saved: saved.ptr(),
        gradient: gradient.typed::<f32>()?,
        dx: dx.typed::<f32>()?,
        len: saved.len() as i64,
        constant,
        op: code,
        aligned: aligned(&[saved.address(), gradient.address(), dx.address()]),
        unused: 0,
    };
    let kernel = typed_kernel!("elementwise", "unary_gradient", saved.dtype())?;
    let launch = row_walk::groups(gpu, kernel, saved.len(), group(saved.dtype()));
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&launch, &args) }
}
