//! The arithmetic of a run of tokens: losses, gradients and sums.
//!
//! A run is walked in tiles, and each step of the formula is one plain loop over a tile, which the compiler
//! vectorises; a tile's arrays stay in the first-level cache. What masked tokens hold is dropped on load: they go on
//! as tokens with ratio 1 and advantage 0.

use super::kl::{self, Estimate, Estimator};
use super::metrics::Sums;
use super::objective::Bounds;
use super::pass::{KlRule, Lane, Rule, Run};
use crate::device::cpu::math::exp;
use crate::device::cpu::simd::simd_fn;

/// Tokens whose steps are done one after another.
const TILE: usize = 256;
/// Lanes of a sum; part of the result's bits.
const LANES: usize = 16;

/// The steps of a tile's tokens.
struct Tile {
    live: [u32; TILE],
    /// The clamped log ratio, and 1 where the clamp left it alone.
    log_ratio: [f32; TILE],
    inside: [u32; TILE],
    ratio: [f32; TILE],
    advantage: [f32; TILE],
    /// The surrogate, and the derivative of the loss by the log-prob.
    value: [f32; TILE],
    gradient: [f32; TILE],
    kl: KlTile,
}

/// The estimates of the divergence from the reference, a field of [`Estimate`] each.
struct KlTile {
    value: [f32; TILE],
    slope: [f32; TILE],
    value_and_slope: [f32; TILE],
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
    clipped: Clipped,
}

/// Tokens where a bound acts.
#[derive(Clone, Copy, Default)]
struct Clipped {
    high: u32,
    low: u32,
    dual: u32,
}

