//! Matrix products: operands in f32, bf16 or f16, sums in f32.
//!
//! A row of a product must have the same bits whatever the number of rows: that is what lets a token sampled with a
//! KV cache (few rows) have the log-prob that training computes (many rows). The engine gives that from two rows on
//! and takes another path for a matrix-vector product, so products of fewer than [`FEWEST_ROWS`] rows are padded.
//!
//! The engine reads f32. Operands of another type are widened panel by panel, and a result of another type is rounded
//! panel by panel, so that no product needs a tenth more memory than its operands and its result; sums are added up in the
//! engine's own order, so the bits are those of whole f32 operands.

mod engine;
mod operand;
mod panels;

pub use operand::{Operand, plain, transposed};

use super::convert::narrow;
use super::memory::Buffer;
use super::pool;
use crate::dtype::{Float, FloatSliceMut};
use crate::error::{Error, Result};
use crate::with_float;
use gemmkit::{MatMut, MatRef};
use operand::fits;
use panels::{Narrow, Panels, pieces, resident_columns, slices};
use std::ops::Range;

/// Products with fewer rows are computed with this many, the rest zeros.
pub const FEWEST_ROWS: usize = 8;

/// Rows of both operands that are taken at a time into a product over rows (the gradient of a weight), where the result
/// is small: 256 rows of some hundred columns stay in the second-level cache and thousands do not.
const DEPTH: usize = 256;
/// Elements of a result that is small.
const SMALL_RESULT: usize = 1 << 18;

/// `c [m, n] = a [m, k] · b [k, n]`, added to `c` where `accumulate`.
///
/// The shapes are those after any transposition: `matmul(c, plain(x), transposed(w), …)` is `x · wᵀ` with `w [n, k]`.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit.
pub fn matmul(
    c: &mut [f32],
    a: Operand<'_>,
    b: Operand<'_>,
    [m, n, k]: [usize; 3],
    accumulate: bool,
) -> Result<()> {
    if c.len() != m * n {
        return Err(misfit(c.len(), a, b, [m, n, k]));
    }
    matmul_columns(c, n, a, b, [m, n, k], accumulate)
}

/// [`matmul`] into `n` columns of a wider `c`, whose rows are `stride` elements apart.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit.
pub fn matmul_columns(
    c: &mut [f32],
    stride: usize,
    a: Operand<'_>,
    b: Operand<'_>,
    shape: [usize; 3],
    accumulate: bool,
) -> Result<()> {
    product(Target { c: FloatSliceMut::F32(c), stride, accumulate, bias: None }, a, b, shape)
}

/// `c [m, n] = a [m, k] · b [k, n] + bias [n]`, rounded once to the type of `c`.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit.
pub fn matmul_into(
    c: FloatSliceMut<'_>,
    a: Operand<'_>,
    b: Operand<'_>,
    bias: Option<&[f32]>,
    [m, n, k]: [usize; 3],
) -> Result<()> {
    if c.len() != m * n || bias.is_some_and(|bias| bias.len() != n) {
        return Err(misfit(c.len(), a, b, [m, n, k]));
    }
    product(Target { c, stride: n, accumulate: false, bias }, a, b, [m, n, k])
}

fn misfit(c: usize, a: Operand<'_>, b: Operand<'_>, [m, n, k]: [usize; 3]) -> Error {
    let (a, b) = (a.len(), b.len());
    Error::shape(format!(
        "matmul [{m}, {k}] x [{k}, {n}]: operands of {a} and {b} elements, result of {c}"
    ))
}

/// Where a product goes, and what is added to it.
struct Target<'a> {
    c: FloatSliceMut<'a>,
    /// Elements from one row to the next.
    stride: usize,
    /// It is added to what is there.
    accumulate: bool,
    bias: Option<&'a [f32]>,
}

