//! Arithmetic element by element. A right operand may be repeated over leading dimensions (a bias, a scale).

use crate::DType;
use crate::device::cpu::math;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::Gpu;
use crate::error::{Error, Result};
use crate::kernels::elementwise::launch::{self, Binary, Unary};
use crate::kernels::{self, elementwise, reduce};
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record_one};
use std::sync::Arc;

impl Binary {
    pub(super) fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
            Binary::Div => "div",
        }
    }
}

/// `a + b`; `b`'s shape must end `a`'s. Errors: [`Error::is_shape`], [`Error::is_dtype`] for integers.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Add, a, b)
}

/// `a - b`; `b`'s shape must end `a`'s. Errors as [`add`].
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Sub, a, b)
}

/// `a · b` element by element; `b`'s shape must end `a`'s. Errors as [`add`].
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Mul, a, b)
}

/// `a / b` element by element; `b`'s shape must end `a`'s. Errors as [`add`].
pub fn div(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Div, a, b)
}

fn binary(op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !a.shape().ends_with(b.shape()) {
        return Err(Error::shape(format!(
            "{}: {:?} and {:?} (the second must equal the first or its last dimensions)",
            op.name(),
            a.shape(),
            b.shape()
        )));
    }
    let save = || BinaryBackward { op, a: a.detach(), b: b.detach() };
    if let Some(gpu) = Tensor::common_gpu(op.name(), &[a, b])? {
        let mut output = Tensor::recycled_on(a.shape(), a.dtype(), gpu)?;
        launch::binary(op, a.device_slice()?, b.device_slice()?, output.device_slice_mut()?)?;
        return Ok(record_one(&[a, b], output, save));
    }
    let mut out = Buffer::recycled(a.len());
    let (x, y) = (a.to_f32s()?, b.to_f32s()?);
    match op {
        Binary::Add => elementwise::zip(&mut out, &x, &y, |x, y| x + y)?,
        Binary::Sub => elementwise::zip(&mut out, &x, &y, |x, y| x - y)?,
        Binary::Mul => elementwise::zip(&mut out, &x, &y, |x, y| x * y)?,
        Binary::Div => elementwise::zip(&mut out, &x, &y, |x, y| x / y)?,
    }
    let output = Tensor::from_buffer(out, a.shape(), a.dtype())?;
    Ok(record_one(&[a, b], output, save))
}

struct BinaryBackward {
    op: Binary,
    a: Tensor,
    b: Tensor,
}

impl Backward for BinaryBackward {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None, None]) };
        if let Some(gpu) = grad.gpu() {
            return self.on_device(gpu, &grad, wanted);
        }
        let gradient_b = if !wanted[1] {
            None
        } else if self.op == Binary::Add && self.a.shape() == self.b.shape() {
            // One tensor for both: whoever adds to it first copies it, if the other still holds it by then.
            Some(grad.clone())
        } else {
            let mut per_element = Buffer::recycled(self.a.len());
            let (a, b, g) = (self.a.to_f32s()?, self.b.to_f32s()?, grad.f32s()?);
            match self.op {
                Binary::Add => elementwise::map(&mut per_element, g, |g| g)?,
                Binary::Sub => elementwise::map(&mut per_element, g, |g| -g)?,
                Binary::Mul => elementwise::zip(&mut per_element, g, &a, |g, a| g * a)?,
                Binary::Div => {
                    // d(a/b)/db = -a / b²
                    let mut ratio = Buffer::recycled(self.a.len());
                    elementwise::zip(&mut ratio, &a, &b, |a, b| -a / (b * b))?;
                    elementwise::zip(&mut per_element, g, &ratio, |g, r| g * r)?;
                }
            }
            Some(fold(per_element, self.b.shape())?)
        };
        let gradient_a = if !wanted[0] {
            None
        } else {
            match self.op {
                Binary::Add | Binary::Sub => Some(grad),
                Binary::Mul | Binary::Div => {
                    let mut out = Buffer::recycled(grad.len());
                    let (g, b) = (grad.f32s()?, self.b.to_f32s()?);
                    if self.op == Binary::Mul {
                        elementwise::zip(&mut out, g, &b, |g, b| g * b)?;
                    } else {
                        elementwise::zip(&mut out, g, &b, |g, b| g / b)?;
                    }
                    Some(Tensor::from_buffer(out, grad.shape(), DType::F32)?)
                }
            }
        };
        Ok(vec![gradient_a, gradient_b])
    }
}

