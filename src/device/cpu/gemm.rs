//! Matrix products: f32 in, f32 out, over one crate.
//!
//! The engine is `gemmkit`, pinned; `gemm` is its oracle in the tests, and `docs/dependencies.md` has the measurement
//! behind the choice. To change the engine, change `run`.
//!
//! A row of a product must have the same bits whatever the number of rows: that is what lets a token sampled with a
//! KV cache (few rows) have the log-prob that training computes (many rows). The engine gives that from two rows on
//! and takes another path for a matrix-vector product, so products of fewer than [`FEWEST_ROWS`] rows are padded.

use super::memory::Buffer;
use super::pool;
use crate::error::{Error, Result};
use gemmkit::{MatMut, MatRef, Parallelism};
use std::sync::Once;

/// Products with fewer rows are computed with this many, the rest zeros.
pub const FEWEST_ROWS: usize = 8;

/// Columns of a product (as the engine sees it: our rows) from which the other operand is packed. The engine's own
/// 1024 leaves a row-major weight of 1024 columns in place, a page from row to row, at half the speed.
const PACK_FROM: usize = 32;

static TUNED: Once = Once::new();

/// Multiply-adds below which one thread is faster than two.
const PARALLEL_FROM: usize = 1 << 18;

/// Rows of both operands that are taken at a time into a product over rows (the gradient of a weight), where the result
/// is small: 256 rows of some hundred columns stay in the second-level cache and thousands do not.
const DEPTH: usize = 256;
/// Elements of a result that is small.
const SMALL_RESULT: usize = 1 << 18;

/// An operand: row-major `[rows, cols]`, read as its transpose where `transposed`.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    data: &'a [f32],
    transposed: bool,
    /// Elements from one stored row to the next; `None` for a dense matrix.
    stride: Option<usize>,
}

/// `data` as it is stored.
pub fn plain(data: &[f32]) -> Operand<'_> {
    Operand { data, transposed: false, stride: None }
}

/// The transpose of `data`.
pub fn transposed(data: &[f32]) -> Operand<'_> {
    Operand { data, transposed: true, stride: None }
}

impl<'a> Operand<'a> {
    /// The same with `stride` elements from one stored row to the next: some columns of a wider matrix.
    pub fn with_stride(self, stride: usize) -> Operand<'a> {
        Operand { stride: Some(stride), ..self }
    }

    /// Stored rows and columns, and their stride, of what is `[rows, cols]` after any transposition.
    fn stored(self, rows: usize, cols: usize) -> ([usize; 2], usize) {
        let stored = if self.transposed { [cols, rows] } else { [rows, cols] };
        (stored, self.stride.unwrap_or(stored[1]))
    }

    fn fits(self, rows: usize, cols: usize) -> bool {
        let (stored, stride) = self.stored(rows, cols);
        match self.stride {
            None => Some(self.data.len()) == rows.checked_mul(cols),
            Some(_) => fits(self.data.len(), stored, stride),
        }
    }

    /// Without its first `rows` stored rows; the rest has as many columns as before, `cols`.
    fn skip(self, rows: usize, cols: usize) -> Operand<'a> {
        let stride = self.stride.unwrap_or(cols);
        let data = self.data.get(rows * stride..).unwrap_or_default();
        Operand { data, stride: Some(stride), ..self }
    }

    /// As a `[rows, cols]` matrix after any transposition.
    fn matrix(self, rows: usize, cols: usize) -> MatRef<'a, f32> {
        let stride = self.stored(rows, cols).1 as isize;
        let (down, right) = if self.transposed { (1, stride) } else { (stride, 1) };
        MatRef::new(self.data, rows, cols, down, right)
    }
}

/// True when `len` elements hold `rows` rows of `cols` at this stride.
fn fits(len: usize, [rows, cols]: [usize; 2], stride: usize) -> bool {
    rows == 0
        || cols == 0
        || (stride >= cols && len >= (rows - 1).saturating_mul(stride).saturating_add(cols))
}

