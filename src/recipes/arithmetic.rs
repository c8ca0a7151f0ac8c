//! The default recipe: a decoder of some 0.2 million parameters learns to add.

use crate::kernels::advantage::Estimator;
use crate::kernels::policy_loss::{Objective, Surrogate};
use crate::optim::{AdamWSettings, Schedule};
use crate::rl::stage::logprobs::ReferenceSettings;
use crate::rl::stage::reward::RewardSettings;
use crate::tasks::TaskSettings;
use crate::tasks::arithmetic::{ArithmeticConfig, Operation};
use crate::tasks::settings::Source;
use crate::train::settings::{
    CheckpointSettings, EvaluationSettings, ModelSettings, Order, RolloutSettings, Settings,
    UpdateSettings, WarmupSettings,
};

/// Supervised warm-up on sums until some are right, then GRPO until most are.
pub fn arithmetic() -> Settings {
    Settings {
        seed: 1,
        steps: 500,
        model: ModelSettings::Small {
            architecture: "qwen3".to_owned(),
            hidden_size: 96,
            layers: 2,
            heads: 4,
            context: 32,
            dtype: "f32".to_owned(),
        },
        task: TaskSettings::new(Source::Arithmetic(ArithmeticConfig {
            operations: vec![Operation::Add],
            smallest: 0,
            largest: 49,
            ..ArithmeticConfig::default()
        })),
        warmup: WarmupSettings {
            steps: 140,
            examples: 64,
            optimizer: AdamWSettings { learning_rate: 2e-3, ..AdamWSettings::default() },
            schedule: Schedule { warmup: 20, ..Schedule::default() },
        },
        rollout: RolloutSettings {
            prompts: 64,
            group: 8,
            temperature: 1.0,
            max_new_tokens: 6,
            batch: 512,
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
        // The upper bound is wider than the lower (DAPO): entropy lasts longer.
        objective: Objective {
            surrogate: Surrogate::PpoClip {
                clip_low: 0.2,
                clip_high: 0.28,
                dual_clip: None,
                delta: None,
            },
            ..Objective::default()
        },
        update: UpdateSettings {
            epochs: 1,
            minibatches: 1,
            micro_batch_tokens: 4096,
            recompute: false,
            recompute_old: false,
            skip_degenerate: false,
        },
        optimizer: AdamWSettings { learning_rate: 5e-4, ..AdamWSettings::default() },
        schedule: Schedule { warmup: 5, ..Schedule::default() },
        evaluation: EvaluationSettings { every: 20, problems: 400 },
        checkpoint: CheckpointSettings { every: 100, keep: 2, best: false },
    }
}
