//! Loops over equal-length runs of f32. The operations themselves are closures of the caller.

pub mod launch;

use crate::device::cpu::pool;
use crate::error::{Error, Result};

/// Elements handled by one task.
const BLOCK: usize = 16 * 1024;

/// `out[i] = f(x[i])`.
///
/// # Errors
/// [`Error::is_shape`] when the lengths differ.
pub fn map(out: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Result<()> {
    same_length(out.len(), x.len())?;
    pool::blocks(out, BLOCK, |i, out| {
        let x = &x[i * BLOCK..i * BLOCK + out.len()];
        out.iter_mut().zip(x).for_each(|(out, x)| *out = f(*x));
    });
    Ok(())
}

/// `out[i] = f(x[i], y[i mod y.len()])`: `y` as long as `x`, or repeated over its leading dimensions.
///
/// # Errors
/// [`Error::is_shape`] when `out` and `x` differ in length or `y`'s does not divide it.
pub fn zip(
    out: &mut [f32],
    x: &[f32],
    y: &[f32],
    f: impl Fn(f32, f32) -> f32 + Sync,
) -> Result<()> {
    same_length(out.len(), x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    if y.is_empty() || !x.len().is_multiple_of(y.len()) {
        return Err(Error::shape(format!("{} elements over {}", y.len(), x.len())));
    }
    let whole = y.len() == x.len();
    // A repeated operand is walked in whole periods, so that no task starts inside one.
    let block = if whole { BLOCK } else { y.len() * (BLOCK / y.len()).max(1) };
    pool::blocks(out, block, |i, out| {
        let x = &x[i * block..i * block + out.len()];
        if whole {
            let y = &y[i * block..i * block + out.len()];
            out.iter_mut().zip(x).zip(y).for_each(|((out, x), y)| *out = f(*x, *y));
            return;
        }
        for (out, x) in out.chunks_mut(y.len()).zip(x.chunks(y.len())) {
            out.iter_mut().zip(x).zip(y).for_each(|((out, x), y)| *out = f(*x, *y));
        }
    });
    Ok(())
}

fn same_length(a: usize, b: usize) -> Result<()> {
    if a == b { Ok(()) } else { Err(Error::shape(format!("{a} elements against {b}"))) }
}
