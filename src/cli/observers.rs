//! Several observers of one run: what is shown, and what other programs read.

use crate::error::Error;
use crate::rl::activity::Activity;
use crate::train::export::tensorboard::EventFile;
use crate::train::{Observer, Phase, StepMetrics};
use std::path::PathBuf;

/// Writes every step to an event file of TensorBoard. An error is said once; training goes on.
pub(super) struct Events {
    folder: PathBuf,
    file: Option<EventFile>,
    failed: Option<Error>,
}

impl Events {
    pub(super) fn new(folder: PathBuf) -> Events {
        Events { folder, file: None, failed: None }
    }

    /// What went wrong and has not been said.
    fn complaint(&mut self) -> Option<String> {
        self.failed.take().map(|error| format!("no more events for TensorBoard: {error}"))
    }

    fn begin(&mut self, done: u64) {
        match EventFile::create(&self.folder, done) {
            Ok(file) => self.file = Some(file),
            Err(error) => self.failed = Some(error),
        }
    }

    fn step(&mut self, metrics: &StepMetrics) {
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.add(metrics)) {
            (self.file, self.failed) = (None, Some(error));
        }
    }
}

/// What is shown, with events beside it where they are wanted.
pub(super) struct Observers<'a> {
    pub shown: &'a mut dyn Observer,
    pub events: Option<Events>,
}

impl Observers<'_> {
    fn complain(&mut self) {
        if let Some(complaint) = self.events.as_mut().and_then(Events::complaint) {
            self.shown.message(&complaint);
        }
    }
}

impl Observer for Observers<'_> {
    fn begin(&mut self, done: u64, total: u64) {
        self.shown.begin(done, total);
        if let Some(events) = &mut self.events {
            events.begin(done);
        }
        self.complain();
    }

    fn watch(&mut self, phases: &[(Phase, u64)], activity: Activity) {
        self.shown.watch(phases, activity);
    }

    fn step(&mut self, metrics: &StepMetrics) {
        self.shown.step(metrics);
        if let Some(events) = &mut self.events {
            events.step(metrics);
        }
        self.complain();
    }

    fn message(&mut self, text: &str) {
        self.shown.message(text);
    }

    fn interrupted(&self) -> bool {
        self.shown.interrupted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Said(Vec<String>, u64);

    impl Observer for Said {
        fn step(&mut self, metrics: &StepMetrics) {
            self.1 = metrics.step;
        }

        fn message(&mut self, text: &str) {
            self.0.push(text.to_owned());
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_said_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let mut said = Said::default();
        let events = Some(Events::new(file.join("events")));
        let mut both = Observers { shown: &mut said, events };
        both.begin(0, 3);
        for step in 1..4 {
            both.step(&StepMetrics::new(step, Phase::Rl));
        }
        assert_eq!((said.0.len(), said.1), (1, 3));
        assert!(said.0[0].contains("TensorBoard"));
    }
}
