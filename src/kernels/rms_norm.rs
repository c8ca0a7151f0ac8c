//! RMSNorm over rows: `y = x · rsqrt(mean(x²) + eps) · (offset + w)`.
//!
//! All arithmetic is f32 and rounds once, at the end; published bf16 models round the normalised value as well, which
//! is within their own noise. Source: Zhang and Sennrich 2019; the unit offset is Gemma's.

pub mod launch;

use crate::device::cpu::math::fma;
use crate::device::cpu::memory::Buffer;
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::error::{Error, Result};

const LANES: usize = 32;
/// Rows whose weight gradients form one partial sum.
const ROWS: usize = 64;

/// What is added to the mean square, and to the weight.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Added to the mean square.
    pub epsilon: f32,
    /// Added to the weight: 0, or 1 for Gemma.
    pub offset: f32,
}

simd_fn! {
    fn forward_rows(x: &[f32], weight: &[f32], norm: Norm, y: &mut [f32], inverse: &mut [f32]) {
        let width = weight.len();
        for ((x, y), inverse) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(inverse) {
            let squares = lanes_dot::<FMA>(x, x);
            *inverse = 1.0 / (squares / width as f32 + norm.epsilon).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = *x * *inverse * (norm.offset + w);
            }
        }
    }
}

/// `Σ a·b` in 32 lanes and a fixed tree.
#[inline(always)]
pub(super) fn lanes_dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] = fma::<FMA>(a[i], b[i], lanes[i]);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane = fma::<FMA>(*a, *b, *lane);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Normalises every row.
///
/// # Shapes
/// `x`, `y` `[rows, width]`; `weight [width]`; `inverse [rows]` gets the factor of each row for the backward pass.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit.
pub fn forward(
    x: &[f32],
    weight: &[f32],
    norm: Norm,
    y: &mut [f32],
    inverse: &mut [f32],
) -> Result<()> {
    let width = weight.len();
    check("rms_norm", width, inverse.len(), &[x.len(), y.len()])?;
    if y.is_empty() {
        return Ok(());
    }
    let rows = pool::rows_per_task(8 * width);
    let parts = y.chunks_mut(rows * width).zip(x.chunks(rows * width));
    pool::each(parts.zip(inverse.chunks_mut(rows)), 1, |_, ((y, x), inverse)| {
        forward_rows(x, weight, norm, y, inverse);
    });
    Ok(())
}

pub(super) fn check(op: &str, width: usize, rows: usize, lengths: &[usize]) -> Result<()> {
    match lengths.iter().find(|length| **length != rows * width) {
        None => Ok(()),
        Some(length) => Err(Error::shape(format!("{op}: {length} elements as [{rows}, {width}]"))),
    }
}

simd_fn! {
    fn backward_rows(x: &[f32], weight: &[f32], offset: f32, inverse: &[f32], dy: &[f32], dx: Option<&mut [f32]>, dweight: &mut [f32]) {
        let width = weight.len();
        let mut scaled = vec![0f32; width];
        let mut dx = dx;
        for (row, inverse) in inverse.iter().enumerate() {
            let span = row * width..(row + 1) * width;
            let (x, dy) = (&x[span.clone()], &dy[span.clone()]);
            for ((sum, x), dy) in dweight.iter_mut().zip(x).zip(dy) {
                *sum = fma::<FMA>(*dy, *x * *inverse, *sum);
            }
            if let Some(dx) = dx.as_deref_mut() {
                for ((s, dy), w) in scaled.iter_mut().zip(dy).zip(weight) {
                    *s = *dy * (offset + w);
                }
                let along = lanes_dot::<FMA>(&scaled, x) / width as f32 * inverse * inverse;
                for ((dx, s), x) in dx[span].iter_mut().zip(&scaled).zip(x) {
                    *dx = fma::<FMA>(-along, *x, *s) * *inverse;
                }
            }
        }
    }
}

/// What [`backward`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// `[rows, width]`
    pub x: &'a [f32],
    /// `[width]`
    pub weight: &'a [f32],
    /// `[rows]`, from [`forward`].
    pub inverse: &'a [f32],
    /// Added to the weight.
    pub offset: f32,
}

/// The gradients of [`forward`]: `dx` is written where wanted, `dweight` is added to.
///
/// # Shapes
/// `dy`, `dx` `[rows, width]`; `dweight [width]`.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit.
pub fn backward(
    saved: Saved<'_>,
    dy: &[f32],
    dx: Option<&mut [f32]>,
    dweight: &mut [f32],
) -> Result<()> {
    let Saved { x, weight, inverse, offset } = saved;
    let width = weight.len();
    let dx_len = dx.as_ref().map_or(x.len(), |dx| dx.len());
    check("rms_norm backward", width, inverse.len(), &[x.len(), dy.len(), dx_len])?;
    check("rms_norm backward", width, 1, &[dweight.len()])?;
    if x.is_empty() {
        return Ok(());
    }
    let blocks = inverse.len().div_ceil(ROWS);
    let mut partial = Buffer::<f32>::zeroed(blocks * width);
    let mut parts: Vec<Option<&mut [f32]>> = match dx {
        Some(dx) => dx.chunks_mut(ROWS * width).map(Some).collect(),
        None => (0..blocks).map(|_| None).collect(),
    };
    let parts = partial
        .chunks_mut(width)
        .zip(parts.iter_mut())
        .zip(x.chunks(ROWS * width))
        .zip(dy.chunks(ROWS * width))
        .zip(inverse.chunks(ROWS));
    pool::each(parts, 1, |_, ((((sum, dx), x), dy), inverse)| {
        backward_rows(x, weight, offset, inverse, dy, dx.as_deref_mut(), sum);
    });
    for sum in partial.chunks(width) {
        dweight.iter_mut().zip(sum).for_each(|(total, sum)| *total += sum);
    }
    Ok(())
}
