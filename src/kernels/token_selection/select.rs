//! The picking itself on the host: a key for each candidate, and the tokens of the smallest keys.

use super::Selection;
use crate::error::{Error, Result};
use crate::rng::{self, Stream};

/// What [`select`] reads. `[tokens]`.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Log-prob of each taken token under the policy, nats.
    pub logprob: &'a [f32],
    /// The same under the policy that ratios compare with; read by Clip-Cov.
    pub old_logprob: &'a [f32],
    /// The advantage of each token; read by Clip-Cov and KL-Cov.
    pub advantage: &'a [f32],
    /// Entropy of each token's distribution, nats; read by the selection of the top entropies.
    pub entropy: &'a [f32],
    /// Non-zero: the token counts.
    pub mask: &'a [u8],
    /// The clip of the objective, `1 - clip_low` and `1 + clip_high`: Clip-Cov leaves out what it acts on.
    pub clip: (f32, f32),
    /// The draw of Clip-Cov's random subset: a seed and a number that no other call of that seed has, e.g. the update's.
    pub draw: (u64, u64),
}

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

/// A token that is no candidate.
pub(super) const NO_CANDIDATE: u32 = u32::MAX;

/// Marks the picked tokens with 1 and all others with 0. What masked tokens hold is not read.
///
/// The same tokens are picked on every device. Among equal keys the first token goes first. A NaN is never picked.
///
/// # Errors
/// [`Error::is_shape`] for a length that does not fit, [`Error::is_invalid`] for a selection out of range.
///
/// # Source
/// verl `compute_policy_loss_clip_cov`, `compute_policy_loss_kl_cov` (their random permutation is replaced by Philox
/// numbers of the token's place); TRL `get_high_entropy_mask`.
pub fn select(selection: &Selection, inputs: &Inputs<'_>, selected: &mut [u8]) -> Result<Selected> {
    selection.check()?;
    inputs.check(selection, selected.len())?;
    selected.fill(0);
    let live = inputs.mask.iter().filter(|mask| **mask != 0).count();
    let keys = match selection {
        Selection::TopEntropy { fraction } => {
            return Ok(top_entropy(inputs, *fraction, live, selected));
        }
        Selection::ClipCov { least, most, .. } => inputs.clip_cov_keys(live, *least, *most),
        Selection::KlCov { .. } => inputs.kl_cov_keys(live),
    };
    let candidates = keys.len();
    let count = selection.count(live).min(candidates);
    let mut keys = keys;
    if count > 0 && count < candidates {
        keys.select_nth_unstable(count - 1);
    }
    for (_, token) in &keys[..count] {
        selected[*token] = 1;
    }
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
                ((f64::from(*ratio) * live as f64) as usize).clamp(1, live.max(1))
            }
            Selection::TopEntropy { .. } => 0,
        }
    }
}

/// A number whose order is that of the floats: NaN of either sign has no place in it and is no candidate.
fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}

impl Inputs<'_> {
    fn check(&self, selection: &Selection, selected: usize) -> Result<()> {
        let tokens = self.mask.len();
        let of_cov = !matches!(selection, Selection::TopEntropy { .. });
        let lengths = [
            ("selected", selected, true),
            ("logprob", self.logprob.len(), of_cov),
            ("advantage", self.advantage.len(), of_cov),
            ("old_logprob", self.old_logprob.len(), matches!(selection, Selection::ClipCov { .. })),
            ("entropy", self.entropy.len(), !of_cov),
        ];
        for (name, got, is_read) in lengths {
            if is_read && got != tokens {
                return Err(Error::shape(format!(
                    "token_selection: {name} has {got} elements, not {tokens}"
                )));
            }
        }
        Ok(())
    }

    fn live(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.mask.len()).filter(|token| self.mask[*token] != 0)
    }

    /// Means over live tokens of advantages and log-probs.
    fn means(&self, live: usize) -> (f32, f32) {
        let mean = |of: &[f32]| {
            let sum: f64 = self.live().map(|token| f64::from(of[token])).sum();
            (sum / live.max(1) as f64) as f32
        };
        (mean(self.advantage), mean(self.logprob))
    }

    fn clip_cov_keys(&self, live: usize, least: f32, most: f32) -> Vec<(u32, usize)> {
        let (of_advantage, of_logprob) = self.means(live);
        let (low, high) = self.clip;
        let (seed, number) = self.draw;
        self.live()
            .filter(|token| {
                let (a, logprob) = (self.advantage[*token], self.logprob[*token]);
                let cov = (a - of_advantage) * (logprob - of_logprob);
                let ratio = (logprob - self.old_logprob[*token]).exp();
                let clipped = (a > 0.0 && ratio > high) || (a < 0.0 && ratio < low);
                cov > least && cov < most && !clipped
            })
            .map(|token| (random_key(seed, number, token), token))
            .collect()
    }

    fn kl_cov_keys(&self, live: usize) -> Vec<(u32, usize)> {
        let (of_advantage, of_logprob) = self.means(live);
        self.live()
            .filter_map(|token| {
                let (a, logprob) = (self.advantage[token], self.logprob[token]);
                let cov = (a - of_advantage) * (logprob - of_logprob);
                // The largest covariance has the smallest key.
                (!cov.is_nan()).then(|| (!ordered(cov), token))
            })
            .collect()
    }
}

/// A random key of a token's place, below [`NO_CANDIDATE`].
fn random_key(seed: u64, number: u64, token: usize) -> u32 {
    let block = rng::bits(seed, Stream::Select, number, (token >> 2) as u32);
    block[token & 3].min(NO_CANDIDATE - 1)
}

fn top_entropy(inputs: &Inputs<'_>, fraction: f32, live: usize, selected: &mut [u8]) -> Selected {
    let mut entropies: Vec<f32> = inputs.live().map(|token| inputs.entropy[token]).collect();
    entropies.retain(|entropy| !entropy.is_nan());
    if entropies.is_empty() {
        return Selected { live: live as u64, ..Selected::default() };
    }
    let threshold = quantile(&mut entropies, 1.0 - f64::from(fraction));
    let mut picked = 0;
    for token in inputs.live() {
        let is_picked = inputs.entropy[token] >= threshold;
        selected[token] = u8::from(is_picked);
        picked += u64::from(is_picked);
    }
    let candidates = entropies.len() as u64;
    Selected { live: live as u64, candidates, picked, threshold }
}

/// The value at `at` of the way through the sorted values, interpolated between neighbours.
fn quantile(values: &mut [f32], at: f64) -> f32 {
    let place = at.clamp(0.0, 1.0) * (values.len() - 1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let (_, low, above) = values.select_nth_unstable_by(below, f32::total_cmp);
    let low = *low;
    let next = above.iter().copied().min_by(f32::total_cmp).unwrap_or(low);
    interpolated(low, next, part)
}

/// Between two neighbours.
pub(super) fn interpolated(low: f32, next: f32, part: f64) -> f32 {
    (f64::from(low) + (f64::from(next) - f64::from(low)) * part) as f32
}
