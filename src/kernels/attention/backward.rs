//! The gradients of packed attention, from the saved output and logsumexp: scores are computed again, never stored.
//!
//! `dv_j = Σ_i p_ij dout_i`, `ds_ij = p_ij (dout_i·v_j - dout_i·out_i) · cap'`, `dq_i = scale Σ_j ds_ij k_j`,
//! `dk_j = scale Σ_i ds_ij q_i`. One task is one key-value head of one sequence; in it tiles of keys go outside,
//! queries inside, both in order, so no sum depends on anything but the sequence.

use super::forward::{pack, pack_transposed};
use super::products::{LANES, Lanes, TILE, outer_sum, products, weighted_sum};
use super::tile::{self, Rows};
use super::{Attention, check_len, check_segments};
use crate::device::cpu::math::{exp2, fma};
use crate::device::cpu::memory::Buffer;
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::dtype::{Float, FloatSlice};
use crate::error::{Error, Result};
use crate::kernels::cast;
use std::f32::consts::LOG2_E;

/// Arguments of [`backward`]: those of [`forward`](super::forward()), what it returned, and the gradients.
pub struct Backward<'a> {
    /// `[T, Hq, D]`.
    pub q: FloatSlice<'a>,
    /// `[T, Hkv, D]`.
    pub k: FloatSlice<'a>,
    /// `[T, Hkv, D]`.
    pub v: FloatSlice<'a>,
    /// `[T, Hq, D]`, what the forward pass returned.
    pub out: FloatSlice<'a>,
    /// `[T, Hq]`, what the forward pass returned.
    pub logsumexp: &'a [f32],
    /// CSR offsets of the packed sequences.
    pub segments: &'a [usize],
    /// `[T, Hq, D]`, the gradient of `out`.
    pub dout: &'a [f32],
    /// `[T, Hq, D]`; overwritten.
    pub dq: &'a mut [f32],
    /// `[T, Hkv, D]`; overwritten.
    pub dk: &'a mut [f32],
    /// `[T, Hkv, D]`; overwritten.
    pub dv: &'a mut [f32],
}

/// The gradients of [`forward`](super::forward()), in f32.
///
/// # Errors
/// As the forward pass.
pub fn backward(spec: &Attention, args: Backward<'_>) -> Result<()> {
    spec.check()?;
    let tokens = args.segments.last().copied().unwrap_or(0);
    check_segments(spec.mask, args.segments, tokens)?;
    let queries = [tokens, spec.query_heads, spec.head_dim];
    let keys = [tokens, spec.kv_heads, spec.head_dim];
    check_len("q", args.q.len(), queries)?;
    check_len("k", args.k.len(), keys)?;
    check_len("v", args.v.len(), keys)?;
    check_len("out", args.out.len(), queries)?;
    check_len("logsumexp", args.logsumexp.len(), [tokens, spec.query_heads, 1])?;
    check_len("dout", args.dout.len(), queries)?;
    check_len("dq", args.dq.len(), queries)?;
    check_len("dk", args.dk.len(), keys)?;
    check_len("dv", args.dv.len(), keys)?;
    let Backward { q, k, v, out, logsumexp, segments, dout, dq, dk, dv } = args;
    let gradients = [dq, dk, dv];
    match (q, k, v, out) {
        (FloatSlice::F32(q), FloatSlice::F32(k), FloatSlice::F32(v), FloatSlice::F32(out)) => {
            run(spec, Saved { q, k, v, out, logsumexp, dout }, segments, gradients);
        }
        (FloatSlice::Bf16(q), FloatSlice::Bf16(k), FloatSlice::Bf16(v), FloatSlice::Bf16(out)) => {
            run(spec, Saved { q, k, v, out, logsumexp, dout }, segments, gradients);
        }
        (FloatSlice::F16(q), FloatSlice::F16(k), FloatSlice::F16(v), FloatSlice::F16(out)) => {
            run(spec, Saved { q, k, v, out, logsumexp, dout }, segments, gradients);
        }
        (q, k, v, out) => {
            return Err(Error::dtype(format!(
                "attention backward: q {}, k {}, v {} and out {} must have one dtype",
                q.dtype(),
                k.dtype(),
                v.dtype(),
                out.dtype()
            )));
        }
    }
    Ok(())
}

/// What the forward pass left, of all sequences or of one.
#[derive(Clone, Copy)]
struct Saved<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    out: &'a [T],
    logsumexp: &'a [f32],
    dout: &'a [f32],
}

impl<T> Saved<'_, T> {
    fn sequence(&self, spec: &Attention, from: usize, to: usize) -> Self {
        let [q, k] = [spec.query_heads, spec.kv_heads].map(|heads| heads * spec.head_dim);
        Saved {
            q: &self.q[from * q..to * q],
            k: &self.k[from * k..to * k],
            v: &self.v[from * k..to * k],
            out: &self.out[from * q..to * q],
            logsumexp: &self.logsumexp[from * spec.query_heads..to * spec.query_heads],
            dout: &self.dout[from * q..to * q],
        }
    }
}

