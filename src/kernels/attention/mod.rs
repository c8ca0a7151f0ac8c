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
//!
#![doc = include_str!("../../../docs/kernels/attention.md")]

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

/// Which keys of its own sequence a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mask {
    /// The keys at its own position and before.
    #[default]
    Causal,
    /// All keys of the sequence.
    Full,
    /// The keys of its own block of `block` positions and of the blocks before: how block diffusion generates, and
    /// what its clean copy sees in training. The last block may be shorter.
    BlockCausal {
        /// Positions of a block.
        block: usize,
    },
    /// Training of block diffusion. The sequence is two copies of N tokens, `[noised; clean]`, cut into blocks alike. A
    /// noised token sees its own noised block and the clean blocks before it; a clean token the clean blocks up to its
    /// own. No clean token sees a noised one. The last block may be shorter.
    ///
    /// Documents in one sequence see each other; those that must not are sequences of their own, each with its two
    /// copies. Both copies of a token have the same rotary position.
    BlockDiffusion {
        /// Positions of a block.
        block: usize,
    },
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

    /// The keys that a query sees are this many ranges.
    fn parts(&self) -> usize {
        if matches!(self.mask, Mask::BlockDiffusion { .. }) { 2 } else { 1 }
    }

    /// The keys that the query at `position` sees in a sequence of `length` keys, range `part` of them.
    #[inline]
    fn keys(&self, part: usize, position: usize, length: usize) -> Range<usize> {
        match self.mask {
            Mask::Causal => {
                let end = (position + 1).min(length);
                self.window.map_or(0, |window| (position + 1).saturating_sub(window)).min(end)..end
            }
            Mask::Full => 0..length,
            Mask::BlockCausal { block } => 0..((position / block + 1) * block).min(length),
            Mask::BlockDiffusion { block } => {
                let half = length / 2;
                let noised = position < half;
                let own = (if noised { position } else { position - half }) / block * block;
                match (part, noised) {
                    // Its own block, of its own copy for a noised query.
                    (0, true) => own..(own + block).min(half),
                    (0, false) => 0..0,
                    (_, true) => half..half + own,
                    (_, false) => half..half + (own + block).min(half),
                }
            }
        }
    }

    /// The tiles that hold keys of range `part` of any query of `positions`.
    fn tiles(&self, part: usize, positions: Range<usize>, length: usize) -> Range<usize> {
        let keys = match self.mask {
            // Both ends of the range grow with the position.
            Mask::Causal | Mask::Full | Mask::BlockCausal { .. } => {
                let first = self.keys(part, positions.start, length);
                first.start..self.keys(part, positions.end - 1, length).end
            }
            Mask::BlockDiffusion { .. } => {
                let seen = positions.map(|position| self.keys(part, position, length));
                let seen = seen.filter(|keys| !keys.is_empty());
                let all = seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
                all.unwrap_or(0..0)
            }
        };
        keys.start / TILE..keys.end.div_ceil(TILE)
    }

    /// What the queries at `positions` (not empty) visit, in order: each part and tile where one of them may see a key.
    fn visits(
        &self,
        positions: Range<usize>,
        length: usize,
    ) -> impl Iterator<Item = (usize, usize)> {
        (0..self.parts()).flat_map(move |part| {
            self.tiles(part, positions.clone(), length).map(move |tile| (part, tile))
        })
    }

    /// Tiles of 64 queries by 64 keys that the forward pass over packed sequences visits, for each head: its work, in
    /// units of 4096 scores.
    pub fn visited_tiles(&self, segments: &[usize]) -> usize {
        let lengths = segments.windows(2).map(|bounds| bounds[1].saturating_sub(bounds[0]));
        let queries = lengths.flat_map(|length| {
            (0..length).step_by(TILE).map(move |first| (first..(first + TILE).min(length), length))
        });
        queries.map(|(positions, length)| self.visits(positions, length).count()).sum()
    }

    /// True when a query may see a key of the tile in that part.
    fn reaches(&self, part: usize, tile: usize, length: usize) -> bool {
        match self.mask {
            Mask::BlockDiffusion { .. } if part == 0 => tile * TILE < length / 2,
            Mask::BlockDiffusion { .. } => (tile + 1) * TILE > length / 2,
            _ => true,
        }
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
        } else if matches!(
            self.mask,
            Mask::BlockCausal { block: 0 } | Mask::BlockDiffusion { block: 0 }
        ) {
            "blocks of 0 positions"
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

/// [`Error::is_shape`] unless `segments` are CSR offsets `0, …, tokens` that never fall, of sequences that the mask fits.
fn check_segments(mask: Mask, segments: &[usize], tokens: usize) -> Result<()> {
    let rising = segments.is_sorted();
    match (segments.first(), segments.last()) {
        (Some(0), Some(&last)) if last == tokens && rising => {}
        _ => {
            return Err(Error::shape(format!(
                "attention: segments must rise from 0 to the {tokens} tokens; got {} offsets from {:?} to {:?}{}",
                segments.len(),
                segments.first(),
                segments.last(),
                if rising { "" } else { ", not sorted" }
            )));
        }
    }
    let odd = |bounds: &[usize]| !(bounds[1] - bounds[0]).is_multiple_of(2);
    match segments.windows(2).position(odd) {
        Some(sequence) if matches!(mask, Mask::BlockDiffusion { .. }) => {
            Err(Error::shape(format!(
                "attention: sequence {sequence} has {} tokens; block diffusion needs a noised and a clean copy of equal length",
                segments[sequence + 1] - segments[sequence]
            )))
        }
        _ => Ok(()),
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
