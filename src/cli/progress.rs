//! How training shows itself: a bar on a terminal, with what a step is doing, and plain lines in a pipe or a file. And
//! Ctrl-C, and what a scheduler sends when a process is to end.

use super::remaining::Remaining;
use super::terminal;
use crate::error::{Error, Result};
use crate::rl::activity::Activity;
use crate::train::Phase;
use crate::train::chart::{Unit, number};
use crate::train::{Observer, StepMetrics};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Plain lines come at most this often, except for evaluations and the ends.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

/// Ctrl-C asks the loop to end with a checkpoint; a second one ends the process with status 130.
///
/// # Errors
/// [`Error::is_state`] when a handler cannot be set.
pub(super) fn catch_interrupts() -> Result<()> {
    let handler = || {
        if INTERRUPTS.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(130);
        }
        terminal::note(
            "stopping after this step, with a checkpoint (Ctrl-C again: at once, without)",
        );
    };
    ctrlc::set_handler(handler).map_err(|e| Error::state(format!("cannot catch Ctrl-C: {e}")))
}

/// Shows a run on the terminal or in the log it is piped to.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    /// The bar's last words, which it draws again several times a second.
    tail: Arc<Mutex<Tail>>,
    last_line: Option<Instant>,
    /// The newest evaluation, shown until there is a newer one.
    accuracy: Option<f32>,
    /// The reader of our output went away; training goes on.
    silent: bool,
}

impl Progress {
    pub(super) fn new() -> Progress {
        let bar = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let tail = Arc::<Mutex<Tail>>::default();
        let bar = bar.then(|| ProgressBar::new(0).with_style(live_style(Arc::clone(&tail))));
        Progress { bar, total: 0, tail, last_line: None, accuracy: None, silent: false }
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.suspend(|| self.silent |= terminal::print(&format!("{text}\n")).is_err());
        } else if !self.silent {
            self.silent = terminal::print(&format!("{text}\n")).is_err();
        }
    }
}

/// What stands at the end of the bar.
#[derive(Default)]
struct Tail {
    activity: Activity,
    remaining: Remaining,
    step: u64,
}

impl Tail {
    fn words(&self) -> String {
        let left = self.remaining.words(self.step);
        let doing = self.activity.now().map(|doing| match doing.of {
            0 | 1 => doing.what.to_owned(),
            of => format!("{} {} of {of}", doing.what, doing.done),
        });
        let parts = [doing, Some(left).filter(|left| !left.is_empty())];
        parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
    }
}

/// The bar of a run. Its message gives way where the terminal is narrow.
fn live_style(tail: Arc<Mutex<Tail>>) -> ProgressStyle {
    let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {wide_msg} {tail}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸·");
    style.with_key("tail", move |_: &ProgressState, out: &mut dyn Write| {
        let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nobody to tell when a terminal takes no more.
        let _ = out.write_str(&tail.words());
    })
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {wide_msg} {eta} left");
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸·")
}

impl Observer for Progress {
    fn begin(&mut self, done: u64, total: u64) {
        self.total = total;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.enable_steady_tick(Duration::from_millis(250));
        } else if done > 0 {
            self.line(&format!("going on after step {done} of {total}"));
        }
    }

    fn watch(&mut self, phases: &[(Phase, u64)], activity: Activity) {
        let mut tail = self.tail();
        (tail.remaining, tail.activity) = (Remaining::new(phases), activity);
    }

    fn step(&mut self, metrics: &StepMetrics) {
        self.accuracy = metrics.eval_accuracy.or(self.accuracy);
        let mut tail = self.tail();
        tail.step = metrics.step;
        tail.remaining.add(metrics.phase, metrics.seconds);
        drop(tail);
        let values = values(metrics, self.bar.is_some().then_some(self.accuracy).flatten());
        if let Some(bar) = &self.bar {
            bar.set_position(metrics.step);
            bar.set_message(values);
            if metrics.step >= self.total {
                bar.finish();
            }
            return;
        }
        let due = self.last_line.is_none_or(|last| last.elapsed() >= BETWEEN_LINES);
        if due || metrics.eval_accuracy.is_some() || metrics.step == self.total {
            self.line(&format!("step {}/{} {values}", metrics.step, self.total));
            self.last_line = Some(Instant::now());
        }
    }

    fn message(&mut self, text: &str) {
        self.line(text);
    }

    fn interrupted(&self) -> bool {
        INTERRUPTS.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

/// Shows how many of many runs are done.
pub(super) struct Count {
    bar: Option<ProgressBar>,
    silent: bool,
}

impl Count {
    pub(super) fn new() -> Count {
        let bar = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Count { bar: bar.then(|| ProgressBar::new(0).with_style(style())), silent: false }
    }

    /// `done` of `of` are; `what` is the newest. Nothing is said of none.
    pub(super) fn tell(&mut self, done: usize, of: usize, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
        } else if !self.silent && of > 0 {
            self.silent = terminal::print(&format!("{done}/{of} {what}\n")).is_err();
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// What a line shows of a step: `rl  reward 0.412  accuracy 61.0 %  entropy 0.3  13.6k tokens/s`.
fn values(metrics: &StepMetrics, accuracy: Option<f32>) -> String {
    let mut parts = vec![metrics.phase.name().to_string()];
    let mut show = |name: &str, value: Option<f32>, unit: Unit| {
        if let Some(value) = value {
            parts.push(format!("{name} {}", number(f64::from(value), unit)));
        }
    };
    show("loss", metrics.loss, Unit::Plain);
    show("reward", metrics.reward, Unit::Plain);
    show("accuracy", metrics.eval_accuracy.or(accuracy), Unit::Percent);
    show("entropy", metrics.entropy, Unit::Plain);
    parts.push(format!("{} tokens/s", number(f64::from(metrics.tokens_per_second), Unit::Plain)));
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Phase;

    #[test]
    fn a_line_shows_what_was_measured() {
        let mut metrics = StepMetrics::new(3, Phase::Rl);
        metrics.reward = Some(0.4125);
        metrics.eval_accuracy = Some(0.61);
        metrics.loss = Some(f32::NAN);
        metrics.tokens_per_second = 13_640.0;
        assert_eq!(
            values(&metrics, None),
            "rl  loss not finite  reward 0.412  accuracy 61.0 %  13.6k tokens/s"
        );
        metrics.eval_accuracy = None;
        assert!(values(&metrics, Some(0.5)).contains("accuracy 50.0 %"));
    }
}
