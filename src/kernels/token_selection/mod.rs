//! Tokens that a step before the policy loss picks: Clip-Cov, KL-Cov and the top of the entropies.
//!
//! Contract: f32 `[tokens]` and a byte mask in, a byte `[tokens]` out that is 1 where a token is picked. Every pick is
//! deterministic: the same tokens on every device and for any number of threads. It sees the tokens of one call: for a
//! batch in micro-batches it is called once, over the whole batch.
//!
//! Not here: what the loss does with the picked tokens, which is `kernels::policy_loss`'s.

mod inputs;
mod keys;
pub mod launch;
mod rank;
mod select;

pub use inputs::Inputs;
pub use select::{Selected, select};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which tokens are picked, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Selection {
    /// Clip-Cov (arXiv 2505.22617): of the live tokens with `least < cov < most` that the clip leaves alone, a random
    /// `max(1, ratio · live)`; the loss leaves out their surrogate.
    ///
    /// `cov = (A - mean A) (logprob - mean logprob)`, means over live tokens.
    ClipCov {
        /// Picked tokens for each live one.
        ratio: f64,
        /// Candidates have more.
        least: f32,
        /// Candidates have less.
        most: f32,
    },
    /// KL-Cov (arXiv 2505.22617): the `max(1, ratio · live)` live tokens of the largest `cov`; the loss adds
    /// `coefficient · |log ratio|` to each.
    KlCov {
        /// Picked tokens for each live one.
        ratio: f64,
        /// Of the penalty (verl's code says 1, its settings file 0.1).
        coefficient: f32,
    },
    /// The live tokens whose entropy is at least the quantile `1 - fraction` of all (interpolated between neighbours);
    /// the loss leaves out the surrogate of all others (arXiv 2506.01939, TRL `top_entropy_quantile`).
    TopEntropy {
        /// Share of the tokens that keep their surrogate.
        fraction: f64,
    },
}

impl Selection {
    /// Its name in a settings file.
    pub fn name(&self) -> &'static str {
        match self {
            Selection::ClipCov { .. } => "clip-cov",
            Selection::KlCov { .. } => "kl-cov",
            Selection::TopEntropy { .. } => "top-entropy",
        }
    }

    /// Checks its numbers.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for one out of range.
    pub fn check(&self) -> Result<()> {
        let within = |field: &str, value: f64, least: f64, most: f64| {
            if value >= least && value <= most {
                return Ok(());
            }
            let name = self.name();
            Err(Error::invalid(format!(
                "token_selection: {field} of `{name}` is {value}; it must be in {least}..={most}"
            )))
        };
        let largest = f64::from(f32::MAX);
        match self {
            Selection::ClipCov { ratio, least, most } => {
                within("ratio", *ratio, f64::MIN_POSITIVE, 1.0)?;
                within("most", (*most).into(), -largest, largest)?;
                within("least", (*least).into(), -largest, (*most).into())
            }
            Selection::KlCov { ratio, coefficient } => {
                within("ratio", *ratio, f64::MIN_POSITIVE, 1.0)?;
                within("coefficient", (*coefficient).into(), 0.0, largest)
            }
            Selection::TopEntropy { fraction } => within("fraction", *fraction, 0.0, 1.0),
        }
    }
}
