//! What is being done inside a step, for whoever watches a run: "generating 37 of 128".

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A counter that work advances and a display reads, from any thread. Copies are the same counter. It changes no result.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<Counter>);

#[derive(Debug, Default)]
struct Counter {
    what: Mutex<&'static str>,
    done: AtomicUsize,
    of: AtomicUsize,
}

/// What an [`Activity`] says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doing {
    /// The work: `generating`, `judging`, `updating`.
    pub what: &'static str,
    /// Parts of it that are done.
    pub done: usize,
    /// Parts in all.
    pub of: usize,
}

impl Activity {
    /// Begins other work of so many parts.
    pub fn begin(&self, what: &'static str, of: usize) {
        *self.0.what.lock().unwrap_or_else(PoisonError::into_inner) = what;
        self.0.done.store(0, Ordering::Relaxed);
        self.0.of.store(of, Ordering::Relaxed);
    }

    /// So many parts more are done.
    pub fn advance(&self, parts: usize) {
        self.0.done.fetch_add(parts, Ordering::Relaxed);
    }

    /// Nothing is being done that has parts.
    pub fn end(&self) {
        self.begin("", 0);
    }

    /// What is being done; `None` between works.
    pub fn now(&self) -> Option<Doing> {
        let what = *self.0.what.lock().unwrap_or_else(PoisonError::into_inner);
        let of = self.0.of.load(Ordering::Relaxed);
        let done = self.0.done.load(Ordering::Relaxed).min(of);
        (!what.is_empty()).then_some(Doing { what, done, of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_one_counter() {
        let activity = Activity::default();
        assert_eq!(activity.now(), None);
        activity.begin("generating", 3);
        let copy = activity.clone();
        std::thread::scope(|scope| drop(scope.spawn(|| copy.advance(2))));
        assert_eq!(activity.now(), Some(Doing { what: "generating", done: 2, of: 3 }));
        activity.advance(5);
        assert_eq!(copy.now().unwrap().done, 3);
        copy.end();
        assert_eq!(activity.now(), None);
    }
}
