//! Rows by index on a device: checks and launches of `kernels/rows.cu`.

use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::args::{GatherRowsArgs, RowListArgs, ScatterAddRowsArgs};
use crate::kernels::row_walk::{self, BLOCK};
use std::ffi::c_void;

/// Columns that one block of the gradient adds up.
const COLUMNS: usize = 4 * BLOCK as usize;

/// Indices as argument structs hold them: the address, and whether they are 64-bit.
fn index_of(index: DeviceSlice<'_>) -> Result<(*const c_void, u32)> {
    match index.dtype() {
        DType::I32 => Ok((index.ptr(), 0)),
        DType::I64 => Ok((index.ptr(), 1)),
        other => Err(Error::dtype(format!("rows by an index of {other}: it is i32 or i64"))),
    }
}

/// `out[i] = table[index[i]]` for rows of `width` elements of any type; a row of zeros, and a bit in the device's
/// status, for an index outside the table.
///
/// # Shapes
/// `table [rows, width]`, `index [n]` i32 or i64, `out [n, width]` of the table's type.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], and what the device reports.
pub fn gather(
    table: DeviceSlice<'_>,
    index: DeviceSlice<'_>,
    width: usize,
    mut out: DeviceSliceMut<'_>,
) -> Result<()> {
    if out.len() != index.len() * width || !table.len().is_multiple_of(width.max(1)) {
        return Err(Error::shape(format!(
            "gather: {} rows of {width} from {} into {} elements",
            index.len(),
            table.len(),
            out.len()
        )));
    }
    if table.dtype() != out.dtype() {
        return Err(Error::dtype(format!("gather: {} into {}", table.dtype(), out.dtype())));
    }
    let (indices, wide_index) = index_of(index)?;
    if out.is_empty() {
        return Ok(());
    }
    let row_bytes = width * table.dtype().size();
    // The widest word that divides rows and addresses.
    let common = table.address() | out.address() | row_bytes as u64;
    let (word, name) = match common.trailing_zeros() {
        0 => (1, "gather_rows_1"),
        1 => (2, "gather_rows_2"),
        2 | 3 => (4, "gather_rows_4"),
        _ => (16, "gather_rows_16"),
    };
    let gpu = table.gpu();
    let units = row_bytes / word;
    let args = GatherRowsArgs {
        table: table.ptr(),
        index: indices,
        out: out.ptr(),
        status: gpu.status(),
        rows: (table.len() / width) as i64,
        len: index.len() as i64,
        units: units as i64,
        wide_index,
        unused: 0,
    };
    let launch = row_walk::groups(gpu, Kernel::new("rows", name), index.len() * units, 1);
    // SAFETY: types and lengths were checked; words divide rows and addresses.
    unsafe { gpu.launch(&launch, &args) }
}

/// `out[r] = Σ x[i]` over the places `i` with `index[i] = r`, in the order of the places; 0 where there is none. An
/// index outside the table adds to nothing and sets a bit in the device's status.
///
/// # Shapes
/// `x [n, width]` f32, `index [n]` i32 or i64, `out [rows, width]` f32, which is written whole.
///
/// # Errors
/// [`Error::is_shape`], also for 2³¹ places or more, [`Error::is_dtype`], and what the device reports.
pub fn scatter_add(
    x: DeviceSlice<'_>,
    index: DeviceSlice<'_>,
    width: usize,
    mut out: DeviceSliceMut<'_>,
) -> Result<()> {
    let places = index.len();
    if x.len() != places * width || !out.len().is_multiple_of(width.max(1)) {
        return Err(Error::shape(format!(
            "gradient of gathered rows: {} elements for {places} rows of {width} into {}",
            x.len(),
            out.len()
        )));
    }
    if i32::try_from(places).is_err() {
        return Err(Error::shape(format!("gradient of {places} gathered rows: 2^31 are too many")));
    }
    let (indices, wide_index) = index_of(index)?;
    let (from, to) = (x.typed::<f32>()?, out.typed::<f32>()?);
    out.fill_bytes(0)?;
    if x.is_empty() || out.is_empty() {
        return Ok(());
    }
    let gpu = x.gpu();
    let rows = out.len() / width;
    // Counts of all rows, then the cursor: what must be zero.
    let mut count = DeviceBuffer::zeros(gpu, DType::I32, rows + 1)?;
    let mut lists = DeviceBuffer::recycled(gpu, DType::I32, rows + 3 * places)?;
    let (count, start) = (count.whole_mut().typed::<i32>()?, lists.whole_mut().typed::<i32>()?);
    let list = RowListArgs {
        index: indices,
        count,
        start,
        cursor: count.wrapping_add(rows),
        ticket: start.wrapping_add(rows),
        unordered: start.wrapping_add(rows + places),
        ordered: start.wrapping_add(rows + 2 * places),
        status: gpu.status(),
        rows: rows as i64,
        len: places as i64,
        wide_index,
        unused: 0,
    };
    for name in ["row_list_count", "row_list_start", "row_list_place", "row_list_order"] {
        let launch = row_walk::groups(gpu, Kernel::new("rows", name), places, 1);
        // SAFETY: types and lengths were checked; the work space is as long as the struct says.
        unsafe { gpu.launch(&launch, &list)? };
    }
    let args = ScatterAddRowsArgs {
        index: indices,
        count,
        start,
        ordered: list.ordered,
        x: from,
        out: to,
        rows: rows as i64,
        len: places as i64,
        width: width as i64,
        wide_index,
        aligned: row_walk::aligned_rows(&[x.address(), out.address()], width, size_of::<f32>()),
    };
    let across = gpu.item_grid(places)[0];
    let launch = Launch {
        kernel: Kernel::new("rows", "scatter_add_rows"),
        grid: [across, width.div_ceil(COLUMNS).min(65_535) as u32, 1],
        block: BLOCK,
        shared: 0,
    };
    // SAFETY: as above; the lists were made by the launches before.
    unsafe { gpu.launch(&launch, &args) }
}
