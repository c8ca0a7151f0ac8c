//! One module per kernel family: checked arguments, the plan, the CPU body. No tensor, no autograd.

pub mod activation;
pub mod adamw;
pub mod advantage;
pub mod attention;
pub mod block_noise;
pub mod cast;
pub mod elementwise;
pub mod embedding;
pub mod layer_norm;
pub mod linear_logprob;
pub mod logprob;
mod offsets;
pub mod policy_loss;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod softmax;
pub mod token_decode;
