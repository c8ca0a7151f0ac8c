//! Reinforcement learning on any policy.
//!
//! A [`policy`] draws [`episode`]s ([`generate`] for one that writes from left to right, [`filling_policy`] for one that fills
//! masked blocks), and scores them again. A [`batch`] holds a step's episodes with everything known about them, and
//! [`stage`]s work on its columns one after another: rewards, a [`critic`], advantages, step credit, correction. Which groups
//! are trained on is [`dynamic_sampling`]'s and [`resampling`]'s, what comes back [`replay`]'s. What a step is doing is told by its [`activity`].
//!
//! Objectives and advantages are kernels; the loop that puts all together is [`train`](crate::train)'s.

pub mod activity;
pub mod batch;
pub mod block_decoding;
mod causal_policy;
pub mod critic;
mod drawing;
pub mod dynamic_sampling;
pub mod entropy_control;
pub mod episode;
pub mod faithful;
pub mod filling;
pub mod filling_policy;
pub mod generate;
pub mod length;
mod live;
pub mod masked_policy;
pub mod policy;
pub mod preference;
pub mod process_reward;
pub mod replay;
pub mod resampling;
pub mod sampling;
pub mod score;
pub mod stage;
mod token_choice;
pub mod unmasking;
pub mod value_head;
