//! The zoo: one decoder that covers the published families of a [table](ARCHITECTURES), its config, its files and its cached
//! generation step; the two copies of a sequence with which it learns to fill masked blocks; the small model of problems
//! made in code; and what generating and scoring need of either ([`Causal`]).
//!
//! Sampling and rollouts are [`rl`](crate::rl)'s; nothing here draws a random number except initial weights.

mod architecture;
mod block;
pub mod block_diffusion;
mod causal;
pub mod config;
mod config_fields;
mod decoder;
mod decoder_files;
mod diffusion;
mod fields;
mod folder;
mod gpt;
mod layer_kinds;
mod llada;
mod packed;
mod published_fields;
pub mod rope_scaling;
mod stacked;

pub use crate::nn::{Activation, Prepared};
pub use architecture::{ARCHITECTURES, Architecture};
pub use block_diffusion::Copies;
pub use causal::Causal;
pub use config::DecoderConfig;
pub use decoder::Decoder;
pub use diffusion::Diffusion;
pub use folder::read_json;
pub use gpt::{Gpt, GptConfig, Ngrams};
pub use packed::{Packed, Tokens};