fn product(
    mut target: Target<'_>,
    a: Operand<'_>,
    b: Operand<'_>,
    [m, n, k]: [usize; 3],
) -> Result<()> {
    let Target { stride, accumulate, bias, .. } = target;
    if !fits(target.c.len(), [m, n], stride) || !a.fits(m, k) || !b.fits(k, n) {
        return Err(misfit(target.c.len(), a, b, [m, n, k]));
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 {
        if !accumulate {
            target.store(&Buffer::zeroed(m * n), 0..m, 0..n);
        }
        return Ok(());
    }
    let padded = m < FEWEST_ROWS && !a.is_transposed();
    let deep = a.is_transposed() && !b.is_transposed() && k > DEPTH && m * n <= SMALL_RESULT;
    let narrow =
        Narrow { a: !a.is_f32(), b: !b.is_f32(), c: !matches!(target.c, FloatSliceMut::F32(_)) };
    // The engine adds up a product of a matrix and a vector in another way, which knows no depth.
    let vector = n == 1 || (m == 1 && !padded);
    let (whole, slice) = match (deep, vector) {
        (true, _) => (DEPTH, DEPTH),
        (false, true) => (k, k),
        (false, false) => (k, engine::depth(k)),
    };
    let bytes = a.bytes(m * k) + b.bytes(k * n) + m * n * target.c.dtype().size();
    let turned = narrow.b && b.is_transposed() && b.is_dense() && !a.is_transposed();
    if turned && m > engine::PACK_FROM && !accumulate {
        resident(target, a, b, [m, n, k], slice, bytes);
        return Ok(());
    }
    let whole = Panels { rows: m, cols: n, depth: whole };
    let panels = Panels::new(whole, slice, narrow, bytes);

    let held = if padded { FEWEST_ROWS } else { panels.rows };
    let scratch = |wanted: bool, len: usize| Buffer::<f32>::recycled(if wanted { len } else { 0 });
    let mut wide_a = scratch(narrow.a && !padded, panels.rows * panels.depth);
    let mut padded_a = Buffer::<f32>::zeroed(if padded { held * panels.depth } else { 0 });
    let mut wide_b = scratch(narrow.b, panels.cols * panels.depth);
    let mut sums = scratch(narrow.c || padded, held * panels.cols);
    for rows in pieces(m, panels.rows) {
        let count = if padded { held } else { rows.len() };
        for cols in pieces(n, panels.cols) {
            for depth in slices(k, panels.depth) {
                let b = b.block(depth.clone(), cols.clone(), [k, n], &mut wide_b);
                let a = if padded {
                    a.copy_rows(rows.clone(), depth.clone(), k, &mut padded_a);
                    MatRef::from_row_major(&padded_a[..count * depth.len()], count, depth.len())
                } else {
                    a.block(rows.clone(), depth.clone(), [m, k], &mut wide_a)
                };
                let shape = [count, cols.len(), depth.len()];
                let later = depth.start > 0;
                match &mut target.c {
                    FloatSliceMut::F32(c) if !padded => {
                        let c = &mut c[rows.start * stride + cols.start..];
                        let c = MatMut::new(c, count, cols.len(), stride as isize, 1);
                        engine::run(c, a, b, shape, accumulate || later);
                    }
                    _ => {
                        let sums = &mut sums[..count * cols.len()];
                        let c = MatMut::from_row_major(sums, count, cols.len());
                        engine::run(c, a, b, shape, later);
                    }
                }
            }
            if narrow.c || padded {
                target.store(&sums, rows.clone(), cols);
            } else if let (FloatSliceMut::F32(c), Some(bias)) = (&mut target.c, bias) {
                let c = &mut c[rows.start * stride + cols.start..];
                let together = pool::rows_per_task(cols.len() * size_of::<f32>());
                pool::each(c.chunks_mut(stride).take(rows.len()), together, |_, row| {
                    row.iter_mut().zip(&bias[cols.clone()]).for_each(|(y, b)| *y += b);
                });
            }
        }
    }
    Ok(())
}

/// Rows that are multiplied at a time by a part of a weight that the engine reads where it is: two tiles of its registers
/// (12 rows, or 6, or 4).
const TOGETHER: usize = 24;

/// The product by a narrow weight that is stored as its transpose, of many rows: some columns of the weight are widened and
/// turned once, for all rows, so that the engine copies nothing. Rows are widened again for every such part, which costs
/// little.
fn resident(
    target: Target<'_>,
    a: Operand<'_>,
    b: Operand<'_>,
    [m, n, k]: [usize; 3],
    slice: usize,
    bytes: usize,
) {
    let Target { mut c, stride, bias, .. } = target;
    let states = pool::threads().min(m.div_ceil(TOGETHER));
    let beside = [states * TOGETHER, states * TOGETHER * k];
    let most = resident_columns(n, k, beside, bytes);
    let mut wide_b = Buffer::<f32>::recycled(most * k);
    for cols in pieces(n, most) {
        let width = cols.len();
        b.copy_cols(cols.clone(), k, &mut wide_b[..width * k]);
        let b = &wide_b[..width * k];
        let state = || [Buffer::<f32>::recycled(TOGETHER * k), Buffer::recycled(TOGETHER * width)];
        let bias = bias.map(|bias| &bias[cols.clone()]);
        with_float!(FloatSliceMut, &mut c, |c| {
            let parts = c.chunks_mut(TOGETHER * stride).take(m.div_ceil(TOGETHER));
            pool::each_with(parts, 1, state, |[wide_a, sums], i, c| {
                let rows = i * TOGETHER..m.min((i + 1) * TOGETHER);
                // Rows beyond the last one are left over from before, or zero: their sums are not stored.
                let count = rows.len().max(FEWEST_ROWS);
                a.copy_rows(rows.clone(), 0..k, k, wide_a);
                for depth in slices(k, slice) {
                    let sums = MatMut::from_row_major(&mut sums[..count * width], count, width);
                    let a = MatRef::new(&wide_a[depth.start..], count, depth.len(), k as isize, 1);
                    let b = &b[depth.start * width..depth.end * width];
                    let b = MatRef::from_row_major(b, depth.len(), width);
                    engine::run_on(1, sums, a, b, depth.start > 0);
                }
                let rows = c.chunks_mut(stride).zip(sums.chunks(width)).take(rows.len());
                rows.for_each(|(c, sums)| {
                    store_row(sums, bias, false, &mut c[cols.start..cols.end])
                });
            });
        });
    }
}

impl Target<'_> {
    /// Rounds sums `[rows, cols]` into these rows and columns of the result, after adding the bias and what is there.
    fn store(&mut self, sums: &[f32], rows: Range<usize>, cols: Range<usize>) {
        let (stride, width) = (self.stride, cols.len());
        let (accumulate, bias) = (self.accumulate, self.bias.map(|bias| &bias[cols.clone()]));
        let together = pool::rows_per_task(width * size_of::<f32>());
        with_float!(FloatSliceMut, &mut self.c, |c| {
            let c = &mut c[rows.start * stride + cols.start..];
            let parts = c.chunks_mut(stride).zip(sums.chunks(width)).take(rows.len());
            pool::each(parts, together, |_, (c, sums)| {
                store_row(sums, bias, accumulate, &mut c[..width])
            });
        });
    }
}

fn store_row<T: Float>(sums: &[f32], bias: Option<&[f32]>, accumulate: bool, c: &mut [T]) {
    match (bias, accumulate) {
        (None, false) => narrow(sums, c),
        (Some(bias), false) => {
            for ((c, sum), bias) in c.iter_mut().zip(sums).zip(bias) {
                *c = T::from_f32(sum + bias);
            }
        }
        (_, true) => {
            for (c, sum) in c.iter_mut().zip(sums) {
                *c = T::from_f32(c.to_f32() + sum);
            }
        }
    }
}
