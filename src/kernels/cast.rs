//! Conversion between the float storage types. Widening is exact; narrowing rounds to nearest even.

pub mod launch;

pub(crate) use crate::device::cpu::convert::{narrow, widen};
use crate::device::cpu::pool;
use crate::dtype::{Float, FloatSlice, FloatSliceMut};
use crate::error::{Error, Result};
use crate::with_float;

/// Elements that one task converts.
const CHUNK: usize = 16 * 1024;

/// `into[i] = from[i]`: widened exactly, or rounded to nearest even.
///
/// # Errors
/// [`Error::is_shape`] when the lengths differ.
pub fn cast(from: FloatSlice<'_>, into: FloatSliceMut<'_>) -> Result<()> {
    if from.len() != into.len() {
        return Err(Error::shape(format!(
            "cast: {} elements {} into {} elements {}",
            from.len(),
            from.dtype(),
            into.len(),
            into.dtype()
        )));
    }
    with_float!(FloatSlice, from, |source| with_float!(FloatSliceMut, into, |target| {
        let parts = target.chunks_mut(CHUNK).zip(source.chunks(CHUNK));
        pool::each(parts, 1, |_, (to, from)| convert(from, to));
    }));
    Ok(())
}

fn convert<S: Float, T: Float>(from: &[S], into: &mut [T]) {
    let mut wide = [0f32; 256];
    for (from, into) in from.chunks(wide.len()).zip(into.chunks_mut(wide.len())) {
        widen(from, &mut wide);
        narrow(&wide, into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_pair_rounds_once() {
        let values: Vec<f32> = (0..700).map(|i| (i as f32 - 350.0) * 0.013_7).collect();
        let mut brain = vec![bf16::ZERO; 700];
        cast(FloatSlice::F32(&values), FloatSliceMut::Bf16(&mut brain)).unwrap();
        assert!(brain.iter().zip(&values).all(|(b, v)| *b == bf16::from_f32(*v)));
        let mut half = vec![f16::ZERO; 700];
        cast(FloatSlice::Bf16(&brain), FloatSliceMut::F16(&mut half)).unwrap();
        assert!(half.iter().zip(&brain).all(|(h, b)| *h == f16::from_f32(b.to_f32())));
        let error = cast(FloatSlice::F32(&values), FloatSliceMut::F16(&mut half[..3])).unwrap_err();
        assert!(error.is_shape());
    }
}
