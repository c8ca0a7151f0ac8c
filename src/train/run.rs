//! The loop of every kind of run: steps, evaluations, checkpoints, interruptions.
//!
//! What is trained is a [`Trainee`]. The loop knows no model and no loss; it counts, measures time, writes the logs, reads a
//! device's status word once per step and saves.

use super::best::Best;
use super::metrics::{Phase, StepMetrics};
use super::observer::Observer;
use super::run_dir::{Logs, RunDir};
use super::settings::CheckpointSettings;
use super::starts::Start;
use crate::device::Device;
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use crate::optim::Update;
use crate::rl::activity::Activity;
use crate::tensor::autograd::with_grad;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every step was done.
    Finished,
    /// The observer asked to stop; a checkpoint was written and the run can be resumed.
    Interrupted,
}

/// What a run trains: its phases, its measurements, its state.
pub trait Trainee: Send {
    /// Steps done, all phases together.
    fn step(&self) -> u64;

    /// Steps of all phases.
    fn total_steps(&self) -> u64;

    /// The phases in their order, each with the last of its steps.
    fn phases(&self) -> Vec<(Phase, u64)>;

    /// What tells what a step is doing.
    fn activity(&self) -> Activity {
        Activity::default()
    }

    /// A line about what a step of a big model costs; `None`: nothing worth a line.
    ///
    /// # Errors
    /// What a first pass of the model reports.
    fn cost(&mut self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Where it is.
    fn device(&self) -> Device;

    /// Does the next step, and what has to happen where a phase ends with it. Gives its measurements and the tokens that it
    /// generated and trained on.
    ///
    /// # Errors
    /// [`Error::is_numeric`] after three updates in a row with a NaN or infinity, naming the step and the parameter; whatever
    /// else the step reports.
    fn train(&mut self, logs: &mut Logs) -> Result<(StepMetrics, usize)>;

    /// True where step `step`, just done, is to be followed by an evaluation.
    fn evaluates_after(&self, step: u64) -> bool;

    /// Measures on held-out data, into the step's measurements.
    ///
    /// # Errors
    /// Whatever it reports.
    fn measure(&mut self, metrics: &mut StepMetrics, logs: &mut Logs) -> Result<()>;

    /// Lines that the step left for the user, e.g. what a program that judges wrote on its standard error.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }

    /// What is kept on the disk.
    fn checkpoint(&self) -> &CheckpointSettings;

    /// The counters that a resumed run goes on from.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when they are not JSON.
    fn state(&self) -> Result<serde_json::Value>;

    /// Writes models and optimizers into the folder of a checkpoint.
    ///
    /// # Errors
    /// [`Error::is_io`].
    fn save(&self, folder: &Path) -> Result<()>;
}

/// Runs the steps that are left.
///
/// # Errors
/// What the trainee reports; [`Error::is_index`] naming what a kernel met on a device (an id out of range);
/// [`Error::is_io`] when the run directory cannot be written.
pub fn run(
    trainee: &mut dyn Trainee,
    run: &RunDir,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let mut logs = run.logs()?;
    let mut checkpoints = run.checkpoints(trainee.checkpoint().keep);
    let mut best = match trainee.checkpoint().best {
        true => Best::of_run(&run.metrics()?),
        false => None,
    };
    if let Some(best) = best {
        checkpoints.protect(best.step);
    }
    let total = trainee.total_steps();
    if trainee.step() < total {
        Start::now(&trainee.device(), trainee.step()).note(run)?;
    }
    observer.watch(&trainee.phases(), trainee.activity());
    observer.begin(trainee.step(), total);
    if trainee.step() < total
        && let Some(line) = pool::install(|| trainee.cost())?
    {
        observer.message(&line);
    }
    while trainee.step() < total {
        let started = Instant::now();
        // Inside the pool from here on: an operation then costs no hand-over.
        let (mut metrics, tokens) = pool::install(|| with_grad(|| trainee.train(&mut logs)))?;
        let done = trainee.step();
        if trainee.evaluates_after(done) {
            pool::install(|| trainee.measure(&mut metrics, &mut logs))?;
        }
        if let Device::Gpu(gpu) = trainee.device() {
            gpu.check_status().map_err(|e| e.at(format!("step {done}")))?;
        }
        trainee.activity().end();
        metrics.seconds = started.elapsed().as_secs_f64();
        metrics.tokens_per_second = (tokens as f64 / metrics.seconds.max(1e-9)) as f32;
        logs.metrics.write(&metrics)?;
        observer.step(&metrics);
        for line in trainee.notices() {
            observer.message(&line);
        }
        let interrupted = observer.interrupted() && done < total;
        let every = trainee.checkpoint().every;
        let mut due = interrupted || done == total || (every > 0 && done.is_multiple_of(every));
        if trainee.checkpoint().best
            && let Some(now) = Best::of_step(&metrics)
        {
            let before = best.replace(best.map_or(now, |best| best.or(now)));
            if best != before {
                checkpoints.protect(done);
                due = true;
            }
        }
        if due {
            logs.sync()?;
            let saved = checkpoints.save(done, &trainee.state()?, |folder| trainee.save(folder))?;
            observer.message(&format!("checkpoint {}", saved.path.display()));
        }
        if interrupted {
            return Ok(Outcome::Interrupted);
        }
    }
    Ok(Outcome::Finished)
}

/// Optimizer updates in a row that may be skipped for a NaN or infinity before the run ends.
const MOST_SKIPPED: u64 = 3;

/// Updates that were skipped for a NaN or infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// In the whole run.
    pub total: u64,
    /// The last ones, without one between them that was done.
    pub in_a_row: u64,
}

impl Skipped {
    /// Counts a skipped update; the third in a row ends the run.
    ///
    /// # Errors
    /// [`Error::is_numeric`] naming the step and the parameter.
    pub fn watch(&mut self, step: u64, loss: f32, update: &Update) -> Result<()> {
        let Some(parameter) = &update.skipped else {
            self.in_a_row = 0;
            return Ok(());
        };
        self.total += 1;
        self.in_a_row += 1;
        if self.in_a_row >= MOST_SKIPPED {
            return Err(Error::numeric(format!(
                "step {step}: loss {loss}, gradient norm {}, the first bad gradient is that of `{parameter}`; \
                 {MOST_SKIPPED} updates in a row were skipped (a smaller learning rate, or a larger clip epsilon, \
                 may help)",
                update.grad_norm
            )));
        }
        Ok(())
    }
}
