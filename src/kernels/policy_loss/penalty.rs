//! The divergence from a reference over a tile: its values, and its share of the gradient.

use super::kl::{self, Estimate, Estimator};
use super::steps::KlRule;
use super::tile::{TILE, Tile, Tokens};

/// Puts the divergence from the reference into `tile.value` and adds its share to the gradient. `limit` is the bound of
/// the log ratio to the old policy.
#[inline(always)]
pub(super) fn penalty<const FMA: bool>(
    limit: f32,
    kl: &KlRule,
    of: &Tokens<'_>,
    reference: &[f32],
    tile: &mut Tile,
    gradient: &mut [f32],
) {
    let any = |d: f32| match kl.estimator {
        Estimator::K1 => kl::k1(d),
        Estimator::K2 => kl::k2(d),
        Estimator::K3 => kl::k3::<FMA>(d, kl.limits),
        Estimator::Abs => kl::abs(d),
    };
    if kl.bias_correction {
        let corrected = |d: f32, i: usize, ratio: f32| {
            let estimate = any(d);
            let log_ratio = of.logprob[i] - of.old_logprob[i];
            let stopped = log_ratio.abs() > limit;
            let slope = if stopped { estimate.slope } else { estimate.value_and_slope };
            (estimate.value * ratio, slope * ratio)
        };
        return each(kl, of, reference, tile, gradient, corrected);
    }
    if kl.straight_through {
        return each(kl, of, reference, tile, gradient, |d, _, _| (any(d).value, d));
    }
    match kl.estimator {
        Estimator::K1 => each(kl, of, reference, tile, gradient, plain(kl::k1)),
        Estimator::K2 => each(kl, of, reference, tile, gradient, plain(kl::k2)),
        Estimator::Abs => each(kl, of, reference, tile, gradient, plain(kl::abs)),
        Estimator::K3 => {
            let k3 = plain(|d| kl::k3::<FMA>(d, kl.limits));
            each(kl, of, reference, tile, gradient, k3);
        }
    }
}

/// An estimate as it is.
#[inline(always)]
fn plain(of: impl Fn(f32) -> Estimate) -> impl Fn(f32, usize, f32) -> (f32, f32) {
    move |d, _, _| {
        let estimate = of(d);
        (estimate.value, estimate.slope)
    }
}

#[inline(always)]
fn each(
    kl: &KlRule,
    of: &Tokens<'_>,
    reference: &[f32],
    tile: &mut Tile,
    gradient: &mut [f32],
    estimate: impl Fn(f32, usize, f32) -> (f32, f32),
) {
    let weight = of.coefficient * kl.coefficient;
    let n = gradient.len().min(TILE);
    let (logprob, reference) = (&of.logprob[..n], &reference[..n]);
    for i in 0..n {
        let live = tile.live[i] != 0;
        let d = logprob[i] - reference[i];
        let (value, slope) = estimate(if live { d } else { 0.0 }, i, tile.ratio[i]);
        tile.value[i] = value;
        let slope = weight * slope;
        gradient[i] += if live { slope } else { 0.0 };
    }
}
