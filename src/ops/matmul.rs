//! Matrix products.

use crate::DType;
use crate::device::cpu::gemm::{self, Operand, plain, transposed};
use crate::device::cpu::memory::Buffer;
use crate::device::cpu::pool;
use crate::device::gpu::Gpu;
use crate::dtype::{FloatSlice, FloatSliceMut};
use crate::error::{Error, Result};
use crate::kernels::elementwise::launch::accumulate;
use crate::kernels::{matmul as device, reduce};
use crate::tensor::autograd::{Backward, Grads, record, record_one};
use crate::tensor::{Storage, Tensor};
use std::sync::Arc;

/// `y = x · weightᵀ + bias`: every linear layer, with the weight stored as published models store it.
///
/// # Shapes
/// `x [.., in]`, `weight [out, in]`, `bias [out]`; `y [.., out]` in `x`'s dtype, accumulated in f32.
///
/// # Errors
/// [`Error::is_shape`] when a dimension does not fit, [`Error::is_dtype`] for integers.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let [y] = linears(x, [(weight, bias)])?;
    Ok(y)
}

/// [`linear`] of one input with several weights, to the same bits: q, k and v, or gate and up.
///
/// The gradients of the input are summed inside the products instead of in passes over memory.
///
/// # Errors
/// As [`linear`].
pub fn linears<const N: usize>(
    x: &Tensor,
    layers: [(&Tensor, Option<&Tensor>); N],
) -> Result<[Tensor; N]> {
    let mut inputs = vec![x];
    for (weight, bias) in layers {
        inputs.push(weight);
        inputs.extend(bias);
    }
    let mut outputs = Vec::with_capacity(N);
    if let Some(gpu) = Tensor::common_gpu("linear", &inputs)? {
        for (weight, bias) in layers {
            outputs.push(product_on(gpu, x, weight, bias)?);
        }
    } else {
        for (weight, bias) in layers {
            let shape = output_shape(x, weight, bias)?;
            let weight = Operand::new(weight.floats()?, true);
            outputs.push(product(x, weight, bias, &shape, x.dtype())?);
        }
    }
    let save = || Linears {
        x: x.detach(),
        layers: layers.iter().map(|(weight, bias)| (weight.detach(), bias.is_some())).collect(),
    };
    record(&inputs, outputs, save)
        .try_into()
        .map_err(|_| Error::state("linear: as many outputs as weights"))
}

