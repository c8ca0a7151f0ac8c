//! The arithmetic of a run of tokens: losses, gradients and sums.
//!
//! A run is walked in tiles, and each step of the formula is one plain loop over a tile, which the compiler
//! vectorises; a tile's arrays stay in the first-level cache. What masked tokens hold is dropped on load: they go on
//! as tokens with ratio 1 and advantage 0.

use super::kl::{self, Estimate, Estimator};
use super::metrics::Sums;
use super::pass::{KlRule, Lane, Rule, Run};
use crate::device::cpu::math::exp;
use crate::device::cpu::simd::simd_fn;

/// Tokens whose steps are done one after another.
const TILE: usize = 128;
/// Lanes of a sum; part of the result's bits.
const LANES: usize = 16;

/// What later steps need of a tile's tokens. Kept in locals, which the compiler knows to be apart from all else.
struct Tile {
    live: [u32; TILE],
    /// The surrogate.
    value: [f32; TILE],
    /// The clamped log ratio.
    log_ratio: [f32; TILE],
    /// 0 where not live.
    ratio: [f32; TILE],
}

/// Sums over a run.
#[derive(Default)]
struct RunSums {
    policy: [f32; LANES],
    kl: [f32; LANES],
    entropy: [f32; LANES],
    log_ratio: [f32; LANES],
    ratio: [f32; LANES],
    ratio_max: [f32; LANES],
    /// Tokens that were clipped high, low and by the dual clip.
    clipped: [u32; 3],
}

simd_fn! {
    /// Losses and gradients of one run; its sums are added to `sums`.
    pub(super) fn one_run(rule: &Rule, run: &mut Run<'_>, sums: &mut Sums) {
        let zeros = [0.0; TILE];
        let mut tile = Tile { live: [0; TILE], value: zeros, log_ratio: zeros, ratio: zeros };
        let mut run_sums = RunSums::default();
        let length = run.logprob.len();
        let mut at = 0;
        while at < length {
            let count = TILE.min(length - at);
            one_tile::<FMA>(rule, run, at, count, &mut tile, &mut run_sums);
            at += count;
        }
        run_sums.add_to(sums, run);
    }
}

impl RunSums {
    #[inline(always)]
    fn add_to(&self, sums: &mut Sums, run: &Run<'_>) {
        let sum = |values: &[f32; LANES]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
        let (kl, entropy) = (sum(&self.kl), sum(&self.entropy));
        let mut ratio_max = 0f32;
        for lane in self.ratio_max {
            ratio_max = if lane > ratio_max || lane.is_nan() { lane } else { ratio_max };
        }
        // A sequence without weight adds nothing, whatever its tokens hold.
        let weigh = |by: f32, value: f64| if by == 0.0 { 0.0 } else { f64::from(by) * value };
        sums.add(&Sums {
            policy_loss: weigh(run.coefficient, sum(&self.policy)),
            kl_loss: weigh(run.coefficient, kl),
            entropy_loss: weigh(run.entropy_coefficient, entropy),
            clipped_high: u64::from(self.clipped[0]),
            clipped_low: u64::from(self.clipped[1]),
            clipped_dual: u64::from(self.clipped[2]),
            log_ratio: sum(&self.log_ratio),
            kl,
            ratio: sum(&self.ratio),
            ratio_max: f64::from(ratio_max),
            entropy,
        });
    }
}

/// The `count` tokens of a run from `at` on.
#[inline(always)]
fn one_tile<const FMA: bool>(
    rule: &Rule,
    run: &mut Run<'_>,
    at: usize,
    count: usize,
    tile: &mut Tile,
    sums: &mut RunSums,
) {
    let range = at..at + count;
    let of = Tokens {
        logprob: &run.logprob[range.clone()],
        old_logprob: &run.old_logprob[range.clone()],
        mask: &run.mask[range.clone()],
        coefficient: run.coefficient,
    };
    let gradient = &mut run.dlogprob[range.clone()];
    let clipped = match run.advantage {
        Lane::Same(value) => surrogate::<FMA>(rule, &of, |_| value, tile, gradient),
        Lane::Each(values) => {
            let values = &values[range.clone()][..count];
            surrogate::<FMA>(rule, &of, |i| values[i], tile, gradient)
        }
    };
    for (sum, clipped) in sums.clipped.iter_mut().zip(clipped) {
        *sum += clipped;
    }
    add(&mut sums.log_ratio, &tile.log_ratio[..count]);
    add(&mut sums.ratio, &tile.ratio[..count]);
    raise(&mut sums.ratio_max, &tile.ratio[..count]);
    if let Some(weight) = run.weight {
        scale(&weight[range.clone()], tile, gradient);
    }
    add(&mut sums.policy, &tile.value[..count]);
    // The surrogate has been added up: its place takes what comes next.
    if let (Some(kl), Some(reference)) = (rule.kl, run.reference) {
        penalty::<FMA>(rule, &kl, &of, &reference[range.clone()], tile, gradient);
        add(&mut sums.kl, &tile.value[..count]);
    }
    if let Some(entropy) = run.entropy {
        let entropy = &entropy[range.clone()];
        for i in 0..count {
            let entropy = entropy[i];
            tile.value[i] = if tile.live[i] != 0 { entropy } else { 0.0 };
        }
        add(&mut sums.entropy, &tile.value[..count]);
    }
    if let Some(dentropy) = run.dentropy.as_deref_mut() {
        let slope = -(run.entropy_coefficient * rule.entropy_coefficient) + 0.0;
        for (out, live) in dentropy[range].iter_mut().zip(&tile.live) {
            *out = if *live != 0 { slope } else { 0.0 };
        }
    }
}

