//! The one function that attends: some query rows against one tile of keys.
//!
//! A tile is 64 consecutive positions of one sequence and one head: keys as `[head_dim][64]` (a lane is a key), values
//! as `[64][head_dim]`. Scores add up over the head width in order, values over the keys in order, and the online
//! softmax folds a tile into the running state. Four rows at a time share their loads; each row's arithmetic is the
//! same as alone.

use super::Attention;
use crate::device::cpu::math::{exp2, fma, tanh};
use crate::device::cpu::simd::simd_fn;
use crate::dtype::Float;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Keys of a tile.
pub(super) const TILE: usize = 64;
/// Lanes of the softmax.
pub(super) const LANES: usize = 16;

/// Query rows of one key-value head: `[heads of the group][tokens][head_dim]`, widened.
pub(super) struct Rows<'a> {
    pub query: &'a [f32],
    /// Tokens per head of the group; row `r` is token `r % tokens`.
    pub tokens: usize,
    /// Position of the first token in its sequence.
    pub first: usize,
    /// Keys of the sequence.
    pub length: usize,
}

impl Rows<'_> {
    /// The lanes of `tile` that a token sees.
    #[inline(always)]
    pub fn lanes(&self, spec: &Attention, tile: usize, token: usize) -> Lanes {
        let keys = spec.keys(self.first + token, self.length);
        let start = tile * TILE;
        Lanes {
            from: keys.start.saturating_sub(start).min(TILE),
            to: keys.end.saturating_sub(start).min(TILE),
        }
    }
}

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

/// The online softmax of every row: largest score, sum of exponentials and weighted values so far.
#[derive(Default)]
pub(super) struct Running {
    pub max: Vec<f32>,
    pub sum: Vec<f32>,
    pub out: Vec<f32>,
}

