//! Matrix products: f32 in, f32 out, over one crate.
//!
//! The engine is `gemmkit`, pinned; `gemm` is its oracle in the tests, and `docs/dependencies.md` has the measurement
//! behind the choice. To change the engine, change [`run`].
//!
//! A row of a product must have the same bits whatever the number of rows: that is what lets a token sampled with a
//! KV cache (few rows) have the log-prob that training computes (many rows). The engine gives that from two rows on
//! and takes another path for a matrix-vector product, so products of fewer than [`FEWEST_ROWS`] rows are padded.

use super::memory::Buffer;
use super::pool;
use crate::error::{Error, Result};
use gemmkit::{MatMut, MatRef, Parallelism};

/// Products with fewer rows are computed with this many, the rest zeros.
pub const FEWEST_ROWS: usize = 8;

/// Multiply-adds below which one thread is faster than two.
const PARALLEL_FROM: usize = 1 << 18;

/// A dense operand: row-major `[rows, cols]`, read as its transpose where `transposed`.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    data: &'a [f32],
    transposed: bool,
}

/// `data` as it is stored.
pub fn plain(data: &[f32]) -> Operand<'_> {
    Operand { data, transposed: false }
}

/// The transpose of `data`.
pub fn transposed(data: &[f32]) -> Operand<'_> {
    Operand { data, transposed: true }
}

impl<'a> Operand<'a> {
    /// As a `[rows, cols]` matrix after any transposition.
    fn matrix(self, rows: usize, cols: usize) -> MatRef<'a, f32> {
        if self.transposed {
            MatRef::new(self.data, rows, cols, 1, rows as isize)
        } else {
            MatRef::from_row_major(self.data, rows, cols)
        }
    }
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
    if c.len() != m * n || a.data.len() != m * k || b.data.len() != k * n {
        return Err(Error::shape(format!(
            "matmul [{m}, {k}] x [{k}, {n}]: operands of {} and {} elements, result of {}",
            a.data.len(),
            b.data.len(),
            c.len()
        )));
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    if k == 0 {
        if !accumulate {
            c.fill(0.0);
        }
        return Ok(());
    }
    if m >= FEWEST_ROWS || a.transposed {
        run(c, a.matrix(m, k), b.matrix(k, n), [m, n, k], accumulate);
        return Ok(());
    }
    let mut padded = Buffer::<f32>::zeroed(FEWEST_ROWS * k);
    padded[..m * k].copy_from_slice(a.data);
    let mut rows = Buffer::<f32>::recycled(FEWEST_ROWS * n);
    run(
        &mut rows,
        MatRef::from_row_major(&padded, FEWEST_ROWS, k),
        b.matrix(k, n),
        [FEWEST_ROWS, n, k],
        false,
    );
    if accumulate {
        c.iter_mut().zip(rows.iter()).for_each(|(c, r)| *c += r);
    } else {
        c.copy_from_slice(&rows[..m * n]);
    }
    Ok(())
}

fn run(
    c: &mut [f32],
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    [m, n, k]: [usize; 3],
    accumulate: bool,
) {
    let beta = if accumulate { 1.0 } else { 0.0 };
    let c = MatMut::from_row_major(c, m, n);
    let threads = pool::threads();
    if threads == 1 || m * n * k < PARALLEL_FROM {
        gemmkit::gemm(1.0, a, b, beta, c, Parallelism::Serial);
    } else {
        pool::install(|| gemmkit::gemm(1.0, a, b, beta, c, Parallelism::Rayon(threads)));
    }
}
