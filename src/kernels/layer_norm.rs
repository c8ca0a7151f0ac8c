//! LayerNorm over rows: `y = (x - mean) · rsqrt(var + eps) · w + b`, the variance over the width, not one less.

pub mod launch;

use super::rms_norm::{check, lanes_dot};
use crate::device::cpu::math::fma;
use crate::device::cpu::memory::Buffer;
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::error::Result;

/// Rows whose parameter gradients form one partial sum.
const ROWS: usize = 64;

simd_fn! {
    /// `statistics` gets (mean, factor) of each row.
    fn forward_rows(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, y: &mut [f32], statistics: &mut [[f32; 2]]) {
        let width = weight.len();
        let ones = vec![1f32; width];
        for ((x, y), statistics) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(statistics) {
            let mean = lanes_dot::<FMA>(x, &ones) / width as f32;
            // Centred first: the difference of two large sums would lose the variance.
            for (y, x) in y.iter_mut().zip(x) {
                *y = *x - mean;
            }
            let inverse = 1.0 / (lanes_dot::<FMA>(y, y) / width as f32 + epsilon).sqrt();
            for ((y, w), b) in y.iter_mut().zip(weight).zip(bias) {
                *y = fma::<FMA>(*y * inverse, *w, *b);
            }
            *statistics = [mean, inverse];
        }
    }
}

/// Normalises every row.
///
/// # Shapes
/// `x`, `y` `[rows, width]`; `weight`, `bias` `[width]`; `statistics [rows]` gets (mean, factor) for the backward pass.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape) when a length does not fit.
pub fn forward(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
    y: &mut [f32],
    statistics: &mut [[f32; 2]],
) -> Result<()> {
    let width = weight.len();
    check("layer_norm", width, statistics.len(), &[x.len(), y.len()])?;
    check("layer_norm", width, 1, &[bias.len()])?;
    if x.is_empty() {
        return Ok(());
    }
    let rows = pool::rows_per_task(8 * width);
    let parts = y.chunks_mut(rows * width).zip(x.chunks(rows * width));
    pool::each(parts.zip(statistics.chunks_mut(rows)), 1, |_, ((y, x), statistics)| {
        forward_rows(x, weight, bias, epsilon, y, statistics);
    });
    Ok(())
}

simd_fn! {
    /// `sums` is `[2, width]`: the gradients of weight and bias over these rows.
    fn backward_rows(x: &[f32], weight: &[f32], statistics: &[[f32; 2]], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let width = weight.len();
        let (dweight, dbias) = sums.split_at_mut(width);
        let ones = vec![1f32; width];
        let (mut normal, mut scaled) = (vec![0f32; width], vec![0f32; width]);
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (((x, dy), dx), [mean, inverse]) in rows.zip(statistics) {
            for ((n, x), ((s, dy), w)) in normal.iter_mut().zip(x).zip(scaled.iter_mut().zip(dy).zip(weight)) {
                *n = (*x - mean) * inverse;
                *s = *dy * *w;
            }
            for (((dw, db), dy), n) in dweight.iter_mut().zip(dbias.iter_mut()).zip(dy).zip(&normal) {
                *dw = fma::<FMA>(*dy, *n, *dw);
                *db += dy;
            }
            let level = lanes_dot::<FMA>(&scaled, &ones) / width as f32;
            let along = lanes_dot::<FMA>(&scaled, &normal) / width as f32;
            for ((dx, s), n) in dx.iter_mut().zip(&scaled).zip(&normal) {
                *dx = fma::<FMA>(-along, *n, *s - level) * inverse;
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
    pub statistics: &'a [[f32; 2]],
}

/// The gradients of [`forward`]: `dx` is written, `dweight` and `dbias` are added to.
///
/// # Shapes
/// `dy`, `dx` `[rows, width]`; `dweight`, `dbias` `[width]`.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape) when a length does not fit.
pub fn backward(
    saved: Saved<'_>,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) -> Result<()> {
    let Saved { x, weight, statistics } = saved;
    let width = weight.len();
    check("layer_norm backward", width, statistics.len(), &[x.len(), dy.len(), dx.len()])?;
    check("layer_norm backward", width, 1, &[dweight.len(), dbias.len()])?;
    if x.is_empty() {
        return Ok(());
    }
    let mut partial = Buffer::<f32>::zeroed(statistics.len().div_ceil(ROWS) * 2 * width);
    let parts = partial
        .chunks_mut(2 * width)
        .zip(dx.chunks_mut(ROWS * width))
        .zip(x.chunks(ROWS * width))
        .zip(dy.chunks(ROWS * width))
        .zip(statistics.chunks(ROWS));
    pool::each(parts, 1, |_, ((((sums, dx), x), dy), statistics)| {
        backward_rows(x, weight, statistics, dy, dx, sums);
    });
    for sums in partial.chunks(2 * width) {
        let (w, b) = sums.split_at(width);
        dweight.iter_mut().zip(w).for_each(|(total, sum)| *total += sum);
        dbias.iter_mut().zip(b).for_each(|(total, sum)| *total += sum);
    }
    Ok(())
}
