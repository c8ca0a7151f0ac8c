//! From text to token ids and back.

mod decoding;
pub mod tokenizer;

pub use tokenizer::Tokenizer;
