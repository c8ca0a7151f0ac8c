//! The noise schedules of BD3-LM, as functions of the level, on the host: two of them need a logarithm or a cosine,
//! whose last bit differs between machines. Their rates and weights go into the kernel as [`Given`](super::Given).

use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;

/// A schedule: the probability that a token is masked at level t, and the weight of its loss.
///
/// `weight = rate' / rate` (for the total noise σ with `rate = 1 - e^-σ` that is `σ' / (e^σ - 1)`): it makes the weighted
/// sum a bound of the likelihood. Source: BD3-LM, `noise_schedule.py`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// `rate = t`, weight `1 / t`.
    Loglinear,
    /// `rate = t²`, at least 0.001.
    Square,
    /// `rate = √t`, at least 0.001.
    SquareRoot,
    /// `rate = log2(1 + t)`.
    Log,
    /// `rate = 1 - (1 - eps) cos(πt/2)`, eps = 0.001.
    Cosine,
}

const EPS: f64 = 1e-3;

impl Curve {
    /// The probability that a token is masked, in `[0, 1]`.
    pub fn rate(self, level: f64) -> f64 {
        match self {
            Curve::Loglinear => level,
            Curve::Square => (level * level).max(EPS),
            Curve::SquareRoot => level.sqrt().max(EPS),
            Curve::Log => level.ln_1p() / std::f64::consts::LN_2,
            Curve::Cosine => 1.0 - (1.0 - EPS) * (level * FRAC_PI_2).cos(),
        }
    }

    /// What the negative log-prob of a masked token is multiplied by.
    ///
    /// The published weight of `cosine` has `rate + eps` below the line; so has this.
    pub fn weight(self, level: f64) -> f64 {
        let rate = self.rate(level);
        match self {
            Curve::Loglinear => 1.0 / level,
            Curve::Square => 2.0 * level / rate,
            Curve::SquareRoot => 0.5 / (level.sqrt() * rate),
            Curve::Log => 1.0 / ((1.0 + level) * level.ln_1p()),
            Curve::Cosine => (1.0 - EPS) * FRAC_PI_2 * (level * FRAC_PI_2).sin() / (rate + EPS),
        }
    }
}
