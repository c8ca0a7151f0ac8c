//! The private thread pool that every CPU kernel runs on.
//!
//! Private, so that a host program's own rayon pool (PyTorch's, say) is never entered and its size never assumed.

use crate::error::{Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::cell::Cell;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// Bytes of work below which handing a chunk to another thread costs more than it saves.
pub const GRAIN: usize = 64 * 1024;

thread_local! {
    /// This thread is inside [`on_this_thread`].
    static HERE: Cell<bool> = const { Cell::new(false) };
}

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

/// The number of threads kernels run on when called from here: 1 inside [`alone`] and [`on_this_thread`].
pub fn threads() -> usize {
    if HERE.get() {
        return 1;
    }
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

/// Runs `work` on the thread that calls, with every kernel that it calls: for shares of a batch that [`each`] has
/// already given to every thread of the pool, where dividing each small kernel again would only cost hand-overs.
pub fn on_this_thread<R>(work: impl FnOnce() -> R) -> R {
    /// Puts the mark back when a panic passes, too.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            HERE.set(self.0);
        }
    }
    let _restore = Restore(HERE.replace(true));
    work()
}

/// Runs `work` inside the pool.
///
/// Already inside the pool this is a plain call, so wrap a whole training loop in it to pay the hand-over once.
pub fn install<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if HERE.get() || rayon::current_thread_index().is_some() {
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
    each(data.chunks_mut(size), 1, block);
}

/// Runs `work(i, part)` for every part, each on one thread; a thread takes `together` consecutive ones at a time.
///
/// Parts come from plain iterators (`chunks_mut`, `zip`), and one function that is no generic starts the threads:
/// rayon's own iterators compile a splitting tree for every chain, which made up a third of this crate.
pub fn each<P: Send>(
    parts: impl ExactSizeIterator<Item = P> + Send,
    together: usize,
    work: impl Fn(usize, P) + Sync,
) {
    each_with(parts, together, || (), |(), i, part| work(i, part));
}

/// [`each`], with a state that a thread makes once and keeps for all the parts it works on.
pub fn each_with<S, P: Send>(
    parts: impl ExactSizeIterator<Item = P> + Send,
    together: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize, P) + Sync,
) {
    let count = parts.len();
    let together = together.clamp(1, count.max(1));
    let tasks = count.div_ceil(together);
    if tasks <= 1 {
        let mut state = state();
        return parts.enumerate().for_each(|(i, part)| work(&mut state, i, part));
    }
    let queue = Mutex::new(parts.enumerate());
    on_threads(tasks, &|| {
        let mut kept: Option<S> = None;
        let mut mine = Vec::with_capacity(together);
        loop {
            let mut rest = queue.lock().unwrap_or_else(PoisonError::into_inner);
            mine.extend(rest.by_ref().take(together));
            drop(rest);
            if mine.is_empty() {
                return;
            }
            let state = kept.get_or_insert_with(&state);
            mine.drain(..).for_each(|(i, part)| work(state, i, part));
        }
    });
}

/// [`each`] for work that can fail: the error of the first part that has one. All parts are worked on.
///
/// # Errors
/// The first by the order of the parts, whatever the order they were worked on in.
pub fn try_each<P: Send>(
    parts: impl ExactSizeIterator<Item = P> + Send,
    together: usize,
    work: impl Fn(usize, P) -> Result<()> + Sync,
) -> Result<()> {
    let first: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    each(parts, together, |i, part| {
        if let Err(error) = work(i, part) {
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.as_ref().is_none_or(|(at, _)| i < *at) {
                *first = Some((i, error));
            }
        }
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Runs `work` on up to `most` threads at once, one of them the caller's.
fn on_threads(most: usize, work: &(dyn Fn() + Sync)) {
    if HERE.get() {
        return work();
    }
    install_unit(&mut || {
        let others = rayon::current_num_threads().min(most) - 1;
        rayon::scope(|scope| {
            for _ in 0..others {
                scope.spawn(|_| work());
            }
            work();
        });
    });
}

fn install_unit(work: &mut (dyn FnMut() + Send)) {
    install(work);
}

/// How many rows of `bytes_per_row` bytes make one [`GRAIN`]: how many [`each`] is to take together.
pub fn rows_per_task(bytes_per_row: usize) -> usize {
    (GRAIN / bytes_per_row.max(1)).max(1)
}
