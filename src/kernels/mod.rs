//! One module per kernel family: checked arguments, the plan, the CPU body. No tensor, no autograd.

pub mod advantage;
pub mod attention;
pub mod cast;
pub mod elementwise;
pub mod logprob;
mod offsets;
pub mod policy_loss;
pub mod reduce;
