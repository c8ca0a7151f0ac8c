//! Potential-based shaping: labels of steps as a dense reward that leaves the best policy where it is.

use super::credit::check_lengths;
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::error::{Error, Result};
use crate::kernels::offsets;
use serde::{Deserialize, Serialize};
use std::ops::Range;

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
    let mut sequences = Vec::with_capacity(offsets.len() - 1);
    let mut rest = out;
    for bounds in offsets.windows(2) {
        let (here, after) = rest.split_at_mut(bounds[1] - bounds[0]);
        sequences.push((bounds[0]..bounds[1], here));
        rest = after;
    }
    // A label and a mask in, a reward out.
    let together = pool::rows_per_task(9 * tokens / sequences.len().max(1));
    pool::each_with(sequences.into_iter(), together, Potentials::default, |state, _, (at, out)| {
        state.reward(shaping, &labels[at.clone()], &mask[at], out);
    });
    Ok(())
}

/// The labels around each token of a sequence: their sum and their number.
#[derive(Default)]
struct Potentials {
    sums: Vec<f32>,
    terms: Vec<f32>,
}

impl Potentials {
    /// The rewards of a sequence.
    fn reward(&mut self, by: &Shaping, labels: &[f32], mask: &[u8], out: &mut [f32]) {
        let tokens = labels.len();
        if tokens == 0 {
            return;
        }
        for values in [&mut self.sums, &mut self.terms] {
            values.clear();
            values.resize(tokens, 0.0);
        }
        // One place of the window after the other, of all tokens: each pass becomes vector instructions, and the labels of
        // a token are added in their order.
        let reach = by.window / 2;
        for back in (1..=reach).rev() {
            let ends = back.min(tokens);
            self.repeat(by, labels[0], 0..ends);
            self.add(by, &labels[..tokens - ends], &mask[..tokens - ends], ends);
        }
        for ahead in 0..=reach {
            let from = ahead.min(tokens);
            self.add(by, &labels[from..], &mask[from..], 0);
            self.repeat(by, labels[tokens - 1], tokens - from..tokens);
        }
        finish(by, &self.terms, mask, &mut self.sums, out);
    }

    /// Adds consecutive labels to consecutive tokens, from `first` on.
    fn add(&mut self, by: &Shaping, labels: &[f32], mask: &[u8], first: usize) {
        let (sums, terms) = (&mut self.sums[first..], &mut self.terms[first..]);
        add(labels, (by.reads == Window::Live).then_some(mask), sums, terms);
    }

    /// Adds the label at an end to the tokens whose window goes beyond it.
    fn repeat(&mut self, by: &Shaping, label: f32, tokens: Range<usize>) {
        if by.reads == Window::Literal {
            self.sums[tokens.clone()].iter_mut().for_each(|sum| *sum += label);
            self.terms[tokens].iter_mut().for_each(|terms| *terms += 1.0);
        }
    }
}

simd_fn! {
    fn add(labels: &[f32], live: Option<&[u8]>, sums: &mut [f32], terms: &mut [f32]) {
        let sums = sums.iter_mut().zip(terms).zip(labels);
        match live {
            Some(mask) => {
                for (((sum, terms), label), mask) in sums.zip(mask) {
                    *sum += if *mask != 0 { *label } else { 0.0 };
                    *terms += if *mask != 0 { 1.0 } else { 0.0 };
                }
            }
            None => {
                for ((sum, terms), label) in sums {
                    *sum += label;
                    *terms += 1.0;
                }
            }
        }
    }
}

simd_fn! {
    /// Turns the sums into potentials, and these into rewards.
    fn finish(by: &Shaping, terms: &[f32], mask: &[u8], sums: &mut [f32], out: &mut [f32]) {
        for ((sum, terms), mask) in sums.iter_mut().zip(terms).zip(mask) {
            let mean = *sum / terms;
            let mean = if mean < -by.clip { -by.clip } else { mean };
            let mean = if mean > by.clip { by.clip } else { mean };
            *sum = if *mask != 0 { by.alpha * mean } else { 0.0 };
        }
        let (Some(last), Some((last_out, out))) = (sums.last().copied(), out.split_last_mut()) else { return };
        let after = sums.get(1..).unwrap_or_default();
        for (((out, potential), next), mask) in out.iter_mut().zip(&*sums).zip(after).zip(mask) {
            *out = if *mask != 0 { by.gamma * next - potential } else { 0.0 };
        }
        // Beyond the end the potential is 0.
        *last_out = if mask.last().is_some_and(|mask| *mask != 0) { by.gamma * 0.0 - last } else { 0.0 };
    }
}
