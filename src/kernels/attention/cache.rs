//! Keys and values of sequences that are being generated, stored as the tiles that attention reads.
//!
//! A cached token is never moved or converted again. Memory grows by tiles of 64 positions. Tiles are shared between
//! sequences that were forked from one another ([`KvCache::keep`] with a row named twice) until one writes into its
//! last tile, so a group of samples of one prompt holds the prompt once. On a device the same, in [`paged`](super::paged).

use super::forward::{Scratch, Tiles, tasks};
use super::paged::Pages;
use super::products::TILE;
use super::{Attention, Mask, check_len, check_segments};
use crate::device::Device;
use crate::device::cpu::memory::{Buffer, Element};
use crate::device::cpu::pool;
use crate::device::gpu::{DeviceSlice, DeviceSliceMut, Gpu};
use crate::dtype::{DType, Float, FloatSlice, FloatSliceMut};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::sync::Arc;

/// The keys and values of a batch of sequences, for every layer of a model.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    store: Store,
}

#[derive(Clone, Debug)]
enum Store {
    F32(Vec<Sequence<f32>>),
    Bf16(Vec<Sequence<bf16>>),
    F16(Vec<Sequence<f16>>),
    Device(Pages),
}

/// One sequence: its layers.
type Sequence<T> = Vec<Layer<T>>;

#[derive(Clone, Default)]
struct Layer<T: Element> {
    /// Each `[kv_heads]` of (keys `[head_dim][64]`, values `[64][head_dim]`).
    tiles: Vec<Arc<Buffer<T>>>,
    length: usize,
}

impl<T: Element> std::fmt::Debug for Layer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} positions", self.length)
    }
}

/// Runs `$body` with `$name` bound to the sequences inside a [`Store`], `$on_device` with the pages of a device.
macro_rules! with_store {
    ($store:expr, |$name:ident| $body:expr, |$pages:ident| $on_device:expr) => {
        match $store {
            Store::F32($name) => $body,
            Store::Bf16($name) => $body,
            Store::F16($name) => $body,
            Store::Device($pages) => $on_device,
        }
    };
}

fn empty<T: Element>(sequences: usize, layers: usize) -> Vec<Sequence<T>> {
    let layer = || Layer { tiles: Vec::new(), length: 0 };
    (0..sequences).map(|_| (0..layers).map(|_| layer()).collect()).collect()
}

