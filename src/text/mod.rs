//! From text to token ids and back.

pub mod tokenizer;

pub use tokenizer::Tokenizer;
