//! Sums on a device: checks and launches of `kernels/reduce.cu`.

use crate::DType;
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
use crate::error::{Error, Result};
use crate::kernels::args::{
    COLUMN_SUM_ROWS, ColumnPartialArgs, ColumnTotalArgs, RowSumArgs, SpreadArgs,
};
use crate::typed_kernel;

/// Threads of a block.
const BLOCK: u32 = 256;
/// Elements of one partial sum of [`sum`].
const CHUNK: usize = 16 * 1024;

/// `out[i] = factor · Σ_j x[i, j]` for `x [out.len(), width]`; `out` f32 or of `x`'s type.
///
/// # Errors
/// [`Error::is_shape`] when the lengths do not fit, [`Error::is_dtype`], and what the device reports.
pub fn last(x: DeviceSlice<'_>, width: usize, factor: f32, out: DeviceSliceMut<'_>) -> Result<()> {
    if x.len() != out.len() * width {
        return Err(Error::shape(format!(
            "sum of rows: {} elements as [{}, {width}]",
            x.len(),
            out.len()
        )));
    }
    row_sums(x, width, factor, out)
}

fn row_sums(
    x: DeviceSlice<'_>,
    width: usize,
    factor: f32,
    mut out: DeviceSliceMut<'_>,
) -> Result<()> {
    if out.dtype() != DType::F32 && out.dtype() != x.dtype() {
        return Err(Error::dtype(format!("sums of {} into {}", x.dtype(), out.dtype())));
    }
    let gpu = x.gpu();
    let args = RowSumArgs {
        x: x.ptr(),
        out: out.ptr(),
        len: x.len() as i64,
        width: width.max(1) as i64,
        factor,
        wide: u32::from(out.dtype() == DType::F32),
    };
    let kernel = typed_kernel!("reduce", "row_sums", x.dtype())?;
    let launch = Launch { kernel, grid: gpu.item_grid(out.len()), block: BLOCK, shared: 0 };
    // SAFETY: types and lengths were checked; a row index stays below the output's length.
    unsafe { gpu.launch(&launch, &args) }
}

/// `out = factor · Σ x`, one f32 element.
///
/// # Errors
/// As [`last`].
pub fn sum(x: DeviceSlice<'_>, factor: f32, out: DeviceSliceMut<'_>) -> Result<()> {
    if out.len() != 1 || out.dtype() != DType::F32 {
        return Err(Error::shape(format!("a sum into {} elements of {}", out.len(), out.dtype())));
    }
    let gpu = x.gpu();
    let mut partial = DeviceBuffer::recycled(gpu, DType::F32, x.len().div_ceil(CHUNK).max(1))?;
    if x.is_empty() {
        partial.fill_bytes(0)?;
    } else {
        row_sums(x, CHUNK, 1.0, partial.whole_mut())?;
    }
    let blocks = partial.len();
    row_sums(partial.whole(), blocks, factor, out)
}

/// `out[j] = Σ_i x[i, j]` (f32) for `x [rows, out.len()]`: 64 rows at a time, then the partial sums in order.
///
/// # Errors
/// As [`last`].
pub fn columns(x: DeviceSlice<'_>, mut out: DeviceSliceMut<'_>) -> Result<()> {
    let width = out.len();
    if width == 0 || !x.len().is_multiple_of(width) {
        return Err(Error::shape(format!("sum of columns: {} elements over {width}", x.len())));
    }
    let (gpu, rows) = (x.gpu(), x.len() / width);
    let blocks = rows.div_ceil(COLUMN_SUM_ROWS as usize);
    let mut partial = DeviceBuffer::recycled(gpu, DType::F32, blocks * width)?;
    let across = u32::try_from(width.div_ceil(BLOCK as usize))
        .map_err(|_| Error::shape(format!("sum of {width} columns")))?;
    if rows > 0 {
        let args = ColumnPartialArgs {
            x: x.typed::<f32>()?,
            partial: partial.whole_mut().typed::<f32>()?,
            rows: rows as i64,
            width: width as i64,
        };
        let launch = Launch {
            kernel: Kernel::new("reduce", "column_partials"),
            grid: [across, blocks.min(65_535) as u32, 1],
            block: BLOCK,
            shared: 0,
        };
        // SAFETY: types and lengths were checked.
        unsafe { gpu.launch(&launch, &args)? };
    }
    let args = ColumnTotalArgs {
        partial: partial.whole().typed::<f32>()?,
        out: out.typed::<f32>()?,
        blocks: blocks as i64,
        width: width as i64,
        accumulate: 0,
        unused: 0,
    };
    let kernel = Kernel::new("reduce", "column_totals");
    let launch = Launch { kernel, grid: [across, 1, 1], block: BLOCK, shared: 0 };
    // SAFETY: the partial sums are [blocks, width].
    unsafe { gpu.launch(&launch, &args) }
}

/// `out[i, j] = factor · x[i]` (f32) for `out [x.len(), width]`.
///
/// # Errors
/// As [`last`].
pub fn spread(x: DeviceSlice<'_>, factor: f32, mut out: DeviceSliceMut<'_>) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    if x.is_empty() || !out.len().is_multiple_of(x.len()) {
        return Err(Error::shape(format!("{} elements over {}", x.len(), out.len())));
    }
    let gpu = x.gpu();
    let args = SpreadArgs {
        x: x.typed::<f32>()?,
        out: out.typed::<f32>()?,
        rows: x.len() as i64,
        width: (out.len() / x.len()) as i64,
        factor,
        unused: 0,
    };
    let kernel = Kernel::new("reduce", "spread");
    let launch =
        Launch { kernel, grid: gpu.stride_grid(out.len(), BLOCK), block: BLOCK, shared: 0 };
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&launch, &args) }
}