/// `c [m, n] = a [m, k] · b [k, n]`, added to `c` where `accumulate`.
///
/// The shapes are those after any transposition: `matmul(c, plain(x), transposed(w), …)` is `x · wᵀ` with `w [n, k]`.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit.
pub fn matmul(
    c: &mut [f32],
    a: Operand<'_>,
    b: Operand<'_>,
    [m, n, k]: [usize; 3],
    accumulate: bool,
) -> Result<()> {
    if c.len() != m * n {
        return Err(misfit(c.len(), a, b, [m, n, k]));
    }
    matmul_columns(c, n, a, b, [m, n, k], accumulate)
}

fn misfit(c: usize, a: Operand<'_>, b: Operand<'_>, [m, n, k]: [usize; 3]) -> Error {
    let (a, b) = (a.data.len(), b.data.len());
    Error::shape(format!(
        "matmul [{m}, {k}] x [{k}, {n}]: operands of {a} and {b} elements, result of {c}"
    ))
}

/// [`matmul`] into `n` columns of a wider `c`, whose rows are `stride` elements apart.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit.
pub fn matmul_columns(
    c: &mut [f32],
    stride: usize,
    a: Operand<'_>,
    b: Operand<'_>,
    [m, n, k]: [usize; 3],
    accumulate: bool,
) -> Result<()> {
    if !fits(c.len(), [m, n], stride) || !a.fits(m, k) || !b.fits(k, n) {
        return Err(misfit(c.len(), a, b, [m, n, k]));
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 {
        if !accumulate {
            c.chunks_mut(stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return Ok(());
    }
    if a.transposed && !b.transposed && k > DEPTH && m * n <= SMALL_RESULT {
        for first in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - first);
            let c = MatMut::new(&mut *c, m, n, stride as isize, 1);
            let (a, b) = (a.skip(first, m).matrix(m, depth), b.skip(first, n).matrix(depth, n));
            run(c, a, b, [m, n, depth], accumulate || first > 0);
        }
        return Ok(());
    }
    if m >= FEWEST_ROWS || a.transposed {
        let c = MatMut::new(c, m, n, stride as isize, 1);
        run(c, a.matrix(m, k), b.matrix(k, n), [m, n, k], accumulate);
        return Ok(());
    }
    let mut padded = Buffer::<f32>::zeroed(FEWEST_ROWS * k);
    let a_rows = a.data.chunks(a.stride.unwrap_or(k));
    for (padded, row) in padded.chunks_mut(k).zip(a_rows.take(m)) {
        padded.copy_from_slice(&row[..k]);
    }
    let mut rows = Buffer::<f32>::recycled(FEWEST_ROWS * n);
    run(
        MatMut::from_row_major(&mut rows, FEWEST_ROWS, n),
        MatRef::from_row_major(&padded, FEWEST_ROWS, k),
        b.matrix(k, n),
        [FEWEST_ROWS, n, k],
        false,
    );
    for (c, row) in c.chunks_mut(stride).zip(rows.chunks(n)).take(m) {
        if accumulate {
            c.iter_mut().zip(row).for_each(|(c, r)| *c += r);
        } else {
            c[..n].copy_from_slice(row);
        }
    }
    Ok(())
}

fn run(
    c: MatMut<'_, f32>,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    [m, n, k]: [usize; 3],
    accumulate: bool,
) {
    TUNED.call_once(|| {
        gemmkit::tuning::set_lhs_pack_threshold(PACK_FROM);
        // Its path for results that are small both ways adds in another order than the others do: a row's bits would
        // depend on how many rows there are.
        gemmkit::tuning::set_small_mn_dim(0);
    });
    let beta = if accumulate { 1.0 } else { 0.0 };
    let threads = pool::threads();
    if threads == 1 || m * n * k < PARALLEL_FROM {
        gemmkit::gemm(1.0, a, b, beta, c, Parallelism::Serial);
    } else {
        pool::install(|| gemmkit::gemm(1.0, a, b, beta, c, Parallelism::Rayon(threads)));
    }
}
