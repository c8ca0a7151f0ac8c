//! Reinforcement of one arm by the trainer that every run has: rewards by label, credit of steps.

use super::evaluation::Counted;
use super::settings::{FaithRlSettings, Reward};
use super::start::Start;
use crate::error::{Error, Result};
use crate::kernels::advantage::{Estimator, Singleton};
use crate::kernels::policy_loss::{Objective, Surrogate};
use crate::models::Causal;
use crate::optim::{AdamWSettings, Schedule};
use crate::recipes::jsonl;
use crate::rl::faithful::Mapping;
use crate::rl::policy::Policy;
use crate::rl::stage::advantage::counted;
use crate::rl::stage::credit::{Credit, CreditSettings};
use crate::rl::stage::reward::{OutcomePrice, Price, RewardSettings};
use crate::tasks::environment::OneShot;
use crate::tasks::two_hop::{self, Exercise, TwoHop, TwoHopVerifier, verdict};
use crate::tasks::{Language, Task};
use crate::train::codec::Codec;
use crate::train::settings::Settings;
use crate::train::{Reinforcement, World};

/// A trained policy and what was seen on the way.
pub(super) struct Trained {
    pub policy: Box<dyn Policy>,
    /// `(step, share)` of hallucinated rollouts and of unsupported steps, as sampled for training.
    pub hallucinated: Vec<(f64, f64)>,
    pub unsupported: Vec<(f64, f64)>,
    /// Of the tokens whose response has an advantage, the share that the modulation left without.
    pub silenced: f64,
    /// Share of groups in which all rewards are equal.
    pub degenerate: f64,
    /// Rollouts whose verifier failed.
    pub unscored: u64,
}

/// The settings of the trainer for one arm.
fn run_settings(settings: &FaithRlSettings, seed: u64, start: &Start) -> Settings {
    let rl = &settings.rl;
    let reward = match settings.reward {
        Reward::Binary => Price::Binary {},
        Reward::Ternary => Price::Ternary {},
        Reward::Geometric => Price::Geometric { baseline: Some(start.baseline), problems: 0 },
    };
    let outcome = OutcomePrice { reward, length_penalty: false, mapping: Mapping::ByLabel };
    let mut run = Settings {
        seed,
        steps: rl.steps,
        reward: RewardSettings { outcome: Some(outcome), ..RewardSettings::default() },
        advantage: match settings.scaled {
            true => Estimator::default(),
            false => Estimator::DrGrpo { singleton: Singleton::Zero },
        },
        credit: Some(CreditSettings {
            rule: Credit::Labels(settings.credit),
            labelling: settings.labelling,
        }),
        objective: Objective {
            surrogate: Surrogate::PpoClip {
                clip_low: rl.clip,
                clip_high: rl.clip,
                dual_clip: None,
                delta: None,
            },
            ..Objective::default()
        },
        optimizer: AdamWSettings {
            learning_rate: rl.learning_rate,
            beta2: 0.99,
            max_grad_norm: rl.max_grad_norm,
            ..AdamWSettings::default()
        },
        schedule: Schedule { warmup: rl.warmup, ..Schedule::default() },
        ..jsonl()
    };
    run.rollout.prompts = rl.prompts;
    run.rollout.group = rl.group;
    run.rollout.max_new_tokens = two_hop::RESPONSE;
    run.rollout.batch = rl.prompts * rl.group;
    run.rollout.logged = 0;
    run.update.minibatches = rl.minibatches.max(1);
    run.update.micro_batch_tokens = usize::MAX;
    run.evaluation.problems = 0;
    run
}

fn world(settings: &FaithRlSettings) -> Result<World> {
    let task = TwoHop::new(settings.task.clone())?;
    let Language::Ids(ids) = task.language() else {
        return Err(Error::state("two-hop questions are made of ids"));
    };
    let codec = Codec::Ids(ids);
    Ok(World {
        task: Box::new(task),
        environment: Box::new(OneShot),
        verifier: Box::new(TwoHopVerifier { flagged: settings.flagged }),
        stop: codec.stop(),
        codec,
        replies: false,
    })
}

/// Trains one arm.
pub(super) fn train(settings: &FaithRlSettings, seed: u64, start: &Start) -> Result<Trained> {
    let model = Box::new(Causal::copy(&start.model)?);
    let mut run = Reinforcement::new(run_settings(settings, seed, start), world(settings)?, model)?;
    let (mut hallucinated, mut unsupported) = (Vec::new(), Vec::new());
    let (mut silenced, mut heard, mut degenerate, mut groups) = (0.0, 0.0, 0, 0);
    let mut unscored = 0;
    for step in 0..settings.rl.steps {
        run.advance()?;
        let last = run.last();
        let Some(batch) = &last.batch else { continue };
        let mut seen = Counted::default();
        for episode in &batch.episodes {
            let Some(exercise) = Exercise::read(&last.problems[episode.prompt]) else { continue };
            seen.add(&exercise, &verdict(&exercise, &episode.tokens, !episode.truncated));
        }
        let rates = seen.rates();
        hallucinated.push((step as f64, rates.hallucinated));
        unsupported.push((step as f64, rates.unsupported));
        let measured = |name: &str| last.measured.get(name).copied().unwrap_or(0.0);
        silenced += measured("credit_taken_tokens");
        heard += measured("credit_tokens");
        let counts = counted(batch);
        degenerate += counts.degenerate;
        groups += counts.groups;
        unscored += counts.unscored as u64;
    }
    if run.skipped() > 0 {
        return Err(Error::numeric(format!("{} updates were not finite", run.skipped())));
    }
    Ok(Trained {
        policy: run.into_policy(),
        hallucinated,
        unsupported,
        silenced: silenced / f64::max(heard, 1.0),
        degenerate: degenerate as f64 / groups.max(1) as f64,
        unscored,
    })
}
