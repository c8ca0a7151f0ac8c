//! Reinforcement of one arm by the trainer that every run has, and its measurement on the way.

use super::measurement::{Measured, accuracy};
use super::settings::ExGrpoSettings;
use super::start::Start;
use crate::error::{Error, Result};
use crate::kernels::advantage::{Estimator, Singleton};
use crate::kernels::policy_loss::{Aggregation, Objective, Replay, ReplayShape, Rows, Surrogate};
use crate::models::Causal;
use crate::optim::{AdamWSettings, Schedule};
use crate::recipes::jsonl;
use crate::rl::replay::ReplaySettings;
use crate::rl::stage::advantage::counted;
use crate::tasks::environment::OneShot;
use crate::tasks::permutation_chain::{PermutationChain, RESPONSE};
use crate::tasks::{Language, Task};
use crate::train::codec::Codec;
use crate::train::settings::{Order, Settings};
use crate::train::{Reinforcement, World};

/// The beta of policy shaping.
const BETA: f32 = 0.1;

/// The settings of the trainer for one arm.
fn run_settings(settings: &ExGrpoSettings, seed: u64) -> Settings {
    let base = jsonl();
    let objective = objective(settings);
    let before = before(settings, &objective);
    let replays = settings.replay.enabled;
    let replay = ReplaySettings {
        share: settings.replayed,
        law: settings.replay.law,
        lowest_entropy: settings.replay.lowest_entropy,
        starts_at: settings.replay.starts_at,
        retire: settings.retire,
        enabled: replays,
        trajectories: settings.kept,
        objective_before: Some(before.clone()),
        ..ReplaySettings::default()
    };
    let mut run = Settings {
        seed,
        steps: u64::from(u32::MAX),
        advantage: Estimator::DrGrpo { singleton: Singleton::Zero },
        objective: if replays { objective } else { before },
        replay: (replays || settings.retire).then_some(replay),
        optimizer: AdamWSettings {
            learning_rate: settings.learning_rate,
            beta2: 0.99,
            max_grad_norm: settings.max_grad_norm,
            ..AdamWSettings::default()
        },
        schedule: Schedule { warmup: settings.warmup, ..Schedule::default() },
        ..base
    };
    run.rollout.prompts = settings.prompts;
    run.rollout.group = settings.group;
    run.rollout.max_new_tokens = RESPONSE;
    run.rollout.batch = settings.prompts * settings.group;
    run.rollout.logged = 0;
    run.rollout.order = Order::Epochs;
    run.update.micro_batch_tokens = usize::MAX;
    run.update.skip_degenerate = true;
    run.evaluation.problems = 0;
    run
}

/// What is minimised until replay begins.
pub(super) fn before(settings: &ExGrpoSettings, objective: &Objective) -> Objective {
    Objective { surrogate: clipped(settings), replay: None, ..objective.clone() }
}

fn clipped(settings: &ExGrpoSettings) -> Surrogate {
    let clip = settings.clip;
    Surrogate::PpoClip { clip_low: clip, clip_high: clip, dual_clip: None, delta: None }
}

/// What is minimised once replay has begun.
pub(super) fn objective(settings: &ExGrpoSettings) -> Objective {
    let replay = &settings.replay;
    let surrogate = if replay.clipped { clipped(settings) } else { Surrogate::Ratio {} };
    let shape = match replay.shaped {
        true => ReplayShape::Sigmoid { beta: BETA, gain: replay.gain },
        false => ReplayShape::Plain {},
    };
    Objective {
        surrogate,
        replay: Some(Replay { shape, ..Replay::default() }),
        entropy_coefficient: settings.entropy_coefficient,
        // Dr.GRPO: a constant length.
        aggregation: Aggregation::SequenceMeanTokenSum { rows: Rows::All, length: RESPONSE as f32 },
        entropy_aggregation: Some(Aggregation::TokenMean {}),
        ..Objective::default()
    }
}

/// The questions of a seed with nothing around them.
fn world(settings: &ExGrpoSettings, seed: u64) -> Result<World> {
    let task = PermutationChain::new(settings.task.clone(), seed)?;
    let Language::Ids(ids) = task.language() else {
        return Err(Error::state("chains of transpositions are made of ids"));
    };
    let codec = Codec::Ids(ids);
    Ok(World {
        verifier: task.verifier(),
        task: Box::new(task),
        environment: Box::new(OneShot),
        stop: codec.stop(),
        codec,
        replies: false,
    })
}

/// Trains one arm and measures it on the way.
pub(super) fn train(settings: &ExGrpoSettings, seed: u64, start: &Start) -> Result<Measured> {
    let model = Box::new(Causal::copy(&start.model)?);
    let mut run = Reinforcement::new(run_settings(settings, seed), world(settings, seed)?, model)?;
    let mut measured = Measured::default();
    measure(&run, start, seed, &mut measured)?;
    let mut next_measurement = settings.measured_every as u64;
    while run.episodes() < settings.rollouts as u64 {
        run.advance()?;
        note(&run, &mut measured);
        if run.episodes() >= next_measurement || run.episodes() >= settings.rollouts as u64 {
            measure(&run, start, seed, &mut measured)?;
            next_measurement += settings.measured_every as u64;
        }
    }
    measured.skipped = run.skipped();
    measured.retired = run.retired();
    Ok(measured)
}

fn measure(run: &Reinforcement, start: &Start, seed: u64, measured: &mut Measured) -> Result<()> {
    let levels = accuracy(run.policy(), &start.task, seed)?;
    measured.note(run.episodes(), run.updates(), levels);
    Ok(())
}

/// What the last step adds to the course of a run.
fn note(run: &Reinforcement, measured: &mut Measured) {
    let last = run.last();
    measured.updates = run.updates();
    measured.only_replayed += last.only_replayed as u64;
    if let Some(batch) = &last.batch {
        let counts = counted(batch);
        measured.groups += counts.groups as u64;
        measured.degenerate += counts.degenerate as u64;
        measured.unscored += counts.unscored as u64;
    }
    if let Some(metrics) = &last.metrics {
        measured.entropy.push((run.episodes() as f64, metrics.entropy));
        let largest = metrics.ratio_max.max(metrics.replay.ratio_max);
        measured.largest_ratio = measured.largest_ratio.max(largest);
    }
}
