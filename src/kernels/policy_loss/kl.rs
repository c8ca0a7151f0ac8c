//! Estimators of the divergence from a reference policy, a token at a time, with their exact gradients.
//!
//! `d = logprob - reference_logprob`. Source: J. Schulman, "Approximating KL Divergence" (2020); the clamps are verl's.

use super::aggregation::Aggregation;
use crate::device::cpu::math::{exp, fma};
use serde::{Deserialize, Serialize};

/// A penalty for leaving a reference policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kl {
    /// Which estimator.
    #[serde(default)]
    pub estimator: Estimator,
    /// Its weight in the loss; 0 reports it only.
    pub coefficient: f32,
    /// What keeps k3 finite.
    #[serde(default)]
    pub clamp: Clamp,
    /// Multiplies the estimate by the ratio `w` to the old policy, gradient included (TRL
    /// `use_bias_correction_kl`).
    #[serde(default)]
    pub bias_correction: bool,
    /// The value of the estimator with the gradient of k2, `d`, which on the policy is that of the divergence itself
    /// (verl's names that end in `+`; its release raises for them).
    #[serde(default)]
    pub straight_through: bool,
    /// How estimates become one number; `None`: as the surrogate does. verl's GMPO is a mean over all rows, beside
    /// which its penalty is aggregated as the settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
}

impl Kl {
    /// verl's clamps, no correction.
    pub fn new(estimator: Estimator, coefficient: f32) -> Kl {
        let (clamp, bias_correction) = (Clamp::Clamped, false);
        Kl {
            estimator,
            coefficient,
            clamp,
            bias_correction,
            straight_through: false,
            aggregation: None,
        }
    }
}

/// An estimator of `KL(policy || reference)` from one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// `d`, gradient 1: unbiased, and without an effect on policy as a loss.
    K1,
    /// `d² / 2`, gradient `d`: verl `mse`.
    K2,
    /// `e^-d - 1 + d`, gradient `1 - e^-d`: verl `low_var_kl`, TRL.
    #[default]
    K3,
    /// `|d|`, gradient `sign d`.
    Abs,
}

/// What keeps k3 finite where the two policies are far apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clamp {
    /// `-d` to ±20 and the estimate to at most 10, gradient 0 where either acts (verl).
    #[default]
    Clamped,
    /// Nothing (TRL).
    Unclamped,
}

/// Bounds of k3 as the token pass wants them.
#[derive(Clone, Copy)]
pub(super) struct K3Limits {
    argument: f32,
    value: f32,
}

impl Clamp {
    pub(super) fn limits(self) -> K3Limits {
        let (argument, value) = self.bounds();
        K3Limits { argument, value }
    }

    /// Of the argument, either way, and of the estimate.
    pub(super) fn bounds(self) -> (f32, f32) {
        match self {
            Clamp::Clamped => (20.0, 10.0),
            Clamp::Unclamped => (f32::INFINITY, f32::INFINITY),
        }
    }
}

/// One token's estimate.
pub(super) struct Estimate {
    pub value: f32,
    /// Its derivative by `logprob`.
    pub slope: f32,
    /// `value + slope`, which is what `(w · value)' / w` is; for k3 it is `d`, where the two would cancel.
    pub value_and_slope: f32,
}

impl Estimate {
    #[inline(always)]
    fn new(value: f32, slope: f32) -> Estimate {
        Estimate { value, slope, value_and_slope: value + slope }
    }
}

/// [`Estimator::K1`].
#[inline(always)]
pub(super) fn k1(d: f32) -> Estimate {
    Estimate::new(d, 1.0)
}

/// [`Estimator::K2`].
#[inline(always)]
pub(super) fn k2(d: f32) -> Estimate {
    Estimate::new(0.5 * d * d, d)
}

/// [`Estimator::Abs`].
#[inline(always)]
pub(super) fn abs(d: f32) -> Estimate {
    let sign = if d > 0.0 { 1.0 } else { 0.0 } - if d < 0.0 { 1.0 } else { 0.0 };
    Estimate::new(d.abs(), sign)
}

/// [`Estimator::K3`].
#[inline(always)]
pub(super) fn k3<const FMA: bool>(d: f32, limits: K3Limits) -> Estimate {
    let x = -d;
    let x = if x > limits.argument { limits.argument } else { x };
    let x = if x < -limits.argument { -limits.argument } else { x };
    let value = exp_minus_1_minus_x::<FMA>(x);
    // NaN is not clamped, so that it reaches the gradient.
    let clamped = ((x != -d) & !d.is_nan()) | (value > limits.value);
    let value = if value > limits.value { limits.value } else { value };
    Estimate {
        value,
        slope: if clamped { 0.0 } else { -(x + value) },
        value_and_slope: if clamped { value } else { d },
    }
}

/// `e^x - 1 - x`, without the cancellation near 0 where two policies that nearly agree are.
#[inline(always)]
fn exp_minus_1_minus_x<const FMA: bool>(x: f32) -> f32 {
    let far = exp::<FMA>(x) - 1.0 - x;
    let mut p = fma::<FMA>(x, 1.0 / 362_880.0, 1.0 / 40_320.0);
    p = fma::<FMA>(p, x, 1.0 / 5_040.0);
    p = fma::<FMA>(p, x, 1.0 / 720.0);
    p = fma::<FMA>(p, x, 1.0 / 120.0);
    p = fma::<FMA>(p, x, 1.0 / 24.0);
    p = fma::<FMA>(p, x, 1.0 / 6.0);
    p = fma::<FMA>(p, x, 0.5);
    let near = p * x * x;
    if x.abs() < 0.75 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k3_keeps_its_digits_near_zero() {
        for i in -3000..=3000 {
            let x = i as f32 * 0.002_7;
            let exact = f64::from(x).exp_m1() - f64::from(x);
            let got = f64::from(exp_minus_1_minus_x::<true>(x));
            assert!((got - exact).abs() <= 2e-6 * exact, "{x}: {got} {exact}");
        }
    }

    #[test]
    fn gradients_stop_where_verl_clamps() {
        let limits = Clamp::Clamped.limits();
        let k3 = |d| {
            let estimate = super::k3::<true>(d, limits);
            (estimate.value, estimate.slope)
        };
        assert_eq!(k3(-5.0), (10.0, 0.0));
        assert_eq!(k3(30.0).1, 0.0);
        assert_eq!(k3(1.0).1, 1.0 - (-1f32).exp());
        assert!(k3(f32::NAN).0.is_nan() && k3(f32::NAN).1.is_nan());
        let free = super::k3::<true>(-5.0, Clamp::Unclamped.limits());
        assert!((free.value - (5f32.exp() - 6.0)).abs() < 1e-4);
        assert_eq!(abs(0.0).slope, 0.0);
    }
}
