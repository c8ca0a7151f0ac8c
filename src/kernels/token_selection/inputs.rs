//! What the selections read.

use super::Selection;
use crate::error::{Error, Result};

/// What [`select`](super::select()) reads. `[tokens]`.
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

impl Inputs<'_> {
    pub(super) fn check(&self, selection: &Selection, selected: usize) -> Result<()> {
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
}
