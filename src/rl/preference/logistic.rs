//! The logistic function and its logarithm, without overflow.

/// `σ(x) = 1 / (1 + e^-x)`.
pub(super) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// `log σ(x)`; its derivative is `σ(-x)`.
pub(super) fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// The negative log-likelihood of a preference that is right with probability `1 - smoothing`, for the logit `u`, and its
/// derivative.
pub(super) fn smoothed(u: f64, smoothing: f64) -> (f64, f64) {
    let loss = -log_sigmoid(u) * (1.0 - smoothing) - log_sigmoid(-u) * smoothing;
    (loss, -sigmoid(-u) * (1.0 - smoothing) + sigmoid(u) * smoothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_end_overflows() {
        for x in [-800.0, -30.0, -1.0, 0.0, 1.0, 30.0, 800.0] {
            assert!((sigmoid(x) + sigmoid(-x) - 1.0).abs() < 1e-15);
            assert!((log_sigmoid(x) - log_sigmoid(-x) - x).abs() < 1e-12 * x.abs().max(1.0));
        }
        assert_eq!(log_sigmoid(-800.0), -800.0);
        assert!((log_sigmoid(0.0) + 2f64.ln()).abs() < 1e-15);
    }
}
