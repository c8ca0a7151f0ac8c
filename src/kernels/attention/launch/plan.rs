//! What a kernel of one head width and type takes: warps, grids and shared memory, the sizes of
//! `kernels/attention_tile.cuh` and its users.

use super::{MOST, Segments};
use crate::DType;
use crate::device::gpu::Gpu;
use crate::error::{Error, Result};
use crate::kernels::args::{
    ATTENTION_TILE_ROWS, AttentionShape, MASK_BLOCK_CAUSAL, MASK_BLOCK_DIFFUSION, MASK_CAUSAL,
    MASK_FULL,
};
use crate::kernels::attention::{Attention, Mask};
use std::ptr;

/// Threads of a warp.
pub(super) const WARP: u32 = 32;
/// Query rows (or keys) of one warp.
const WARP_ROWS: usize = ATTENTION_TILE_ROWS as usize;
/// Head widths that there are kernels for.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];

/// The sizes of one head width and storage type.
pub(super) struct Plan {
    /// The head width, up to a width that there are kernels for.
    width: usize,
    head_dim: usize,
    /// Of an element.
    bytes: usize,
    dtype: DType,
}

impl Plan {
    /// For `tokens` tokens.
    pub fn new(spec: &Attention, dtype: DType, tokens: usize) -> Result<Plan> {
        let Some(width) = WIDTHS.into_iter().find(|w| *w >= spec.head_dim) else {
            return Err(Error::unsupported(format!(
                "attention on a device: heads of {}; at most 256",
                spec.head_dim
            )));
        };
        if tokens.saturating_mul(spec.group()) > MOST {
            return Err(Error::unsupported(format!(
                "attention on a device: {tokens} tokens with {} query heads for each key-value head; at most {MOST} \
                 together",
                spec.group()
            )));
        }
        Ok(Plan { width, head_dim: spec.head_dim, bytes: dtype.size(), dtype })
    }

    /// The width in the kernel's name.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Warps of a block for sequences of up to `rows` query rows, or keys.
    pub fn warps(&self, rows: usize) -> usize {
        let most = if self.width * self.bytes > 512 { 2 } else { 4 };
        rows.div_ceil(WARP_ROWS).next_power_of_two().clamp(1, most)
    }

    /// Bytes of a row in shared memory.
    fn row(&self) -> usize {
        self.width * self.bytes + 16
    }

    /// What `add_weighted` exchanges through shared memory for tiles of `count` rows.
    fn exchange(&self, warps: usize, count: usize) -> usize {
        if self.bytes == 4 { warps * WARP_ROWS * (count + 4) * 4 } else { 0 }
    }

    /// Shared memory of the forward kernel, with totals where a block joins key groups.
    pub fn forward_bytes(&self, warps: usize, joined: bool) -> usize {
        let keys = if self.width * self.bytes <= 256 { 64 } else { 32 };
        let rows = warps * WARP_ROWS;
        let queries = rows * self.row();
        let totals = if joined { rows * self.width * 4 } else { 0 };
        let kept = self.bytes == 2 && self.width <= 128;
        let own = if kept { queries.max(totals) } else { queries + totals };
        2 * keys * self.row() + self.exchange(warps, keys) + own
    }

    /// Shared memory of the backward kernels: the block's rows of two matrices, two tiles of two others.
    pub fn backward_bytes(&self, warps: usize) -> usize {
        let inner = if self.bytes == 2 { 32 } else { 16 };
        let rows = 2 * warps * WARP_ROWS + 4 * inner;
        rows * self.row() + 4 * inner * 4 + self.exchange(warps, inner)
    }

    /// What a launch asks for.
    pub fn shared(&self, gpu: &Gpu, bytes: usize) -> Result<u32> {
        if bytes > gpu.shared_limit() as usize {
            return Err(Error::unsupported(format!(
                "attention of {} heads of {}: {bytes} bytes of shared memory, {} has {}",
                self.dtype,
                self.head_dim,
                gpu.describe(),
                gpu.shared_limit()
            )));
        }
        Ok(bytes as u32)
    }

    /// Rows begin at multiples of 16 bytes.
    pub fn vector(&self, addresses: &[u64]) -> bool {
        (self.head_dim * self.bytes).is_multiple_of(16)
            && addresses.iter().all(|address| address.is_multiple_of(16))
    }

    /// Tiles of query rows for every key-value head.
    pub fn query_grid(
        &self,
        spec: &Attention,
        segments: &Segments,
        warps: usize,
        groups: usize,
    ) -> Result<[u32; 3]> {
        let slots = segments.tokens * spec.group() / (warps * WARP_ROWS) + segments.sequences;
        grid(slots, spec.kv_heads, groups.min(65_535))
    }

    /// Tiles of keys for every key-value head.
    pub fn key_grid(
        &self,
        spec: &Attention,
        segments: &Segments,
        warps: usize,
    ) -> Result<[u32; 3]> {
        let slots = segments.tokens / (warps * WARP_ROWS) + segments.sequences;
        // Over 128 wide, a block computes dk or dv.
        grid(slots, spec.kv_heads, if self.width <= 128 { 1 } else { 2 })
    }

    /// What the kernels know of a layer and its sequences.
    pub fn shape(&self, spec: &Attention, segments: &Segments) -> Result<AttentionShape> {
        let narrow = |value: usize| i32::try_from(value).unwrap_or(i32::MAX);
        let (mask, block) = match spec.mask {
            Mask::Causal => (MASK_CAUSAL, 1),
            Mask::Full => (MASK_FULL, 1),
            Mask::BlockCausal { block } => (MASK_BLOCK_CAUSAL, block),
            Mask::BlockDiffusion { block } => (MASK_BLOCK_DIFFUSION, block),
        };
        Ok(AttentionShape {
            segments: segments.offsets().typed::<i32>()?,
            lengths: ptr::null(),
            tokens: segments.tokens as i64,
            sequences: narrow(segments.sequences),
            query_heads: narrow(spec.query_heads),
            kv_heads: narrow(spec.kv_heads),
            head_dim: narrow(spec.head_dim),
            mask,
            // A block longer than every sequence is one.
            block: narrow(block),
            unused: 0,
            // A window longer than every sequence is none.
            window: spec.window.map_or(0, narrow),
            scale: spec.scale,
            softcap: spec.softcap.unwrap_or(0.0),
            status: segments.gpu().status(),
        })
    }
}

/// A grid whose sizes fit.
pub(in crate::kernels::attention) fn grid(x: usize, y: usize, z: usize) -> Result<[u32; 3]> {
    let narrow = |size: usize| {
        u32::try_from(size).map_err(|_| Error::unsupported(format!("attention: a grid of {size}")))
    };
    Ok([narrow(x)?, narrow(y)?, narrow(z)?])
}
