//! Reinforcement of any policy on any task: imitation of worked examples, then rollouts, stages, updates.
//!
//! The state that a checkpoint holds is weights, optimizers and a handful of counters. Every random draw is a function
//! of the seed and these counters, so a run that is killed and resumed writes the same bits as one that is not (the
//! two wall-clock fields of `metrics.jsonl` excepted).

use super::advice::Advice;
use super::checkpoint::Checkpoint;
use super::collect::{Collected, Collector};
use super::cost;
use super::evaluate::Evaluation;
use super::learner::{self, Minimise, Updated};
use super::metrics::{self, Phase, StepMetrics};
use super::plan::{self, Known};
use super::questions::{Cursor, Questions};
use super::run::{Skipped, Trainee};
use super::run_dir::Logs;
use super::settings::{CheckpointSettings, Settings};
use super::step_log::{StepLog, Updates, faults_in_words};
use super::supervised;
use super::world::World;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::policy_loss::{Metrics, Objective};
use crate::nn::Parameters;
use crate::optim::{AdamW, Update};
use crate::rl::activity::Activity;
use crate::rl::batch::Batch;
use crate::rl::entropy_control::EntropyState;
use crate::rl::episode::Scored;
use crate::rl::faithful::Baseline;
use crate::rl::policy::Policy;
use crate::rl::stage::{self, Stage, Step};
use crate::tasks::{Author, Example, Label, Problem};
use crate::tensor::{Gradients, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The counters of a run, as `state.json` holds them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Steps done, both phases.
    step: u64,
    /// Episodes sampled: the number of the next one.
    sequence: u64,
    /// Updates of the policy in the phase of reinforcement, the skipped ones among them.
    updates: u64,
    /// Updates skipped for a NaN or infinity.
    skipped: Skipped,
    /// Where the source of problems stands.
    questions: Cursor,
    /// The entropy coefficient that follows the entropy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entropy: Option<EntropyState>,
    /// The rates of the policy before training, where they were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    baseline: Option<Baseline>,
}

/// What the last step of reinforcement gave, with more digits than the logs have.
#[derive(Default)]
pub struct LastStep {
    /// The objective's metrics; `None`: no update was made.
    pub metrics: Option<Metrics>,
    /// The batch, with every column that the stages gave.
    pub batch: Option<Batch>,
    /// `[groups]` its problems.
    pub problems: Vec<Problem>,
    /// Groups in which only what came back is right.
    pub only_replayed: usize,
    /// What the stages measured.
    pub measured: BTreeMap<String, f64>,
}

/// A run of reinforcement in memory.
pub struct Reinforcement {
    settings: Settings,
    world: World,
    policy: Box<dyn Policy>,
    optimizer: AdamW,
    stages: Vec<Box<dyn Stage>>,
    questions: Questions,
    held_out: Vec<Problem>,
    state: State,
    last: LastStep,
    activity: Activity,
    advice: Advice,
    /// Lines for the user about the last step.
    notices: Vec<String>,
    opening_notices: Vec<String>,
}

const OPTIMIZER: &str = "optimizer.safetensors";

impl Reinforcement {
    /// A new run of `policy` in `world`.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings that make no sense, naming the key, or the stage and the column that it lacks; what
    /// the verifier reports when it is tried out, and a problem that cannot be encoded.
    pub fn new(settings: Settings, world: World, policy: Box<dyn Policy>) -> Result<Reinforcement> {
        let mut run = Reinforcement::prepared(settings, world, policy)?;
        if run.settings.warmup.steps == 0 {
            run.begin_phase()?;
        }
        Ok(run)
    }

