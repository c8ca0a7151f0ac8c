//! The products inside a tile: a row's against its keys, and sums over its lanes, in blocks that fit the registers.
//!
//! Each sum is one chain of multiply-adds in a fixed order, over the head width, the lanes or the rows; how many rows
//! and columns a block holds changes which loads are shared and no bit of any result. A lane that a row does not see is
//! computed only where its value is thrown away, never added to anything.

use crate::device::cpu::math::fma;
use crate::dtype::Float;
use std::ops::Range;

/// Keys of a tile.
pub(super) const TILE: usize = 64;
/// Lanes of the softmax.
pub(super) const LANES: usize = 16;

/// A range of lanes of a tile; `Range` is not `Copy`.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    pub from: usize,
    pub to: usize,
}

impl Lanes {
    pub fn is_empty(self) -> bool {
        self.from >= self.to
    }

    /// The blocks of [`LANES`] lanes that hold any of them.
    #[inline(always)]
    pub fn blocks(self) -> Range<usize> {
        self.from / LANES..self.to.div_ceil(LANES)
    }
}

/// `products[r][lane] = Σ_d left[r][d] · tile[d][lane]`, for at least the given lanes.
#[inline(always)]
pub(super) fn products<const FMA: bool, const R: usize, E: Float>(
    left: &[f32],
    dim: usize,
    tile: &[E],
    lanes: [Lanes; R],
    products: &mut [[f32; TILE]; R],
) {
    let all = around(lanes);
    if R == 1 && all.blocks().len() > 2 {
        block_products::<FMA, R, TILE, E>(left, dim, tile, 0, products);
    } else if R == 1 && all.blocks().len() == 2 && all.blocks().start % 2 == 0 {
        block_products::<FMA, R, 32, E>(left, dim, tile, all.blocks().start / 2, products);
    } else {
        for block in all.blocks() {
            block_products::<FMA, R, LANES, E>(left, dim, tile, block, products);
        }
    }
}

#[inline(always)]
fn block_products<const FMA: bool, const R: usize, const W: usize, E: Float>(
    left: &[f32],
    dim: usize,
    tile: &[E],
    block: usize,
    products: &mut [[f32; TILE]; R],
) {
    let mut sums = [[0f32; W]; R];
    let mut rows = [left; R];
    for r in 0..R {
        rows[r] = &left[r * dim..][..dim];
    }
    let tile = &tile.as_chunks::<TILE>().0[..dim];
    for d in 0..dim {
        let keys = &tile[d].as_chunks::<W>().0[block];
        for r in 0..R {
            let factor = rows[r][d];
            for lane in 0..W {
                sums[r][lane] = fma::<FMA>(factor, keys[lane].to_f32(), sums[r][lane]);
            }
        }
    }
    for r in 0..R {
        products[r].as_chunks_mut::<W>().0[block] = sums[r];
    }
}

/// `sums[r][d] += Σ_lane weights[r][lane] · tile[lane][d]`, lanes in order, only those that row r sees.
#[inline(always)]
pub(super) fn weighted_sum<const FMA: bool, const R: usize, E: Float>(
    weights: &[[f32; TILE]; R],
    lanes: [Lanes; R],
    tile: &[E],
    dim: usize,
    sums: &mut [f32],
) {
    let shared = within(lanes);
    if R == 1 || shared.is_empty() {
        for r in 0..R {
            let sums = &mut sums[r * dim..(r + 1) * dim];
            columns::<FMA, 1, E>(std::array::from_ref(&weights[r]), lanes[r], tile, dim, sums);
        }
        return;
    }
    for r in 0..R {
        let before = Lanes { from: lanes[r].from, to: shared.from };
        let sums = &mut sums[r * dim..(r + 1) * dim];
        columns::<FMA, 1, E>(std::array::from_ref(&weights[r]), before, tile, dim, sums);
    }
    columns::<FMA, R, E>(weights, shared, tile, dim, sums);
    for r in 0..R {
        let after = Lanes { from: shared.to, to: lanes[r].to };
        let sums = &mut sums[r * dim..(r + 1) * dim];
        columns::<FMA, 1, E>(std::array::from_ref(&weights[r]), after, tile, dim, sums);
    }
}

/// [`weighted_sum`] over lanes that all rows see, in blocks of columns that fit the registers.
#[inline(always)]
fn columns<const FMA: bool, const R: usize, E: Float>(
    weights: &[[f32; TILE]; R],
    lanes: Lanes,
    tile: &[E],
    dim: usize,
    sums: &mut [f32],
) {
    if lanes.is_empty() {
        return;
    }
    let mut d = 0;
    while R == 1 && d + 64 <= dim {
        column_block::<FMA, R, 64, E>(weights, lanes, tile, dim, d, sums);
        d += 64;
    }
    while R == 1 && d + 32 <= dim {
        column_block::<FMA, R, 32, E>(weights, lanes, tile, dim, d, sums);
        d += 32;
    }
    while d + 16 <= dim {
        column_block::<FMA, R, 16, E>(weights, lanes, tile, dim, d, sums);
        d += 16;
    }
    while d + 8 <= dim {
        column_block::<FMA, R, 8, E>(weights, lanes, tile, dim, d, sums);
        d += 8;
    }
    while d < dim {
        column_block::<FMA, R, 1, E>(weights, lanes, tile, dim, d, sums);
        d += 1;
    }
}

