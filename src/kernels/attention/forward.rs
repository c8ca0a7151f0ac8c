//! The forward pass over packed sequences, and the walk over tiles that the cache shares.

use super::products::TILE;
use super::tile::{self, Rows, Running};
use super::{Attention, check_len, check_segments};
use crate::device::cpu::pool;
use crate::dtype::{Float, FloatSlice, FloatSliceMut};
use crate::error::{Error, Result};
use crate::kernels::cast;
use std::ops::Range;

/// Arguments of [`forward`]. T tokens in all, `Hq` query heads, `Hkv` key-value heads, D the head width.
pub struct Forward<'a> {
    /// `[T, Hq, D]`.
    pub q: FloatSlice<'a>,
    /// `[T, Hkv, D]`, dtype of `q`.
    pub k: FloatSlice<'a>,
    /// `[T, Hkv, D]`, dtype of `q`.
    pub v: FloatSlice<'a>,
    /// CSR offsets of the packed sequences: sequence s is tokens `segments[s]..segments[s + 1]`.
    pub segments: &'a [usize],
    /// `[T, Hq, D]`, dtype of `q`; overwritten.
    pub out: FloatSliceMut<'a>,
    /// `[T, Hq]` logsumexp of the scores, which [`backward`](super::backward()) needs; overwritten.
    pub logsumexp: Option<&'a mut [f32]>,
}

/// Attention of every token over its own sequence.
///
/// Scores, softmax and sums are f32 for every dtype; the output is rounded once. A query's bits depend on nothing but
/// its own q and the keys and values it sees. Sequences may be empty.
///
/// # Errors
/// [`Error::is_invalid`] for a description that makes no sense, [`Error::is_shape`] when a length does not fit,
/// [`Error::is_dtype`] when the dtypes differ.
pub fn forward(spec: &Attention, args: Forward<'_>) -> Result<()> {
    spec.check()?;
    let Forward { q, k, v, segments, out, logsumexp } = args;
    let tokens = segments.last().copied().unwrap_or(0);
    check_segments(spec.mask, segments, tokens)?;
    check_len("q", q.len(), [tokens, spec.query_heads, spec.head_dim])?;
    check_len("k", k.len(), [tokens, spec.kv_heads, spec.head_dim])?;
    check_len("v", v.len(), [tokens, spec.kv_heads, spec.head_dim])?;
    check_len("out", out.len(), [tokens, spec.query_heads, spec.head_dim])?;
    if let Some(logsumexp) = &logsumexp {
        check_len("logsumexp", logsumexp.len(), [tokens, spec.query_heads, 1])?;
    }
    match (q, k, v, out) {
        (FloatSlice::F32(q), FloatSlice::F32(k), FloatSlice::F32(v), FloatSliceMut::F32(out)) => {
            packed(spec, q, k, v, segments, out, logsumexp);
        }
        (
            FloatSlice::Bf16(q),
            FloatSlice::Bf16(k),
            FloatSlice::Bf16(v),
            FloatSliceMut::Bf16(out),
        ) => packed(spec, q, k, v, segments, out, logsumexp),
        (FloatSlice::F16(q), FloatSlice::F16(k), FloatSlice::F16(v), FloatSliceMut::F16(out)) => {
            packed(spec, q, k, v, segments, out, logsumexp);
        }
        (q, k, v, out) => {
            return Err(Error::dtype(format!(
                "attention: q {}, k {}, v {} and out {} must have one dtype",
                q.dtype(),
                k.dtype(),
                v.dtype(),
                out.dtype()
            )));
        }
    }
    Ok(())
}

fn packed<T: Float>(
    spec: &Attention,
    q: &[T],
    k: &[T],
    v: &[T],
    segments: &[usize],
    out: &mut [T],
    logsumexp: Option<&mut [f32]>,
) {
    let width = spec.kv_heads * spec.head_dim;
    let tasks = tasks(spec, q, segments, out, logsumexp);
    let memory = || (Scratch::default(), PackedTiles::new(spec, k, v));
    pool::each_with(tasks.into_iter(), 1, memory, |(scratch, tiles), _, task| {
        let start = segments[task.sequence];
        let length = segments[task.sequence + 1] - start;
        tiles.keys = &k[start * width..(start + length) * width];
        tiles.values = &v[start * width..(start + length) * width];
        let first = task.first;
        task.run(spec, first, length, tiles, scratch);
    });
}

/// Some queries of one sequence: the unit that a thread takes.
pub(super) struct Task<'a, T> {
    pub sequence: usize,
    /// Its first query, counted among the sequence's queries.
    pub first: usize,
    /// Queries.
    pub tokens: usize,
    /// Key-value heads.
    heads: Range<usize>,
    /// `[tokens, query heads of the heads, head_dim]`.
    queries: &'a [T],
    out: &'a mut [T],
    logsumexp: Option<&'a mut [f32]>,
}