/// The gradients of one key-value head of one sequence, head by head: dq `[group][length][D]`, dk and dv
/// `[length][D]`.
struct Task<'a> {
    from: usize,
    to: usize,
    head: usize,
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

fn run<T: Float>(
    spec: &Attention,
    saved: Saved<'_, T>,
    segments: &[usize],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    // Heads are interleaved in the results; each task writes a run of its own, which is then put in place.
    let mut heads = [&*dq, &*dk, &*dv].map(|whole| Buffer::<f32>::recycled(whole.len()));
    let mut tasks = Vec::with_capacity(segments.len() * spec.kv_heads);
    let mut rest = heads.each_mut().map(|buffer| &mut buffer[..]);
    for bounds in segments.windows(2) {
        for head in 0..spec.kv_heads {
            let size = (bounds[1] - bounds[0]) * spec.head_dim;
            let mut take = |which: usize, len: usize| {
                let (mine, after) = std::mem::take(&mut rest[which]).split_at_mut(len);
                rest[which] = after;
                mine
            };
            let (dq, dk, dv) = (take(0, size * spec.group()), take(1, size), take(2, size));
            tasks.push(Task { from: bounds[0], to: bounds[1], head, dq, dk, dv });
        }
    }
    let memory = || Scratch::new(spec.head_dim);
    pool::each_with(tasks.into_iter(), 1, memory, |scratch, _, task| {
        let sequence = saved.sequence(spec, task.from, task.to);
        task.run(spec, sequence, scratch);
    });
    for (whole, (by_head, heads)) in [dq, dk, dv].into_iter().zip(heads.iter().zip([
        spec.query_heads,
        spec.kv_heads,
        spec.kv_heads,
    ])) {
        interleave(by_head, whole, segments, [heads, spec.head_dim]);
    }
}

/// `[heads][length][dim]` of each sequence into `[length][heads][dim]`.
fn interleave(by_head: &[f32], whole: &mut [f32], segments: &[usize], [heads, dim]: [usize; 2]) {
    let width = heads * dim;
    let mut parts = Vec::with_capacity(segments.len());
    let mut rest = whole;
    for bounds in segments.windows(2) {
        let (part, after) = rest.split_at_mut((bounds[1] - bounds[0]) * width);
        parts.push((&by_head[bounds[0] * width..bounds[1] * width], part));
        rest = after;
    }
    pool::each(parts.into_iter(), 1, |_, (from, into)| {
        let length = into.len() / width;
        for (token, row) in into.chunks_exact_mut(width).enumerate() {
            for (head, target) in row.chunks_exact_mut(dim).enumerate() {
                target.copy_from_slice(&from[(head * length + token) * dim..][..dim]);
            }
        }
    });
}

/// Memory of one thread.
struct Scratch {
    query: Vec<f32>,
    dout: Vec<f32>,
    logsumexp: Vec<f32>,
    delta: Vec<f32>,
    tiles: KeyTile,
}

/// One tile of keys and values.
struct KeyTile {
    /// `[head_dim][64]`
    keys_transposed: Vec<f32>,
    /// `[64][head_dim]`
    keys: Vec<f32>,
    /// `[head_dim][64]`
    values_transposed: Vec<f32>,
}

impl Scratch {
    fn new(dim: usize) -> Scratch {
        let tile = || vec![0f32; dim * TILE];
        Scratch {
            query: Vec::new(),
            dout: Vec::new(),
            logsumexp: Vec::new(),
            delta: Vec::new(),
            tiles: KeyTile { keys_transposed: tile(), keys: tile(), values_transposed: tile() },
        }
    }
}

