//! What a program says on its standard error, and what is to be said about it: kept until somebody asks, within bounds.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Most lines that are kept until somebody asks. Later ones are counted.
const MOST: usize = 50;
/// Lines of standard error that are kept for an error message.
const LAST: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Notices {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: Vec<String>,
    more: u64,
    last: VecDeque<String>,
}

impl Inner {
    fn keep(&mut self, text: String) {
        if self.kept.len() < MOST {
            self.kept.push(text);
        } else {
            self.more += 1;
        }
    }
}

impl Notices {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A line of standard error.
    pub(super) fn heard(&self, line: &str) {
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        self.with(|inner| {
            inner.keep(format!("judge: {line}"));
            if inner.last.len() == LAST {
                inner.last.pop_front();
            }
            inner.last.push_back(line.to_owned());
        });
    }

    /// Something to be said about the program.
    pub(super) fn say(&self, text: String) {
        self.with(|inner| inner.keep(text));
    }

    /// All that was kept, which is then forgotten.
    pub(super) fn take(&self) -> Vec<String> {
        self.with(|inner| {
            let mut all = std::mem::take(&mut inner.kept);
            if inner.more > 0 {
                all.push(format!("judge: {} more lines", std::mem::take(&mut inner.more)));
            }
            all
        })
    }

    /// The last lines of standard error as one, for an error message; `None` where there are none.
    pub(super) fn last_words(&self) -> Option<String> {
        self.with(|inner| {
            let lines: Vec<&str> = inner.last.iter().map(String::as_str).collect();
            (!lines.is_empty()).then(|| lines.join(" | "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_the_last_words_are_kept() {
        let notices = Notices::default();
        assert_eq!(notices.last_words(), None);
        for number in 0..1000 {
            notices.heard(&format!("line {number}\n"));
        }
        notices.heard(" \n");
        let all = notices.take();
        assert_eq!(
            (all.len(), all[0].as_str(), all[MOST].as_str()),
            (MOST + 1, "judge: line 0", "judge: 950 more lines")
        );
        assert!(notices.take().is_empty());
        assert_eq!(notices.last_words().unwrap(), "line 997 | line 998 | line 999");
        notices.say("it was started again".to_owned());
        assert_eq!(notices.take(), ["it was started again"]);
    }
}
