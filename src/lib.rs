//! Kernels, autograd, models and a trainer for post-training language models with reinforcement learning.
//!
//! # Start here
//!
//! | you want to | look at |
//! |---|---|
//! | call a kernel on your own memory, on the host or on a GPU | [`kernels`]: one module per family, its page opens it |
//! | compute with gradients | [`Tensor`], [`ops`], [`optim`]; [`tensor::autograd`] for an operation of your own |
//! | load a model | [`models::Decoder`] |
//! | draw and score completions, write a stage of your own | [`rl`]: [`Policy`](rl::policy::Policy), [`Batch`](rl::batch::Batch), [`Stage`](rl::stage::Stage) |
//! | give problems and judge answers | [`tasks`]: [`Task`](tasks::Task), [`Verifier`](tasks::Verifier), [`Environment`](tasks::Environment) |
//! | train | `train`: `Reinforcement` in the one loop (feature `text`), or the program `gradstone` |
//!
//! The folder `examples` has a program for each. Every error is an [`Error`]: nothing panics on bad input.
//!
//! # Features
//!
//! `program` (default) is the program and everything for a terminal; `text` alone brings tokenizers and the training loop; without
//! both, kernels, tensors, models and reinforcement remain.

#[cfg(feature = "program")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "program")]
#[doc(hidden)]
pub mod cli;
pub mod device;
#[doc(hidden)]
pub mod dtype;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod files;
pub mod kernels;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
#[cfg(feature = "program")]
#[doc(hidden)]
pub mod recipes;
pub mod rl;
#[doc(hidden)]
pub mod rng;
pub mod tasks;
pub mod tensor;
#[cfg(feature = "text")]
#[doc(hidden)]
pub mod text;
#[cfg(feature = "text")]
pub mod train;

#[doc(inline)]
pub use dtype::{DType, Float, FloatSlice, FloatSliceMut};
#[doc(inline)]
pub use error::{Error, Result};
#[doc(inline)]
pub use rng::{Sequence, Stream};
#[doc(inline)]
pub use tensor::Tensor;
#[cfg(feature = "text")]
#[doc(inline)]
pub use text::Tokenizer;

/// What most programs name: `use gradstone::prelude::*;`.
pub mod prelude {
    pub use crate::device::Device;
    pub use crate::models::{Causal, Decoder, DecoderConfig};
    pub use crate::ops;
    pub use crate::optim::{AdamW, AdamWSettings};
    pub use crate::rl::batch::Batch;
    pub use crate::rl::policy::Policy;
    pub use crate::rl::sampling::Sampling;
    pub use crate::rl::stage::Stage;
    pub use crate::tasks::{Environment, Problem, Task, Verifier};
    pub use crate::tensor::{Gradients, autograd};
    #[cfg(feature = "text")]
    pub use crate::train::{Reinforcement, RunDir, Trainee, World};
    pub use crate::{DType, Error, Result, Tensor};
}

/// The README's example, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
