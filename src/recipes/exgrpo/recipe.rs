//! What `gradstone train exgrpo` begins with: the released setting on a model and problems of the user's, or a small one.

use super::settings::ExGrpoSettings;
use super::training::objective;
use crate::kernels::advantage::{Estimator, Singleton};
use crate::kernels::policy_loss::{Aggregation, Objective, ReplayShape, Rows};
use crate::optim::{AdamWSettings, Schedule};
use crate::recipes::jsonl;
use crate::rl::replay::{BucketLaw, ReplaySettings};
use crate::tasks::TaskSettings;
use crate::tasks::permutation_chain::RESPONSE;
use crate::tasks::settings::Source;
use crate::train::settings::{ModelSettings, Order, Settings};

/// The beta and the gain of the release's shaping of replayed tokens.
const RELEASED: ReplayShape = ReplayShape::Sigmoid { beta: 0.1, gain: 1.0 };

/// ExGRPO with the constants of its release (`run_exgrpo.sh`), on a model folder and a file of problems.
pub fn exgrpo() -> Settings {
    let base = jsonl();
    let small = ExGrpoSettings::default();
    let shaped = objective(&ExGrpoSettings {
        replay: super::ReplaySettings { gain: 1.0, ..small.replay },
        ..small.clone()
    });
    // Dr.GRPO's constant length: that of the longest response.
    let length = base.rollout.max_new_tokens as f32;
    let aggregation = Aggregation::SequenceMeanTokenSum { rows: Rows::All, length };
    let mut objective = Objective { entropy_coefficient: 1e-3, aggregation, ..shaped };
    if let Some(replay) = &mut objective.replay {
        replay.shape = RELEASED;
    }
    let before = super::training::before(&small, &objective);
    Settings {
        advantage: Estimator::DrGrpo { singleton: Singleton::Zero },
        objective,
        replay: Some(ReplaySettings {
            objective_before: Some(before),
            ..ReplaySettings::default()
        }),
        ..base
    }
}

/// ExGRPO on chains of transpositions, with the balanced gain and flat buckets that work there (see the reproduction).
pub fn exgrpo_small() -> Settings {
    let small = ExGrpoSettings::default();
    let objective = objective(&small);
    let before = super::training::before(&small, &objective);
    let mut run = exgrpo();
    run.steps = 125;
    run.model = ModelSettings::Ids {
        width: small.width,
        layers: small.layers,
        heads: small.heads,
        ngram: 1,
    };
    run.task = TaskSettings::new(Source::PermutationChain(small.task.clone()));
    run.warmup.steps = small.imitation_steps;
    run.warmup.examples = small.imitation_batch;
    run.warmup.optimizer =
        AdamWSettings { learning_rate: small.imitation_rate, beta2: 0.99, ..Default::default() };
    run.warmup.schedule = Schedule { warmup: 50, ..Schedule::default() };
    run.rollout.prompts = small.prompts;
    run.rollout.group = small.group;
    run.rollout.max_new_tokens = RESPONSE;
    run.rollout.batch = small.prompts * small.group;
    run.rollout.order = Order::Epochs;
    run.objective = objective;
    run.replay = Some(ReplaySettings {
        law: BucketLaw::Uniform {},
        starts_at: small.replay.starts_at,
        objective_before: Some(before),
        ..ReplaySettings::default()
    });
    run.update.skip_degenerate = true;
    run.optimizer = AdamWSettings {
        learning_rate: small.learning_rate,
        beta2: 0.99,
        max_grad_norm: small.max_grad_norm,
        ..AdamWSettings::default()
    };
    run.schedule = Schedule { warmup: small.warmup, ..Schedule::default() };
    run.evaluation.problems = 200;
    run
}
