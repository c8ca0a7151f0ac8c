//! One module per kernel family: checked arguments, the plan, the CPU body. No tensor, no autograd.

pub mod advantage;
pub mod elementwise;
mod offsets;
pub mod policy_loss;
pub mod reduce;
pub mod logprob;
pub mod attention;
pub mod cast;
