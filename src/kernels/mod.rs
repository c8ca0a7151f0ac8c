//! One module per kernel family: checked arguments, the plan, the CPU body. No tensor, no autograd.

pub mod attention;
pub mod cast;
