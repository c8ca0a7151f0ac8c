//! GRPO on a published model and a file of problems: what `--model` and `--data` complete.

use crate::kernels::advantage::Estimator;
use crate::kernels::policy_loss::Objective;
use crate::optim::{AdamWSettings, Schedule};
use crate::rl::stage::logprobs::ReferenceSettings;
use crate::rl::stage::reward::RewardSettings;
use crate::tasks::TaskSettings;
use crate::tasks::file::FileSettings;
use crate::tasks::settings::Source;
use crate::train::settings::{
    CheckpointSettings, EvaluationSettings, ModelSettings, Order, RolloutSettings, Settings,
    UpdateSettings, WarmupSettings,
};
use std::path::PathBuf;

/// Settings for fine-tuning a model that already answers some of the problems; `model.path` and `task.path` are empty
/// until they are given.
pub fn jsonl() -> Settings {
    Settings {
        seed: 1,
        steps: 200,
        model: ModelSettings::Folder { path: PathBuf::new(), dtype: None, date: None },
        task: TaskSettings::new(Source::File(FileSettings::default())),
        warmup: WarmupSettings {
            steps: 0,
            examples: 32,
            optimizer: AdamWSettings::default(),
            schedule: Schedule::default(),
        },
        rollout: RolloutSettings {
            prompts: 16,
            group: 8,
            temperature: 1.0,
            max_new_tokens: 256,
            batch: 128,
            logged: 8,
            mask_truncated: false,
            dynamic_sampling: None,
            overlong: None,
            top_k: None,
            top_p: None,
            min_p: None,
            resampling: None,
            order: Order::Task,
            filling: None,
        },
        reward: RewardSettings::default(),
        advantage: Estimator::default(),
        critic: None,
        process_reward: None,
        credit: None,
        correction: None,
        reference: ReferenceSettings::default(),
        replay: None,
        entropy_control: None,
        objective: Objective::default(),
        update: UpdateSettings {
            epochs: 1,
            minibatches: 1,
            micro_batch_tokens: 4096,
            recompute: false,
            recompute_old: false,
            skip_degenerate: false,
        },
        optimizer: AdamWSettings { learning_rate: 1e-6, ..AdamWSettings::default() },
        schedule: Schedule { warmup: 5, ..Schedule::default() },
        evaluation: EvaluationSettings { every: 20, problems: 100 },
        checkpoint: CheckpointSettings { every: 50, keep: 2, best: true },
    }
}
