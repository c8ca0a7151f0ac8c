//! Text ids to bytes on a device: checks and launches of the text part of `kernels/token_decode.cu`.
//!
//! How many bytes there are is known to the device alone. [`measure`] finds the places, [`Measured::copy`] writes the
//! bytes into memory that the caller gives; [`Measured::total`] is the one place that waits, for those who want memory
//! that fits exactly.

use super::table::{Strip, Table};
use super::text;
use crate::DType;
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{DECODE_TILE, TokenDecodeArgs};
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// Threads of a block.
const BLOCK: u32 = 256;

/// A [`Table`] in device memory.
pub struct DeviceTable {
    entries: DeviceBuffer,
    first: Option<DeviceBuffer>,
    long: DeviceBuffer,
    vocab: usize,
    strip: Strip,
}

impl DeviceTable {
    /// A copy of `table`.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] for a table that cuts characters outside ASCII, or more than 255, from the beginning
    /// of a text, or has a token of 16 MiB; what the device reports.
    pub fn upload(gpu: &Arc<Gpu>, table: &Table) -> Result<DeviceTable> {
        let strip = table.strip.unwrap_or(Strip { character: ' ', count: 0 });
        let longest = table.longest();
        if !strip.character.is_ascii() || strip.count > 255 || longest >= 1 << 24 {
            return Err(Error::unsupported(format!(
                "token_decode on a device: {strip:?}, tokens of up to {longest} bytes"
            )));
        }
        let copy = |bytes: &[u8]| DeviceBuffer::upload(gpu, DType::U8, bytes);
        Ok(DeviceTable {
            entries: copy(table.entries.as_flattened())?,
            first: table.first.as_ref().map(|first| copy(first.as_flattened())).transpose()?,
            long: copy(&table.long)?,
            vocab: table.len(),
            strip,
        })
    }
}

/// The places of the bytes of texts, on a device.
pub struct Measured<'a> {
    table: &'a DeviceTable,
    ids: DeviceSlice<'a>,
    skip_special: bool,
    segments: DeviceBuffer,
    lengths: DeviceBuffer,
    starts: DeviceBuffer,
    offsets: DeviceBuffer,
}

/// Finds the places of the bytes of texts: `ids` i32, text t being `ids[segments[t]..segments[t + 1]]`. Nothing waits.
///
/// An id outside the table has no bytes and sets a status bit.
///
/// # Errors
/// [`Error::is_shape`] when `segments` do not rise from 0 to the number of ids, [`Error::is_dtype`] for other ids, and
/// what the device reports.
pub fn measure<'a>(
    table: &'a DeviceTable,
    ids: DeviceSlice<'a>,
    segments: &[usize],
    skip_special: bool,
) -> Result<Measured<'a>> {
    text::check_segments(segments, ids.len())?;
    let gpu = ids.gpu();
    let host: Vec<i64> = segments.iter().map(|at| *at as i64).collect();
    let mut measured = Measured {
        table,
        ids,
        skip_special,
        segments: DeviceBuffer::upload(gpu, DType::I64, bytemuck::cast_slice(&host))?,
        lengths: DeviceBuffer::recycled(gpu, DType::I32, ids.len())?,
        starts: DeviceBuffer::recycled(gpu, DType::I64, ids.len() + 1)?,
        offsets: DeviceBuffer::recycled(gpu, DType::I64, segments.len())?,
    };
    let tiles = ids.len().div_ceil(DECODE_TILE as usize);
    let mut sums = DeviceBuffer::recycled(gpu, DType::I64, tiles + 1)?;
    let mut args = measured.args()?;
    args.sums = sums.whole_mut().typed::<i64>()?;
    args.lengths = measured.lengths.whole_mut().typed::<i32>()?.cast();
    args.starts = measured.starts.whole_mut().typed::<i64>()?;
    args.offsets = measured.offsets.whole_mut().typed::<i64>()?;
    let texts = segments.len() - 1;
    let mut kernels = vec![("decode_lengths", gpu.stride_grid(ids.len(), BLOCK))];
    if table.strip.count > 0 {
        kernels.push(("decode_strip", gpu.stride_grid(texts, BLOCK)));
    }
    kernels.push(("decode_tile_sums", gpu.item_grid(tiles)));
    kernels.push(("decode_scan_tiles", [1, 1, 1]));
    kernels.push(("decode_starts", gpu.item_grid(tiles)));
    kernels.push(("decode_offsets", gpu.stride_grid(texts + 1, BLOCK)));
    for (name, grid) in kernels {
        let kernel = Kernel::new("token_decode", name);
        // SAFETY: the segments were checked, every buffer has the length that the struct's comments say.
        unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, &args)? };
    }
    Ok(measured)
}

impl Measured<'_> {
    fn args(&self) -> Result<TokenDecodeArgs> {
        let DeviceTable { entries, first, long, vocab, strip } = self.table;
        let first = first.as_ref().map_or(Ok(null()), |first| first.whole().typed::<u8>())?;
        Ok(TokenDecodeArgs {
            ids: self.ids.typed::<i32>()?,
            segments: self.segments.whole().typed::<i64>()?,
            entries: entries.whole().typed::<u8>()?,
            first,
            long_tokens: long.whole().typed::<u8>()?,
            lengths: self.lengths.whole().typed::<i32>()?.cast_mut().cast(),
            sums: null_mut(),
            starts: self.starts.whole().typed::<i64>()?.cast_mut(),
            offsets: self.offsets.whole().typed::<i64>()?.cast_mut(),
            bytes: null_mut(),
            status: self.ids.gpu().status(),
            tokens: self.ids.len() as i64,
            texts: self.segments.len() as i64 - 1,
            capacity: 0,
            vocab: *vocab as i32,
            skip_special: u32::from(self.skip_special),
            strip: u32::from(strip.character),
            strip_count: strip.count as u32,
        })
    }

    /// `[ids + 1]` i64: where the bytes of each token begin.
    pub fn starts(&self) -> DeviceSlice<'_> {
        self.starts.whole()
    }

    /// `[texts + 1]` i64: where each text begins.
    pub fn offsets(&self) -> DeviceSlice<'_> {
        self.offsets.whole()
    }

    /// Bytes of all texts. Waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn total(&self) -> Result<usize> {
        let mut total = [0u8; 8];
        self.starts.download(self.ids.len()..self.ids.len() + 1, &mut total)?;
        Ok(i64::from_le_bytes(total) as usize)
    }

    /// Writes the bytes to `out` (u8), as far as it reaches. Nothing waits.
    ///
    /// # Errors
    /// [`Error::is_dtype`] for memory of another type, and what the device reports.
    pub fn copy(&self, mut out: DeviceSliceMut<'_>) -> Result<()> {
        let mut args = self.args()?;
        args.capacity = out.len() as i64;
        args.bytes = out.typed::<u8>()?;
        let gpu = self.ids.gpu();
        let tiles = self.ids.len().div_ceil(DECODE_TILE as usize);
        let kernel = Kernel::new("token_decode", "decode_copy");
        let launch = Launch { kernel, grid: gpu.item_grid(tiles), block: BLOCK, shared: 0 };
        // SAFETY: what `measure` wrote, and no byte past the capacity.
        unsafe { gpu.launch(&launch, &args) }
    }

    /// The bytes, in memory that fits them. Waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn bytes(&self) -> Result<DeviceBuffer> {
        let mut bytes = DeviceBuffer::recycled(self.ids.gpu(), DType::U8, self.total()?)?;
        self.copy(bytes.whole_mut())?;
        Ok(bytes)
    }
}
