//! Calls into crates that panic on some files of model folders: a panic becomes an error, and its text is not printed.

use crate::error::{Error, Result};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives. The hook that prints panics is wrapped once in a process, so that it stays silent for a thread in here.
///
/// # Errors
/// [`Error::is_format`] naming `place` when it panics.
pub(super) fn guarded<T>(place: &str, work: impl FnOnce() -> T) -> Result<T> {
    static WRAPPED: Once = Once::new();
    // A thread that panics already may not change the hook.
    if !std::thread::panicking() {
        WRAPPED.call_once(|| {
            let shown = take_hook();
            set_hook(Box::new(move |panic| {
                if !GUARDED.get() {
                    shown(panic);
                }
            }));
        });
    }
    let outer = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    done.map_err(|_| {
        Error::format(format!(
            "{place}: it cannot be used: what it asks for is contradictory or out of range"
        ))
    })
}
