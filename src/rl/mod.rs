//! Reinforcement learning on a decoder: sampling completions ([`rollout`]), scoring them ([`scoring`]), rewards by the
//! label of an outcome ([`faithful`]), past
//! successes that come back ([`replay`]); the same for the small model of made-up problems ([`small_policy`]).
//!
//! Objectives and advantages are kernels; the loop that puts all together is [`train`](crate::train)'s.

pub mod faithful;
pub mod guarded;
pub mod replay;
pub mod rollout;
pub mod scoring;
pub mod small_policy;
