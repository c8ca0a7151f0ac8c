//! The private thread pool that every CPU kernel runs on.
//!
//! Private, so that a host program's own rayon pool (PyTorch's, say) is never entered and its size never assumed.

use crate::error::{Error, Result};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Arc, OnceLock, RwLock};

/// Bytes of work below which handing a chunk to another thread costs more than it saves.
pub const GRAIN: usize = 64 * 1024;

static POOL: OnceLock<RwLock<Option<Arc<ThreadPool>>>> = OnceLock::new();

fn build(threads: usize) -> Result<Arc<ThreadPool>> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("gradstone-{i}"))
        .build()
        .map(Arc::new)
        .map_err(|e| Error::invalid(format!("cannot start {threads} threads: {e}")))
}

fn slot() -> &'static RwLock<Option<Arc<ThreadPool>>> {
    POOL.get_or_init(|| RwLock::new(build(0).ok()))
}

fn current() -> Option<Arc<ThreadPool>> {
    slot().read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}

/// Uses `threads` threads from now on (0: one per core). Results do not change with it.
///
/// # Errors
/// [`Error::is_invalid`] when the operating system refuses the threads.
pub fn set_threads(threads: usize) -> Result<()> {
    let pool = build(threads)?;
    *slot().write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(pool);
    Ok(())
}

/// The number of threads kernels run on when called from here: 1 inside [`alone`].
pub fn threads() -> usize {
    if rayon::current_thread_index().is_some() {
        return rayon::current_num_threads();
    }
    current().map_or(1, |pool| pool.current_num_threads())
}

/// Runs `work` on one thread, with every kernel that it calls: for independent runs side by side, one a core.
///
/// In the shared pool a run that waits for a part of its work would be given a part of another run's meanwhile, in
/// the middle of its own; here it waits for nobody. Results do not change with it.
///
/// # Errors
/// [`Error::is_invalid`] when the operating system refuses the thread.
pub fn alone<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R> {
    Ok(build(1)?.install(work))
}

/// Runs `work` inside the pool; rayon's parallel iterators in it use the pool's threads.
///
/// Already inside the pool this is a plain call, so wrap a whole training loop in it to pay the hand-over once.
pub fn install<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() {
        return work();
    }
    match current() {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// Runs `block(i, chunk)` for each chunk of `data`, on the calling thread when there is only one.
///
/// Handing work over from outside the pool costs some 40 µs, which is more than a small tensor's arithmetic.
pub fn blocks<T: Send>(data: &mut [T], size: usize, block: impl Fn(usize, &mut [T]) + Sync) {
    if data.len() <= size {
        if !data.is_empty() {
            block(0, data);
        }
        return;
    }
    install(|| data.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| block(i, chunk)));
}

/// How many rows of `bytes_per_row` bytes make one [`GRAIN`]: the `with_min_len` of a loop over rows.
pub fn rows_per_task(bytes_per_row: usize) -> usize {
    (GRAIN / bytes_per_row.max(1)).max(1)
}
