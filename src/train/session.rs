//! A GRPO run from its settings: warm-up, rollouts, updates, evaluations, checkpoints, resume.
//!
//! The state that a checkpoint holds is weights, optimizer and a handful of counters. Every random draw is a function
//! of the seed and these counters, so a run that is killed and resumed writes the same bits as one that is not (the
//! two wall-clock fields of `metrics.jsonl` excepted).

use super::checkpoint::Checkpoint;
use super::evaluate::Evaluation;
use super::metrics::{self, Phase, StepMetrics};
use super::observer::Observer;
use super::run_dir::{Logs, RunDir};
use super::settings::{ModelSettings, Settings, TaskSettings};
use super::supervised;
use super::update::{self, Draw, Sample, Updated};
use crate::device::Device;
use crate::device::cpu::pool;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::advantage::{self, Groups};
use crate::kernels::policy_loss::{Metrics, Objective, Surrogate};
use crate::models::{Decoder, DecoderConfig};
use crate::optim::{AdamW, Update};
use crate::rl::dynamic_sampling::{Next, Refill};
use crate::rl::guarded::guarded_reward;
use crate::rl::rollout::{Rollout, Sampling, rollouts};
use crate::rl::scoring::{Scored, logprobs};
use crate::rng::Stream;
use crate::tasks::arithmetic::Arithmetic;
use crate::tasks::jsonl::Jsonl;
use crate::tasks::{Problem, Task, Verifier};
use crate::tensor::autograd::{no_grad, with_grad};
use crate::tensor::{Gradients, Tensor};
use crate::text::Tokenizer;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// Optimizer updates in a row that may be skipped for a NaN or infinity before the run ends.
const MOST_SKIPPED: u64 = 3;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every step was done.
    Finished,
    /// The observer asked to stop; a checkpoint was written and the run can be resumed.
    Interrupted,
}

/// The counters of a run, as `state.json` holds them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Steps done, both phases.
    step: u64,
    /// Rollouts sampled: the number of the next one.
    sequence: u64,
    /// Problems asked: the number of the next one.
    problem: u64,
    /// Updates skipped for a NaN or infinity, and how many of them in a row.
    skipped: u64,
    skipped_in_a_row: u64,
}

/// A run in memory.
pub struct Session {
    settings: Settings,
    task: Box<dyn Task>,
    verifier: Box<dyn Verifier>,
    tokenizer: Tokenizer,
    model: Decoder,
    /// The policy that a KL term measures from: the model as it was after the warm-up.
    reference: Option<Decoder>,
    optimizer: AdamW,
    held_out: Vec<Problem>,
    stop: Vec<i32>,
    state: State,
}

const OPTIMIZER: &str = "optimizer.safetensors";
const REFERENCE: &str = "reference";

fn task(settings: &TaskSettings) -> Result<Box<dyn Task>> {
    Ok(match settings {
        TaskSettings::Arithmetic(config) => Box::new(Arithmetic::new(config.clone())?),
        TaskSettings::Jsonl(file) => Box::new(Jsonl::load(&file.path, &file.format)?),
    })
}

/// The model of the settings, with the tokenizer that goes with it.
fn model(settings: &Settings, task: &dyn Task) -> Result<(Decoder, Tokenizer)> {
    match &settings.model {
        ModelSettings::Small { architecture, hidden_size, layers, heads, context, dtype } => {
            let Some(alphabet) = task.alphabet() else {
                return Err(Error::invalid(format!(
                    "task {} is free text: it needs a model folder with a tokenizer (--model DIR)",
                    task.name()
                )));
            };
            let tokenizer = Tokenizer::characters(alphabet)?;
            let mut config = DecoderConfig::small(
                architecture,
                tokenizer.vocab_size(),
                *hidden_size,
                *layers,
                *heads,
                *context,
            )?;
            config.set_eos(tokenizer.eos());
            let dtype: DType = dtype.parse().map_err(|e: Error| e.at("model.dtype"))?;
            Ok((Decoder::random(config, dtype, settings.seed)?, tokenizer))
        }
        ModelSettings::Folder { path, dtype } => {
            let dtype = dtype
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(|e: Error| e.at("model.dtype"))?;
            folder(path, dtype)
        }
    }
}

