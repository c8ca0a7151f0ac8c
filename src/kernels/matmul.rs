//! Matrix products on a device: the checks before the device's library does them. The CPU's are
//! [`device::cpu::gemm`](crate::device::cpu::gemm).

use crate::DType;
use crate::device::engine::{Matrix, Product};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
use crate::error::{Error, Result};
use crate::kernels::cast;

/// An operand on a device, read as its transpose where `transposed`.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// Row-major matrices, one behind the other.
    pub data: DeviceSlice<'a>,
    /// Stored as the transpose of what is multiplied.
    pub transposed: bool,
}

/// `data` as it is stored.
pub fn plain(data: DeviceSlice<'_>) -> Operand<'_> {
    Operand { data, transposed: false }
}

/// The transpose of `data`.
pub fn transposed(data: DeviceSlice<'_>) -> Operand<'_> {
    Operand { data, transposed: true }
}

/// `out = a · b`, or `out += a · b` where `accumulate`, for every entry of a batch: `a [batch, m, k]`,
/// `b [batch, k, n]`, `out [batch, m, n]`.
///
/// Both operands have one float type; the result is f32 or of that type, and f32 where it is added to. Sums are in f32.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], and what the device reports.
pub fn product(
    out: DeviceSliceMut<'_>,
    a: Operand<'_>,
    b: Operand<'_>,
    [m, n, k]: [usize; 3],
    batch: usize,
    accumulate: bool,
) -> Result<()> {
    let fits = |len: usize, rows: usize, cols: usize| {
        rows.checked_mul(cols).and_then(|size| size.checked_mul(batch)) == Some(len)
    };
    if !fits(a.data.len(), m, k) || !fits(b.data.len(), k, n) || !fits(out.len(), m, n) {
        return Err(Error::shape(format!(
            "product [{m}, {k}] x [{k}, {n}] x {batch} of {} and {} elements into {}",
            a.data.len(),
            b.data.len(),
            out.len()
        )));
    }
    let matrix = |operand: Operand<'_>| Matrix {
        address: operand.data.address(),
        dtype: operand.data.dtype(),
        transposed: operand.transposed,
    };
    let product = Product {
        a: matrix(a),
        b: matrix(b),
        out: out.address(),
        out_dtype: out.dtype(),
        m,
        n,
        k,
        batch,
        accumulate,
    };
    // SAFETY: the lengths were checked.
    unsafe { out.gpu().product(&product) }
}

/// An f32 gradient in the storage type of what it is multiplied with: itself, or a rounded copy (bf16 and f16 products
/// take both operands in one type, as every trainer in these types does).
pub struct Rounded<'a> {
    exact: DeviceSlice<'a>,
    copy: Option<DeviceBuffer>,
}

impl<'a> Rounded<'a> {
    /// `gradient` as `dtype`.
    ///
    /// # Errors
    /// [`Error::is_dtype`] for an integer type, [`Error::is_state`] when the device has no memory.
    pub fn new(gradient: DeviceSlice<'a>, dtype: DType) -> Result<Rounded<'a>> {
        let copy = if gradient.dtype() == dtype {
            None
        } else {
            let mut copy = DeviceBuffer::recycled(gradient.gpu(), dtype, gradient.len())?;
            cast::launch::convert(gradient, copy.whole_mut())?;
            Some(copy)
        };
        Ok(Rounded { exact: gradient, copy })
    }

    /// The elements.
    pub fn slice(&self) -> DeviceSlice<'_> {
        self.copy.as_ref().map_or(self.exact, DeviceBuffer::whole)
    }
}