impl Task<'_> {
    fn run<T: Float>(self, spec: &Attention, saved: Saved<'_, T>, scratch: &mut Scratch) {
        let (dim, group, length) = (spec.head_dim, spec.group(), self.to - self.from);
        let count = group * length;
        scratch.query.resize(count * dim, 0.0);
        scratch.dout.resize(count * dim, 0.0);
        scratch.logsumexp.clear();
        scratch.delta.clear();
        for r in 0..count {
            // Row r is head r / length of the group, token r % length.
            let source = (r % length) * spec.query_heads + self.head * group + r / length;
            let from = source * dim..(source + 1) * dim;
            cast::widen(&saved.q[from.clone()], &mut scratch.query[r * dim..(r + 1) * dim]);
            scratch.dout[r * dim..(r + 1) * dim].copy_from_slice(&saved.dout[from.clone()]);
            scratch.logsumexp.push(saved.logsumexp[source]);
            scratch.delta.push(dot(&saved.out[from.clone()], &saved.dout[from]));
        }
        let Task { head, dq, dk, dv, .. } = self;
        dq.fill(0.0);
        dk.fill(0.0);
        dv.fill(0.0);
        let mut rows = Rows { query: &scratch.query, tokens: length, first: 0, length, part: 0 };
        let state =
            State { dout: &scratch.dout, logsumexp: &scratch.logsumexp, delta: &scratch.delta };
        let tiles = dk.chunks_mut(TILE * dim).zip(dv.chunks_mut(TILE * dim));
        for (index, (dk, dv)) in tiles.enumerate() {
            let place = [spec.kv_heads, head, dim];
            pack_transposed(saved.k, place, index, &mut scratch.tiles.keys_transposed);
            pack(saved.k, place, index, &mut scratch.tiles.keys);
            pack_transposed(saved.v, place, index, &mut scratch.tiles.values_transposed);
            for part in (0..spec.parts()).filter(|part| spec.reaches(*part, index, length)) {
                rows.part = part;
                let gradients = [&mut *dq, &mut *dk, &mut *dv];
                differentiate(spec, &rows, &state, index, &scratch.tiles, gradients);
            }
        }
    }
}

simd_fn! {
    /// `Σ a·b` in eight lanes.
    fn dot<T: Float>(a: &[T], b: &[f32]) -> f32 {
        let mut lanes = [0f32; 8];
        for (a, b) in a.chunks(8).zip(b.chunks(8)) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane = fma::<FMA>(a.to_f32(), *b, *lane);
            }
        }
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// What each query row brings: the gradient of its output, its logsumexp, and `dout·out`.
struct State<'a> {
    dout: &'a [f32],
    logsumexp: &'a [f32],
    delta: &'a [f32],
}

simd_fn! {
    /// The part that one tile of keys has in the gradients. `dk` and `dv` are the tile's.
    fn differentiate(
        spec: &Attention,
        rows: &Rows<'_>,
        state: &State<'_>,
        index: usize,
        tile: &KeyTile,
        gradients: [&mut [f32]; 3],
    ) {
        let [dq, dk, dv] = gradients;
        let count = state.delta.len();
        let mut row = 0;
        while row < count {
            row += match tile::together::<4>(spec, rows, index, row, count) {
                Some(lanes) => step::<FMA, 4>(spec, rows, state, row, lanes, tile, [dq, dk, dv]),
                None => {
                    let lanes = rows.lanes(spec, index, row % rows.tokens);
                    if !lanes.is_empty() {
                        step::<FMA, 1>(spec, rows, state, row, [lanes], tile, [dq, dk, dv]);
                    }
                    1
                }
            };
        }
    }
}

#[inline(always)]
fn step<const FMA: bool, const R: usize>(
    spec: &Attention,
    rows: &Rows<'_>,
    state: &State<'_>,
    row: usize,
    lanes: [Lanes; R],
    tile: &KeyTile,
    [dq, dk, dv]: [&mut [f32]; 3],
) -> usize {
    let dim = spec.head_dim;
    let these = row * dim..(row + R) * dim;
    let (query, dout) = (&rows.query[these.clone()], &state.dout[these.clone()]);
    let mut probabilities = [[0f32; TILE]; R];
    let mut slopes = [[0f32; TILE]; R];
    products::<FMA, R, f32>(query, dim, &tile.keys_transposed, lanes, &mut probabilities);
    products::<FMA, R, f32>(dout, dim, &tile.values_transposed, lanes, &mut slopes);
    for r in 0..R {
        let probabilities = &mut probabilities[r].as_chunks_mut::<LANES>().0[lanes[r].blocks()];
        let slopes = &mut slopes[r].as_chunks_mut::<LANES>().0[lanes[r].blocks()];
        let (logsumexp, delta) = (state.logsumexp[row + r], state.delta[row + r]);
        tile::scores::<FMA>(spec, probabilities);
        for (probabilities, slopes) in probabilities.iter_mut().zip(slopes.iter_mut()) {
            for lane in 0..LANES {
                let score = probabilities[lane];
                let p = exp2::<FMA>((score - logsumexp) * LOG2_E);
                let capped = spec.softcap.map_or(1.0, |cap| 1.0 - (score / cap) * (score / cap));
                probabilities[lane] = p;
                slopes[lane] = p * (slopes[lane] - delta) * capped * spec.scale;
            }
        }
        tile::fill_unseen(probabilities, lanes[r], 0.0);
        tile::fill_unseen(slopes, lanes[r], 0.0);
    }
    outer_sum::<FMA, R>(&probabilities, lanes, dout, dim, dv);
    outer_sum::<FMA, R>(&slopes, lanes, query, dim, dk);
    weighted_sum::<FMA, R, f32>(&slopes, lanes, &tile.keys, dim, &mut dq[these]);
    R
}
