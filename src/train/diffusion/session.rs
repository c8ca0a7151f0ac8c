//! A run that teaches a model to fill masked blocks: next-token prediction, then diffusion, checkpoints, resume.
//!
//! As in the runs of reinforcement, every draw is a function of the seed and the step, so a killed run that is resumed
//! writes the same bits.

use super::learner::Learner;
use super::settings::DiffusionSettings;
use crate::device::Device;
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use crate::models::Decoder;
use crate::optim::{AdamW, Update};
use crate::rl::block_decoding::fill;
use crate::rl::filling::Decoding;
use crate::tasks::source_text::Split;
use crate::tensor::Gradients;
use crate::tensor::autograd::with_grad;
use crate::train::checkpoint::Checkpoint;
use crate::train::metrics::{Phase, Rollout, StepMetrics};
use crate::train::observer::Observer;
use crate::train::run_dir::{Logs, RunDir};
use crate::train::session::{Outcome, stop_ids};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// Optimizer updates in a row that may be skipped for a NaN or infinity before the run ends.
const MOST_SKIPPED: u64 = 3;
const OPTIMIZER: &str = "optimizer.safetensors";
/// Rounds of masks in which the bound is measured while training.
const ROUNDS: u64 = 1;

/// The counters of a run, as `state.json` holds them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: u64,
    skipped_in_a_row: u64,
}

/// A run in memory.
pub struct DiffusionSession {
    settings: DiffusionSettings,
    learner: Learner,
    optimizer: AdamW,
    state: State,
}

impl DiffusionSession {
    /// A new run, its model on `device`.
    ///
    /// # Errors
    /// As [`Learner::new`].
    pub fn new(settings: DiffusionSettings, device: &Device) -> Result<DiffusionSession> {
        let learner = Learner::new(&settings, device)?;
        let first = match settings.next_token.steps {
            0 => &settings.diffusion,
            _ => &settings.next_token,
        };
        let optimizer = AdamW::new(first.optimizer.clone(), learner.model.parameters())?;
        Ok(DiffusionSession { settings, learner, optimizer, state: State::default() })
    }

