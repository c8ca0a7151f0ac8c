//! The one function that attends: some query rows against one tile of keys.
//!
//! A tile is 64 consecutive positions of one sequence and one head: keys as `[head_dim][64]` (a lane is a key), values
//! as `[64][head_dim]`. Scores add up over the head width in order, values over the keys in order, and the online
//! softmax folds a tile into the running state. Four rows at a time share their loads; each row's arithmetic is the
//! same as alone.

use super::Attention;
use super::products::{LANES, Lanes, TILE, products, weighted_sum};
use crate::device::cpu::math::{exp2, tanh};
use crate::device::cpu::simd::simd_fn;
use crate::dtype::Float;
use std::f32::consts::LOG2_E;

/// Query rows of one key-value head: `[heads of the group][tokens][head_dim]`, widened.
pub(super) struct Rows<'a> {
    pub query: &'a [f32],
    /// Tokens per head of the group; row `r` is token `r % tokens`.
    pub tokens: usize,
    /// Position of the first token in its sequence.
    pub first: usize,
    /// Keys of the sequence.
    pub length: usize,
    /// Which of a query's ranges of keys is looked at.
    pub part: usize,
}

impl Rows<'_> {
    /// The lanes of `tile` that a token sees.
    #[inline(always)]
    pub fn lanes(&self, spec: &Attention, tile: usize, token: usize) -> Lanes {
        let keys = spec.keys(self.part, self.first + token, self.length);
        let start = tile * TILE;
        Lanes {
            from: keys.start.saturating_sub(start).min(TILE),
            to: keys.end.saturating_sub(start).min(TILE),
        }
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
