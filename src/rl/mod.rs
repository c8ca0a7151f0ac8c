//! Reinforcement learning on a decoder: sampling completions ([`rollout`]) and scoring them ([`scoring`]).
//!
//! Objectives and advantages are kernels; the loop that puts all together is [`train`](crate::train)'s.

pub mod bucket_weights;
pub mod entropy_control;
pub mod rollout;
pub mod rollout_correction;
pub mod scoring;
