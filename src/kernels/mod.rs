//! One module per kernel family: checked arguments, the plan, the CPU body. No tensor, no autograd.

pub mod advantage;
mod offsets;
pub mod policy_loss;
