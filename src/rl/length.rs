//! What length does to a response: the penalty for overlong ones, the mask of truncated ones.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// DAPO's soft penalty: nothing up to `max_length - buffer` tokens, then falling in a line to `-factor` at `max_length`, and
/// on. The paper has 20480 and 4096.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlongShaping {
    /// The longest response, tokens.
    pub max_length: usize,
    /// The tokens before it in which the penalty grows; > 0.
    pub buffer: usize,
    /// The penalty at `max_length`.
    #[serde(default = "one")]
    pub factor: f64,
}

fn one() -> f64 {
    1.0
}

impl OverlongShaping {
    /// Checks the lengths.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when the buffer is 0 or longer than the response, or the factor is not finite.
    pub fn check(&self) -> Result<()> {
        let OverlongShaping { max_length, buffer, factor } = *self;
        if buffer == 0 || buffer > max_length || !factor.is_finite() {
            return Err(Error::invalid(format!(
                "overlong shaping: buffer {buffer} of {max_length} tokens, factor {factor}"
            )));
        }
        Ok(())
    }

    /// What is added to the reward of a response of `length` tokens: at most 0.
    ///
    /// # Source
    /// DAPO, arXiv 2503.14476, equation 13; verl `reward_manager/dapo.py`.
    pub fn penalty(&self, length: usize) -> f64 {
        let over = length.saturating_sub(self.max_length.saturating_sub(self.buffer));
        if over == 0 { 0.0 } else { -(over as f64) / self.buffer.max(1) as f64 * self.factor }
    }
}

/// Masks every token of the responses that were cut off before they ended (TRL `mask_truncated_completions`) and counts
/// these responses.
///
/// # Shapes
/// `truncated [sequences]`; `offsets [sequences + 1]` from 0 to `mask.len()`.
///
/// # Errors
/// [`Error::is_shape`] for lengths that do not fit, [`Error::is_index`] for offsets out of order.
pub fn mask_truncated(truncated: &[bool], offsets: &[i64], mask: &mut [u8]) -> Result<usize> {
    if offsets.len() != truncated.len() + 1
        || offsets.first() != Some(&0)
        || offsets.last() != Some(&(mask.len() as i64))
    {
        return Err(Error::shape(format!(
            "mask_truncated: {} offsets up to {:?} for {} responses of {} tokens",
            offsets.len(),
            offsets.last(),
            truncated.len(),
            mask.len()
        )));
    }
    if let Some(i) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
        return Err(Error::index(format!("mask_truncated: offset {} falls", i + 1)));
    }
    for (bounds, _) in offsets.windows(2).zip(truncated).filter(|(_, cut)| **cut) {
        mask[bounds[0] as usize..bounds[1] as usize].fill(0);
    }
    Ok(truncated.iter().filter(|cut| **cut).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_penalty_grows_in_the_buffer() {
        let shaping = OverlongShaping { max_length: 20480, buffer: 4096, factor: 1.0 };
        let penalties = [0, 16384, 16384 + 1024, 20480, 20480 + 4096].map(|n| shaping.penalty(n));
        assert_eq!(penalties, [0.0, 0.0, -0.25, -1.0, -2.0]);
        assert!(shaping.check().is_ok());
        for buffer in [0, 20481] {
            assert!(OverlongShaping { buffer, ..shaping }.check().is_err_and(|e| e.is_invalid()));
        }
    }

    #[test]
    fn a_truncated_completion_is_masked_whole() {
        let mut mask = [1, 0, 1, 1, 1, 1];
        let count = mask_truncated(&[false, true, true, false], &[0, 3, 5, 5, 6], &mut mask);
        assert_eq!((count.unwrap(), mask), (2, [1, 0, 1, 0, 0, 1]));
        assert!(mask_truncated(&[true], &[0, 5], &mut mask).is_err_and(|e| e.is_shape()));
        assert!(mask_truncated(&[], &[], &mut []).is_err_and(|e| e.is_shape()));
        let falls = mask_truncated(&[true, true], &[0, 7, 6], &mut mask);
        assert!(falls.is_err_and(|e| e.is_index()));
    }
}