    /// A run as it was when `checkpoint` was written, with the policy that was read from it.
    ///
    /// # Errors
    /// As [`Reinforcement::new`], and for files of the checkpoint that are missing or damaged.
    pub fn resumed(
        settings: Settings,
        world: World,
        policy: Box<dyn Policy>,
        checkpoint: &Checkpoint,
    ) -> Result<Reinforcement> {
        let mut run = Reinforcement::prepared(settings, world, policy)?;
        let state: State = checkpoint.state()?;
        let warmed = state.step >= run.settings.warmup.steps;
        let settings =
            if warmed { &run.settings.optimizer } else { &run.settings.warmup.optimizer };
        let path = &checkpoint.path;
        run.optimizer =
            AdamW::load(settings.clone(), run.policy.parameters(), &path.join(OPTIMIZER))?;
        run.questions.resume(state.questions.clone(), path)?;
        run.stages = plan::stages(&run.settings, run.known(), state.baseline)?;
        if warmed {
            for stage in &mut run.stages {
                stage.load(path, &*run.policy)?;
            }
        }
        run.state = state;
        Ok(run)
    }

    fn prepared(
        settings: Settings,
        world: World,
        policy: Box<dyn Policy>,
    ) -> Result<Reinforcement> {
        settings.check()?;
        let known = Known { verifier: &*world.verifier, records_scores: policy.records_scores() };
        // A baseline that is still to be measured changes nothing about which stages there are.
        let stages = plan::stages(&settings, known, None)?;
        if settings.warmup.steps > 0 && world.task.worked_example(settings.seed, 0).is_none() {
            return Err(Error::invalid(format!(
                "task {} has no worked examples: warmup.steps must be 0",
                world.task.name()
            )));
        }
        if world.task.size() == Some(0) {
            return Err(Error::invalid(format!(
                "task {} has no problem to train on",
                world.task.name()
            )));
        }
        let held_out = world.task.held_out(settings.seed, settings.evaluation.problems);
        let first = world.task.problem(settings.seed, 0);
        world.prompt(&first)?;
        world.verifier.try_out(&first)?;
        let optimizer = if settings.warmup.steps > 0 {
            &settings.warmup.optimizer
        } else {
            &settings.optimizer
        };
        let optimizer = AdamW::new(optimizer.clone(), policy.parameters())?;
        let questions = Questions::new(
            settings.seed,
            settings.rollout.group,
            settings.rollout.order,
            settings.replay.clone(),
            &world,
            policy.vocab(),
        )?;
        let entropy = settings
            .entropy_control
            .as_ref()
            .map(|control| control.start(f64::from(settings.objective.entropy_coefficient)))
            .transpose()?;
        let state = State { entropy, ..State::default() };
        let last = LastStep::default();
        Ok(Reinforcement {
            settings,
            world,
            policy,
            optimizer,
            stages,
            questions,
            held_out,
            state,
            last,
            activity: Activity::default(),
            advice: Advice::default(),
            notices: Vec::new(),
            opening_notices: Vec::new(),
        })
    }

