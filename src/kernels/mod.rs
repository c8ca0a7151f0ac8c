//! One module per kernel family: checked arguments, the plan, the CPU body. No tensor, no autograd.

pub mod elementwise;
pub mod reduce;
pub mod logprob;
