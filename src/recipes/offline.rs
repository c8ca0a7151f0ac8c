//! Demonstrations and preferences on a published model: what `--model` and `--data` complete.

use crate::optim::{AdamWSettings, Decay, Schedule};
use crate::rl::preference::{Dpo, Kto, Orpo};
use crate::train::offline::settings::{OfflineData, OfflineEvaluation, Sft};
use crate::train::offline::{OfflineObjective, OfflineSettings};
use crate::train::settings::{CheckpointSettings, ModelSettings};
use std::path::PathBuf;

/// Supervised fine-tuning: three passes at the rate that is usual for full fine-tuning.
pub fn sft() -> OfflineSettings {
    OfflineSettings { epochs: 3.0, ..settings(OfflineObjective::Sft(Sft {}), 2e-5) }
}

/// Direct preference optimization, with the rate of TRL.
pub fn dpo() -> OfflineSettings {
    settings(OfflineObjective::Dpo(Dpo::default()), 1e-6)
}

/// Kahneman-Tversky optimization, with the rate of TRL.
pub fn kto() -> OfflineSettings {
    settings(OfflineObjective::Kto(Kto::default()), 1e-6)
}

/// Odds ratio preference optimization, with the rate of its paper.
pub fn orpo() -> OfflineSettings {
    settings(OfflineObjective::Orpo(Orpo::default()), 8e-6)
}

/// `model.path` and `data.path` are empty until they are given.
fn settings(objective: OfflineObjective, learning_rate: f64) -> OfflineSettings {
    OfflineSettings {
        seed: 1,
        epochs: 1.0,
        steps: None,
        batch: 16,
        micro_batch_tokens: 4096,
        recompute: false,
        model: ModelSettings::Folder { path: PathBuf::new(), dtype: None, date: None },
        data: OfflineData::default(),
        objective,
        reference: None,
        optimizer: AdamWSettings { learning_rate, ..AdamWSettings::default() },
        schedule: Schedule { warmup: 10, decay: Decay::Linear, floor: 0.0 },
        evaluation: OfflineEvaluation {
            every: 50,
            records: 200,
            completions: 4,
            max_new_tokens: 128,
        },
        checkpoint: CheckpointSettings { every: 200, keep: 2, best: true },
    }
}
