//! Differentiable functions on tensors.
//!
//! Each is thin: check, call [`kernels`](crate::kernels), record the backward. A gradient is always f32; an output
//! has the storage type of its first input. No loop over elements lives here.

mod elementwise;
mod matmul;
mod reduce;
mod rows;

pub use elementwise::{add, cast, div, exp, log, mul, neg, scale, shift, softcap, sqrt, sub, tanh};
pub use matmul::{linear, matmul};
pub use reduce::{mean, mean_last, sum, sum_last};
pub use rows::{concat, gather, reshape, rows};
