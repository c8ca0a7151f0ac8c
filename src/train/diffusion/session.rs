//! A run that teaches a model to fill masked blocks: next-token prediction, then diffusion, checkpoints, resume.
//!
//! As in the runs of reinforcement, every draw is a function of the seed and the step, so a killed run that is resumed
//! writes the same bits.

use super::learner::Learner;
use super::settings::DiffusionSettings;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::optim::AdamW;
use crate::rl::block_decoding::fill;
use crate::rl::filling::Decoding;
use crate::tasks::source_text::Split;
use crate::tensor::Gradients;
use crate::train::checkpoint::Checkpoint;
use crate::train::metrics::{Phase, Rollout, StepMetrics};
use crate::train::open::stop_ids;
use crate::train::run::{Skipped, Trainee};
use crate::train::run_dir::Logs;
use crate::train::settings::CheckpointSettings;
use serde::{Deserialize, Serialize};
use std::path::Path;

const OPTIMIZER: &str = "optimizer.safetensors";
/// Rounds of masks in which the bound is measured while training.
const ROUNDS: u64 = 1;

/// The counters of a run, as `state.json` holds them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: u64,
    skipped: Skipped,
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
        let learner = Learner::resumed(&settings, &checkpoint.path, device)?;
        let state: State = checkpoint.state()?;
        let phase = match state.step < settings.next_token.steps {
            true => &settings.next_token,
            false => &settings.diffusion,
        };
        let optimizer = AdamW::load(
            phase.optimizer.clone(),
            learner.model.parameters(),
            &checkpoint.path.join(OPTIMIZER),
        )?;
        Ok(DiffusionSession { settings, learner, optimizer, state })
    }

    /// The model with its text.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    fn next_token_step(&mut self, step: u64) -> Result<(StepMetrics, usize)> {
        let mut gradients = Gradients::new();
        let done = self.learner.next_token(step - 1, &mut gradients)?;
        let phase = &self.settings.next_token;
        let factor = phase.schedule.factor(step - 1, phase.steps);
        let update = self.learner.update(&mut self.optimizer, &gradients, factor)?;
        self.state.skipped.watch(step, done.loss, &update)?;
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
        self.state.skipped.watch(step, done.loss, &update)?;
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
}

impl Trainee for DiffusionSession {
    fn step(&self) -> u64 {
        self.state.step
    }

    fn total_steps(&self) -> u64 {
        self.settings.total_steps()
    }

    fn phases(&self) -> Vec<(Phase, u64)> {
        let first = self.settings.next_token.steps;
        let all = [(Phase::NextToken, first), (Phase::Diffusion, self.settings.total_steps())];
        all.into_iter().filter(|(phase, _)| *phase != Phase::NextToken || first > 0).collect()
    }

    fn device(&self) -> Device {
        self.learner.model.device()
    }

    fn train(&mut self, _: &mut Logs) -> Result<(StepMetrics, usize)> {
        let next = self.state.step + 1;
        let done = match next <= self.settings.next_token.steps {
            true => self.next_token_step(next)?,
            false => self.diffusion_step(next)?,
        };
        self.state.step = next;
        if next == self.settings.next_token.steps {
            let settings = self.settings.diffusion.optimizer.clone();
            self.optimizer = AdamW::new(settings, self.learner.model.parameters())?;
        }
        Ok(done)
    }

    fn evaluates_after(&self, step: u64) -> bool {
        let (first, every) = (self.settings.next_token.steps, self.settings.evaluation.every);
        let within = step > first && every > 0 && (step - first).is_multiple_of(every);
        self.settings.evaluation.rows > 0
            && (step == first || step == self.settings.total_steps() || within)
    }

    fn measure(&mut self, metrics: &mut StepMetrics, logs: &mut Logs) -> Result<()> {
        self.evaluate(self.state.step, metrics, logs)
    }

    fn checkpoint(&self) -> &CheckpointSettings {
        &self.settings.checkpoint
    }

    fn state(&self) -> Result<serde_json::Value> {
        serde_json::to_value(&self.state)
            .map_err(|e| Error::invalid(format!("the state of a run is not JSON: {e}")))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.learner.model.save(folder)?;
        self.learner.tokenizer.save(folder)?;
        self.optimizer.save(self.learner.model.parameters(), &folder.join(OPTIMIZER))
    }
}