/// The shape of a linear layer's result.
fn output_shape(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Vec<usize>> {
    let mut shape = x.shape().to_vec();
    let out = match (weight.shape(), shape.last_mut()) {
        (&[out, input], Some(last)) if input == *last => {
            *last = out;
            out
        }
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
    match bias {
        Some(bias) if bias.shape() != [out] => {
            Err(Error::shape(format!("linear: bias {:?} for {out} outputs", bias.shape())))
        }
        _ => Ok(shape),
    }
}

/// One linear layer outside the graph, on a device.
fn product_on(
    gpu: &Arc<Gpu>,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let shape = output_shape(x, weight, bias)?;
    let (rows, width, out) = (x.leading(), x.last_dim(), weight.leading());
    let mut y = Tensor::recycled_on(&shape, x.dtype(), gpu)?;
    device::product(
        y.device_slice_mut()?,
        device::plain(x.device_slice()?),
        device::transposed(weight.device_slice()?),
        [rows, out, width],
        1,
        false,
    )?;
    if let Some(bias) = bias {
        accumulate(y.device_slice_mut()?, bias.device_slice()?)?;
    }
    Ok(y)
}

/// `x · weight + bias` outside the graph, in host memory: `shape` in `dtype`.
pub(crate) fn product(
    x: &Tensor,
    weight: Operand<'_>,
    bias: Option<&Tensor>,
    shape: &[usize],
    dtype: DType,
) -> Result<Tensor> {
    let (rows, width, out) = (x.leading(), x.last_dim(), shape.last().copied().unwrap_or(1));
    let mut y = Storage::recycled(dtype, rows * out);
    let bias = bias.map(Tensor::to_f32s).transpose()?;
    let into = y.floats_mut().ok_or_else(|| Error::dtype(format!("a product in {dtype}")))?;
    let x = Operand::new(x.floats()?, false);
    gemm::matmul_into(into, x, weight, bias.as_deref(), [rows, out, width])?;
    Tensor::new(y, shape)
}

/// Logits of hidden states in f32, whatever the types, outside the graph.
///
/// [`linear_logprob`](super::linear_logprob) computes its log-probs from these bits.
///
/// # Shapes
/// `hidden [rows, width]`, `head [vocab, width]`; `[rows, vocab]`.
///
/// # Errors
/// [`Error::is_shape`] when the width differs, [`Error::is_dtype`] for integers.
pub fn logits(hidden: &Tensor, head: &Tensor) -> Result<Tensor> {
    let shape = output_shape(hidden, head, None)?;
    let Some(gpu) = Tensor::common_gpu("logits", &[hidden, head])? else {
        return product(hidden, Operand::new(head.floats()?, true), None, &shape, DType::F32);
    };
    let mut logits = Tensor::recycled_on(&shape, DType::F32, gpu)?;
    let (rows, width, vocab) = (hidden.leading(), hidden.last_dim(), head.leading());
    let x = device::plain(hidden.device_slice()?);
    let weight = device::transposed(head.device_slice()?);
    device::product(logits.device_slice_mut()?, x, weight, [rows, vocab, width], 1, false)?;
    Ok(logits)
}

struct Linears {
    x: Tensor,
    /// Each weight, and whether there is a bias with it.
    layers: Vec<(Tensor, bool)>,
}

impl Backward for Linears {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(self: Box<Self>, grads: Grads, wanted: &[bool]) -> Result<Grads> {
        if let Some(gpu) = self.x.gpu() {
            return self.on_device(gpu, grads, wanted);
        }
        let (rows, width) = (self.x.leading(), self.x.last_dim());
        let x = Operand::new(self.x.floats()?, false);
        let mut dx: Option<Buffer<f32>> = None;
        let mut gradients = vec![None];
        for ((weight, bias), grad) in self.layers.iter().zip(grads) {
            let want = |offset: usize| grad.is_some() && wanted[gradients.len() + offset];
            let (want_weight, want_bias) = (want(0), *bias && want(1));
            let Some(grad) = grad else {
                gradients.extend(vec![None; 1 + usize::from(*bias)]);
                continue;
            };
            let (g, out) = (grad.f32s()?, grad.last_dim());
            if wanted[0] {
                let weight = Operand::new(weight.floats()?, false);
                let accumulate = dx.is_some();
                let sum = dx.get_or_insert_with(|| Buffer::recycled(rows * width));
                gemm::matmul(sum, plain(g), weight, [rows, width, out], accumulate)?;
            }
            gradients.push(if want_weight {
                let mut dweight = Buffer::recycled(out * width);
                gemm::matmul(&mut dweight, transposed(g), x, [out, width, rows], false)?;
                Some(Tensor::from_buffer(dweight, &[out, width], DType::F32)?)
            } else {
                None
            });
            if *bias {
                gradients.push(if want_bias {
                    let mut dbias = Buffer::zeroed(out);
                    reduce::columns(&mut dbias, g)?;
                    Some(Tensor::from_buffer(dbias, &[out], DType::F32)?)
                } else {
                    None
                });
            }
        }
        let pack = |dx| Tensor::from_buffer(dx, self.x.shape(), DType::F32);
        gradients[0] = dx.map(pack).transpose()?;
        Ok(gradients)
    }
}

impl Linears {
    fn on_device(&self, gpu: &Arc<Gpu>, grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let (rows, width) = (self.x.leading(), self.x.last_dim());
        let mut dx: Option<Tensor> = None;
        let mut gradients = vec![None];
        for ((weight, bias), grad) in self.layers.iter().zip(grads) {
            let (at, out) = (gradients.len(), weight.leading());
            let Some(grad) = grad else {
                gradients.extend(vec![None; 1 + usize::from(*bias)]);
                continue;
            };
            let rounded = device::Rounded::new(grad.device_slice()?, weight.dtype())?;
            let g = rounded.slice();
            if wanted[0] {
                let add = dx.is_some();
                let mut sum = match dx.take() {
                    Some(sum) => sum,
                    None => Tensor::recycled_on(self.x.shape(), DType::F32, gpu)?,
                };
                let weight = device::plain(weight.device_slice()?);
                let shape = [rows, width, out];
                device::product(sum.device_slice_mut()?, device::plain(g), weight, shape, 1, add)?;
                dx = Some(sum);
            }
            gradients.push(if wanted[at] {
                let mut dweight = Tensor::recycled_on(weight.shape(), DType::F32, gpu)?;
                let x = device::plain(self.x.device_slice()?);
                let (to, shape) = (dweight.device_slice_mut()?, [out, width, rows]);
                device::product(to, device::transposed(g), x, shape, 1, false)?;
                Some(dweight)
            } else {
                None
            });
            if *bias {
                gradients.push(if wanted[at + 1] {
                    let mut dbias = Tensor::recycled_on(&[out], DType::F32, gpu)?;
                    reduce::launch::columns(grad.device_slice()?, dbias.device_slice_mut()?)?;
                    Some(dbias)
                } else {
                    None
                });
            }
        }
        gradients[0] = dx;
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
    let Plan { m, n, k, batch } = plan;
    let mut shape = a.shape()[..a.shape().len() - 2].to_vec();
    shape.extend([m, n]);
    let save =
        || Matmul { a: a.detach(), b: b.detach(), plan, transpose: (transpose_a, transpose_b) };
    if let Some(gpu) = Tensor::common_gpu("matmul", &[a, b])? {
        let mut output = Tensor::recycled_on(&shape, a.dtype(), gpu)?;
        let a_operand = device::Operand { data: a.device_slice()?, transposed: transpose_a };
        let b_operand = device::Operand { data: b.device_slice()?, transposed: transpose_b };
        let to = output.device_slice_mut()?;
        device::product(to, a_operand, b_operand, [m, n, k], batch, false)?;
        return Ok(record_one(&[a, b], output, save));
    }
    let mut c = Storage::recycled(a.dtype(), batch * m * n);
    let into = c.floats_mut().ok_or_else(|| Error::dtype("matmul of integers"))?;
    products(into, (a.floats()?, transpose_a), (b.floats()?, transpose_b), [m, n, k])?;
    Ok(record_one(&[a, b], Tensor::new(c, &shape)?, save))
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
    c: FloatSliceMut<'_>,
    (a, ta): (FloatSlice<'_>, bool),
    (b, tb): (FloatSlice<'_>, bool),
    [m, n, k]: [usize; 3],
) -> Result<()> {
    if m * n == 0 {
        return Ok(());
    }
    let parts = c.chunks(m * n).into_iter();
    pool::try_each(parts, (1 << 16) / (m * n * k).max(1) + 1, |i, c| {
        let a = Operand::new(a.slice(i * m * k..(i + 1) * m * k)?, ta);
        let b = Operand::new(b.slice(i * k * n..(i + 1) * k * n)?, tb);
        gemm::matmul_into(c, a, b, None, [m, n, k])
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
        if let Some(gpu) = grad.gpu() {
            return self.on_device(gpu, &grad, wanted);
        }
        let g = (FloatSlice::F32(grad.f32s()?), false);
        let flipped = (g.0, true);
        let da = if wanted[0] {
            let mut da = Buffer::recycled(self.a.len());
            let (b, into) = (self.b.floats()?, FloatSliceMut::F32(&mut da));
            if ta {
                // aᵀ was used: da [k, m] = b · gᵀ
                products(into, (b, tb), flipped, [k, m, n])?;
            } else {
                products(into, g, (b, !tb), [m, k, n])?;
            }
            Some(Tensor::from_buffer(da, self.a.shape(), DType::F32)?)
        } else {
            None
        };
        let db = if wanted[1] {
            let mut db = Buffer::recycled(self.b.len());
            let (a, into) = (self.a.floats()?, FloatSliceMut::F32(&mut db));
            if tb {
                products(into, flipped, (a, ta), [n, k, m])?;
            } else {
                products(into, (a, !ta), g, [k, n, m])?;
            }
            Some(Tensor::from_buffer(db, self.b.shape(), DType::F32)?)
        } else {
            None
        };
        Ok(vec![da, db])
    }
}

impl Matmul {
    fn on_device(&self, gpu: &Arc<Gpu>, grad: &Tensor, wanted: &[bool]) -> Result<Grads> {
        let Plan { m, n, k, batch } = self.plan;
        let (ta, tb) = self.transpose;
        let rounded = device::Rounded::new(grad.device_slice()?, self.a.dtype())?;
        let operand = |data, transposed| device::Operand { data, transposed };
        let (g, flipped) = (operand(rounded.slice(), false), operand(rounded.slice(), true));
        let (a, b) = (self.a.device_slice()?, self.b.device_slice()?);
        let gradient = |of: &Tensor, left, right, shape| -> Result<Option<Tensor>> {
            let mut out = Tensor::recycled_on(of.shape(), DType::F32, gpu)?;
            device::product(out.device_slice_mut()?, left, right, shape, batch, false)?;
            Ok(Some(out))
        };
        let da = match (wanted[0], ta) {
            (false, _) => None,
            (true, true) => gradient(&self.a, operand(b, tb), flipped, [k, m, n])?,
            (true, false) => gradient(&self.a, g, operand(b, !tb), [m, k, n])?,
        };
        let db = match (wanted[1], tb) {
            (false, _) => None,
            (true, true) => gradient(&self.b, flipped, operand(a, ta), [n, k, m])?,
            (true, false) => gradient(&self.b, operand(a, !ta), g, [k, n, m])?,
        };
        Ok(vec![da, db])
    }
}
