//! The crate that multiplies, with the settings under which a row's bits do not depend on the other rows.
//!
//! The engine is `gemmkit`, pinned; `gemm` is its oracle in the tests, and `docs/dependencies.md` has the measurement
//! behind the choice. To change the engine, change this file.

use crate::device::cpu::pool;
use crate::device::cpu::simd::{self, Level};
use gemmkit::{MatMut, MatRef, Parallelism};
use std::sync::Once;

/// Columns of a product (as the engine sees it: our rows) above which the other operand is packed. The engine's own
/// 1024 leaves a row-major weight of 1024 columns in place, a page from row to row, at half the speed.
pub(super) const PACK_FROM: usize = 32;

/// Multiply-adds below which one thread is faster than two.
const PARALLEL_FROM: usize = 1 << 18;

static TUNED: Once = Once::new();

/// `c = a · b`, or `c += a · b` where `accumulate`, of matrices that fit.
pub(super) fn run(
    c: MatMut<'_, f32>,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    [m, n, k]: [usize; 3],
    accumulate: bool,
) {
    let threads = if m * n * k < PARALLEL_FROM { 1 } else { pool::threads() };
    run_on(threads, c, a, b, accumulate);
}

/// [`run`] on so many threads: the bits are the same.
pub(super) fn run_on(
    threads: usize,
    c: MatMut<'_, f32>,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    accumulate: bool,
) {
    TUNED.call_once(|| {
        gemmkit::tuning::set_lhs_pack_threshold(PACK_FROM);
        // Its path for results that are small both ways adds in another order than the others do, and its blocks for
        // small results are deeper than those of large ones: a row's bits would depend on how many rows there are.
        gemmkit::tuning::set_small_mn_dim(0);
        gemmkit::tuning::set_tiny_block_dim(0);
    });
    let beta = if accumulate { 1.0 } else { 0.0 };
    if threads == 1 {
        gemmkit::gemm(1.0, a, b, beta, c, Parallelism::Serial);
    } else {
        pool::install(|| gemmkit::gemm(1.0, a, b, beta, c, Parallelism::Rayon(threads)));
    }
}

/// Terms of a sum of `k` that the engine adds up before it adds them to the result.
///
/// A product that is given to it in slices of this depth, one added to the other, has the bits of the product that is given
/// whole. (Another depth would be right too, to other bits.)
pub(super) fn depth(k: usize) -> usize {
    // Rows and columns of the tile that it keeps in registers, for f32.
    let (rows, cols) = match simd::detected() {
        Level::Avx512 => (32, 12),
        Level::Avx2 => (16, 6),
        Level::Portable if cfg!(target_arch = "aarch64") => (16, 4),
        Level::Portable => (4, 4),
    };
    // Of a result that is not small the depth depends on `k` alone.
    const LARGE: usize = 1 << 16;
    gemmkit::topology().blocking(rows, cols, size_of::<f32>(), LARGE, LARGE, k).kc.max(1)
}
