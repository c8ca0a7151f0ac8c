//! A KV cache on a device: pages of 64 positions that sequences share until one writes into them.
//!
//! The host knows every length, so it decides which page a token goes to; keys and values never leave the device.

use super::launch::{Keys, Segments, attend, grid, same_dtype, upload_i32};
use super::{Attention, Mask, check_len};
use crate::DType;
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::Result;
use crate::kernels::args::{ATTENTION_PAGE, CacheAppendArgs, CacheCopyArgs};
use crate::typed_kernel;
use std::collections::HashSet;
use std::sync::Arc;

/// Positions of a page.
const PAGE: usize = ATTENTION_PAGE as usize;
/// Threads of a block.
const BLOCK: u32 = 128;

/// The keys and values of a batch of sequences.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    gpu: Arc<Gpu>,
    pub dtype: DType,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    sequences: Vec<Sequence>,
    /// The addresses of all pages, on the device, while they are the sequences'.
    table: Option<Arc<Table>>,
    /// The newest tokens and what they made of the lengths, on the device: the same for every layer of a step.
    step: Option<Arc<Step>>,
}

#[derive(Clone)]
struct Sequence {
    /// Each `[layers][2][kv_heads][64][head_dim]`.
    pages: Vec<Arc<DeviceBuffer>>,
    /// Positions of each layer.
    lengths: Vec<usize>,
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pages", self.pages.len())
    }
}

struct Table {
    /// u64 `[sequences, per_sequence]`, 0 where there is no page.
    addresses: DeviceBuffer,
    per_sequence: usize,
}

struct Step {
    new: Vec<usize>,
    segments: Segments,
    lengths: Vec<usize>,
    lengths_on_device: DeviceBuffer,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pages a sequence", self.per_sequence)
    }
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.segments.tokens())
    }
}

