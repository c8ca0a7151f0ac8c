//! Conversion between f32 and the narrow float types. Widening is exact; narrowing rounds to nearest even.

use super::pool;
use super::simd::simd_fn;
use crate::dtype::Float;

simd_fn! {
    /// `into[i] = from[i]`, exactly, over the shorter of the two.
    pub(crate) fn widen<T: Float>(from: &[T], into: &mut [f32]) {
        for (wide, value) in into.iter_mut().zip(from) {
            *wide = value.to_f32();
        }
    }
}

simd_fn! {
    /// `into[i] = from[i]` rounded to nearest even, over the shorter of the two.
    pub(crate) fn narrow<T: Float>(from: &[f32], into: &mut [T]) {
        for (value, wide) in into.iter_mut().zip(from) {
            *value = T::from_f32(*wide);
        }
    }
}

/// Rows and columns that are transposed together: both sides of a block stay in the first-level cache.
const BLOCK: usize = 32;

/// `into [width, rows] = from [rows, width]ᵀ`, widened.
pub(crate) fn transpose<T: Float>(from: &[T], width: usize, into: &mut [f32]) {
    let rows = from.len() / width.max(1);
    if rows == 0 {
        return;
    }
    pool::each(into.chunks_mut(BLOCK * rows), 1, |block, into| {
        let columns = block * BLOCK..(block * BLOCK + BLOCK).min(width);
        for first in (0..rows).step_by(BLOCK) {
            for row in first..(first + BLOCK).min(rows) {
                let source = &from[row * width..][columns.clone()];
                for (target, value) in into.chunks_mut(rows).zip(source) {
                    target[row] = value.to_f32();
                }
            }
        }
    });
}
