//! How a training loop tells what it does, and learns that it should stop.

use crate::rl::activity::Activity;
use crate::train::metrics::{Phase, StepMetrics};

/// What a training loop reports to. The program draws a progress bar with it; a library user may collect the numbers.
pub trait Observer {
    /// Training begins after `done` of `total` steps.
    fn begin(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// The phases of the run with the last step of each, and what tells what a step is doing. Comes before `begin`.
    fn watch(&mut self, phases: &[(Phase, u64)], activity: Activity) {
        let _ = (phases, activity);
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
