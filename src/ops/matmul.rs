//! Matrix products.

use crate::DType;
use crate::device::cpu::gemm::{self, plain, transposed};
use crate::device::cpu::memory::Buffer;
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use crate::kernels::{elementwise, reduce};
use crate::tensor::Tensor;
use crate::tensor::autograd::{Backward, Grads, record_one};
use rayon::prelude::*;

/// `y = x · weightᵀ + bias`: every linear layer, with the weight stored as published models store it.
///
/// # Shapes
/// `x [.., in]`, `weight [out, in]`, `bias [out]`; `y [.., out]` in `x`'s dtype, accumulated in f32.
///
/// # Errors
/// [`Error::is_shape`] when a dimension does not fit, [`Error::is_dtype`] for integers.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, width) = (x.leading(), x.last_dim());
    let out = match *weight.shape() {
        [out, input] if input == width && !x.shape().is_empty() => out,
        _ => {
            return Err(Error::shape(format!(
                "linear: weight is {:?} {} but the input is {:?} {} (the weight's second dimension must equal the \
                 input's last)",
                weight.shape(),
                weight.dtype(),
                x.shape(),
                x.dtype()
            )));
        }
    };
    let mut y = Buffer::recycled(rows * out);
    gemm::matmul(
        &mut y,
        plain(&x.to_f32s()?),
        transposed(&weight.to_f32s()?),
        [rows, out, width],
        false,
    )?;
    if let Some(bias) = bias {
        if bias.shape() != [out] {
            return Err(Error::shape(format!("linear: bias {:?} for {out} outputs", bias.shape())));
        }
        let product = y;
        y = Buffer::recycled(rows * out);
        elementwise::zip(&mut y, &product, &bias.to_f32s()?, |y, b| y + b)?;
    }
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    let output = Tensor::from_buffer(y, &shape, x.dtype())?;
    let save = || Linear { x: x.detach(), weight: weight.detach(), bias: bias.is_some() };
    Ok(match bias {
        Some(bias) => record_one(&[x, weight, bias], output, save),
        None => record_one(&[x, weight], output, save),
    })
}

struct Linear {
    x: Tensor,
    weight: Tensor,
    bias: bool,
}

impl Backward for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let inputs = if self.bias { 3 } else { 2 };
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None; inputs]) };
        let (rows, width) = (self.x.leading(), self.x.last_dim());
        let out = grad.last_dim();
        let g = grad.f32s()?;
        let dx = if wanted[0] {
            let mut dx = Buffer::recycled(rows * width);
            let weight = self.weight.to_f32s()?;
            gemm::matmul(&mut dx, plain(g), plain(&weight), [rows, width, out], false)?;
            Some(Tensor::from_buffer(dx, self.x.shape(), DType::F32)?)
        } else {
            None
        };
        let dweight = if wanted[1] {
            let mut dweight = Buffer::recycled(out * width);
            let x = self.x.to_f32s()?;
            gemm::matmul(&mut dweight, transposed(g), plain(&x), [out, width, rows], false)?;
            Some(Tensor::from_buffer(dweight, &[out, width], DType::F32)?)
        } else {
            None
        };
        let mut gradients = vec![dx, dweight];
        if self.bias {
            gradients.push(if wanted[2] {
                let mut dbias = Buffer::zeroed(out);
                reduce::columns(&mut dbias, g)?;
                Some(Tensor::from_buffer(dbias, &[out], DType::F32)?)
            } else {
                None
            });
        }
        Ok(gradients)
    }
}

