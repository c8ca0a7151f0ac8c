//! Potential-based shaping: labels of steps as a dense reward that leaves the best policy where it is.

use super::credit::check_lengths;
use crate::error::{Error, Result};
use crate::kernels::offsets;
use serde::{Deserialize, Serialize};

/// Which labels the moving average reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// Those of live tokens of the sequence: shorter at its ends.
    #[default]
    Live,
    /// All of the sequence, masked tokens too, the first and the last repeated beyond its ends: what FaithRL's released
    /// code computes on padded rows.
    Literal,
}

/// `F[t] = gamma p[t + 1] - p[t]` with the potential `p = alpha clip(mean of the labels around t)`, 0 where masked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shaping {
    /// The discount, as that of the returns.
    #[serde(default = "one")]
    pub gamma: f32,
    /// The height of the potential; 0.03 in FaithRL's code.
    #[serde(default = "small")]
    pub alpha: f32,
    /// Labels averaged, odd; 3 in FaithRL's code.
    #[serde(default = "three")]
    pub window: usize,
    /// The average is clipped to `-clip..=clip`.
    #[serde(default = "five")]
    pub clip: f32,
    /// Which labels are averaged.
    #[serde(default)]
    pub reads: Window,
}

fn one() -> f32 {
    1.0
}

fn small() -> f32 {
    0.03
}

fn three() -> usize {
    3
}

fn five() -> f32 {
    5.0
}

impl Default for Shaping {
    fn default() -> Shaping {
        Shaping { gamma: 1.0, alpha: 0.03, window: 3, clip: 5.0, reads: Window::Live }
    }
}

impl Shaping {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the parameter.
    pub fn check(&self) -> Result<()> {
        let Shaping { gamma, alpha, window, clip, .. } = *self;
        if window.is_multiple_of(2) {
            return Err(Error::invalid(format!("step_credit: window is {window}; it must be odd")));
        }
        for (name, value) in [("gamma", gamma), ("alpha", alpha), ("clip", clip)] {
            if !value.is_finite() || (name == "clip" && value < 0.0) {
                return Err(Error::invalid(format!("step_credit: {name} is {value}")));
            }
        }
        Ok(())
    }

    fn potential(&self, labels: &[f32], mask: &[u8], token: usize) -> f32 {
        if token >= labels.len() || mask[token] == 0 {
            return 0.0;
        }
        let reach = (self.window / 2) as isize;
        let (last, token) = (labels.len() as isize - 1, token as isize);
        let (mut sum, mut terms) = (0f32, 0f32);
        for at in token - reach..=token + reach {
            let inside = at.clamp(0, last) as usize;
            let counts = match self.reads {
                Window::Live => at >= 0 && at <= last && mask[inside] != 0,
                Window::Literal => true,
            };
            if counts {
                sum += labels[inside];
                terms += 1.0;
            }
        }
        self.alpha * (sum / terms).clamp(-self.clip, self.clip)
    }
}

/// The shaping reward of every token; 0 where masked.
///
/// # Shapes
/// `labels`, `mask`, `out` `[tokens]`; `offsets [sequences + 1]` from 0 to `tokens`.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_index`] for lengths and offsets that do not fit, [`Error::is_invalid`] for a parameter.
///
/// # Source
/// Ng, Harada and Russell 1999; `compute_pbrs_shaping_reward` of FaithRL's code, which its training loop does not call.
pub fn shape(
    shaping: &Shaping,
    labels: &[f32],
    mask: &[u8],
    offsets: &[i64],
    out: &mut [f32],
) -> Result<()> {
    shaping.check()?;
    let tokens = labels.len();
    let offsets = offsets::checked("step_credit", "sequence", offsets, tokens)?;
    let lengths = [("mask", Some(mask.len()), tokens), ("output", Some(out.len()), tokens)];
    check_lengths(lengths, tokens, offsets.len() - 1)?;
    for bounds in offsets.windows(2) {
        let (labels, mask) = (&labels[bounds[0]..bounds[1]], &mask[bounds[0]..bounds[1]]);
        for (token, out) in out[bounds[0]..bounds[1]].iter_mut().enumerate() {
            *out = if mask[token] == 0 {
                0.0
            } else {
                let next = shaping.potential(labels, mask, token + 1);
                shaping.gamma * next - shaping.potential(labels, mask, token)
            };
        }
    }
    Ok(())
}
