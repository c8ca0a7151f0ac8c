//! Whitening over the live tokens of a batch.

use super::estimator::Masked;
use super::statistics::Weighed;
use crate::error::{Error, Result};

/// `(x - mean) / sqrt(var + epsilon)` in place, with mean and unbiased variance over the live tokens. Fewer than two live
/// tokens, or equal ones, become exactly 0.
///
/// # Shapes
/// `values`, `mask` `[tokens]`; a mask of 0 is a masked token, which gets 0 (or, [`Masked::Carried`], is whitened with the
/// statistics of the others).
///
/// # Errors
/// [`Error::is_shape`] for lengths that differ, [`Error::is_invalid`] for an epsilon below 0.
///
/// # Source
/// verl `masked_whiten` (epsilon 1e-8), which raises where fewer than two tokens are live.
pub fn whiten(values: &mut [f32], mask: &[u8], epsilon: f64, masked: Masked) -> Result<()> {
    check(values.len(), mask.len(), epsilon)?;
    let live = |i: usize| f64::from(u8::from(mask[i] != 0));
    let all = Weighed::of((0..values.len()).map(|i| (values[i], live(i))));
    let factor = if all.all_equal { 0.0 } else { 1.0 / (all.std * all.std + epsilon).sqrt() };
    for (value, mask) in values.iter_mut().zip(mask) {
        *value = match (*mask != 0, masked) {
            (false, Masked::Zero) => 0.0,
            _ => ((f64::from(*value) - all.mean) * factor) as f32,
        };
    }
    Ok(())
}

pub(super) fn check(values: usize, mask: usize, epsilon: f64) -> Result<()> {
    if values != mask {
        return Err(Error::shape(format!("whiten: {mask} mask bytes for {values} values")));
    }
    if !(epsilon >= 0.0 && epsilon.is_finite()) {
        return Err(Error::invalid(format!("whiten: epsilon is {epsilon}; it must be at least 0")));
    }
    Ok(())
}
