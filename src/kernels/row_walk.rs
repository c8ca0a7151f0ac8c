//! Who shares a row on a device: the launch side of `kernels/row_walk.cuh`.

use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::Gpu;
use crate::error::{Error, Result};
use crate::kernels::args::{WARP_ROW_WIDTH, WEIGHT_SUM_ROWS};

/// Threads of a block.
pub(super) const BLOCK: u32 = 256;
/// Threads of a warp: a row up to [`WARP_ROW_WIDTH`] belongs to one.
const WARP: u32 = 32;

/// Whether arrays at these addresses may be read 16 bytes at a time.
pub(super) fn aligned(addresses: &[u64]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(16))
}

/// [`aligned`], for each row of arrays whose smallest element has `size` bytes.
pub(super) fn aligned_rows(addresses: &[u64], width: usize, size: usize) -> u32 {
    u32::from(aligned(addresses) && (width * size).is_multiple_of(16))
}

/// The launch of a kernel that shares rows of `width` among warps or blocks.
pub(super) fn rows(gpu: &Gpu, kernel: Kernel, rows: usize, width: usize) -> Launch {
    let in_a_block = if width <= WARP_ROW_WIDTH as usize { (BLOCK / WARP) as usize } else { 1 };
    Launch { kernel, grid: gpu.item_grid(rows.div_ceil(in_a_block)), block: BLOCK, shared: 0 }
}

/// The launch of a kernel whose threads take `group` elements of a run each.
pub(super) fn groups(gpu: &Gpu, kernel: Kernel, len: usize, group: usize) -> Launch {
    let grid = gpu.stride_grid(len.div_ceil(group), BLOCK);
    Launch { kernel, grid, block: BLOCK, shared: 0 }
}

/// Rows of the partial sums of a weight's gradient.
pub(super) fn weight_sums(rows: usize) -> usize {
    rows.div_ceil(WEIGHT_SUM_ROWS as usize)
}

/// The launch of a kernel that makes [`weight_sums`]: a thread a column.
///
/// # Errors
/// [`Error::is_shape`] for more columns than a grid has threads.
pub(super) fn weights(kernel: Kernel, rows: usize, width: usize) -> Result<Launch> {
    let across = u32::try_from(width.div_ceil(BLOCK as usize))
        .map_err(|_| Error::shape(format!("{}: {width} columns", kernel.name)))?;
    let down = weight_sums(rows).min(65_535) as u32;
    Ok(Launch { kernel, grid: [across, down, 1], block: BLOCK, shared: 0 })
}
