//! What surrounds a training loop: recipes' configuration ([`config`]), the run directory ([`run_dir`]) with its
//! [`metrics`] and [`checkpoint`]s, how a loop tells what it does ([`observer`]) and the [`report`] of a run.
//!
//! A run is resumed with identical bits when four things hold together: every random draw is a function of the seed
//! and a position (no generator state is hidden anywhere), a checkpoint holds parameters, optimizer and those
//! positions, both logs are cut back to the checkpoint's step before the loop goes on ([`run_dir::RunDir::rewind`]),
//! and no arithmetic depends on the number of threads. Only the clock's fields in `metrics.jsonl` (`seconds`,
//! `tokens_per_second`) differ.

mod advice;
pub mod best;
pub mod chart;
pub mod checkpoint;
pub mod codec;
mod collect;
pub mod comparison;
pub mod config;
mod cost;
pub mod diffusion;
pub mod evaluate;
pub mod export;
pub mod kind;
pub mod learner;
pub mod metrics;
pub mod observer;
pub mod offline;
pub mod open;
pub mod pass_at_k;
mod plan;
mod questions;
pub mod reinforce;
pub mod report;
pub mod run;
pub mod run_dir;
pub mod sampled_evaluation;
pub mod settings;
pub mod starts;
mod step_log;
pub mod summary;
pub mod supervised;
pub mod text_codec;
pub mod world;

pub use checkpoint::Checkpoints;
pub use metrics::{Phase, Rollout, StepMetrics};
pub use observer::Observer;
pub use reinforce::Reinforcement;
pub use run::{Outcome, Trainee, run};
pub use run_dir::RunDir;
pub use world::World;