    /// A run as it was when `checkpoint` was written.
    ///
    /// # Errors
    /// As [`DiffusionSession::new`], and for files of the checkpoint that are missing or damaged.
    pub fn resumed(
        settings: DiffusionSettings,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<DiffusionSession> {
        let mut session = DiffusionSession::new(settings, device)?;
        let dtype = session.learner.model.dtype();
        session.state = checkpoint.state()?;
        let mut model = Decoder::load(&checkpoint.path, Some(dtype))?;
        model.set_checkpointed(session.settings.recompute);
        model.move_to(device)?;
        session.learner.model = model;
        let phase = match session.state.step < session.settings.next_token.steps {
            true => &session.settings.next_token,
            false => &session.settings.diffusion,
        };
        session.optimizer = AdamW::load(
            phase.optimizer.clone(),
            session.learner.model.parameters(),
            &checkpoint.path.join(OPTIMIZER),
        )?;
        Ok(session)
    }

    /// The model with its text.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Runs the steps that are left.
    ///
    /// # Errors
    /// [`Error::is_numeric`] after three updates in a row with a NaN or infinity; [`Error::is_io`] when the run directory
    /// cannot be written.
    pub fn run(&mut self, run: &RunDir, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut logs = run.logs()?;
        let checkpoints = run.checkpoints(self.settings.checkpoint.keep);
        let total = self.settings.total_steps();
        observer.begin(self.state.step, total);
        while self.state.step < total {
            let started = Instant::now();
            let next = self.state.step + 1;
            let first_phase = next <= self.settings.next_token.steps;
            let (mut metrics, tokens) = pool::install(|| {
                with_grad(|| match first_phase {
                    true => self.next_token_step(next),
                    false => self.diffusion_step(next),
                })
            })?;
            self.state.step = next;
            if next == self.settings.next_token.steps {
                self.optimizer = AdamW::new(
                    self.settings.diffusion.optimizer.clone(),
                    self.learner.model.parameters(),
                )?;
            }
            if self.evaluates_after(next) {
                pool::install(|| self.evaluate(next, &mut metrics, &mut logs))?;
            }
            metrics.seconds = started.elapsed().as_secs_f64();
            metrics.tokens_per_second = (tokens as f64 / metrics.seconds.max(1e-9)) as f32;
            logs.metrics.write(&metrics)?;
            observer.step(&metrics);
            let interrupted = observer.interrupted() && next < total;
            let every = self.settings.checkpoint.every;
            if interrupted || next == total || (every > 0 && next.is_multiple_of(every)) {
                logs.sync()?;
                let saved = checkpoints.save(next, &self.state, |folder| self.save(folder))?;
                observer.message(&format!("checkpoint {}", saved.path.display()));
            }
            if interrupted {
                return Ok(Outcome::Interrupted);
            }
        }
        Ok(Outcome::Finished)
    }

    fn next_token_step(&mut self, step: u64) -> Result<(StepMetrics, usize)> {
        let mut gradients = Gradients::new();
        let done = self.learner.next_token(step - 1, &mut gradients)?;
        let phase = &self.settings.next_token;
        let factor = phase.schedule.factor(step - 1, phase.steps);
        let update = self.learner.update(&mut self.optimizer, &gradients, factor)?;
        self.watch(step, done.loss, &update)?;
        let mut metrics = StepMetrics::new(step, Phase::NextToken);
        metrics.loss = Some(done.loss);
        metrics.entropy = Some(done.entropy);
        metrics.grad_norm = Some(update.grad_norm);
        Ok((metrics, done.tokens))
    }

    fn diffusion_step(&mut self, step: u64) -> Result<(StepMetrics, usize)> {
        let mut gradients = Gradients::new();
        let place = step - 1 - self.settings.next_token.steps;
        let noising = self.settings.noising;
        let done = self.learner.denoise(&noising, step - 1, place, &mut gradients)?;
        let phase = &self.settings.diffusion;
        let factor = phase.schedule.factor(place, phase.steps);
        let update = self.learner.update(&mut self.optimizer, &gradients, factor)?;
        self.watch(step, done.loss, &update)?;
        let mut metrics = StepMetrics::new(step, Phase::Diffusion);
        metrics.loss = Some(done.loss);
        metrics.grad_norm = Some(update.grad_norm);
        let more = [
            ("masked_loss", done.masked_loss),
            ("masked", done.masked),
            ("wasted_blocks", done.wasted),
        ];
        metrics.more.extend(more.map(|(name, value)| (name.to_owned(), value)));
        Ok((metrics, done.tokens))
    }

    /// Counts skipped updates; the third in a row ends the run.
    fn watch(&mut self, step: u64, loss: f32, update: &Update) -> Result<()> {
        let Some(parameter) = &update.skipped else {
            self.state.skipped_in_a_row = 0;
            return Ok(());
        };
        self.state.skipped_in_a_row += 1;
        if self.state.skipped_in_a_row < MOST_SKIPPED {
            return Ok(());
        }
        Err(Error::numeric(format!(
            "step {step}: loss {loss}, gradient norm {}, the first bad gradient is that of `{parameter}`; \
             {MOST_SKIPPED} updates in a row were skipped (a smaller learning rate may help)",
            update.grad_norm
        )))
    }

    fn evaluates_after(&self, step: u64) -> bool {
        let (first, every) = (self.settings.next_token.steps, self.settings.evaluation.every);
        let within = step > first && every > 0 && (step - first).is_multiple_of(every);
        self.settings.evaluation.rows > 0
            && (step == first || step == self.settings.total_steps() || within)
    }

    /// The bound of held-out text, and completions of it.
    fn evaluate(&self, step: u64, metrics: &mut StepMetrics, logs: &mut Logs) -> Result<()> {
        let evaluation = &self.settings.evaluation;
        if step <= self.settings.next_token.steps {
            let loss = self.learner.held_out_next_token(evaluation.rows)?;
            metrics.more.insert("held_out_next_token".to_owned(), loss as f32);
            return Ok(());
        }
        let bound = self.learner.held_out_bound(evaluation.rows, ROUNDS)?;
        metrics.more.insert("held_out_bound".to_owned(), bound as f32);
        let length = self.settings.length;
        let rows: Vec<Vec<i32>> = (0..evaluation.completions as u64)
            .map(|i| self.learner.corpus.row(Split::HeldOut, (1 << 30) + i, length))
            .collect::<Result<_>>()?;
        if rows.is_empty() {
            return Ok(());
        }
        let prompts: Vec<Vec<i32>> =
            rows.iter().map(|row| row[..evaluation.prompt.min(row.len())].to_vec()).collect();
        let decoding = Decoding {
            selection: evaluation.selection,
            confidence: evaluation.confidence,
            ..Decoding::greedy(
                length - evaluation.prompt,
                stop_ids(&self.learner.model, &self.learner.tokenizer),
            )
        };
        let text = |ids: &[i32]| self.learner.tokenizer.decode(ids);
        let (mut set, mut passes) = (0, 0);
        for (filled, row) in fill(&self.learner.model, &prompts, 1, &decoding)?.iter().zip(&rows) {
            let rest = &row[evaluation.prompt.min(row.len())..];
            let same = filled.tokens.iter().zip(rest).filter(|(a, b)| a == b).count();
            set += filled.tokens.len() + filled.order.dropped.len();
            passes += filled.passes;
            logs.rollouts.write(&Rollout {
                step,
                prompt: text(&prompts[filled.prompt])?,
                completion: text(&filled.tokens)?,
                answer: text(rest)?,
                reward: same as f32 / rest.len().max(1) as f32,
                advantage: None,
                tokens: filled.tokens.len(),
                truncated: filled.truncated,
            })?;
        }
        metrics.more.insert("tokens_per_pass".to_owned(), set as f32 / passes.max(1) as f32);
        Ok(())
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.learner.model.save(folder)?;
        self.learner.tokenizer.save(folder)?;
        self.optimizer.save(self.learner.model.parameters(), &folder.join(OPTIMIZER))
    }
}