/// A model folder: the decoder and a tokenizer that fits it.
///
/// # Errors
/// As [`Decoder::load`] and [`Tokenizer::load`]; [`Error::is_invalid`] when the tokenizer has ids beyond the model's
/// vocabulary.
pub fn folder(path: &Path, dtype: Option<DType>) -> Result<(Decoder, Tokenizer)> {
    let decoder = Decoder::load(path, dtype)?;
    let tokenizer = Tokenizer::load(path)?;
    tokenizer.fits(decoder.config().vocab_size).map_err(|e| e.at(path.display()))?;
    Ok((decoder, tokenizer))
}

/// The ids that end a completion: the tokenizer's and the model's.
pub fn stop_ids(model: &Decoder, tokenizer: &Tokenizer) -> Vec<i32> {
    let mut ids: Vec<i32> = tokenizer.eos().iter().chain(&model.config().eos).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

impl Session {
    /// A new run, its model on `device`.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings that make no sense, and what loading the model and the data reports.
    pub fn new(settings: Settings, device: &Device) -> Result<Session> {
        settings.check()?;
        let task = task(&settings.task)?;
        let (mut model, tokenizer) = model(&settings, &*task)?;
        model.set_checkpointed(settings.update.recompute);
        model.move_to(device)?;
        if settings.warmup.steps > 0 && task.worked_example(settings.seed, 0).is_none() {
            return Err(Error::invalid(format!(
                "task {} has no worked examples: warmup.steps must be 0",
                task.name()
            )));
        }
        let first = if settings.warmup.steps > 0 {
            &settings.warmup.optimizer
        } else {
            &settings.optimizer
        };
        let optimizer = AdamW::new(first.clone(), model.parameters())?;
        let stop = stop_ids(&model, &tokenizer);
        let verifier = task.verifier();
        let held_out = task.held_out(settings.seed, settings.evaluation.problems);
        let state = State::default();
        let mut session = Session {
            settings,
            task,
            verifier,
            tokenizer,
            model,
            reference: None,
            optimizer,
            held_out,
            stop,
            state,
        };
        if session.settings.warmup.steps == 0 {
            session.freeze_reference()?;
        }
        Ok(session)
    }

    /// A run as it was when `checkpoint` was written.
    ///
    /// # Errors
    /// As [`Session::new`], and for files of the checkpoint that are missing or damaged.
    pub fn resumed(
        settings: Settings,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<Session> {
        let dtype = match &settings.model {
            ModelSettings::Small { dtype, .. } => Some(dtype.parse()?),
            ModelSettings::Folder { dtype, .. } => dtype.as_deref().map(str::parse).transpose()?,
        };
        let mut session = Session::new(settings, device)?;
        let state: State = checkpoint.state()?;
        let warmed = state.step >= session.settings.warmup.steps;
        session.state = state;
        session.model = Decoder::load(&checkpoint.path, dtype)?;
        session.model.set_checkpointed(session.settings.update.recompute);
        session.model.move_to(device)?;
        let settings =
            if warmed { &session.settings.optimizer } else { &session.settings.warmup.optimizer };
        session.optimizer = AdamW::load(
            settings.clone(),
            session.model.parameters(),
            &checkpoint.path.join(OPTIMIZER),
        )?;
        let reference = checkpoint.path.join(REFERENCE);
        session.reference = if session.settings.objective.kl.is_some() && warmed {
            let mut reference = Decoder::load(&reference, dtype)?;
            reference.move_to(device)?;
            Some(reference)
        } else {
            None
        };
        Ok(session)
    }

    /// The model.
    pub fn model(&self) -> &Decoder {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Runs the steps that are left.
    ///
    /// # Errors
    /// [`Error::is_numeric`] after three updates in a row with a NaN or infinity, naming the step and the parameter;
    /// [`Error::is_io`] when the run directory cannot be written.
    pub fn run(&mut self, run: &RunDir, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut logs = run.logs()?;
        let checkpoints = run.checkpoints(self.settings.checkpoint.keep);
        let total = self.settings.total_steps();
        observer.begin(self.state.step, total);
        while self.state.step < total {
            let started = Instant::now();
            let next = self.state.step + 1;
            // Inside the pool from here on: an operation then costs no hand-over.
            let (mut metrics, tokens) = pool::install(|| {
                with_grad(|| {
                    if next <= self.settings.warmup.steps {
                        self.warmup_step(next)
                    } else {
                        self.policy_step(next, &mut logs)
                    }
                })
            })?;
            self.state.step = next;
            if next == self.settings.warmup.steps {
                self.optimizer =
                    AdamW::new(self.settings.optimizer.clone(), self.model.parameters())?;
                self.freeze_reference()?;
            }
            if self.evaluates_after(next) {
                let (accuracy, _) = pool::install(|| self.evaluate())?;
                metrics.eval_accuracy = Some(accuracy);
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

    fn evaluates_after(&self, step: u64) -> bool {
        let (warmup, every) = (self.settings.warmup.steps, self.settings.evaluation.every);
        let in_phase = step > warmup && every > 0 && (step - warmup).is_multiple_of(every);
        !self.held_out.is_empty()
            && (step == warmup || step == self.settings.total_steps() || in_phase)
    }

    /// Accuracy on the held-out problems now, with the answers.
    ///
    /// # Errors
    /// As [`rollouts`].
    pub fn evaluate(&self) -> Result<(f32, Vec<metrics::Rollout>)> {
        let evaluation = Evaluation {
            model: &self.model,
            tokenizer: &self.tokenizer,
            verifier: &*self.verifier,
            stop: &self.stop,
            max_new_tokens: self.settings.rollout.max_new_tokens,
            batch: self.settings.rollout.batch,
        };
        evaluation.run(&self.held_out, self.state.step)
    }

    fn freeze_reference(&mut self) -> Result<()> {
        if self.settings.objective.kl.is_some() {
            self.reference = Some(self.model.copy()?);
        }
        Ok(())
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.model.save(folder)?;
        self.tokenizer.save(folder)?;
        self.optimizer.save(self.model.parameters(), &folder.join(OPTIMIZER))?;
        if let Some(reference) = &self.reference {
            let folder = folder.join(REFERENCE);
            std::fs::create_dir(&folder)
                .map_err(|e| Error::io(format_args!("making {}", folder.display()), e))?;
            reference.save(&folder)?;
        }
        Ok(())
    }

    fn warmup_step(&mut self, step: u64) -> Result<(StepMetrics, usize)> {
        let warmup = &self.settings.warmup;
        let mut examples = Vec::with_capacity(warmup.examples);
        for i in 0..warmup.examples as u64 {
            let index = (step - 1) * warmup.examples as u64 + i;
            let Some(example) = self.task.worked_example(self.settings.seed, index) else {
                return Err(Error::invalid(format!(
                    "task {}: no worked example",
                    self.task.name()
                )));
            };
            let prompt = self.tokenizer.encode_prompt(&example.prompt)?;
            let mut completion = self.tokenizer.encode(&example.answer)?;
            completion.extend(self.stop.first());
            examples.push((prompt, completion));
        }
        let scored: Vec<Scored<'_>> =
            examples.iter().map(|(prompt, completion)| Scored { prompt, completion }).collect();
        let mut gradients = Gradients::new();
        let tokens = self.settings.update.micro_batch_tokens;
        let done = supervised::gradients(&self.model, &scored, tokens, &mut gradients)?;
        let factor = warmup.schedule.factor(step - 1, warmup.steps);
        let update = self.optimizer.step(self.model.parameters_mut(), &gradients, factor)?;
        self.watch(step, done.loss, &update)?;
        let mut metrics = StepMetrics::new(step, Phase::Warmup);
        metrics.loss = Some(done.loss);
        metrics.entropy = Some(done.entropy);
        metrics.grad_norm = Some(update.grad_norm);
        Ok((metrics, done.tokens))
    }

    /// Counts skipped updates; the third in a row ends the run.
    fn watch(&mut self, step: u64, loss: f32, update: &Update) -> Result<()> {
        let Some(parameter) = &update.skipped else {
            self.state.skipped_in_a_row = 0;
            return Ok(());
        };
        self.state.skipped += 1;
        self.state.skipped_in_a_row += 1;
        if self.state.skipped_in_a_row >= MOST_SKIPPED {
            return Err(Error::numeric(format!(
                "step {step}: loss {loss}, gradient norm {}, the first bad gradient is that of `{parameter}`; \
                 {MOST_SKIPPED} updates in a row were skipped (a smaller learning rate, or a larger clip epsilon, \
                 may help)",
                update.grad_norm
            )));
        }
        Ok(())
    }

    /// Rollouts, rewards, advantages, updates.
    fn policy_step(&mut self, step: u64, logs: &mut Logs) -> Result<(StepMetrics, usize)> {
        let batch = self.collect()?;
        self.log(step, &batch, logs)?;
        let references = self.reference_logprobs(&batch)?;
        let samples: Vec<Sample<'_>> = batch
            .rollouts
            .iter()
            .enumerate()
            // What could not be scored teaches nothing: neither the objective nor a penalty sees it.
            .filter(|(i, _)| !batch.rewards[*i].is_nan())
            .filter(|(_, rollout)| !(self.settings.rollout.mask_truncated && rollout.truncated))
            .map(|(i, rollout)| Sample {
                scored: Scored {
                    prompt: &batch.prompts[rollout.prompt],
                    completion: &rollout.tokens,
                },
                old_logprob: &rollout.logprob,
                reference_logprob: references.as_ref().map(|all| &all[i]),
                advantage: batch.advantages[i],
            })
            .collect();
        let updates = self.settings.update.clone();
        let phase_updates = self.settings.steps * (updates.epochs * updates.minibatches) as u64;
        let share = samples.len().div_ceil(updates.minibatches).max(1);
        if samples.is_empty() && batch.rewards.iter().all(|reward| reward.is_nan()) {
            return Err(Error::numeric(format!(
                "step {step}: verifier {} gave no reward to any of {} completions (it panicked, or its reward was \
                 not finite)",
                self.verifier.name(),
                batch.rollouts.len()
            )));
        }
        let mut sums: Option<Metrics> = None;
        let mut mismatch = None;
        let mut grad_norm = 0f32;
        let mut skipped = 0;
        let mut tokens = batch.rollouts.iter().map(|r| r.tokens.len()).sum::<usize>();
        for epoch in 0..updates.epochs {
            for (i, part) in samples.chunks(share).enumerate() {
                let before = (step - 1 - self.settings.warmup.steps)
                    * (updates.epochs * updates.minibatches) as u64;
                let number = before + (epoch * updates.minibatches + i) as u64;
                let mut gradients = Gradients::new();
                let done: Updated = update::gradients(
                    &self.model,
                    part,
                    &self.settings.objective,
                    self.settings.rollout.temperature,
                    updates.micro_batch_tokens,
                    Draw { seed: self.settings.seed, number },
                    &mut gradients,
                )?;
                // Only before the first update are these the weights that sampled.
                if epoch == 0 && i == 0 {
                    mismatch = Some(done.mismatch);
                }
                let factor = self.settings.schedule.factor(number, phase_updates);
                let update = if done.metrics.loss.is_finite() {
                    self.optimizer.step(self.model.parameters_mut(), &gradients, factor)?
                } else {
                    Update { grad_norm: f32::NAN, skipped: Some("the loss itself".to_owned()) }
                };
                self.watch(step, done.metrics.loss as f32, &update)?;
                skipped += u32::from(update.skipped.is_some());
                grad_norm = grad_norm.max(update.grad_norm);
                tokens += done.tokens;
                sums = Some(sums.map_or(done.metrics, |sum| sum.merge(&done.metrics)));
            }
        }
        let mut metrics = StepMetrics::new(step, Phase::Rl);
        let rewards = batch.rewards.iter().filter(|r| !r.is_nan()).map(|r| f64::from(*r));
        let scored = batch.rewards.iter().filter(|r| !r.is_nan()).count();
        metrics.reward = Some((rewards.sum::<f64>() / scored.max(1) as f64) as f32);
        metrics.mismatch = mismatch;
        metrics.grad_norm = Some(grad_norm);
        let lengths = batch.rollouts.iter().map(|r| r.tokens.len()).sum::<usize>();
        metrics.response_length = Some(lengths as f32 / batch.rollouts.len().max(1) as f32);
        if let Some(sums) = sums {
            let rounds = (updates.epochs * updates.minibatches) as f64;
            metrics.loss = Some((sums.loss / rounds) as f32);
            metrics.entropy = Some(sums.entropy as f32);
            let kl = if self.reference.is_some() { sums.kl } else { sums.approx_kl };
            metrics.kl = Some(kl as f32);
            metrics.clip_fraction = Some(sums.clip_fraction as f32);
            let more = [
                ("ratio_max", sums.ratio_max),
                ("ratio_mean", sums.ratio_mean),
                ("zero_advantage_groups", batch.degenerate),
                ("truncated", batch.truncated),
                ("unscored", (batch.rewards.len() - scored) as f64),
                ("groups_drawn", batch.drawn as f64),
                ("skipped_updates", f64::from(skipped)),
            ];
            metrics.more.extend(more.map(|(name, value)| (name.to_owned(), value as f32)));
            let of_objective = measured_by(&self.settings.objective, &sums);
            metrics.more.extend(of_objective.map(|(name, value)| (name.to_owned(), value as f32)));
        }
        Ok((metrics, tokens))
    }

    /// The step's groups, scored: the next problems, or, with dynamic sampling, as many as it takes.
    fn collect(&mut self) -> Result<Batch> {
        let wanted = self.settings.rollout.prompts;
        let Some(sampling) = self.settings.rollout.dynamic_sampling else {
            let groups = self.groups(wanted)?;
            return self.batch(groups, wanted);
        };
        let mut refill = Refill::new(sampling, wanted)?;
        while let Next::Draw(missing) = refill.next() {
            let drawn = self.groups(missing)?;
            refill.add_round(drawn.into_iter().map(|group| {
                let rewards = group.rewards.clone();
                (group, rewards)
            }));
        }
        let (rounds, drawn) = (refill.rounds(), refill.drawn());
        let kept = refill.into_groups();
        if kept.is_empty() {
            return Err(Error::numeric(format!(
                "dynamic sampling: none of {drawn} groups in {rounds} rounds has both right and wrong answers \
                 (all problems may be solved, or none; rollout.dynamic_sampling.max_rounds = {})",
                sampling.max_rounds
            )));
        }
        self.batch(kept, drawn)
    }

    /// Asks the next `count` problems and scores the completions.
    fn groups(&mut self, count: usize) -> Result<Vec<Group>> {
        let settings = &self.settings.rollout;
        let problems: Vec<Problem> = (0..count as u64)
            .map(|i| self.task.problem(self.settings.seed, self.state.problem + i))
            .collect();
        let prompts = problems
            .iter()
            .map(|problem| self.tokenizer.encode_prompt(&problem.prompt))
            .collect::<Result<Vec<_>>>()?;
        let mut sampling = Sampling {
            temperature: settings.temperature,
            truncation: Default::default(),
            max_new_tokens: settings.max_new_tokens,
            stop: self.stop.clone(),
            banned: Vec::new(),
            seed: self.settings.seed,
            stream: Stream::Sample,
            first_sequence: self.state.sequence,
        };
        let mut drawn: Vec<Rollout> = Vec::with_capacity(prompts.len() * settings.group);
        let together = (settings.batch / settings.group).max(1);
        for part in prompts.chunks(together) {
            let mut some = rollouts(&self.model, part, settings.group, &sampling)?;
            sampling.first_sequence += some.len() as u64;
            drawn.append(&mut some);
        }
        self.state.problem += problems.len() as u64;
        self.state.sequence += drawn.len() as u64;
        let mut drawn = drawn.into_iter();
        let mut groups = Vec::with_capacity(count);
        for (problem, prompt) in problems.into_iter().zip(prompts) {
            let rollouts: Vec<Rollout> = drawn.by_ref().take(settings.group).collect();
            let completions = rollouts
                .iter()
                .map(|r| self.tokenizer.decode(&r.tokens))
                .collect::<Result<Vec<_>>>()?;
            let reward = |(r, text): (&Rollout, &String)| {
                guarded_reward(|| self.verifier.reward(&problem, text, r.truncated))
            };
            let rewards = rollouts.iter().zip(&completions).map(reward).collect();
            groups.push(Group { problem, prompt, rollouts, completions, rewards });
        }
        Ok(groups)
    }

    /// Groups side by side, with their advantages. `drawn`: how many were generated for it.
    fn batch(&self, groups: Vec<Group>, drawn: usize) -> Result<Batch> {
        let mut batch = Batch { drawn, ..Batch::default() };
        let mut offsets = vec![0i64];
        for (i, group) in groups.into_iter().enumerate() {
            batch.problems.push(group.problem);
            batch.prompts.push(group.prompt);
            let numbered = group.rollouts.into_iter().map(|r| Rollout { prompt: i, ..r });
            batch.rollouts.extend(numbered);
            batch.completions.extend(group.completions);
            batch.rewards.extend(group.rewards);
            offsets.push(batch.rewards.len() as i64);
        }
        let shaping = self.settings.rollout.overlong;
        let shaped: Vec<f32> = batch
            .rewards
            .iter()
            .zip(&batch.rollouts)
            .map(|(reward, rollout)| {
                let penalty = shaping.map_or(0.0, |shaping| shaping.penalty(rollout.tokens.len()));
                reward + penalty as f32
            })
            .collect();
        batch.advantages = vec![0f32; shaped.len()];
        let outputs = advantage::Outputs {
            advantage: &mut batch.advantages,
            mean: None,
            std: None,
            flags: None,
        };
        let estimator = &self.settings.advantage;
        let counts = advantage::forward(estimator, &shaped, Groups::Offsets(&offsets), outputs)?;
        let cut = batch.rollouts.iter().filter(|r| r.truncated).count();
        batch.degenerate = counts.degenerate as f64 / counts.groups.max(1) as f64;
        batch.truncated = cut as f64 / batch.rollouts.len().max(1) as f64;
        Ok(batch)
    }

    /// Log-probs under the reference policy, one tensor a rollout, where the model is; `None` when the objective has no KL
    /// term.
    fn reference_logprobs(&self, batch: &Batch) -> Result<Option<Vec<Tensor>>> {
        let Some(reference) = &self.reference else { return Ok(None) };
        let scored: Vec<Scored<'_>> = batch
            .rollouts
            .iter()
            .map(|r| Scored { prompt: &batch.prompts[r.prompt], completion: &r.tokens })
            .collect();
        let mut all = Vec::with_capacity(scored.len());
        for part in supervised::micro_batches(&scored, self.settings.update.micro_batch_tokens) {
            let (flat, _) =
                no_grad(|| logprobs(reference, part, self.settings.rollout.temperature))?;
            let mut first = 0;
            for one in part {
                let end = first + one.completion.len();
                all.push(flat.rows(first..end)?);
                first = end;
            }
        }
        Ok(Some(all))
    }

    fn log(&self, step: u64, batch: &Batch, logs: &mut Logs) -> Result<()> {
        for i in 0..self.settings.rollout.logged.min(batch.rollouts.len()) {
            // One of each group before a second of any.
            let group = self.settings.rollout.group;
            let at = (i * group) % batch.rollouts.len() + (i * group) / batch.rollouts.len();
            let rollout = &batch.rollouts[at.min(batch.rollouts.len() - 1)];
            let problem = &batch.problems[rollout.prompt];
            logs.rollouts.write(&metrics::Rollout {
                step,
                prompt: problem.prompt.clone(),
                completion: batch.completions[at].clone(),
                answer: problem.answer.clone(),
                reward: batch.rewards[at],
                advantage: Some(batch.advantages[at]),
                tokens: rollout.tokens.len(),
                truncated: rollout.truncated,
            })?;
        }
        Ok(())
    }
}

/// What an objective measures beyond the fields that every step has.
fn measured_by<'a>(
    objective: &Objective,
    sums: &'a Metrics,
) -> impl Iterator<Item = (&'static str, f64)> + use<'a> {
    let clips = matches!(objective.surrogate, Surrogate::PpoClip { .. });
    let dual = matches!(objective.surrogate, Surrogate::PpoClip { dual_clip: Some(_), .. });
    [
        ("clip_fraction_high", sums.clip_fraction_high, clips),
        ("clip_fraction_low", sums.clip_fraction_low, clips),
        ("dual_clip_fraction", sums.dual_clip_fraction, dual),
        ("ratio_variance", sums.ratio_variance, true),
        ("absolute_log_ratio", sums.absolute_log_ratio, true),
        ("drift_loss", sums.drift_loss, objective.drift.is_some()),
        ("selected_fraction", sums.selected_fraction, objective.selection.is_some()),
        ("dropped_fraction", sums.dropped_fraction, objective.off_policy_threshold.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, value, wanted)| wanted.then_some((name, value)))
}

/// The completions of one problem, scored.
struct Group {
    problem: Problem,
    prompt: Vec<i32>,
    rollouts: Vec<Rollout>,
    completions: Vec<String>,
    rewards: Vec<f32>,
}

/// One step's rollouts, scored.
#[derive(Default)]
struct Batch {
    /// Groups that were generated for it; more than there are where dynamic sampling left some out.
    drawn: usize,
    problems: Vec<Problem>,
    prompts: Vec<Vec<i32>>,
    rollouts: Vec<Rollout>,
    completions: Vec<String>,
    rewards: Vec<f32>,
    advantages: Vec<f32>,
    /// Share of groups without two different rewards.
    degenerate: f64,
    /// Share of completions cut at the limit.
    truncated: f64,
}