/// The tokens of a tile.
struct Tokens<'a> {
    logprob: &'a [f32],
    old_logprob: &'a [f32],
    mask: &'a [u8],
    coefficient: f32,
}

/// The PPO-clip family: `-A clamp(w)`, with derivative `-A w` where the clamp leaves `w` alone. Writes the gradient and
/// every field of the tile; counts the tokens that are clipped high, low and by the dual clip.
#[inline(always)]
fn surrogate<const FMA: bool>(
    rule: &Rule,
    of: &Tokens<'_>,
    advantage: impl Fn(usize) -> f32,
    tile: &mut Tile,
    gradient: &mut [f32],
) -> [u32; 3] {
    let (bounds, limit) = (rule.bounds, rule.log_ratio_limit);
    let n = gradient.len().min(TILE);
    let (logprob, old, mask) = (&of.logprob[..n], &of.old_logprob[..n], &of.mask[..n]);
    let [mut clipped_high, mut clipped_low, mut clipped_dual] = [0u32; 3];
    for i in 0..n {
        let live = mask[i] != 0;
        // Read first and selected then: a read that depends on the mask would not vectorise.
        let (d, a) = (logprob[i] - old[i], advantage(i));
        let (d, a) = (if live { d } else { 0.0 }, if live { a } else { 0.0 });
        let clamped = if d > limit { limit } else { d };
        let clamped = if clamped < -limit { -limit } else { clamped };
        let w = exp::<FMA>(clamped);
        let negative = a < 0.0;
        let low = if negative { bounds.low_negative } else { f32::NEG_INFINITY };
        let high = if negative { bounds.high_negative } else { bounds.high_positive };
        let s = if w < low { low } else { w };
        let s = if s > high { high } else { s };
        // What was not clamped passes, and NaN does, so that it reaches the gradient.
        let stopped = (s < w) | (s > w) | (clamped < d) | (clamped > d);
        let slope = of.coefficient * (-a * w);
        gradient[i] = if stopped | !live { 0.0 } else { slope };
        tile.live[i] = u32::from(live);
        tile.value[i] = -a * s;
        tile.log_ratio[i] = clamped;
        tile.ratio[i] = if live { w } else { 0.0 };
        clipped_high += u32::from((a > 0.0) & (w > bounds.report_high));
        clipped_low += u32::from(negative & (w < bounds.report_low));
        clipped_dual += u32::from(negative & (w > bounds.high_negative));
    }
    [clipped_high, clipped_low, clipped_dual]
}

/// Multiplies surrogates and gradients by importance weights.
#[inline(always)]
fn scale(weight: &[f32], tile: &mut Tile, gradient: &mut [f32]) {
    let n = gradient.len().min(TILE);
    let weight = &weight[..n];
    for i in 0..n {
        let weight = weight[i];
        let weight = if tile.live[i] != 0 { weight } else { 0.0 };
        tile.value[i] *= weight;
        gradient[i] *= weight;
    }
}

/// Puts the divergence from the reference into `tile.value` and adds its share to the gradient.
#[inline(always)]
fn penalty<const FMA: bool>(
    rule: &Rule,
    kl: &KlRule,
    of: &Tokens<'_>,
    reference: &[f32],
    tile: &mut Tile,
    gradient: &mut [f32],
) {
    match (kl.estimator, kl.bias_correction) {
        (estimator, true) => {
            let any = |d: f32| match estimator {
                Estimator::K1 => kl::k1(d),
                Estimator::K2 => kl::k2(d),
                Estimator::K3 => kl::k3::<FMA>(d, kl.limits),
                Estimator::Abs => kl::abs(d),
            };
            let corrected = |d: f32, i: usize, ratio: f32| {
                let estimate = any(d);
                let log_ratio = of.logprob[i] - of.old_logprob[i];
                let stopped = log_ratio.abs() > rule.log_ratio_limit;
                let slope = if stopped { estimate.slope } else { estimate.value_and_slope };
                (estimate.value * ratio, slope * ratio)
            };
            each(kl, of, reference, tile, gradient, corrected);
        }
        (Estimator::K1, false) => each(kl, of, reference, tile, gradient, plain(kl::k1)),
        (Estimator::K2, false) => each(kl, of, reference, tile, gradient, plain(kl::k2)),
        (Estimator::Abs, false) => each(kl, of, reference, tile, gradient, plain(kl::abs)),
        (Estimator::K3, false) => {
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

/// Adds values to lanes.
#[inline(always)]
fn add(sums: &mut [f32; LANES], values: &[f32]) {
    let (full, rest) = values.as_chunks::<LANES>();
    for values in full {
        for i in 0..LANES {
            sums[i] += values[i];
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += value;
    }
}

/// Keeps the largest; NaN stays.
#[inline(always)]
fn raise(largest: &mut [f32; LANES], values: &[f32]) {
    let larger = |a: f32, b: f32| if (b > a) | b.is_nan() { b } else { a };
    let (full, rest) = values.as_chunks::<LANES>();
    for values in full {
        for i in 0..LANES {
            largest[i] = larger(largest[i], values[i]);
        }
    }
    for (largest, value) in largest.iter_mut().zip(rest) {
        *largest = larger(*largest, *value);
    }
}
