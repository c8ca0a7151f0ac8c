//! From text to token ids and back, and from a conversation to text.

pub mod chat;
mod decoding;
mod guard;
mod jinja;
mod limits;
mod python;
mod special;
pub mod tokenizer;
mod training;

pub use chat::ChatTemplate;
pub use tokenizer::Tokenizer;
