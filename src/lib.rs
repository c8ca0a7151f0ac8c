//! Kernels, autograd, models and recipes for post-training language models with reinforcement learning.

pub mod bench;
pub mod cli;
pub mod device;
pub mod dtype;
pub mod error;
pub mod files;
pub mod kernels;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod recipes;
pub mod rl;
pub mod rng;
pub mod tasks;
pub mod tensor;
pub mod text;
pub mod train;

pub use dtype::DType;
pub use error::{Error, Result};
pub use tensor::Tensor;

/// The README's example, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