impl BinaryBackward {
    fn on_device(&self, gpu: &Arc<Gpu>, grad: &Tensor, wanted: &[bool]) -> Result<Grads> {
        let fresh = |wanted: bool| {
            if wanted {
                Tensor::recycled_on(grad.shape(), DType::F32, gpu).map(Some)
            } else {
                Ok(None)
            }
        };
        let (mut da, mut db) = (fresh(wanted[0])?, fresh(wanted[1])?);
        launch::binary_gradient(
            self.op,
            self.a.device_slice()?,
            self.b.device_slice()?,
            grad.device_slice()?,
            da.as_mut().map(Tensor::device_slice_mut).transpose()?,
            db.as_mut().map(Tensor::device_slice_mut).transpose()?,
        )?;
        let db = db.map(|per_element| fold_on(gpu, per_element, self.b.shape())).transpose()?;
        Ok(vec![da, db])
    }
}

/// [`fold`] on a device.
fn fold_on(gpu: &Arc<Gpu>, per_element: Tensor, shape: &[usize]) -> Result<Tensor> {
    let width: usize = shape.iter().product();
    if per_element.len() == width {
        return per_element.view(shape);
    }
    let mut sum = Tensor::recycled_on(shape, DType::F32, gpu)?;
    reduce::launch::columns(per_element.device_slice()?, sum.device_slice_mut()?)?;
    Ok(sum)
}

/// Sums a gradient over the leading dimensions that its operand was repeated over.
fn fold(per_element: Buffer<f32>, shape: &[usize]) -> Result<Tensor> {
    let width: usize = shape.iter().product();
    if per_element.len() == width {
        return Tensor::from_buffer(per_element, shape, DType::F32);
    }
    let mut sum = Buffer::zeroed(width);
    reduce::columns(&mut sum, &per_element)?;
    Tensor::from_buffer(sum, shape, DType::F32)
}

impl Unary {
    fn name(self) -> &'static str {
        match self {
            Unary::Scale(_) => "scale",
            Unary::Shift(_) => "shift",
            Unary::Exp => "exp",
            Unary::Log => "log",
            Unary::Sqrt => "sqrt",
            Unary::Tanh => "tanh",
            Unary::Softcap(_) => "softcap",
        }
    }

    fn value(self, out: &mut [f32], x: &[f32]) -> Result<()> {
        match self {
            Unary::Scale(c) => elementwise::map(out, x, |x| x * c),
            Unary::Shift(c) => elementwise::map(out, x, |x| x + c),
            Unary::Exp => elementwise::map(out, x, math::exp::<false>),
            Unary::Log => elementwise::map(out, x, f32::ln),
            Unary::Sqrt => elementwise::map(out, x, f32::sqrt),
            Unary::Tanh => elementwise::map(out, x, math::tanh::<false>),
            Unary::Softcap(c) => elementwise::map(out, x, |x| c * math::tanh::<false>(x / c)),
        }
    }

    /// Turns `slope`, holding the input (for `log`) or the output (for the rest), into the derivative.
    fn slope(self, slope: &mut [f32], saved: &[f32]) -> Result<()> {
        match self {
            Unary::Scale(c) => elementwise::map(slope, saved, |_| c),
            Unary::Shift(_) => elementwise::map(slope, saved, |_| 1.0),
            Unary::Exp => elementwise::map(slope, saved, |y| y),
            Unary::Log => elementwise::map(slope, saved, |x| 1.0 / x),
            Unary::Sqrt => elementwise::map(slope, saved, |y| 0.5 / y),
            Unary::Tanh => elementwise::map(slope, saved, |y| 1.0 - y * y),
            Unary::Softcap(c) => elementwise::map(slope, saved, |y| 1.0 - (y / c) * (y / c)),
        }
    }
}

