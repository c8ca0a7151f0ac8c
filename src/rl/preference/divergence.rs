//! The divergence from the reference policy that a loss of pairs implies.

use serde::{Deserialize, Serialize};

/// Scores of f-DPO (arXiv 2309.16240): `f'(π/π_ref)` in place of the log-ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FDivergence {
    /// `log t`: DPO.
    #[default]
    ReverseKl,
    /// `1 - 1/t`.
    ForwardKl,
    /// `log 2t/(t + 1)`.
    JsDivergence,
    /// `(t^(α-1) - 1)/(α - 1)`, α `f_alpha_divergence_coef`; `log t` at α = 1.
    AlphaDivergence,
}

/// The exponent of α-divergence is cut here, where f32 still holds its exponential (as TRL does).
const LARGEST_EXPONENT: f64 = 80.0;
/// α nearer to 1 than this is 1.
const LIMIT: f64 = 1e-6;

impl FDivergence {
    /// The score of a log-ratio, and its derivative.
    pub fn score(self, log_ratio: f64, alpha: f64) -> (f64, f64) {
        match self {
            FDivergence::AlphaDivergence if (alpha - 1.0).abs() >= LIMIT => {
                let exponent = (alpha - 1.0) * log_ratio;
                let power = exponent.min(LARGEST_EXPONENT).exp();
                let slope = if exponent <= LARGEST_EXPONENT { power } else { 0.0 };
                ((power - 1.0) / (alpha - 1.0), slope)
            }
            FDivergence::ReverseKl | FDivergence::AlphaDivergence => (log_ratio, 1.0),
            FDivergence::ForwardKl => {
                let inverse = (-log_ratio).exp();
                (1.0 - inverse, inverse)
            }
            FDivergence::JsDivergence => (
                std::f64::consts::LN_2 + super::logistic::log_sigmoid(log_ratio),
                super::logistic::sigmoid(-log_ratio),
            ),
        }
    }
}
