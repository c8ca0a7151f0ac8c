//! Sums whose order depends on the reduced length alone.

pub mod launch;

use crate::device::cpu::memory::Buffer;
use crate::device::cpu::pool;
use crate::error::{Error, Result};

/// Elements of one partial sum.
const BLOCK: usize = 4096;
/// Rows of one partial sum of [`columns`].
const ROWS: usize = 64;
const LANES: usize = 32;

/// The sum of one block: 32 lanes, then a fixed tree.
fn block_sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
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

/// `Σ x`, the partial sums of fixed blocks added in f64.
pub fn sum(x: &[f32]) -> f32 {
    let mut partial = vec![0f32; x.len().div_ceil(BLOCK)];
    pool::blocks(&mut partial, 8, |i, sums| {
        for (j, sum) in sums.iter_mut().enumerate() {
            let start = (i * 8 + j) * BLOCK;
            *sum = block_sum(&x[start..x.len().min(start + BLOCK)]);
        }
    });
    partial.iter().map(|x| f64::from(*x)).sum::<f64>() as f32
}

/// `out[i] = Σ_j x[i, j]` for `x [out.len(), width]`.
///
/// # Errors
/// [`Error::is_shape`] when the lengths do not fit.
pub fn last(out: &mut [f32], x: &[f32], width: usize) -> Result<()> {
    if x.len() != out.len() * width {
        return Err(Error::shape(format!(
            "sum of rows: {} elements as [{}, {width}]",
            x.len(),
            out.len()
        )));
    }
    if width == 0 {
        out.fill(0.0);
        return Ok(());
    }
    let rows = pool::rows_per_task(width * 4);
    pool::blocks(out, rows, |i, out| {
        for (out, row) in out.iter_mut().zip(x[i * rows * width..].chunks(width)) {
            *out = row.chunks(BLOCK).map(|block| f64::from(block_sum(block))).sum::<f64>() as f32;
        }
    });
    Ok(())
}

/// `out[j] += Σ_i x[i, j]` for `x [rows, out.len()]`: 64 rows at a time, then the partial sums in order.
///
/// # Errors
/// [`Error::is_shape`] when the length of `x` is no multiple of `out`'s.
pub fn columns(out: &mut [f32], x: &[f32]) -> Result<()> {
    let width = out.len();
    if x.is_empty() || width == 0 {
        return Ok(());
    }
    if !x.len().is_multiple_of(width) {
        return Err(Error::shape(format!("sum of columns: {} elements over {width}", x.len())));
    }
    let blocks = x.len().div_ceil(ROWS * width);
    let mut partial = Buffer::<f32>::zeroed(blocks * width);
    pool::blocks(&mut partial, width, |i, sum| {
        let start = i * ROWS * width;
        for row in x[start..x.len().min(start + ROWS * width)].chunks(width) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    });
    for sum in partial.chunks(width) {
        out.iter_mut().zip(sum).for_each(|(out, sum)| *out += sum);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_match_f64() {
        for n in [0, 1, 31, 33, 4095, 4097, 100_003] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let want: f64 = x.iter().map(|x| f64::from(*x)).sum();
            assert!((f64::from(sum(&x)) - want).abs() < 1e-2, "{n}");
            if n > 0 {
                let mut rows = [0f32];
                last(&mut rows, &x, n).unwrap();
                assert_eq!(rows[0], sum(&x));
            }
        }
        let mut out = [1f32, 2.0];
        columns(&mut out, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        assert_eq!(out, [10.0, 14.0]);
        assert!(columns(&mut out, &[1.0]).unwrap_err().is_shape());
    }
}