impl Pages {
    pub fn new(
        gpu: &Arc<Gpu>,
        dtype: DType,
        layers: usize,
        sequences: usize,
        [kv_heads, head_dim]: [usize; 2],
    ) -> Pages {
        let empty = Sequence { pages: Vec::new(), lengths: vec![0; layers] };
        let (gpu, sequences) = (Arc::clone(gpu), vec![empty; sequences]);
        Pages { gpu, dtype, layers, kv_heads, head_dim, sequences, table: None, step: None }
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    pub fn length(&self, layer: usize, row: usize) -> Option<usize> {
        self.sequences.get(row)?.lengths.get(layer).copied()
    }

    pub fn bytes(&self) -> usize {
        let pages = self.sequences.iter().flat_map(|sequence| &sequence.pages);
        pages.map(Arc::as_ptr).collect::<HashSet<_>>().len() * self.page() * self.dtype.size()
    }

    pub fn keep(&mut self, rows: &[usize]) {
        self.sequences = rows.iter().map(|row| self.sequences[*row].clone()).collect();
        (self.table, self.step) = (None, None);
    }

    /// Keeps checked lengths; the pages beyond them are filled again.
    pub fn truncate(&mut self, lengths: &[usize]) {
        for (sequence, length) in self.sequences.iter_mut().zip(lengths) {
            sequence.lengths.fill(*length);
        }
        self.step = None;
    }

    /// Elements of one layer of a page.
    fn layer(&self) -> usize {
        2 * self.kv_heads * PAGE * self.head_dim
    }

    /// Elements of a page.
    fn page(&self) -> usize {
        self.layers * self.layer()
    }

    /// Appends checked tokens: layer, row count and capacity are right.
    pub fn append(
        &mut self,
        layer: usize,
        k: DeviceSlice<'_>,
        v: DeviceSlice<'_>,
        segments: &[usize],
    ) -> Result<()> {
        let tokens = segments.last().copied().unwrap_or(0);
        check_len("k", k.len(), [tokens, self.kv_heads, self.head_dim])?;
        check_len("v", v.len(), [tokens, self.kv_heads, self.head_dim])?;
        same_dtype(self.dtype, &[("k", k.dtype()), ("v", v.dtype())])?;
        if tokens == 0 {
            return Ok(());
        }
        self.make_room(layer, segments)?;
        self.grow(layer, segments, usize::wrapping_add);
        let done = self.write(layer, k, v, segments);
        if done.is_err() {
            self.grow(layer, segments, usize::wrapping_sub);
        }
        done
    }

    /// Counts the new tokens, or takes them back.
    fn grow(&mut self, layer: usize, segments: &[usize], by: fn(usize, usize) -> usize) {
        for (sequence, bounds) in self.sequences.iter_mut().zip(segments.windows(2)) {
            sequence.lengths[layer] = by(sequence.lengths[layer], bounds[1] - bounds[0]);
        }
    }

    /// Copies the counted tokens to their pages.
    fn write(
        &mut self,
        layer: usize,
        k: DeviceSlice<'_>,
        v: DeviceSlice<'_>,
        segments: &[usize],
    ) -> Result<()> {
        let (table, step) = (self.table()?, self.step(layer, segments)?);
        let args = CacheAppendArgs {
            k: k.ptr(),
            v: v.ptr(),
            segments: step.segments.offsets().typed::<i32>()?,
            lengths: step.lengths_on_device.whole().typed::<i32>()?,
            pages: table.addresses.whole().ptr().cast(),
            status: self.gpu.status(),
            tokens: step.segments.tokens() as i64,
            page_offset: (layer * self.layer()) as i64,
            sequences: self.sequences.len() as i32,
            pages_per_sequence: table.per_sequence as i32,
            kv_heads: self.kv_heads as i32,
            head_dim: self.head_dim as i32,
        };
        let grid = self.gpu.item_grid(step.segments.tokens());
        (self.table, self.step) = (Some(table), Some(step));
        let kernel = typed_kernel!("attention_cache", "cache_append", self.dtype)?;
        let launch = Launch { kernel, grid, block: BLOCK, shared: 0 };
        // SAFETY: types and lengths were checked; every new position has a page of its sequence's own.
        unsafe { self.gpu.launch(&launch, &args) }
    }

    /// Pages for the new positions of `layer`: new ones at the end, copies of those that others hold too.
    fn make_room(&mut self, layer: usize, segments: &[usize]) -> Result<()> {
        let page = self.page();
        let mut pairs: Vec<[u64; 2]> = Vec::new();
        // What is replaced lives until the copies are on their way.
        let mut replaced = Vec::new();
        for (sequence, bounds) in self.sequences.iter_mut().zip(segments.windows(2)) {
            let from = sequence.lengths[layer];
            let to = from + bounds[1] - bounds[0];
            if from == to {
                continue;
            }
            for index in from / PAGE..to.div_ceil(PAGE) {
                if let Some(held) = sequence.pages.get_mut(index) {
                    if Arc::get_mut(held).is_none() {
                        let own = Arc::new(DeviceBuffer::recycled(&self.gpu, self.dtype, page)?);
                        pairs.push([held.whole().address(), own.whole().address()]);
                        replaced.push(std::mem::replace(held, own));
                        self.table = None;
                    }
                } else {
                    let own = DeviceBuffer::recycled(&self.gpu, self.dtype, page)?;
                    sequence.pages.push(Arc::new(own));
                    self.table = None;
                }
            }
        }
        if pairs.is_empty() {
            return Ok(());
        }
        let page_bytes = page * self.dtype.size();
        let on_device =
            DeviceBuffer::upload(&self.gpu, DType::U8, bytemuck::cast_slice(pairs.as_flattened()))?;
        let args = CacheCopyArgs {
            pairs: on_device.whole().ptr().cast(),
            count: pairs.len() as i64,
            page_bytes: page_bytes as i64,
        };
        let across = page_bytes.div_ceil(16 * BLOCK as usize).min(64);
        let launch = Launch {
            kernel: Kernel::new("attention_cache", "cache_copy"),
            grid: grid(across, pairs.len().min(65_535), 1)?,
            block: BLOCK,
            shared: 0,
        };
        // SAFETY: both pages of a pair have this size, and the new one is nobody else's.
        unsafe { self.gpu.launch(&launch, &args) }
    }

    fn table(&self) -> Result<Arc<Table>> {
        if let Some(table) = &self.table {
            return Ok(Arc::clone(table));
        }
        let per_sequence = self.sequences.iter().map(|s| s.pages.len()).max().unwrap_or(0).max(1);
        let mut addresses = vec![0u64; self.sequences.len() * per_sequence];
        for (row, sequence) in addresses.chunks_mut(per_sequence).zip(&self.sequences) {
            for (address, page) in row.iter_mut().zip(&sequence.pages) {
                *address = page.whole().address();
            }
        }
        let addresses =
            DeviceBuffer::upload(&self.gpu, DType::U8, bytemuck::cast_slice(&addresses))?;
        Ok(Arc::new(Table { addresses, per_sequence }))
    }

    fn step(&self, layer: usize, segments: &[usize]) -> Result<Arc<Step>> {
        let lengths = self.sequences.iter().map(|sequence| sequence.lengths[layer]);
        if let Some(step) = &self.step
            && step.new == segments
            && step.lengths.iter().copied().eq(lengths.clone())
        {
            return Ok(Arc::clone(step));
        }
        let lengths: Vec<usize> = lengths.collect();
        Ok(Arc::new(Step {
            new: segments.to_vec(),
            segments: Segments::upload(&self.gpu, Mask::Causal, segments)?,
            lengths_on_device: upload_i32(&self.gpu, &lengths)?,
            lengths,
        }))
    }

    /// Attention of checked queries: layer, row count, head counts and lengths are right.
    pub fn attend(
        &self,
        spec: &Attention,
        layer: usize,
        q: DeviceSlice<'_>,
        segments: &[usize],
        out: DeviceSliceMut<'_>,
    ) -> Result<()> {
        same_dtype(self.dtype, &[("q", q.dtype())])?;
        let (table, step) = (self.table()?, self.step(layer, segments)?);
        let keys = Keys::Paged {
            lengths: step.lengths_on_device.whole(),
            table: table.addresses.whole(),
            pages_per_sequence: table.per_sequence,
            page_offset: layer * self.layer(),
            longest: step.lengths.iter().copied().max().unwrap_or(0),
        };
        attend(spec, q, keys, &step.segments, out, None)
    }
}