/// Cuts the queries of every sequence into tasks: up to a tile of tokens with all heads, or, where a sequence has one
/// query, each key-value head by itself.
pub(super) fn tasks<'a, T: Float>(
    spec: &Attention,
    q: &'a [T],
    segments: &[usize],
    mut out: &'a mut [T],
    mut logsumexp: Option<&'a mut [f32]>,
) -> Vec<Task<'a, T>> {
    let mut tasks = Vec::with_capacity(segments.len() * spec.kv_heads);
    let mut queries = q;
    for (sequence, bounds) in segments.windows(2).enumerate() {
        let count = bounds[1] - bounds[0];
        let heads_of_task = if count == 1 { 1 } else { spec.kv_heads };
        for first in (0..count).step_by(TILE) {
            let tokens = (count - first).min(TILE);
            for head in (0..spec.kv_heads).step_by(heads_of_task) {
                let rows = tokens * heads_of_task * spec.group();
                let (task_queries, rest) = queries.split_at(rows * spec.head_dim);
                queries = rest;
                let (task_out, rest) = out.split_at_mut(rows * spec.head_dim);
                out = rest;
                let task_logsumexp = logsumexp.take().map(|all| {
                    let (mine, rest) = all.split_at_mut(rows);
                    logsumexp = Some(rest);
                    mine
                });
                tasks.push(Task {
                    sequence,
                    first,
                    tokens,
                    heads: head..head + heads_of_task,
                    queries: task_queries,
                    out: task_out,
                    logsumexp: task_logsumexp,
                });
            }
        }
    }
    tasks
}

/// Where the tiles of one sequence come from.
pub(super) trait Tiles {
    /// Their storage type.
    type Element: Float;
    /// Keys `[head_dim][64]` and values `[64 or fewer][head_dim]` of tile `index` of a key-value head.
    fn tile(&mut self, head: usize, index: usize) -> (&[Self::Element], &[Self::Element]);
}

/// Memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    query: Vec<f32>,
    running: Running,
}

impl<T: Float> Task<'_, T> {
    /// Attends; the task's first query is at position `first` of a sequence of `length` keys.
    pub fn run<S: Tiles>(
        mut self,
        spec: &Attention,
        first: usize,
        length: usize,
        tiles: &mut S,
        scratch: &mut Scratch,
    ) {
        let (dim, group, tokens) = (spec.head_dim, spec.group(), self.tokens);
        let heads = self.heads.len() * group;
        for (local, head) in self.heads.clone().enumerate() {
            scratch.query.resize(group * tokens * dim, 0.0);
            // Row r of the group is head r / tokens, token r % tokens.
            let source = |r: usize| (r % tokens) * heads + local * group + r / tokens;
            for (r, row) in scratch.query.chunks_exact_mut(dim).enumerate() {
                cast::widen(&self.queries[source(r) * dim..][..dim], row);
            }
            scratch.running.start(group * tokens, dim);
            let mut rows = Rows { query: &scratch.query, tokens, first, length, part: 0 };
            for (part, index) in spec.visits(first..first + tokens, length) {
                rows.part = part;
                let (keys, values) = tiles.tile(head, index);
                tile::attend(spec, &rows, index, keys, values, &mut scratch.running);
            }
            let running = &mut scratch.running;
            for (r, row) in running.out.chunks_exact_mut(dim).enumerate() {
                let inverse = 1.0 / running.sum[r];
                row.iter_mut().for_each(|x| *x *= inverse);
                cast::narrow(row, &mut self.out[source(r) * dim..][..dim]);
                if let Some(logsumexp) = &mut self.logsumexp {
                    logsumexp[source(r)] = running.max[r] + running.sum[r].ln();
                }
            }
        }
    }
}

/// Tiles made from `[tokens, heads, head_dim]` as they are asked for.
struct PackedTiles<'a, T> {
    heads: usize,
    dim: usize,
    keys: &'a [T],
    values: &'a [T],
    key_tile: Vec<f32>,
    value_tile: Vec<f32>,
}

impl<'a, T: Float> PackedTiles<'a, T> {
    fn new(spec: &Attention, keys: &'a [T], values: &'a [T]) -> PackedTiles<'a, T> {
        let (heads, dim) = (spec.kv_heads, spec.head_dim);
        let empty = vec![0f32; dim * TILE];
        PackedTiles { heads, dim, keys, values, key_tile: empty.clone(), value_tile: empty }
    }
}

impl<T: Float> Tiles for PackedTiles<'_, T> {
    type Element = f32;
    fn tile(&mut self, head: usize, index: usize) -> (&[f32], &[f32]) {
        let (heads, dim) = (self.heads, self.dim);
        pack_transposed(self.keys, [heads, head, dim], index, &mut self.key_tile);
        pack(self.values, [heads, head, dim], index, &mut self.value_tile);
        (&self.key_tile, &self.value_tile)
    }
}

/// One head's rows of tile `index` of `[tokens, heads, dim]`.
fn rows_of_tile<T>(
    all: &[T],
    [heads, head, dim]: [usize; 3],
    index: usize,
) -> impl Iterator<Item = &[T]> {
    let rows = all.chunks_exact(heads * dim).skip(index * TILE).take(TILE);
    rows.map(move |row| &row[head * dim..(head + 1) * dim])
}

/// A tile as `[64][dim]`; positions past the end keep what was there and are never read.
pub(super) fn pack<T: Float>(all: &[T], place: [usize; 3], index: usize, tile: &mut [f32]) {
    for (row, target) in rows_of_tile(all, place, index).zip(tile.chunks_exact_mut(place[2])) {
        cast::widen(row, target);
    }
}

/// A tile as `[dim][64]`; lanes past the end keep what was there and are masked.
pub(super) fn pack_transposed<T: Float>(
    all: &[T],
    place: [usize; 3],
    index: usize,
    tile: &mut [f32],
) {
    for (lane, row) in rows_of_tile(all, place, index).enumerate() {
        for (value, keys) in row.iter().zip(tile.as_chunks_mut::<TILE>().0) {
            keys[lane] = value.to_f32();
        }
    }
}
