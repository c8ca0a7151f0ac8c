//! A run that learns from records: batches in an order drawn from the seed, evaluations, checkpoints, resume.
//!
//! As in the other runs, every draw is a function of the seed and the step, so a killed run that is resumed writes the same
//! bits. The reference policy's log-probs travel in the checkpoints.

use super::data::{OfflineRecords, Reader, Record};
use super::encoding::Encoder;
use super::learner::{Learned, Learner};
use super::references;
use super::settings::{OfflineObjective, OfflineSettings};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::sample::Truncation;
use crate::models::Decoder;
use crate::optim::AdamW;
use crate::rl::activity::Activity;
use crate::rl::policy::Policy;
use crate::rl::sampling::Sampling;
use crate::rng::Stream;
use crate::tasks::epochs::Epochs;
use crate::tensor::Gradients;
use crate::text::Tokenizer;
use crate::train::checkpoint::Checkpoint;
use crate::train::metrics::{Phase, Rollout, StepMetrics};
use crate::train::open::{dtype, folder, stop_ids};
use crate::train::run::{Skipped, Trainee};
use crate::train::run_dir::Logs;
use crate::train::settings::{CheckpointSettings, ModelSettings};
use crate::train::text_codec::TextCodec;
use serde::{Deserialize, Serialize};
use std::path::Path;

const OPTIMIZER: &str = "optimizer.safetensors";

/// The counters of a run, as `state.json` holds them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: u64,
    skipped: Skipped,
}

/// A run in memory.
pub struct OfflineSession {
    settings: OfflineSettings,
    model: Decoder,
    codec: TextCodec,
    stop: Vec<i32>,
    training: Vec<Record>,
    held_out: Vec<Record>,
    epochs: Epochs,
    optimizer: AdamW,
    state: State,
    notices: Vec<String>,
}

impl OfflineSession {
    /// The run of some settings at its beginning, or as it was when a checkpoint was written.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings that make no sense, naming the key; [`Error::is_format`] with file and line for
    /// records that cannot be used; what loading the models reports, and files of the checkpoint that are missing or damaged.
    pub fn open(
        mut settings: OfflineSettings,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
    ) -> Result<OfflineSession> {
        settings.check()?;
        let (mut model, tokenizer) = opened(&settings, checkpoint.map(|one| &*one.path))?;
        if model.config().diffusion.is_some() {
            return Err(Error::unsupported(
                "this model fills masked blocks; demonstrations and preferences are for models that write from left to right",
            ));
        }
        model.set_checkpointed(settings.recompute);
        model.move_to(device)?;
        let stop = stop_ids(&model, &tokenizer);
        let prompting = match checkpoint {
            None => settings.data.prompting(),
            Some(_) => settings.data.resumed_prompting(),
        };
        let date = match &settings.model {
            ModelSettings::Folder { date, .. } => date.as_deref(),
            _ => None,
        };
        let codec =
            TextCodec::new(tokenizer, &prompting, date).map_err(|e| e.at("data.template"))?;
        let reader = Reader {
            encoder: Encoder { codec: &codec, stop: &stop },
            vocab: model.vocab(),
            context: model.context(),
        };
        let read = OfflineRecords::open(&settings.data, &settings.objective, &reader)?;
        let OfflineRecords { mut training, mut held_out, settings: data, notices } = read;
        held_out.truncate(settings.evaluation.records.max(settings.evaluation.completions));
        settings.data = data;
        settings.steps = Some(settings.total_steps(training.len()));
        if settings.objective.has_reference() {
            let all = training.iter_mut().chain(&mut held_out);
            let micro = settings.micro_batch_tokens;
            match (checkpoint, &settings.reference) {
                (Some(checkpoint), _) => references::load(all, &checkpoint.path)?,
                (None, None) => references::score(&model, all, micro)?,
                (None, Some(path)) => {
                    let mut reference = Decoder::load_on(path, dtype(&settings.model)?, device)?;
                    if reference.vocab() < model.vocab() {
                        return Err(Error::invalid(format!(
                            "{}: the reference has {} ids and the model {}",
                            path.display(),
                            reference.vocab(),
                            model.vocab()
                        )));
                    }
                    reference.move_to(device)?;
                    references::score(&reference, all, micro)?;
                }
            }
        }
        let optimizer = settings.optimizer.clone();
        let (optimizer, state) = match checkpoint {
            None => (AdamW::new(optimizer, model.parameters())?, State::default()),
            Some(checkpoint) => (
                AdamW::load(optimizer, model.parameters(), &checkpoint.path.join(OPTIMIZER))?,
                checkpoint.state()?,
            ),
        };
        let size = u32::try_from(training.len())
            .map_err(|_| Error::format(format!("{} records", training.len())))?;
        Ok(OfflineSession {
            settings,
            model,
            codec,
            stop,
            training,
            held_out,
            epochs: Epochs::new(size),
            optimizer,
            state,
            notices,
        })
    }

