//! The odds of a probability that is known by its logarithm.

/// The nearest to certain that a mean log-prob is taken to be: the odds of certainty are infinite, and a model in f32 reaches
/// a mean log-prob of 0.
const CERTAIN: f64 = -1e-9;

/// `log(p / (1 - p))` for `log p`, and its derivative by `log p`, `1 / (1 - p)`.
pub(super) fn log_odds(log_p: f64) -> (f64, f64) {
    let log_p = log_p.min(CERTAIN);
    let not_p = -log_p.exp_m1();
    (log_p - not_p.ln(), 1.0 / not_p)
}
