//! Reinforcement learning on a decoder: sampling completions ([`rollout`]) and which groups to train on
//! ([`dynamic_sampling`], [`resampling`]), scoring them ([`scoring`]), rewards by the label of an outcome ([`faithful`]) and by
//! length ([`length`]), which experience to replay ([`bucket_weights`]), a coefficient that follows the entropy
//! ([`entropy_control`]).
//!
//! Objectives and advantages are kernels; the loop that puts all together is [`train`](crate::train)'s.

pub mod bucket_weights;
pub mod dynamic_sampling;
pub mod entropy_control;
pub mod faithful;
pub mod length;
pub mod resampling;
pub mod rollout;
pub mod scoring;