impl KvCache {
    /// An empty cache of `sequences` sequences that may grow to `capacity` positions each. `dtype` is that of the
    /// keys and values of the model. Memory is taken as tokens arrive.
    ///
    /// # Errors
    /// [`Error::is_dtype`] when `dtype` is no float, [`Error::is_invalid`] when a head count or width is 0.
    pub fn new(
        dtype: DType,
        layers: usize,
        sequences: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Result<KvCache> {
        KvCache::new_on(&Device::Cpu, dtype, layers, sequences, [kv_heads, head_dim], capacity)
    }

    /// [`KvCache::new`] in the memory of a device, of heads `[kv_heads, head_dim]`.
    ///
    /// # Errors
    /// As [`KvCache::new`].
    pub fn new_on(
        device: &Device,
        dtype: DType,
        layers: usize,
        sequences: usize,
        [kv_heads, head_dim]: [usize; 2],
        capacity: usize,
    ) -> Result<KvCache> {
        if kv_heads == 0 || head_dim == 0 {
            return Err(Error::invalid(format!("KV cache: {kv_heads} heads of width {head_dim}")));
        }
        let store = match (device, dtype) {
            (Device::Gpu(gpu), DType::F32 | DType::Bf16 | DType::F16) => {
                Store::Device(Pages::new(gpu, dtype, layers, sequences, [kv_heads, head_dim]))
            }
            (Device::Cpu, DType::F32) => Store::F32(empty(sequences, layers)),
            (Device::Cpu, DType::Bf16) => Store::Bf16(empty(sequences, layers)),
            (Device::Cpu, DType::F16) => Store::F16(empty(sequences, layers)),
            (_, other) => return Err(Error::dtype(format!("KV cache: {other} is not a float"))),
        };
        Ok(KvCache { layers, kv_heads, head_dim, capacity, store })
    }

    /// Sequences held.
    pub fn sequences(&self) -> usize {
        with_store!(&self.store, |sequences| sequences.len(), |pages| pages.sequences())
    }

    /// The device that holds the keys and values; `None` for host memory.
    pub(crate) fn gpu(&self) -> Option<&Arc<Gpu>> {
        match &self.store {
            Store::Device(pages) => Some(pages.gpu()),
            _ => None,
        }
    }

    /// Layers per sequence.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Positions that a sequence may grow to.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Positions that `layer` of sequence `row` holds; `None` when there is no such layer or row.
    pub fn length(&self, layer: usize, row: usize) -> Option<usize> {
        with_store!(
            &self.store,
            |sequences| Some(sequences.get(row)?.get(layer)?.length),
            |pages| pages.length(layer, row)
        )
    }

    /// Bytes of the tiles, those shared counted once.
    pub fn bytes(&self) -> usize {
        fn count<T: Element>(sequences: &[Sequence<T>]) -> usize {
            let tiles = sequences.iter().flatten().flat_map(|layer| &layer.tiles);
            let unique: std::collections::HashMap<_, _> =
                tiles.map(|tile| (Arc::as_ptr(tile), tile.len() * size_of::<T>())).collect();
            unique.values().sum()
        }
        with_store!(&self.store, |sequences| count(sequences), |pages| pages.bytes())
    }

    /// Appends tokens to `layer`: those of segment s of `k` and `v` to sequence s. A segment may be empty; one token
    /// each is a decoding step, many are a prompt.
    ///
    /// # Shapes
    /// `k`, `v` `[T, kv_heads, head_dim]` in the cache's dtype; `segments` `[sequences + 1]` rising from 0 to T.
    ///
    /// # Errors
    /// [`Error::is_shape`], [`Error::is_dtype`] and [`Error::is_index`] (no such layer) for arguments that do not
    /// fit; [`Error::is_invalid`] when a sequence would outgrow the capacity. The cache is then unchanged.
    pub fn append(
        &mut self,
        layer: usize,
        k: FloatSlice<'_>,
        v: FloatSlice<'_>,
        segments: &[usize],
    ) -> Result<()> {
        self.check_room(layer, segments)?;
        let tokens = segments.last().copied().unwrap_or(0);
        check_len("k", k.len(), [tokens, self.kv_heads, self.head_dim])?;
        check_len("v", v.len(), [tokens, self.kv_heads, self.head_dim])?;
        let place = [layer, self.kv_heads, self.head_dim];
        match (&mut self.store, k, v) {
            (Store::F32(s), FloatSlice::F32(k), FloatSlice::F32(v)) => {
                append(s, place, k, v, segments);
            }
            (Store::Bf16(s), FloatSlice::Bf16(k), FloatSlice::Bf16(v)) => {
                append(s, place, k, v, segments);
            }
            (Store::F16(s), FloatSlice::F16(k), FloatSlice::F16(v)) => {
                append(s, place, k, v, segments);
            }
            (Store::Device(_), ..) => return Err(self.elsewhere("host")),
            (_, k, v) => return Err(self.wrong_dtype(&[("k", k.dtype()), ("v", v.dtype())])),
        }
        Ok(())
    }

    /// [`KvCache::append`] of keys and values on the cache's device.
    ///
    /// # Errors
    /// As [`KvCache::append`]; [`Error::is_unsupported`] for a cache in host memory, and what the device reports.
    pub fn append_on(
        &mut self,
        layer: usize,
        k: DeviceSlice<'_>,
        v: DeviceSlice<'_>,
        segments: &[usize],
    ) -> Result<()> {
        self.check_room(layer, segments)?;
        match &mut self.store {
            Store::Device(pages) => pages.append(layer, k, v, segments),
            _ => Err(self.elsewhere("device")),
        }
    }

    /// Attention of the newest tokens of each sequence over all its cached tokens, their own (already appended)
    /// among them: the last query of segment s stands at the last position of sequence s.
    ///
    /// The same bits as [`forward`](super::forward()) gives these queries in the whole sequences.
    ///
    /// # Shapes
    /// `q`, `out` `[T, query_heads, head_dim]` in the cache's dtype; `segments` `[sequences + 1]` rising from 0 to T.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a description that makes no sense; [`Error::is_shape`], [`Error::is_dtype`] and
    /// [`Error::is_index`] (no such layer) for arguments that do not fit.
    pub fn attend(
        &self,
        spec: &Attention,
        layer: usize,
        q: FloatSlice<'_>,
        segments: &[usize],
        out: FloatSliceMut<'_>,
    ) -> Result<()> {
        self.check_queries(spec, layer, segments)?;
        let tokens = segments.last().copied().unwrap_or(0);
        check_len("q", q.len(), [tokens, spec.query_heads, spec.head_dim])?;
        check_len("out", out.len(), [tokens, spec.query_heads, spec.head_dim])?;
        match (&self.store, q, out) {
            (Store::F32(s), FloatSlice::F32(q), FloatSliceMut::F32(out)) => {
                attend(spec, s, layer, q, segments, out);
            }
            (Store::Bf16(s), FloatSlice::Bf16(q), FloatSliceMut::Bf16(out)) => {
                attend(spec, s, layer, q, segments, out);
            }
            (Store::F16(s), FloatSlice::F16(q), FloatSliceMut::F16(out)) => {
                attend(spec, s, layer, q, segments, out);
            }
            (Store::Device(_), ..) => return Err(self.elsewhere("host")),
            (_, q, out) => {
                return Err(self.wrong_dtype(&[("q", q.dtype()), ("out", out.dtype())]));
            }
        }
        Ok(())
    }

    /// [`KvCache::attend`] for queries on the cache's device.
    ///
    /// # Errors
    /// As [`KvCache::attend`]; [`Error::is_unsupported`] for a cache in host memory or heads wider than 256, and what the
    /// device reports.
    pub fn attend_on(
        &self,
        spec: &Attention,
        layer: usize,
        q: DeviceSlice<'_>,
        segments: &[usize],
        out: DeviceSliceMut<'_>,
    ) -> Result<()> {
        self.check_queries(spec, layer, segments)?;
        match &self.store {
            Store::Device(pages) => pages.attend(spec, layer, q, segments, out),
            _ => Err(self.elsewhere("device")),
        }
    }

    /// Sequence i becomes what sequence `rows[i]` was. Rows that are not named are dropped and their memory is freed;
    /// a row named more than once is forked. Costs a few pointers per sequence.
    ///
    /// # Errors
    /// [`Error::is_index`] when a row does not exist.
    pub fn keep(&mut self, rows: &[usize]) -> Result<()> {
        let count = self.sequences();
        if let Some(row) = rows.iter().find(|row| **row >= count) {
            return Err(Error::index(format!("KV cache: no sequence {row}, it holds {count}")));
        }
        fn keep<T: Element>(sequences: &mut Vec<Sequence<T>>, rows: &[usize]) {
            *sequences = rows.iter().map(|row| sequences[*row].clone()).collect();
        }
        with_store!(&mut self.store, |sequences| keep(sequences, rows), |pages| pages.keep(rows));
        Ok(())
    }

    /// Takes up forks of sequences of `other`, after its own: those that `rows` name, as [`KvCache::keep`] makes them.
    ///
    /// # Errors
    /// [`Error::is_index`] when a row does not exist, [`Error::is_shape`] when the caches are of different models,
    /// [`Error::is_unsupported`] in the memory of a device.
    pub fn take_up(&mut self, other: &KvCache, rows: &[usize]) -> Result<()> {
        let count = other.sequences();
        if let Some(row) = rows.iter().find(|row| **row >= count) {
            return Err(Error::index(format!("KV cache: no sequence {row}, it holds {count}")));
        }
        let shape = |cache: &KvCache| [cache.layers, cache.kv_heads, cache.head_dim];
        if shape(self) != shape(other) {
            return Err(Error::shape(format!(
                "KV cache: [layers, heads, width] {:?} cannot take up {:?}",
                shape(self),
                shape(other)
            )));
        }
        fn take_up<T: Element>(own: &mut Vec<Sequence<T>>, other: &[Sequence<T>], rows: &[usize]) {
            own.extend(rows.iter().map(|row| other[*row].clone()));
        }
        match (&mut self.store, &other.store) {
            (Store::F32(own), Store::F32(other)) => take_up(own, other, rows),
            (Store::Bf16(own), Store::Bf16(other)) => take_up(own, other, rows),
            (Store::F16(own), Store::F16(other)) => take_up(own, other, rows),
            (Store::Device(_), _) | (_, Store::Device(_)) => {
                return Err(Error::unsupported("KV cache: taking up sequences on a device"));
            }
            _ => return Err(Error::dtype("KV cache: taking up sequences of another type")),
        }
        Ok(())
    }

    /// Forgets what comes after the first `lengths[s]` positions of sequence s, in every layer: blocks that were tried and
    /// are not what is kept.
    ///
    /// # Errors
    /// [`Error::is_shape`] unless there is a length for each sequence, [`Error::is_invalid`] when a sequence is shorter. The
    /// cache is then unchanged.
    pub fn truncate(&mut self, lengths: &[usize]) -> Result<()> {
        if lengths.len() != self.sequences() {
            return Err(Error::shape(format!(
                "KV cache: {} lengths for {} sequences",
                lengths.len(),
                self.sequences()
            )));
        }
        for (row, kept) in lengths.iter().enumerate() {
            let held = (0..self.layers).filter_map(|layer| self.length(layer, row)).min();
            if held.is_some_and(|held| held < *kept) {
                return Err(Error::invalid(format!(
                    "KV cache: sequence {row} holds {held:?} positions, {kept} are to be kept"
                )));
            }
        }
        fn truncate<T: Element>(sequences: &mut [Sequence<T>], lengths: &[usize]) {
            for (sequence, length) in sequences.iter_mut().zip(lengths) {
                for layer in sequence {
                    layer.tiles.truncate(length.div_ceil(TILE));
                    layer.length = *length;
                }
            }
        }
        with_store!(&mut self.store, |sequences| truncate(sequences, lengths), |pages| pages
            .truncate(lengths));
        Ok(())
    }

    /// What every append relies on.
    fn check_room(&self, layer: usize, segments: &[usize]) -> Result<()> {
        self.check(layer, segments)?;
        for (row, bounds) in segments.windows(2).enumerate() {
            let length = self.length(layer, row).unwrap_or(0) + bounds[1] - bounds[0];
            if length > self.capacity {
                return Err(Error::invalid(format!(
                    "KV cache: sequence {row} would grow to {length} positions; its capacity is {}",
                    self.capacity
                )));
            }
        }
        Ok(())
    }

    /// What every attention relies on.
    fn check_queries(&self, spec: &Attention, layer: usize, segments: &[usize]) -> Result<()> {
        spec.check()?;
        self.check(layer, segments)?;
        if matches!(spec.mask, Mask::BlockDiffusion { .. }) {
            return Err(Error::unsupported(
                "KV cache: two copies of a sequence are for training; generate with the block-causal mask",
            ));
        }
        if [spec.kv_heads, spec.head_dim] != [self.kv_heads, self.head_dim] {
            return Err(Error::shape(format!(
                "KV cache: holds {} heads of {}, attention has {} of {}",
                self.kv_heads, self.head_dim, spec.kv_heads, spec.head_dim
            )));
        }
        for (row, bounds) in segments.windows(2).enumerate() {
            let length = self.length(layer, row).unwrap_or(0);
            if bounds[1] - bounds[0] > length {
                return Err(Error::shape(format!(
                    "KV cache: {} queries for sequence {row}, whose layer {layer} holds {length} positions",
                    bounds[1] - bounds[0]
                )));
            }
        }
        Ok(())
    }

    fn check(&self, layer: usize, segments: &[usize]) -> Result<()> {
        if layer >= self.layers {
            return Err(Error::index(format!("KV cache: no layer {layer} of {}", self.layers)));
        }
        if segments.len() != self.sequences() + 1 {
            return Err(Error::shape(format!(
                "KV cache: {} segment offsets for {} sequences",
                segments.len(),
                self.sequences()
            )));
        }
        check_segments(Mask::Causal, segments, segments.last().copied().unwrap_or(0))
    }

    fn elsewhere(&self, given: &str) -> Error {
        let own = match self.gpu() {
            None => "host".to_owned(),
            Some(gpu) => gpu.describe(),
        };
        Error::unsupported(format!(
            "KV cache: in {own} memory, but the tokens are in {given} memory"
        ))
    }

    fn wrong_dtype(&self, given: &[(&str, DType)]) -> Error {
        let own = match &self.store {
            Store::F32(_) => DType::F32,
            Store::Bf16(_) => DType::Bf16,
            Store::F16(_) => DType::F16,
            Store::Device(pages) => pages.dtype,
        };
        let given: Vec<_> =
            given.iter().map(|(name, dtype)| format!("{name} is {dtype}")).collect();
        Error::dtype(format!("KV cache: it holds {own} but {}", given.join(", ")))
    }
}

fn append<T: Element>(
    sequences: &mut [Sequence<T>],
    [layer, heads, dim]: [usize; 3],
    k: &[T],
    v: &[T],
    segments: &[usize],
) {
    let width = heads * dim;
    let per_task = pool::rows_per_task(width * 2 * size_of::<T>());
    pool::each(sequences.iter_mut(), per_task, |row, sequence| {
        let Some(layer) = sequence.get_mut(layer) else { return };
        for token in segments[row]..segments[row + 1] {
            let at = token * width..(token + 1) * width;
            layer.push([heads, dim], &k[at.clone()], &v[at]);
        }
    });
}

impl<T: Element> Layer<T> {
    fn push(&mut self, [heads, dim]: [usize; 2], k: &[T], v: &[T]) {
        let lane = self.length % TILE;
        if lane == 0 {
            self.tiles.push(Arc::new(Buffer::recycled(heads * 2 * dim * TILE)));
        }
        self.length += 1;
        let Some(last) = self.tiles.last_mut() else { return };
        let tile = Arc::make_mut(last);
        let heads = tile.chunks_exact_mut(2 * dim * TILE);
        for ((tile, k), v) in heads.zip(k.chunks_exact(dim)).zip(v.chunks_exact(dim)) {
            let (keys, values) = tile.split_at_mut(dim * TILE);
            for (lanes, value) in keys.as_chunks_mut::<TILE>().0.iter_mut().zip(k) {
                lanes[lane] = *value;
            }
            values[lane * dim..(lane + 1) * dim].copy_from_slice(v);
        }
    }
}

fn attend<T: Float + Element>(
    spec: &Attention,
    sequences: &[Sequence<T>],
    layer: usize,
    q: &[T],
    segments: &[usize],
    out: &mut [T],
) {
    let tasks = tasks(spec, q, segments, out, None);
    let longest = sequences.iter().map(|s| s[layer].length).max().unwrap_or(0);
    let most = tasks.iter().map(|task| task.tokens).max().unwrap_or(1);
    let bytes = most * longest * spec.head_dim * 2 * size_of::<T>();
    let together = pool::rows_per_task(bytes);
    pool::each_with(tasks.into_iter(), together, Scratch::default, |scratch, _, task| {
        let layer = &sequences[task.sequence][layer];
        let queries = segments[task.sequence + 1] - segments[task.sequence];
        let first = layer.length - queries + task.first;
        let mut tiles = CachedTiles { tiles: &layer.tiles, dim: spec.head_dim };
        task.run(spec, first, layer.length, &mut tiles, scratch);
    });
}

/// Tiles where they lie.
struct CachedTiles<'a, T: Element> {
    tiles: &'a [Arc<Buffer<T>>],
    dim: usize,
}

impl<T: Float + Element> Tiles for CachedTiles<'_, T> {
    type Element = T;
    fn tile(&mut self, head: usize, index: usize) -> (&[T], &[T]) {
        let half = self.dim * TILE;
        self.tiles[index][head * 2 * half..(head + 1) * 2 * half].split_at(half)
    }
}