    fn known(&self) -> Known<'_> {
        Known { verifier: &*self.world.verifier, records_scores: self.policy.records_scores() }
    }

    /// Puts a stage of your own in front of the stage of a name (`"advantage"`, `"correction"`, …), or at the end.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when there is no such stage.
    pub fn insert_stage(&mut self, before: Option<&str>, stage: Box<dyn Stage>) -> Result<()> {
        let at = match before {
            None => self.stages.len(),
            Some(name) => {
                let found = self.stages.iter().position(|one| one.name().starts_with(name));
                found.ok_or_else(|| {
                    let names: Vec<String> = self.stages.iter().map(|one| one.name()).collect();
                    Error::invalid(format!("no stage `{name}` (there are: {})", names.join(", ")))
                })?
            }
        };
        self.stages.insert(at, stage);
        Ok(())
    }

    /// Its settings, with what was found in place of what they left open.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the user should know of how the run was opened: what was guessed, what was left out.
    pub fn opening_notices(&self) -> &[String] {
        &self.opening_notices
    }

    /// Says so.
    pub(super) fn with_opening_notices(self, notices: Vec<String>) -> Reinforcement {
        Reinforcement { opening_notices: notices, ..self }
    }

    /// The policy.
    pub fn policy(&self) -> &dyn Policy {
        &*self.policy
    }

    /// The policy, when the run is over.
    pub fn into_policy(self) -> Box<dyn Policy> {
        self.policy
    }

    /// What it works on.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Episodes sampled so far, those of evaluations left out.
    pub fn episodes(&self) -> u64 {
        self.state.sequence
    }

    /// Updates of the phase of reinforcement so far.
    pub fn updates(&self) -> u64 {
        self.state.updates
    }

    /// Updates that were skipped for a NaN or infinity.
    pub fn skipped(&self) -> u64 {
        self.state.skipped.total
    }

    /// Problems that replay has retired.
    pub fn retired(&self) -> usize {
        self.questions.pool().map_or(0, |pool| pool.retired())
    }

    /// What the last step of reinforcement gave.
    pub fn last(&self) -> &LastStep {
        &self.last
    }

    /// Answers to the held-out problems now: the accuracy, and the answers.
    ///
    /// # Errors
    /// As [`Policy::generate`], and what the verifier reports.
    pub fn evaluate(&self) -> Result<(f32, Vec<metrics::Rollout>)> {
        let evaluation = Evaluation {
            policy: &*self.policy,
            world: &self.world,
            weights: self.settings.reward.weights_of(&self.world.verifier.rewards())?,
            by_label: self.settings.reward.outcome.is_some(),
            max_new_tokens: self.settings.rollout.max_new_tokens,
            batch: self.settings.rollout.batch,
            activity: &self.activity,
        };
        evaluation.run(&self.held_out, self.state.step)
    }

    /// What happens when reinforcement begins: a baseline is measured, stages take the policy as it is.
    fn begin_phase(&mut self) -> Result<()> {
        let unmeasured = self.settings.reward.outcome.and_then(|one| one.reward.unmeasured());
        if let Some(problems) = unmeasured {
            self.state.baseline = Some(self.measured_baseline(problems)?);
            self.stages = plan::stages(&self.settings, self.known(), self.state.baseline)?;
        }
        for stage in &mut self.stages {
            stage.begin(&*self.policy)?;
        }
        Ok(())
    }

    /// How often the policy is right and how often it hallucinates, by sampling. A rate of 0 would make an outcome worth
    /// nothing, so each is at least one in a hundred.
    fn measured_baseline(&self, count: usize) -> Result<Baseline> {
        // Problems far beyond those of the run, or another epoch of a finite task.
        const FROM: u64 = 1 << 48;
        let collector = self.collector(&[1.0]);
        let problems: Vec<Problem> = (0..count as u64)
            .map(|i| self.world.task.problem(self.settings.seed, FROM + i))
            .collect();
        let mut labels = Vec::new();
        for part in problems.chunks(self.settings.rollout.batch.max(1)) {
            let of: Vec<&Problem> = part.iter().collect();
            let sampling = collector.sampling(FROM + labels.len() as u64);
            let judged = self.world.attempts(&*self.policy, &of, 1, &sampling)?.judged;
            labels.extend(judged.judgements.into_iter().map(|one| one.and_then(|one| one.label)));
        }
        let labelled: Vec<Label> = labels.into_iter().flatten().collect();
        Ok(Baseline::measured(&labelled)?.at_least(0.01))
    }

    fn collector<'a>(&'a self, weights: &'a [f64]) -> Collector<'a> {
        Collector {
            world: &self.world,
            policy: &*self.policy,
            settings: &self.settings.rollout,
            seed: self.settings.seed,
            weights,
            greedy: plan::wants_greedy(&self.settings.advantage),
            activity: &self.activity,
        }
    }

    /// The ids of an example: prompt and response, with a mask of what the policy is to imitate.
    fn example(&self, example: Example) -> Result<(Vec<i32>, Vec<i32>, Vec<u8>)> {
        let example = self.world.environment.shown(example);
        let prompt = self.world.prompt(&example.problem)?;
        let (mut tokens, mut mask) = (Vec::new(), Vec::new());
        for turn in &example.turns {
            tokens.extend(self.world.codec.encode(&turn.part)?);
            mask.resize(tokens.len(), u8::from(turn.by == Author::Policy));
        }
        let end = self.world.stop.first().copied();
        if let Some(end) = end.filter(|end| tokens.last() != Some(end)) {
            tokens.push(end);
            mask.push(1);
        }
        Ok((prompt, tokens, mask))
    }

    fn imitate(&mut self, step: u64) -> Result<(StepMetrics, usize)> {
        let warmup = &self.settings.warmup;
        let mut examples = Vec::with_capacity(warmup.examples);
        for i in 0..warmup.examples as u64 {
            let index = (step - 1) * warmup.examples as u64 + i;
            let Some(example) = self.world.task.worked_example(self.settings.seed, index) else {
                return Err(Error::invalid(format!(
                    "task {}: no worked example",
                    self.world.task.name()
                )));
            };
            examples.push(self.example(example)?);
        }
        let scored: Vec<Scored<'_>> = examples
            .iter()
            .map(|(prompt, completion, mask)| Scored {
                mask: mask.contains(&0).then_some(&mask[..]),
                ..Scored::new(prompt, completion)
            })
            .collect();
        let mut gradients = Gradients::new();
        let tokens = self.settings.update.micro_batch_tokens;
        let done = supervised::gradients(&*self.policy, &scored, tokens, &mut gradients)?;
        let factor = warmup.schedule.factor(step - 1, warmup.steps);
        let update = self.optimizer.step(self.policy.parameters_mut(), &gradients, factor)?;
        self.state.skipped.watch(step, done.loss, &update)?;
        let mut metrics = StepMetrics::new(step, Phase::Warmup);
        metrics.loss = Some(done.loss);
        metrics.entropy = Some(done.entropy);
        metrics.grad_norm = Some(update.grad_norm);
        Ok((metrics, done.tokens))
    }

    /// Episodes, stages, updates.
    fn reinforce(&mut self, step: u64, logs: Option<&mut Logs>) -> Result<(StepMetrics, usize)> {
        let weights = self.settings.reward.weights_of(&self.world.verifier.rewards())?;
        let (mut sequence, updates) = (self.state.sequence, self.state.updates);
        let collector = Collector {
            world: &self.world,
            policy: &*self.policy,
            settings: &self.settings.rollout,
            seed: self.settings.seed,
            weights: &weights,
            greedy: plan::wants_greedy(&self.settings.advantage),
            activity: &self.activity,
        };
        let mut collected = collector.collect(&mut self.questions, &mut sequence, updates)?;
        self.state.sequence = sequence;
        let mut measured = BTreeMap::new();
        let mut context = Step {
            policy: &*self.policy,
            seed: self.settings.seed,
            number: step,
            micro_batch_tokens: self.settings.update.micro_batch_tokens,
            metrics: &mut measured,
        };
        stage::run(&mut self.stages, &mut collected.batch, &mut context)?;
        if let Some(logs) = logs {
            self.step_log(step, &collected).write(logs)?;
        }
        let fresh = self.step_log(step, &collected).fresh();
        let objective = self.objective();
        self.questions.after(&fresh, updates);
        if fresh.iter().all(|reward| reward.is_nan()) {
            return Err(Error::numeric(format!(
                "step {step}: verifier {} gave no reward to any of {} completions ({})",
                self.world.verifier.name(),
                fresh.len(),
                faults_in_words(&collected.faults)
            )));
        }
        let degenerate = measured.get("zero_advantage_groups").copied().unwrap_or(0.0);
        let skips =
            collected.unmixed || (self.settings.update.skip_degenerate && degenerate >= 1.0);
        let done =
            if skips { Updates::default() } else { self.update(step, &collected, &objective)? };
        let mut context = Step {
            policy: &*self.policy,
            seed: self.settings.seed,
            number: step,
            micro_batch_tokens: self.settings.update.micro_batch_tokens,
            metrics: &mut measured,
        };
        for stage in &mut self.stages {
            let name = stage.name();
            stage.learn(&collected.batch, &mut context).map_err(|error| error.at(name))?;
        }
        let log = self.step_log(step, &collected);
        let metrics = log.measured(&done, &measured);
        let seen = log.seen(&metrics);
        self.notices = self.advice.after(step, seen, self.settings.rollout.max_new_tokens);
        let own = collected.batch.episodes.iter().map(|one| one.tokens.len()).sum::<usize>();
        self.last = LastStep {
            metrics: done.sums,
            only_replayed: collected.only_replayed,
            batch: Some(collected.batch),
            problems: collected.problems,
            measured,
        };
        Ok((metrics, own + done.tokens))
    }

    fn step_log<'a>(&'a self, step: u64, collected: &'a Collected) -> StepLog<'a> {
        StepLog {
            settings: &self.settings,
            questions: &self.questions,
            entropy: self.state.entropy.as_ref(),
            replies: self.world.replies,
            step,
            collected,
        }
    }

    /// What is minimised now: until replay begins without its term, and with the entropy coefficient that follows.
    fn objective(&self) -> Objective {
        let mut objective = self.questions.objective(&self.settings.objective);
        if let (Some(control), Some(state)) = (&self.settings.entropy_control, &self.state.entropy)
        {
            objective.entropy_coefficient = control.coefficient(state);
        }
        objective
    }

    fn update(
        &mut self,
        step: u64,
        collected: &Collected,
        objective: &Objective,
    ) -> Result<Updates> {
        let updates = self.settings.update.clone();
        let rounds = (updates.epochs * updates.minibatches) as u64;
        let phase_updates = self.settings.steps * rounds;
        let batch = &collected.batch;
        let share = batch.members.len().div_ceil(updates.minibatches).max(1);
        let reinforced = step - self.settings.warmup.steps;
        let withheld = self.stages.iter().any(|stage| stage.withholds_policy(reinforced));
        let mut done = Updates { rounds: rounds as f64, ..Updates::default() };
        for epoch in 0..updates.epochs {
            for (i, part) in batch.members.chunks(share).enumerate() {
                let number = self.state.updates;
                let mut gradients = Gradients::new();
                let how = Minimise {
                    objective,
                    micro_batch_tokens: updates.micro_batch_tokens,
                    seed: self.settings.seed,
                    number,
                    value_head: self.stages.iter().find_map(|stage| stage.joined_head()),
                    policy: !withheld,
                    activity: Some(&self.activity),
                };
                let one: Updated =
                    learner::gradients(&*self.policy, batch, part, &how, &mut gradients)?;
                if !withheld {
                    // Where no advantage differs from 0 nothing was walked back, and the gradient is 0.
                    fill_with_zeros(self.policy.parameters(), &mut gradients)?;
                }
                // Only before the first update are these the weights that sampled.
                if epoch == 0 && i == 0 {
                    done.mismatch = Some(one.mismatch);
                }
                let factor = self.settings.schedule.factor(number, phase_updates);
                let update = if !one.metrics.loss.is_finite() {
                    Update { grad_norm: f32::NAN, skipped: Some("the loss itself".to_owned()) }
                } else if withheld {
                    Update { grad_norm: 0.0, skipped: None }
                } else {
                    self.optimizer.step(self.policy.parameters_mut(), &gradients, factor)?
                };
                for stage in &mut self.stages {
                    stage.joined_step(&gradients)?;
                }
                self.state.skipped.watch(step, one.metrics.loss as f32, &update)?;
                self.state.updates += 1;
                if let (Some(control), Some(state)) =
                    (&self.settings.entropy_control, &mut self.state.entropy)
                {
                    control.update(state, one.metrics.entropy);
                }
                done.skipped += u32::from(update.skipped.is_some());
                done.grad_norm = done.grad_norm.max(update.grad_norm);
                done.tokens += one.tokens;
                done.value_loss = one.value_loss.map(|loss| loss + done.value_loss.unwrap_or(0.0));
                done.sums = Some(done.sums.map_or(one.metrics, |sum| sum.merge(&one.metrics)));
            }
        }
        Ok(done)
    }

    /// One step without logs, for a loop of your own: see [`run`](super::run::run()) for the library's.
    ///
    /// # Errors
    /// As [`Trainee::train`].
    pub fn advance(&mut self) -> Result<(StepMetrics, usize)> {
        self.next_step(None)
    }

    fn next_step(&mut self, logs: Option<&mut Logs>) -> Result<(StepMetrics, usize)> {
        let next = self.state.step + 1;
        let done = if next <= self.settings.warmup.steps {
            self.imitate(next)?
        } else {
            self.reinforce(next, logs)?
        };
        self.state.step = next;
        if next == self.settings.warmup.steps {
            self.optimizer = AdamW::new(self.settings.optimizer.clone(), self.policy.parameters())?;
            self.begin_phase()?;
        }
        Ok(done)
    }
}