impl Running {
    /// Begins `rows` rows of width `dim`.
    pub fn start(&mut self, rows: usize, dim: usize) {
        self.max.clear();
        self.max.resize(rows, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(rows, 0.0);
        self.out.clear();
        self.out.resize(rows * dim, 0.0);
    }
}

simd_fn! {
    /// Folds one tile into the running state of every row.
    pub(super) fn attend<E: Float>(
        spec: &Attention,
        rows: &Rows<'_>,
        tile: usize,
        keys: &[E],
        values: &[E],
        running: &mut Running,
    ) {
        let mut row = 0;
        while row < running.max.len() {
            row += match together::<4>(spec, rows, tile, row, running.max.len()) {
                Some(lanes) => step::<FMA, 4, E>(spec, rows, row, lanes, keys, values, running),
                None => {
                    let lanes = rows.lanes(spec, tile, row % rows.tokens);
                    if !lanes.is_empty() {
                        step::<FMA, 1, E>(spec, rows, row, [lanes], keys, values, running);
                    }
                    1
                }
            };
        }
    }
}

/// The lanes of `R` rows from `row` on, when there are so many and each sees a key of the tile.
#[inline(always)]
pub(super) fn together<const R: usize>(
    spec: &Attention,
    rows: &Rows<'_>,
    tile: usize,
    row: usize,
    count: usize,
) -> Option<[Lanes; R]> {
    if row + R > count {
        return None;
    }
    let mut lanes = [Lanes { from: 0, to: 0 }; R];
    let mut token = row % rows.tokens;
    for lanes in &mut lanes {
        *lanes = rows.lanes(spec, tile, token);
        if lanes.is_empty() {
            return None;
        }
        token = if token + 1 == rows.tokens { 0 } else { token + 1 };
    }
    Some(lanes)
}

#[inline(always)]
fn step<const FMA: bool, const R: usize, E: Float>(
    spec: &Attention,
    rows: &Rows<'_>,
    row: usize,
    lanes: [Lanes; R],
    keys: &[E],
    values: &[E],
    running: &mut Running,
) -> usize {
    let dim = spec.head_dim;
    let mut weights = [[0f32; TILE]; R];
    let query = &rows.query[row * dim..(row + R) * dim];
    products::<FMA, R, E>(query, dim, keys, lanes, &mut weights);
    let out = &mut running.out[row * dim..(row + R) * dim];
    // Stage by stage over the rows: each stage of one row waits for the last, those of R rows overlap.
    let mut tops = [0f32; R];
    let mut shrinks = [0f32; R];
    for r in 0..R {
        tops[r] =
            larger(running.max[row + r], largest_score::<FMA>(spec, &mut weights[r], lanes[r]));
    }
    for r in 0..R {
        shrinks[r] = exp2::<FMA>((running.max[row + r] - tops[r]) * LOG2_E);
    }
    for r in 0..R {
        let sum = exponentials::<FMA>(&mut weights[r], lanes[r], tops[r]);
        running.sum[row + r] = running.sum[row + r] * shrinks[r] + sum;
        running.max[row + r] = tops[r];
        out[r * dim..][..dim].iter_mut().for_each(|x| *x *= shrinks[r]);
    }
    weighted_sum::<FMA, R, E>(&weights, lanes, values, dim, out);
    R
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

/// Turns the products of one row into scores, -inf in the lanes that it does not see, and returns the largest.
#[inline(always)]
fn largest_score<const FMA: bool>(
    spec: &Attention,
    weights: &mut [f32; TILE],
    lanes: Lanes,
) -> f32 {
    let blocks = &mut weights.as_chunks_mut::<LANES>().0[lanes.blocks()];
    scores::<FMA>(spec, blocks);
    fill_unseen(blocks, lanes, f32::NEG_INFINITY);
    let mut tops = [f32::NEG_INFINITY; LANES];
    for scores in blocks.iter() {
        for lane in 0..LANES {
            tops[lane] = larger(tops[lane], scores[lane]);
        }
    }
    fold(tops, larger)
}

/// Turns the scores of one row into softmax weights against `top`, and returns their sum.
#[inline(always)]
fn exponentials<const FMA: bool>(weights: &mut [f32; TILE], lanes: Lanes, top: f32) -> f32 {
    let mut sums = [0f32; LANES];
    for weights in &mut weights.as_chunks_mut::<LANES>().0[lanes.blocks()] {
        for lane in 0..LANES {
            weights[lane] = exp2::<FMA>((weights[lane] - top) * LOG2_E);
            sums[lane] += weights[lane];
        }
    }
    fold(sums, |a, b| a + b)
}

/// Sets the lanes of the blocks around `lanes` that are not among them.
#[inline(always)]
pub(super) fn fill_unseen(blocks: &mut [[f32; LANES]], lanes: Lanes, value: f32) {
    let first = lanes.from / LANES * LANES;
    let flat = blocks.as_flattened_mut();
    flat[..lanes.from - first].fill(value);
    flat[lanes.to - first..].fill(value);
}

/// Products to scores: the scale, then the cap.
#[inline(always)]
pub(super) fn scores<const FMA: bool>(spec: &Attention, blocks: &mut [[f32; LANES]]) {
    for block in blocks.iter_mut() {
        block.iter_mut().for_each(|x| *x *= spec.scale);
    }
    if let Some(cap) = spec.softcap {
        for block in blocks.iter_mut() {
            block.iter_mut().for_each(|x| *x = cap * tanh::<FMA>(*x / cap));
        }
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

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Combines the lanes in a fixed tree.
#[inline(always)]
fn fold(lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut eight = [0f32; 8];
    for lane in 0..8 {
        eight[lane] = combine(lanes[lane], lanes[lane + 8]);
    }
    let mut four = [0f32; 4];
    for lane in 0..4 {
        four[lane] = combine(eight[lane], eight[lane + 4]);
    }
    combine(combine(four[0], four[2]), combine(four[1], four[3]))
}