/// `a · b` over the last two dimensions, either operand read as its transpose.
///
/// # Shapes
/// `a [batch.., m, k]` (`[batch.., k, m]` where `transpose_a`), `b [batch.., k, n]` (`[batch.., n, k]` where
/// `transpose_b`) with the same batch dimensions; `[batch.., m, n]` in `a`'s dtype, accumulated in f32.
///
/// # Errors
/// [`Error::is_shape`] when a dimension does not fit, [`Error::is_dtype`] for integers.
pub fn matmul(a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool) -> Result<Tensor> {
    let plan = Plan::new(a.shape(), b.shape(), transpose_a, transpose_b)?;
    let mut c = Buffer::recycled(plan.batch * plan.m * plan.n);
    let Plan { m, n, k, .. } = plan;
    products(&mut c, (&a.to_f32s()?, transpose_a), (&b.to_f32s()?, transpose_b), [m, n, k])?;
    let mut shape = a.shape()[..a.shape().len() - 2].to_vec();
    shape.extend([m, n]);
    let output = Tensor::from_buffer(c, &shape, a.dtype())?;
    let save =
        || Matmul { a: a.detach(), b: b.detach(), plan, transpose: (transpose_a, transpose_b) };
    Ok(record_one(&[a, b], output, save))
}

#[derive(Clone, Copy)]
struct Plan {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
}

impl Plan {
    fn new(a: &[usize], b: &[usize], ta: bool, tb: bool) -> Result<Plan> {
        let misfit = || {
            let mark = |t: bool| if t { "ᵀ" } else { "" };
            Error::shape(format!("matmul: {a:?}{} x {b:?}{}", mark(ta), mark(tb)))
        };
        let (Some((batch_a, [a0, a1])), Some((batch_b, [b0, b1]))) =
            (a.split_last_chunk::<2>(), b.split_last_chunk::<2>())
        else {
            return Err(misfit());
        };
        let (m, k) = if ta { (*a1, *a0) } else { (*a0, *a1) };
        let (inner, n) = if tb { (*b1, *b0) } else { (*b0, *b1) };
        if batch_a != batch_b || k != inner {
            return Err(misfit());
        }
        Ok(Plan { batch: batch_a.iter().product(), m, n, k })
    }
}

/// One product for each batch entry: entries in parallel where there are several, threads inside where there is one.
fn products(
    c: &mut [f32],
    (a, ta): (&[f32], bool),
    (b, tb): (&[f32], bool),
    [m, n, k]: [usize; 3],
) -> Result<()> {
    if m * n == 0 {
        return Ok(());
    }
    let operand = |data, t| if t { transposed(data) } else { plain(data) };
    if c.len() == m * n {
        return gemm::matmul(c, operand(a, ta), operand(b, tb), [m, n, k], false);
    }
    if k == 0 {
        c.fill(0.0);
        return Ok(());
    }
    pool::install(|| {
        c.par_chunks_mut(m * n)
            .zip(a.par_chunks(m * k))
            .zip(b.par_chunks(k * n))
            .with_min_len((1 << 16) / (m * n * k).max(1) + 1)
            .try_for_each(|((c, a), b)| {
                gemm::matmul(c, operand(a, ta), operand(b, tb), [m, n, k], false)
            })
    })
}

struct Matmul {
    a: Tensor,
    b: Tensor,
    plan: Plan,
    transpose: (bool, bool),
}

impl Backward for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None, None]) };
        let Plan { m, n, k, .. } = self.plan;
        let (ta, tb) = self.transpose;
        let g = (grad.f32s()?, false);
        let flipped = (grad.f32s()?, true);
        let da = if wanted[0] {
            let mut da = Buffer::recycled(self.a.len());
            let b = self.b.to_f32s()?;
            if ta {
                // aᵀ was used: da [k, m] = b · gᵀ
                products(&mut da, (&b, tb), flipped, [k, m, n])?;
            } else {
                products(&mut da, g, (&b, !tb), [m, k, n])?;
            }
            Some(Tensor::from_buffer(da, self.a.shape(), DType::F32)?)
        } else {
            None
        };
        let db = if wanted[1] {
            let mut db = Buffer::recycled(self.b.len());
            let a = self.a.to_f32s()?;
            if tb {
                products(&mut db, flipped, (&a, ta), [n, k, m])?;
            } else {
                products(&mut db, (&a, !ta), g, [k, n, m])?;
            }
            Some(Tensor::from_buffer(db, self.b.shape(), DType::F32)?)
        } else {
            None
        };
        Ok(vec![da, db])
    }
}