simd_fn! {
    /// Losses and gradients of one run; its sums are added to `sums`.
    pub(super) fn one_run(rule: &Rule, run: &mut Run<'_>, sums: &mut Sums) {
        let mut tile = Tile {
            live: [0; TILE],
            log_ratio: [0.0; TILE],
            inside: [0; TILE],
            ratio: [0.0; TILE],
            advantage: [0.0; TILE],
            value: [0.0; TILE],
            gradient: [0.0; TILE],
            kl: KlTile { value: [0.0; TILE], slope: [0.0; TILE], value_and_slope: [0.0; TILE] },
        };
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
            clipped_high: u64::from(self.clipped.high),
            clipped_low: u64::from(self.clipped.low),
            clipped_dual: u64::from(self.clipped.dual),
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
    let logprob = &run.logprob[range.clone()];
    let live = &mut tile.live[..count];
    for (live, mask) in live.iter_mut().zip(&run.mask[range.clone()]) {
        *live = u32::from(*mask != 0);
    }
    let live = &*live;
    let advantage = &mut tile.advantage[..count];
    match run.advantage {
        Lane::Each(values) => keep_live(advantage, &values[range.clone()], live),
        Lane::Same(value) => {
            for (advantage, live) in advantage.iter_mut().zip(live) {
                *advantage = if *live != 0 { value } else { 0.0 };
            }
        }
    }

    let (log_ratio, inside) = (&mut tile.log_ratio[..count], &mut tile.inside[..count]);
    let ratio = &mut tile.ratio[..count];
    difference(log_ratio, logprob, &run.old_logprob[range.clone()], live);
    ratios::<FMA>(rule.log_ratio_limit, log_ratio, inside, ratio);
    let (value, gradient) = (&mut tile.value[..count], &mut tile.gradient[..count]);
    let clipped = surrogate(&rule.bounds, ratio, inside, advantage, value, gradient);
    if let Some(weight) = run.weight {
        // The advantage has done its work: its place takes the weights.
        keep_live(advantage, &weight[range.clone()], live);
        scale(value, advantage);
        scale(gradient, advantage);
    }
    if let (Some(kl), Some(reference)) = (rule.kl, run.reference) {
        // So has the advantage here: the log ratio to the reference.
        let d = &mut *advantage;
        difference(d, logprob, &reference[range.clone()], live);
        penalty::<FMA>(&kl, d, ratio, inside, &mut tile.kl, gradient);
        add(&mut sums.kl, &tile.kl.value[..count]);
    }
    for i in 0..count {
        gradient[i] = if live[i] != 0 { run.coefficient * gradient[i] } else { 0.0 };
    }
    run.dlogprob[range.clone()].copy_from_slice(gradient);

    add(&mut sums.policy, value);
    add(&mut sums.log_ratio, log_ratio);
    // Masked tokens have ratio 1 so far.
    keep_live(value, ratio, live);
    add(&mut sums.ratio, value);
    raise(&mut sums.ratio_max, value);
    sums.clipped.high += clipped.high;
    sums.clipped.low += clipped.low;
    sums.clipped.dual += clipped.dual;
    if let Some(entropy) = run.entropy {
        keep_live(value, &entropy[range.clone()], live);
        add(&mut sums.entropy, value);
    }
    if let Some(dentropy) = run.dentropy.as_deref_mut() {
        let slope = -(run.entropy_coefficient * rule.entropy_coefficient) + 0.0;
        for (out, live) in dentropy[range].iter_mut().zip(live) {
            *out = if *live != 0 { slope } else { 0.0 };
        }
    }
}

/// `from` where live, 0 elsewhere.
#[inline(always)]
fn keep_live(out: &mut [f32], from: &[f32], live: &[u32]) {
    for ((out, from), live) in out.iter_mut().zip(from).zip(live) {
        *out = if *live != 0 { *from } else { 0.0 };
    }
}

/// `a - b` where live, 0 elsewhere.
#[inline(always)]
fn difference(out: &mut [f32], a: &[f32], b: &[f32], live: &[u32]) {
    for (((out, a), b), live) in out.iter_mut().zip(a).zip(b).zip(live) {
        *out = if *live != 0 { *a - *b } else { 0.0 };
    }
}

/// Clamps the log ratios to `±limit` and takes their exponentials.
#[inline(always)]
fn ratios<const FMA: bool>(
    limit: f32,
    log_ratio: &mut [f32],
    inside: &mut [u32],
    ratio: &mut [f32],
) {
    for ((d, inside), ratio) in log_ratio.iter_mut().zip(inside).zip(ratio) {
        let clamped = if *d > limit { limit } else { *d };
        let clamped = if clamped < -limit { -limit } else { clamped };
        // NaN passes, so that it reaches the gradient.
        *inside = u32::from(clamped == *d || d.is_nan());
        *d = clamped;
        *ratio = exp::<FMA>(clamped);
    }
}

/// The PPO-clip family: `-A clamp(w)`, with derivative `-A w` where the clamp leaves `w` alone.
#[inline(always)]
fn surrogate(
    bounds: &Bounds,
    ratio: &[f32],
    inside: &[u32],
    advantage: &[f32],
    value: &mut [f32],
    gradient: &mut [f32],
) -> Clipped {
    let bounds = *bounds;
    let mut clipped = Clipped::default();
    let tokens = ratio.iter().zip(inside).zip(advantage).zip(value).zip(gradient);
    for ((((w, inside), a), value), gradient) in tokens {
        let (w, a) = (*w, *a);
        let negative = a < 0.0;
        let low = if negative { bounds.low_negative } else { f32::NEG_INFINITY };
        let high = if negative { bounds.high_negative } else { bounds.high_positive };
        let s = if w < low { low } else { w };
        let s = if s > high { high } else { s };
        let passes = (s == w || w.is_nan()) & (*inside != 0);
        *value = -a * s;
        *gradient = if passes { -a * w } else { 0.0 };
        clipped.high += u32::from((a > 0.0) & (w > bounds.report_high));
        clipped.low += u32::from(negative & (w < bounds.report_low));
        clipped.dual += u32::from(negative & (w > bounds.high_negative));
    }
    clipped
}

#[inline(always)]
fn scale(values: &mut [f32], by: &[f32]) {
    for (value, by) in values.iter_mut().zip(by) {
        *value *= by;
    }
}

/// Estimates the divergence of every token and adds its share to the gradient.
#[inline(always)]
fn penalty<const FMA: bool>(
    rule: &KlRule,
    d: &[f32],
    ratio: &[f32],
    inside: &[u32],
    out: &mut KlTile,
    gradient: &mut [f32],
) {
    match rule.estimator {
        Estimator::K1 => estimate(out, d, kl::k1),
        Estimator::K2 => estimate(out, d, kl::k2),
        Estimator::K3 => estimate(out, d, |d| kl::k3::<FMA>(d, rule.limits)),
        Estimator::Abs => estimate(out, d, kl::abs),
    }
    let (value, slope) = (&mut out.value[..d.len()], &mut out.slope[..d.len()]);
    if rule.bias_correction {
        let both = &out.value_and_slope[..d.len()];
        for i in 0..d.len() {
            slope[i] = ratio[i] * if inside[i] != 0 { both[i] } else { slope[i] };
            value[i] *= ratio[i];
        }
    }
    for (gradient, slope) in gradient.iter_mut().zip(slope) {
        *gradient += rule.coefficient * *slope;
    }
}

#[inline(always)]
fn estimate(out: &mut KlTile, d: &[f32], of: impl Fn(f32) -> Estimate) {
    let each = out.value.iter_mut().zip(&mut out.slope).zip(&mut out.value_and_slope).zip(d);
    for (((value, slope), both), d) in each {
        let estimate = of(*d);
        *value = estimate.value;
        *slope = estimate.slope;
        *both = estimate.value_and_slope;
    }
}

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
    let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
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
