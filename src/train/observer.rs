//! How a training loop tells what it does, and learns that it should stop.

use crate::train::metrics::StepMetrics;

/// What a training loop reports to. The program draws a progress bar with it; a library user may collect the numbers.
pub trait Observer {
    /// Training begins after `done` of `total` steps.
    fn begin(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// A step is complete and in `metrics.jsonl`.
    fn step(&mut self, metrics: &StepMetrics) {
        let _ = metrics;
    }

    /// Something worth a line: an evaluation, a checkpoint, a skipped optimizer step.
    fn message(&mut self, text: &str) {
        let _ = text;
    }

    /// True once the user wants the run to end. A loop asks after every step, and ends with a checkpoint.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Reports nothing and never interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
