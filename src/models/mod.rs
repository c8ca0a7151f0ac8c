//! The zoo: one decoder that covers four published families, its config, its files and its cached generation step.
//!
//! Sampling and rollouts are [`rl`](crate::rl)'s; nothing here draws a random number except initial weights.

pub mod config;
mod decoder;
mod decoder_files;
mod gpt;
pub mod rope_scaling;

pub use config::{Activation, Architecture, DecoderConfig};
pub use decoder::{Decoder, Tokens};
pub use decoder_files::read_json;
pub use gpt::{Gpt, GptConfig, Ngrams};
