//! What `gradstone train faithrl` begins with: a model, problems and a judge of the user's, or the two-hop task.

use super::settings::FaithRlSettings;
use crate::kernels::step_credit::StepCredit;
use crate::optim::{AdamWSettings, Schedule};
use crate::recipes::jsonl;
use crate::rl::faithful::Mapping;
use crate::rl::stage::credit::{Credit, CreditSettings};
use crate::rl::stage::reward::{OutcomePrice, Price, RewardSettings};
use crate::tasks::TaskSettings;
use crate::tasks::settings::Source;
use crate::tasks::two_hop::{self, TwoHopConfig};
use crate::train::settings::{ModelSettings, Settings};

/// FaithRL on a model folder and a file of problems: the geometric reward with rates that are measured by sampling before the
/// first step, and credit taken from steps that nothing supports. Verdicts about steps come from a judge of the user's
/// (`task.verifier`).
pub fn faithrl() -> Settings {
    let base = jsonl();
    let price = Price::Geometric { baseline: None, problems: 256 };
    let outcome = OutcomePrice { reward: price, length_penalty: false, mapping: Mapping::ByLabel };
    // The paper's main setting: an unsupported step keeps nothing of a positive advantage.
    let rule = StepCredit::Modulate { alpha: 0.0, alpha_failed: None };
    Settings {
        reward: RewardSettings { outcome: Some(outcome), ..RewardSettings::default() },
        credit: Some(CreditSettings { rule: Credit::Labels(rule), labelling: Default::default() }),
        optimizer: AdamWSettings { max_grad_norm: 0.5, ..base.optimizer.clone() },
        ..base
    }
}

/// FaithRL on the two-hop task, which judges its own steps.
pub fn faithrl_small() -> Settings {
    let small = FaithRlSettings::default();
    let mut run = faithrl();
    run.steps = small.rl.steps;
    run.model = ModelSettings::Ids {
        width: small.width,
        layers: small.layers,
        heads: small.heads,
        ngram: 3,
    };
    let task = TwoHopConfig { noise: Some(small.noise.clone()), ..small.task.clone() };
    run.task = TaskSettings::new(Source::TwoHop(task));
    run.warmup.steps = small.clean.steps + small.noisy.steps;
    run.warmup.examples = small.clean.batch;
    run.warmup.optimizer = AdamWSettings {
        learning_rate: small.clean.learning_rate,
        beta2: 0.99,
        ..AdamWSettings::default()
    };
    run.warmup.schedule = Schedule { warmup: 30, ..Schedule::default() };
    run.rollout.prompts = small.rl.prompts;
    run.rollout.group = small.rl.group;
    run.rollout.max_new_tokens = two_hop::RESPONSE;
    run.rollout.batch = small.rl.prompts * small.rl.group;
    run.update.minibatches = small.rl.minibatches;
    run.optimizer = AdamWSettings {
        learning_rate: small.rl.learning_rate,
        beta2: 0.99,
        max_grad_norm: small.rl.max_grad_norm,
        ..AdamWSettings::default()
    };
    run.schedule = Schedule { warmup: small.rl.warmup, ..Schedule::default() };
    run.evaluation.problems = 200;
    run
}
