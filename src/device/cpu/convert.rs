//! Conversion between f32 and the narrow float types, on one thread. Widening is exact; narrowing rounds to nearest even.

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
