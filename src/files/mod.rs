//! What is read from and written to disk: safetensors ([`safetensors`]) and files that are whole or absent
//! ([`atomic`]).
//!
//! Nothing here knows a model or a run. Memory maps are avoided on purpose: a file that shrinks under a map is a
//! SIGBUS, a short read is an [`Error`](crate::Error).

pub mod atomic;
pub mod safetensors;
