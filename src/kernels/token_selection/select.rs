//! The picking itself on the host: a key for each token, and the tokens of the smallest keys.

use super::Selection;
use super::inputs::Inputs;
use super::keys::{self, NO_CANDIDATE};
use super::rank::Ranks;
use crate::device::cpu::pool;
use crate::error::Result;

/// What [`select`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Selected {
    /// Tokens that count.
    pub live: u64,
    /// Those that could be picked.
    pub candidates: u64,
    /// Those that were.
    pub picked: u64,
    /// The entropy from which on tokens are picked; 0 for the other selections.
    pub threshold: f32,
}

/// Tokens that one task marks.
const PART: usize = 64 * 1024;

/// Marks the picked tokens with 1 and all others with 0. What masked tokens hold is not read.
///
/// The same tokens are picked on every device. Among equal keys the first token goes first. A NaN is never picked.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape) for a length that does not fit,
/// [`Error::is_invalid`](crate::Error::is_invalid) for a selection out of range.
///
/// # Source
/// verl `compute_policy_loss_clip_cov`, `compute_policy_loss_kl_cov` (their random permutation is replaced by Philox
/// numbers of the token's place); TRL `get_high_entropy_mask`.
pub fn select(selection: &Selection, inputs: &Inputs<'_>, selected: &mut [u8]) -> Result<Selected> {
    selection.check()?;
    inputs.check(selection, selected.len())?;
    let live = keys::live(inputs.mask);
    let keys = match selection {
        Selection::TopEntropy { fraction } => {
            return Ok(top_entropy(inputs, *fraction, live, selected));
        }
        Selection::ClipCov { least, most, .. } => keys::clip_cov(inputs, live, (*least, *most)),
        Selection::KlCov { .. } => keys::kl_cov(inputs, live),
    };
    let candidates = keys::candidates(&keys);
    let count = selection.count(live).min(candidates);
    // The first key that is not picked; where all candidates are, that of no candidate.
    let (bound, smaller) = Ranks::new(&keys).at(count).unwrap_or((NO_CANDIDATE, candidates));
    pool::blocks(selected, PART, |part, selected| {
        for (selected, key) in selected.iter_mut().zip(&keys[part * PART..]) {
            *selected = u8::from(*key < bound);
        }
    });
    // Of equal keys the first tokens.
    let equal = (0..keys.len()).filter(|token| keys[*token] == bound);
    equal.take(count - smaller.min(count)).for_each(|token| selected[token] = 1);
    Ok(Selected {
        live: live as u64,
        candidates: candidates as u64,
        picked: count as u64,
        threshold: 0.0,
    })
}

impl Selection {
    /// How many of `live` tokens Clip-Cov or KL-Cov picks: at least one.
    pub(super) fn count(&self, live: usize) -> usize {
        match self {
            Selection::ClipCov { ratio, .. } | Selection::KlCov { ratio, .. } => {
                ((ratio * live as f64) as usize).clamp(1, live.max(1))
            }
            Selection::TopEntropy { .. } => 0,
        }
    }
}

fn top_entropy(inputs: &Inputs<'_>, fraction: f64, live: usize, selected: &mut [u8]) -> Selected {
    let keys = keys::entropies(inputs);
    let candidates = keys::candidates(&keys);
    let Some(threshold) = quantile(&keys, candidates, 1.0 - fraction) else {
        selected.fill(0);
        return Selected { live: live as u64, ..Selected::default() };
    };
    pool::blocks(selected, PART, |part, selected| {
        let read = inputs.entropy[part * PART..].iter().zip(&inputs.mask[part * PART..]);
        for (selected, (entropy, mask)) in selected.iter_mut().zip(read) {
            *selected = u8::from((*mask != 0) & (*entropy >= threshold));
        }
    });
    let picked = keys::live(selected) as u64;
    Selected { live: live as u64, candidates: candidates as u64, picked, threshold }
}

/// The entropy at `at` of the way through the sorted ones, interpolated between neighbours; `None` of none.
fn quantile(keys: &[u32], candidates: usize, at: f64) -> Option<f32> {
    let place = at.clamp(0.0, 1.0) * candidates.checked_sub(1)? as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let ranks = Ranks::new(keys);
    let (low, _) = ranks.at(below)?;
    let (next, _) = ranks.at((below + 1).min(candidates - 1))?;
    Some(interpolated(keys::unordered(low), keys::unordered(next), part))
}

/// Between two neighbours.
pub(super) fn interpolated(low: f32, next: f32, part: f64) -> f32 {
    (f64::from(low) + (f64::from(next) - f64::from(low)) * part) as f32
}
