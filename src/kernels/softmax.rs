//! Softmax and log-softmax over rows. For the log-prob of one target take [`logprob`](super::logprob) instead: it
//! never writes the row.

pub mod launch;

use crate::device::cpu::math::exp;
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::error::Result;

const LANES: usize = 32;

/// The reduction of a row in 32 lanes and a fixed tree.
#[inline(always)]
fn fold(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = f(lanes[i], chunk[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, *x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

simd_fn! {
    fn forward_rows(x: &[f32], width: usize, log: bool, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let max = fold(x, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
            for (y, x) in y.iter_mut().zip(x) {
                *y = exp::<FMA>(*x - max);
            }
            let sum = fold(y, 0.0, |a, b| a + b);
            if log {
                let logsumexp = max + sum.ln();
                y.iter_mut().zip(x).for_each(|(y, x)| *y = *x - logsumexp);
            } else {
                let inverse = 1.0 / sum;
                y.iter_mut().for_each(|y| *y *= inverse);
            }
        }
    }
}

simd_fn! {
    fn backward_rows(y: &[f32], dy: &[f32], width: usize, log: bool, dx: &mut [f32]) {
        let rows = y.chunks_exact(width).zip(dy.chunks_exact(width));
        for ((y, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            if log {
                let sum = fold(dy, 0.0, |a, b| a + b);
                for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                    *dx = *dy - exp::<FMA>(*y) * sum;
                }
            } else {
                for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                    *dx = y * dy;
                }
                let sum = fold(dx, 0.0, |a, b| a + b);
                dx.iter_mut().zip(y).for_each(|(dx, y)| *dx -= y * sum);
            }
        }
    }
}

/// `y = softmax(x)` over rows of `width`, or its logarithm where `log`.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape) when a length does not fit.
pub fn forward(x: &[f32], width: usize, log: bool, y: &mut [f32]) -> Result<()> {
    super::rms_norm::check("softmax", width, x.len() / width.max(1), &[x.len(), y.len()])?;
    let rows = pool::rows_per_task(8 * width);
    pool::blocks(y, (rows * width).max(1), |i, y| {
        let start = i * rows * width;
        forward_rows(&x[start..start + y.len()], width, log, y);
    });
    Ok(())
}

/// The gradient of [`forward`] from its result `y`.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape) when a length does not fit.
pub fn backward(y: &[f32], dy: &[f32], width: usize, log: bool, dx: &mut [f32]) -> Result<()> {
    let rows = y.len() / width.max(1);
    super::rms_norm::check("softmax backward", width, rows, &[y.len(), dy.len(), dx.len()])?;
    let rows = pool::rows_per_task(12 * width);
    pool::blocks(dx, (rows * width).max(1), |i, dx| {
        let span = i * rows * width..i * rows * width + dx.len();
        backward_rows(&y[span.clone()], &dy[span], width, log, dx);
    });
    Ok(())
}