impl Trainee for Reinforcement {
    fn step(&self) -> u64 {
        self.state.step
    }

    fn total_steps(&self) -> u64 {
        self.settings.total_steps()
    }

    fn phases(&self) -> Vec<(Phase, u64)> {
        let warmup = self.settings.warmup.steps;
        let all = [(Phase::Warmup, warmup), (Phase::Rl, self.settings.total_steps())];
        all.into_iter().filter(|(phase, _)| *phase != Phase::Warmup || warmup > 0).collect()
    }

    fn activity(&self) -> Activity {
        self.activity.clone()
    }

    fn cost(&mut self) -> Result<Option<String>> {
        let first = self.world.task.problem(self.settings.seed, 0);
        cost::line(&*self.policy, &self.world.prompt(&first)?, &self.settings)
    }

    fn device(&self) -> Device {
        self.policy.device()
    }

    fn train(&mut self, logs: &mut Logs) -> Result<(StepMetrics, usize)> {
        self.next_step(Some(logs))
    }

    fn evaluates_after(&self, step: u64) -> bool {
        let (warmup, every) = (self.settings.warmup.steps, self.settings.evaluation.every);
        let in_phase = step > warmup && every > 0 && (step - warmup).is_multiple_of(every);
        !self.held_out.is_empty()
            && (step == warmup || step == self.settings.total_steps() || in_phase)
    }

