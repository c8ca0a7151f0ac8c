//! Scaled dot-product attention with a mask *description*: neither a mask nor a score matrix is ever stored.
//!
//! `out[i] = Σ_j p_ij v_j`, `p_i = softmax_j(cap(scale · q_i·k_j))` over the keys j that query i may see.
//!
//! Here live the description, its checks and the plan; [`forward`](forward()) computes packed sequences,
//! [`backward`](backward()) their gradients, [`KvCache`] holds the keys and values of sequences that are being
//! generated and attends to them; [`launch`] has the same on a device. Projections, rotations and norms of q and k are elsewhere.
//!
//! **Bit agreement.** All of them compute a query with the same function (`tile`), one tile of 64 keys after the
//! other, tiles counted from the start of the query's own sequence. Nothing in it depends on other queries, on how
//! many there are, or on where the tile is stored. So the output of a query has the same bits when its sequence is
//! computed at once (training) and when it is the one new token against a cache (generation).

mod backward;
mod cache;
mod forward;
pub mod launch;
mod paged;
mod products;
mod tile;

pub use backward::{Backward, backward};
pub use cache::KvCache;
pub use forward::{Forward, forward};

use crate::error::{Error, Result};
use products::TILE;
use std::ops::Range;

/// The example of the essay, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/kernels/attention.md")]
struct Essay;

/// Which keys of its own sequence a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mask {
    /// The keys at its own position and before.
    #[default]
    Causal,
    /// All keys of the sequence.
    Full,
}

/// What an attention layer computes: everything but the numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads, a multiple of `kv_heads`; query head `h` reads key-value head `h / (query_heads / kv_heads)`.
    pub query_heads: usize,
    /// Heads of the keys and values.
    pub kv_heads: usize,
    /// Width of a head of q, k and v.
    pub head_dim: usize,
    /// Factor on `q·k`, usually `head_dim^-1/2`.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Sliding window: query i sees only keys j with `i - window < j`. Causal masks only.
    pub window: Option<usize>,
    /// `c` of the score cap `c · tanh(score / c)` (Gemma 2), after the scale.
    pub softcap: Option<f32>,
}

impl Attention {
    /// Causal attention of `query_heads` over `kv_heads` with the usual scale, no window and no cap.
    pub fn causal(query_heads: usize, kv_heads: usize, head_dim: usize) -> Attention {
        Attention {
            query_heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            mask: Mask::Causal,
            window: None,
            softcap: None,
        }
    }

    /// Query heads per key-value head.
    fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// The keys that the query at `position` sees in a sequence of `length` keys.
    fn keys(&self, position: usize, length: usize) -> Range<usize> {
        match self.mask {
            Mask::Causal => {
                let end = (position + 1).min(length);
                self.window.map_or(0, |window| (position + 1).saturating_sub(window)).min(end)..end
            }
            Mask::Full => 0..length,
        }
    }

    /// The tiles that hold the keys of any query of `positions` (not empty).
    fn tiles(&self, positions: Range<usize>, length: usize) -> Range<usize> {
        let first = self.keys(positions.start, length);
        let last = self.keys(positions.end - 1, length);
        first.start / TILE..last.end.div_ceil(TILE)
    }

    /// [`Error::is_invalid`] for a description that makes no sense.
    fn check(&self) -> Result<()> {
        let problem = if self.kv_heads == 0 || !self.query_heads.is_multiple_of(self.kv_heads) {
            "query heads must be a multiple of the key-value heads"
        } else if self.query_heads == 0 || self.head_dim == 0 {
            "heads and head width must not be 0"
        } else if !self.scale.is_finite() {
            "the scale must be finite"
        } else if self.window == Some(0) {
            "a window of 0 keys sees nothing"
        } else if self.window.is_some() && self.mask != Mask::Causal {
            "a window needs the causal mask"
        } else if self.softcap.is_some_and(|cap| !(cap.is_finite() && cap > 0.0)) {
            "the softcap must be positive and finite"
        } else {
            return Ok(());
        };
        Err(Error::invalid(format!("attention: {problem} ({self:?})")))
    }
}

/// [`Error::is_shape`] unless `segments` are CSR offsets `0, …, tokens` that never fall.
fn check_segments(segments: &[usize], tokens: usize) -> Result<()> {
    let rising = segments.is_sorted();
    match (segments.first(), segments.last()) {
        (Some(0), Some(&last)) if last == tokens && rising => Ok(()),
        _ => Err(Error::shape(format!(
            "attention: segments must rise from 0 to the {tokens} tokens; got {} offsets from {:?} to {:?}{}",
            segments.len(),
            segments.first(),
            segments.last(),
            if rising { "" } else { ", not sorted" }
        ))),
    }
}

/// [`Error::is_shape`] unless `name` holds `tokens` rows of `heads` heads of `dim`.
fn check_len(name: &str, len: usize, [tokens, heads, dim]: [usize; 3]) -> Result<()> {
    if len == tokens * heads * dim {
        return Ok(());
    }
    Err(Error::shape(format!(
        "attention: {name} must be [{tokens}, {heads}, {dim}] but has {len} elements"
    )))
}
