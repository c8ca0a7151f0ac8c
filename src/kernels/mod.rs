//! One module per kernel family: checked arguments, the plan, the CPU body. No tensor, no autograd.
//!
//! A family that has a CUDA kernel has a `launch` module with the same functions on device memory.

pub mod activation;
pub mod adamw;
pub mod advantage;
mod args;
pub mod attention;
pub mod block_noise;
pub mod cast;
pub mod elementwise;
mod families;
pub mod layer_norm;
pub mod linear_logprob;
pub mod linear_policy_loss;
pub mod logprob;
pub mod matmul;
mod offsets;
pub mod policy_loss;
pub mod reduce;
pub mod rms_norm;
pub mod rollout_correction;
pub mod rope;
mod row_walk;
pub mod rows;
pub mod sample;
pub mod softmax;
pub mod step_credit;
pub mod token_decode;
pub mod token_selection;

pub use families::{FAMILIES, Family};
