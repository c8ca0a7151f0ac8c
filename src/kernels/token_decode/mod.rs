//! From token ids to what they stand for: text ids to bytes ([`decode`], [`Stream`]), image ids to codebook vectors
//! ([`vq_lookup`], [`vq_quantize`]).
//!
//! `table` holds the bytes of every id, `text` copies them, `stream` hands out text as ids arrive, `vq` gathers
//! vectors. Which bytes an id has is decided by a tokenizer, which is another room's; images are made of vectors by a
//! model.
//!
#![doc = include_str!("../../../docs/kernels/token_decode.md")]

pub mod launch;
mod stream;
mod table;
mod text;
mod vq;
pub mod vq_launch;

pub use stream::Stream;
pub use table::{Strip, Table, Token};
pub use text::{Decode, Decoded, decode};
pub use vq::{Layout, VqLookup, VqQuantize, vq_lookup, vq_quantize};
