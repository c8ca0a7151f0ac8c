//! The settings of the Stable-DiffCoder recipe.

use crate::optim::{AdamWSettings, Decay, Schedule};
use crate::rl::unmasking::{Confidence, Selection};
use crate::tasks::source_text::TextSettings;
use crate::train::diffusion::Noising;
use crate::train::diffusion::settings::{
    DiffusionSettings, HeldOutSettings, PhaseSettings, TokenizerSettings,
};
use crate::train::settings::{CheckpointSettings, ModelSettings};

/// A decoder of some 0.2 million parameters on programs made in code: 600 steps of next-token prediction, then 900 of
/// blocks of four.
///
/// Real source text: `--set text={kind="files", path="src", extensions=["rs"], most_bytes=4000000}` with
/// `--set tokenizer={kind="byte_pairs", vocab_size=512}`.
pub fn stable_diffcoder() -> DiffusionSettings {
    let phase = |steps, warmup| PhaseSettings {
        steps,
        optimizer: AdamWSettings { learning_rate: 2e-3, ..AdamWSettings::default() },
        schedule: Schedule { warmup, decay: Decay::Cosine, floor: 0.1 },
    };
    DiffusionSettings {
        seed: 1,
        block: 4,
        shift: false,
        mask_id: None,
        length: 64,
        rows: 16,
        micro_batch_tokens: 4096,
        recompute: false,
        text: TextSettings::Programs,
        tokenizer: TokenizerSettings::Characters,
        model: ModelSettings::Small {
            architecture: "llama".to_owned(),
            hidden_size: 64,
            layers: 3,
            heads: 4,
            context: 128,
            dtype: "f32".to_owned(),
        },
        next_token: phase(600, 20),
        diffusion: phase(900, 0),
        noising: Noising { warm_up_steps: 100, ..Noising::default() },
        evaluation: HeldOutSettings {
            every: 100,
            rows: 64,
            completions: 8,
            prompt: 18,
            selection: Selection::Threshold { threshold: 0.9 },
            confidence: Confidence::Probability,
        },
        checkpoint: CheckpointSettings { every: 300, keep: 2, best: false },
    }
}
