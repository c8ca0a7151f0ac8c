//! Reinforcement learning on a decoder: sampling completions ([`rollout`]), scoring them ([`scoring`]), rewards by the
//! label of an outcome ([`faithful`]), past
//! successes that come back ([`replay`]); the same for the small model of made-up problems ([`small_policy`]), and for a
//! model that fills masked blocks: [`block_decoding`] by the settings of [`filling`] and the rules of [`unmasking`], and [`masked_policy`].
//!
//! Objectives and advantages are kernels; the loop that puts all together is [`train`](crate::train)'s.

pub mod block_decoding;
pub mod faithful;
pub mod filling;
pub mod guarded;
pub mod masked_policy;
pub mod replay;
pub mod rollout;
pub mod scoring;
pub mod small_policy;
mod token_choice;
pub mod unmasking;
