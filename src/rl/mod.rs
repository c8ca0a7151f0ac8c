//! Reinforcement learning on a decoder: sampling completions ([`rollout`]) and which groups to train on
//! ([`dynamic_sampling`], [`resampling`]), scoring them ([`scoring`]), rewards by the label of an outcome ([`faithful`]) and by
//! length ([`length`]), past successes that come back ([`replay`]), a coefficient that follows the entropy
//! ([`entropy_control`]); the same for the small model of made-up problems ([`small_policy`]), and for a model that fills
//! masked blocks: [`block_decoding`] by the settings of [`filling`] and the rules of [`unmasking`], and [`masked_policy`].
//!
//! Objectives and advantages are kernels; the loop that puts all together is [`train`](crate::train)'s.

pub mod block_decoding;
mod drawing;
pub mod dynamic_sampling;
pub mod entropy_control;
pub mod faithful;
pub mod filling;
pub mod guarded;
pub mod length;
pub mod masked_policy;
pub mod replay;
pub mod resampling;
pub mod rollout;
pub mod scoring;
pub mod small_policy;
mod token_choice;
pub mod unmasking;