/// `x · factor`.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    unary(Unary::Scale(factor), x)
}

/// `x + constant`.
pub fn shift(x: &Tensor, constant: f32) -> Result<Tensor> {
    unary(Unary::Shift(constant), x)
}

/// `-x`.
pub fn neg(x: &Tensor) -> Result<Tensor> {
    scale(x, -1.0)
}

/// `e^x`; 0 below -86.6.
pub fn exp(x: &Tensor) -> Result<Tensor> {
    unary(Unary::Exp, x)
}

/// The natural logarithm.
pub fn log(x: &Tensor) -> Result<Tensor> {
    unary(Unary::Log, x)
}

/// The square root.
pub fn sqrt(x: &Tensor) -> Result<Tensor> {
    unary(Unary::Sqrt, x)
}

/// The hyperbolic tangent.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    unary(Unary::Tanh, x)
}

/// `cap · tanh(x / cap)`: Gemma 2's bound on logits.
///
/// # Errors
/// [`Error::is_invalid`] when `cap` is not a positive number.
pub fn softcap(x: &Tensor, cap: f32) -> Result<Tensor> {
    if !(cap > 0.0 && cap.is_finite()) {
        return Err(Error::invalid(format!("softcap {cap}: it must be positive")));
    }
    unary(Unary::Softcap(cap), x)
}

fn unary(op: Unary, x: &Tensor) -> Result<Tensor> {
    let save = |output: &Tensor| UnaryBackward {
        op,
        saved: if matches!(op, Unary::Log) { x.detach() } else { output.clone() },
    };
    if let Some(gpu) = x.gpu() {
        let mut output = Tensor::recycled_on(x.shape(), x.dtype(), gpu)?;
        launch::unary(op, x.device_slice()?, output.device_slice_mut()?)?;
        let saved = output.clone();
        return Ok(record_one(&[x], output, || save(&saved)));
    }
    let mut out = Buffer::recycled(x.len());
    op.value(&mut out, &x.to_f32s()?)?;
    let output = Tensor::from_buffer(out, x.shape(), x.dtype())?;
    let saved = output.clone();
    Ok(record_one(&[x], output, || save(&saved)))
}

struct UnaryBackward {
    op: Unary,
    saved: Tensor,
}

impl Backward for UnaryBackward {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn backward(self: Box<Self>, mut grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None]) };
        if let Some(gpu) = grad.gpu() {
            let mut dx = Tensor::recycled_on(grad.shape(), DType::F32, gpu)?;
            let (saved, out) = (self.saved.device_slice()?, dx.device_slice_mut()?);
            launch::unary_gradient(self.op, saved, grad.device_slice()?, out)?;
            return Ok(vec![Some(dx)]);
        }
        let mut slope = Buffer::recycled(grad.len());
        self.op.slope(&mut slope, &self.saved.to_f32s()?)?;
        let mut out = Buffer::recycled(grad.len());
        elementwise::zip(&mut out, grad.f32s()?, &slope, |g, s| g * s)?;
        Ok(vec![Some(Tensor::from_buffer(out, grad.shape(), DType::F32)?)])
    }
}

/// The same values in another float type, rounded to nearest even. The gradient passes unchanged.
///
/// # Errors
/// [`Error::is_dtype`] when either type is an integer.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if !dtype.is_float() {
        return Err(Error::dtype(format!("cast {x:?} to {dtype}: only float types are cast")));
    }
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let output = match x.gpu() {
        None => Tensor::from_buffer(x.detach().into_buffer()?, x.shape(), dtype)?,
        Some(gpu) => {
            let mut output = Tensor::recycled_on(x.shape(), dtype, gpu)?;
            kernels::cast::launch::convert(x.device_slice()?, output.device_slice_mut()?)?;
            output
        }
    };
    Ok(record_one(&[x], output, || Cast))
}

struct Cast;

impl Backward for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn backward(self: Box<Self>, grads: Grads, _wanted: &[bool]) -> Result<Grads> {
        Ok(grads)
    }
}