#[inline(always)]
fn column_block<const FMA: bool, const R: usize, const W: usize, E: Float>(
    weights: &[[f32; TILE]; R],
    lanes: Lanes,
    tile: &[E],
    dim: usize,
    d: usize,
    sums: &mut [f32],
) {
    let mut block = [[0f32; W]; R];
    for r in 0..R {
        block[r].copy_from_slice(&sums[r * dim + d..][..W]);
    }
    let rows = tile[lanes.from * dim..lanes.to * dim].chunks_exact(dim);
    for (lane, row) in (lanes.from..lanes.to.min(TILE)).zip(rows) {
        let Some(row) = row[d..].first_chunk::<W>() else { return };
        for r in 0..R {
            let weight = weights[r][lane];
            for column in 0..W {
                block[r][column] = fma::<FMA>(weight, row[column].to_f32(), block[r][column]);
            }
        }
    }
    for r in 0..R {
        sums[r * dim + d..][..W].copy_from_slice(&block[r]);
    }
}

/// `tile[lane][d] += Σ_r weights[r][lane] · rows[r][d]`, rows in order, only lanes that row r sees.
#[inline(always)]
pub(super) fn outer_sum<const FMA: bool, const R: usize>(
    weights: &[[f32; TILE]; R],
    lanes: [Lanes; R],
    rows: &[f32],
    dim: usize,
    tile: &mut [f32],
) {
    let shared = within(lanes);
    if !shared.is_empty() {
        outer_columns::<FMA, R>(weights, shared, rows, dim, tile);
    }
    for r in 0..R {
        let row = &rows[r * dim..(r + 1) * dim];
        let weights = std::array::from_ref(&weights[r]);
        if shared.is_empty() {
            outer_columns::<FMA, 1>(weights, lanes[r], row, dim, tile);
        } else if R > 1 {
            let before = Lanes { from: lanes[r].from, to: shared.from };
            let after = Lanes { from: shared.to, to: lanes[r].to };
            outer_columns::<FMA, 1>(weights, before, row, dim, tile);
            outer_columns::<FMA, 1>(weights, after, row, dim, tile);
        }
    }
}

#[inline(always)]
fn outer_columns<const FMA: bool, const R: usize>(
    weights: &[[f32; TILE]; R],
    lanes: Lanes,
    rows: &[f32],
    dim: usize,
    tile: &mut [f32],
) {
    if lanes.is_empty() {
        return;
    }
    let mut d = 0;
    while d + 16 <= dim {
        outer_block::<FMA, R, 16>(weights, lanes, rows, dim, d, tile);
        d += 16;
    }
    while d + 8 <= dim {
        outer_block::<FMA, R, 8>(weights, lanes, rows, dim, d, tile);
        d += 8;
    }
    while d < dim {
        outer_block::<FMA, R, 1>(weights, lanes, rows, dim, d, tile);
        d += 1;
    }
}

#[inline(always)]
fn outer_block<const FMA: bool, const R: usize, const W: usize>(
    weights: &[[f32; TILE]; R],
    lanes: Lanes,
    rows: &[f32],
    dim: usize,
    d: usize,
    tile: &mut [f32],
) {
    let mut block = [[0f32; W]; R];
    for r in 0..R {
        block[r].copy_from_slice(&rows[r * dim + d..][..W]);
    }
    let sums = tile[lanes.from * dim..lanes.to * dim].chunks_exact_mut(dim);
    for (lane, sums) in (lanes.from..lanes.to.min(TILE)).zip(sums) {
        let Some(sums) = sums[d..].first_chunk_mut::<W>() else { return };
        for r in 0..R {
            let weight = weights[r][lane];
            for column in 0..W {
                sums[column] = fma::<FMA>(weight, block[r][column], sums[column]);
            }
        }
    }
}

/// The lanes that any row sees, and those between.
#[inline(always)]
fn around<const R: usize>(lanes: [Lanes; R]) -> Lanes {
    let mut all = lanes[0];
    for lanes in lanes {
        all = Lanes { from: all.from.min(lanes.from), to: all.to.max(lanes.to) };
    }
    all
}

/// The lanes that all rows see.
#[inline(always)]
pub(super) fn within<const R: usize>(lanes: [Lanes; R]) -> Lanes {
    let mut all = lanes[0];
    for lanes in lanes {
        all = Lanes { from: all.from.max(lanes.from), to: all.to.min(lanes.to) };
    }
    all
}
