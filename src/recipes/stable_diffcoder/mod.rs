//! Stable-DiffCoder (arXiv 2601.15892): a next-token model goes on as a model that fills masked blocks, with clipped noise
//! and a warm-up. The recipe that `train` runs, and the paper's claims at the size of two cores; arms, metrics and claims
//! are in `paper.toml`.

mod experiment;
mod gradient_covariance;
mod infilling;
mod settings;
mod statistics;

pub use experiment::{Measured, StableDiffCoder, Start};
pub use settings::stable_diffcoder;