    /// Its settings, with what was found in place of what they left open.
    pub fn settings(&self) -> &OfflineSettings {
        &self.settings
    }

    /// What the user should know of how the run was opened: how many records there are, what was left out.
    pub fn opening_notices(&self) -> &[String] {
        &self.notices
    }

    /// The policy.
    pub fn policy(&self) -> &dyn Policy {
        &self.model
    }

    /// How prompts are put to it.
    pub fn codec(&self) -> &TextCodec {
        &self.codec
    }

    /// What is trained on.
    pub fn training(&self) -> &[Record] {
        &self.training
    }

    /// What is measured on.
    pub fn held_out(&self) -> &[Record] {
        &self.held_out
    }

    fn learner(&self) -> Learner<'_> {
        Learner {
            policy: &self.model,
            objective: &self.settings.objective,
            micro_batch_tokens: self.settings.micro_batch_tokens,
        }
    }

    /// The loss and what it implies on held-out records now.
    ///
    /// # Errors
    /// As [`Policy::score`].
    pub fn evaluate(&self) -> Result<Learned> {
        let count = self.settings.evaluation.records.min(self.held_out.len());
        let records: Vec<&Record> = self.held_out[..count].iter().collect();
        self.learner().measure(&records)
    }

    /// Greedy answers to the prompts of held-out records.
    ///
    /// # Errors
    /// As [`Policy::generate`].
    pub fn answers(&self) -> Result<Vec<Rollout>> {
        let count = self.settings.evaluation.completions.min(self.held_out.len());
        let records = &self.held_out[..count];
        let prompts: Vec<Vec<i32>> = records
            .iter()
            .map(|record| record.sequences[0].prompt.clone())
            .filter(|prompt| prompt.len() < self.model.context())
            .collect();
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let sampling = Sampling {
            temperature: 0.0,
            truncation: Truncation::default(),
            max_new_tokens: self.settings.evaluation.max_new_tokens,
            stop: self.stop.clone(),
            banned: Vec::new(),
            seed: self.settings.seed,
            stream: Stream::HeldOut,
            first_sequence: 0,
            activity: Activity::default(),
        };
        let counts = vec![1; prompts.len()];
        let drawn = self.model.generate(&prompts, &counts, &sampling, None)?;
        let text = |ids: &[i32]| self.codec.tokenizer().decode(ids);
        let answered =
            records.iter().filter(|one| one.sequences[0].prompt.len() < self.model.context());
        answered
            .zip(drawn)
            .map(|(record, episode)| {
                Ok(Rollout {
                    step: self.state.step,
                    prompt: text(&record.sequences[0].prompt)?,
                    completion: text(&episode.tokens)?,
                    answer: text(&record.sequences[0].completion)?,
                    // Nothing judges them.
                    reward: f32::NAN,
                    advantage: None,
                    tokens: episode.tokens.len(),
                    truncated: episode.truncated,
                })
            })
            .collect()
    }

    fn phase(&self) -> Phase {
        match self.settings.objective {
            OfflineObjective::Sft(_) => Phase::Sft,
            _ => Phase::Preference,
        }
    }

    /// The records of a step, counted from 0.
    fn batch(&self, step: u64) -> Vec<&Record> {
        let size = self.settings.batch as u64;
        (step * size..(step + 1) * size)
            .filter_map(|index| {
                self.training.get(self.epochs.item(self.settings.seed, index) as usize)
            })
            .collect()
    }
}

