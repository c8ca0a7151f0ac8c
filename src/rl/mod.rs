//! Reinforcement learning on a decoder: sampling completions ([`rollout`]) and scoring them ([`scoring`]); the same for a
//! model that fills masked blocks: [`block_decoding`] with its rules of [`unmasking`], and [`masked_policy`].
//!
//! Objectives and advantages are kernels; the loop that puts all together is [`train`](crate::train)'s.

pub mod block_decoding;
pub mod masked_policy;
pub mod rollout;
pub mod scoring;
mod token_choice;
pub mod unmasking;