    fn measure(&mut self, metrics: &mut StepMetrics, _: &mut Logs) -> Result<()> {
        metrics.eval_accuracy = Some(self.evaluate()?.0);
        Ok(())
    }

    fn notices(&self) -> Vec<String> {
        let of_verifier = self.world.verifier.notices();
        of_verifier.into_iter().chain(self.notices.iter().cloned()).collect()
    }

    fn checkpoint(&self) -> &CheckpointSettings {
        &self.settings.checkpoint
    }

    fn state(&self) -> Result<serde_json::Value> {
        let state = State { questions: self.questions.cursor(), ..self.state.clone() };
        serde_json::to_value(state)
            .map_err(|e| Error::invalid(format!("the state of a run is not JSON: {e}")))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.policy.save(folder)?;
        self.world.codec.save(folder)?;
        self.optimizer.save(self.policy.parameters(), &folder.join(OPTIMIZER))?;
        self.questions.save(folder)?;
        if self.state.step >= self.settings.warmup.steps {
            for stage in &self.stages {
                stage.save(folder)?;
            }
        }
        Ok(())
    }
}

/// Gives every parameter that is trained a gradient.
fn fill_with_zeros(parameters: &Parameters, gradients: &mut Gradients) -> Result<()> {
    for parameter in parameters.iter().filter(|parameter| !parameter.is_frozen()) {
        if gradients.get(parameter.id()).is_none() {
            let value = parameter.value();
            let zeros = Tensor::zeros_on(value.shape(), DType::F32, &value.device())?;
            gradients.add(parameter.id(), zeros)?;
        }
    }
    Ok(())
}
