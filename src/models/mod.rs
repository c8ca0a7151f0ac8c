//! The zoo: one decoder that covers six published families, its config, its files and its cached generation step; the two
//! copies of a sequence with which it learns to fill masked blocks.
//!
//! Sampling and rollouts are [`rl`](crate::rl)'s; nothing here draws a random number except initial weights.

pub mod block_diffusion;
mod causal;
pub mod config;
mod decoder;
mod decoder_files;
mod gpt;
mod llada;
mod packed;
mod prepared;
pub mod rope_scaling;

pub use block_diffusion::{Copies, Diffusion};
pub use causal::Causal;
pub use config::{Activation, Architecture, DecoderConfig};
pub use decoder::Decoder;
pub use decoder_files::read_json;
pub use gpt::{Gpt, GptConfig, Ngrams};
pub use packed::{Packed, Tokens};
pub use prepared::Prepared;
