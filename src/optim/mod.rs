//! Optimizers over a model's parameters, and learning-rate schedules.

mod adamw;
mod schedule;

pub use adamw::{AdamW, AdamWSettings, Update};
pub use schedule::{Decay, Schedule};
