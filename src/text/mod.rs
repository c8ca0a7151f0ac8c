//! From text to token ids and back.

mod decoding;
pub mod tokenizer;
mod training;

pub use tokenizer::Tokenizer;