/// The model with its tokenizer, of the settings or of a checkpoint.
fn opened(settings: &OfflineSettings, checkpoint: Option<&Path>) -> Result<(Decoder, Tokenizer)> {
    let ModelSettings::Folder { path, .. } = &settings.model else {
        return Err(Error::invalid("model.kind must be \"folder\""));
    };
    folder(checkpoint.unwrap_or(path), dtype(&settings.model)?, &Device::Cpu)
}

/// Puts what was measured under its names, `prefix` before each.
fn insert(metrics: &mut StepMetrics, prefix: &str, learned: &Learned) {
    let all = [
        ("reward_chosen", learned.reward_chosen),
        ("reward_rejected", learned.reward_rejected),
        ("margin", learned.margin()),
        ("kl_estimate", learned.kl),
    ];
    for (name, value) in all {
        if let Some(value) = value {
            metrics.more.insert(format!("{prefix}{name}"), value as f32);
        }
    }
}

impl Trainee for OfflineSession {
    fn step(&self) -> u64 {
        self.state.step
    }

    fn total_steps(&self) -> u64 {
        self.settings.total_steps(self.training.len())
    }

    fn phases(&self) -> Vec<(Phase, u64)> {
        vec![(self.phase(), self.total_steps())]
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn train(&mut self, _: &mut Logs) -> Result<(StepMetrics, usize)> {
        let step = self.state.step + 1;
        let mut gradients = Gradients::new();
        let learned = self.learner().gradients(&self.batch(step - 1), &mut gradients)?;
        let factor = self.settings.schedule.factor(step - 1, self.total_steps());
        let update = self.optimizer.step(self.model.parameters_mut(), &gradients, factor)?;
        let loss = learned.loss as f32;
        self.state.skipped.watch(step, loss, &update)?;
        self.state.step = step;
        let mut metrics = StepMetrics::new(step, self.phase());
        metrics.loss = Some(loss);
        metrics.entropy = Some(learned.entropy as f32);
        metrics.grad_norm = Some(update.grad_norm);
        insert(&mut metrics, "", &learned);
        if let Some(accuracy) = learned.accuracy {
            metrics.more.insert("accuracy".to_owned(), accuracy as f32);
        }
        Ok((metrics, learned.tokens))
    }

    fn evaluates_after(&self, step: u64) -> bool {
        let (every, total) = (self.settings.evaluation.every, self.total_steps());
        !self.held_out.is_empty() && (step == total || (every > 0 && step.is_multiple_of(every)))
    }

    fn measure(&mut self, metrics: &mut StepMetrics, logs: &mut Logs) -> Result<()> {
        if self.settings.evaluation.records > 0 {
            let learned = self.evaluate()?;
            metrics.more.insert("eval_loss".to_owned(), learned.loss as f32);
            metrics.eval_accuracy = learned.accuracy.map(|accuracy| accuracy as f32);
            insert(metrics, "eval_", &learned);
        }
        for answer in self.answers()? {
            logs.rollouts.write(&answer)?;
        }
        Ok(())
    }

    fn checkpoint(&self) -> &CheckpointSettings {
        &self.settings.checkpoint
    }

    fn state(&self) -> Result<serde_json::Value> {
        serde_json::to_value(&self.state)
            .map_err(|e| Error::invalid(format!("the state of a run is not JSON: {e}")))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.model.save(folder)?;
        self.codec.tokenizer().save(folder)?;
        references::save(self.training.iter().chain(&self.held_out), folder)?;
        self.optimizer.save(self.model.parameters(), &folder.join(OPTIMIZER))
    }
}
