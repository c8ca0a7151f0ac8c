//! The walk over a run of tokens: losses, gradients and sums.
//!
//! A run is walked in tiles, and each step is one plain loop over a tile, which the compiler vectorises; a tile's
//! arrays stay in the first-level cache. What masked tokens hold is dropped on load: they go on as tokens with ratio 1
//! and advantage 0. Replayed tokens go on so too, until the replay term takes their place.

use super::formula::{Formula, RatioSource, SequenceRatio, Token, TokenRatio, Vespo, clamp};
use super::metrics::Sums;
use super::pass::{Lane, Pick, Rule, Run, SurrogateRule, Weighting};
use super::penalty;
use super::replay::Replay;
use super::sequence::Factors;
use crate::device::cpu::math::exp;
use crate::device::cpu::simd::simd_fn;

/// Tokens whose steps are done one after another.
pub(super) const TILE: usize = 128;
/// Lanes of a sum; part of the result's bits.
const LANES: usize = 16;

/// What later steps need of a tile's tokens. Kept in locals, which the compiler knows to be apart from all else.
pub(super) struct Tile {
    pub live: [u32; TILE],
    /// Live, and not replayed.
    fresh: [u32; TILE],
    advantage: [f32; TILE],
    /// The loss that is being looked at.
    pub value: [f32; TILE],
    /// The clamped log ratio.
    log_ratio: [f32; TILE],
    /// 0 where not fresh.
    pub ratio: [f32; TILE],
    /// What the metrics of ratios count; 0 where not fresh.
    reported: [f32; TILE],
}

/// The tokens of a tile.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    pub logprob: &'a [f32],
    pub old_logprob: &'a [f32],
    pub coefficient: f32,
}

/// Tokens that were counted.
#[derive(Clone, Copy, Default)]
struct Counts {
    clipped: u32,
    high: u32,
    low: u32,
    dual: u32,
    dropped: u32,
    selected: u32,
    replayed: u32,
    replay_high: u32,
    replay_low: u32,
}

/// Sums over a run.
#[derive(Default)]
struct RunSums {
    policy: [f32; LANES],
    kl: [f32; LANES],
    entropy: [f32; LANES],
    drift: [f32; LANES],
    log_ratio: [f32; LANES],
    absolute: [f32; LANES],
    ratio: [f32; LANES],
    ratio_squared: [f32; LANES],
    ratio_max: [f32; LANES],
    replay: ReplayLanes,
    counts: Counts,
}

/// Sums over its replayed tokens.
#[derive(Default)]
struct ReplayLanes {
    value: [f32; LANES],
    shaped: [f32; LANES],
    shaped_squared: [f32; LANES],
    probability: [f32; LANES],
    fresh_probability: [f32; LANES],
    ratio_max: [f32; LANES],
}

simd_fn! {
    /// Losses and gradients of one run; its sums are added to `sums`.
    pub(super) fn one_run(rule: &Rule, run: &mut Run<'_>, sums: &mut Sums) {
        let zeros = [0.0; TILE];
        let none = [0; TILE];
        let mut tile = Tile {
            live: none, fresh: none, advantage: zeros, value: zeros, log_ratio: zeros, ratio: zeros, reported: zeros,
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
        let largest = |lanes: &[f32; LANES]| {
            let mut largest = 0f32;
            for lane in lanes {
                largest = if *lane > largest || lane.is_nan() { *lane } else { largest };
            }
            f64::from(largest)
        };
        let (policy, kl, entropy, drift) =
            (sum(&self.policy), sum(&self.kl), sum(&self.entropy), sum(&self.drift));
        // A sequence without weight adds nothing, whatever its tokens hold.
        let weigh = |by: f32, value: f64| if by == 0.0 { 0.0 } else { f64::from(by) * value };
        sums.add(&Sums {
            policy_loss: weigh(run.coefficient, policy),
            kl_loss: weigh(run.kl_coefficient, kl),
            entropy_loss: weigh(run.entropy_coefficient, entropy),
            drift_loss: weigh(run.coefficient, drift),
            clipped: u64::from(self.counts.clipped),
            clipped_high: u64::from(self.counts.high),
            clipped_low: u64::from(self.counts.low),
            clipped_dual: u64::from(self.counts.dual),
            dropped: u64::from(self.counts.dropped),
            selected: u64::from(self.counts.selected),
            log_ratio: sum(&self.log_ratio),
            absolute_log_ratio: sum(&self.absolute),
            kl,
            ratio: sum(&self.ratio),
            ratio_squared: sum(&self.ratio_squared),
            ratio_max: largest(&self.ratio_max),
            entropy,
            surrogate: policy,
            replayed: u64::from(self.counts.replayed),
            replay_high: u64::from(self.counts.replay_high),
            replay_low: u64::from(self.counts.replay_low),
            replay_surrogate: sum(&self.replay.value),
            shaped: sum(&self.replay.shaped),
            shaped_squared: sum(&self.replay.shaped_squared),
            replay_ratio_max: largest(&self.replay.ratio_max),
            replay_probability: sum(&self.replay.probability),
            fresh_probability: sum(&self.replay.fresh_probability),
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
        coefficient: run.coefficient,
    };
    let off_policy = run.off_policy.map(|mask| &mask[range.clone()]);
    let selected = run.selected.map(|mask| &mask[range.clone()]);
    let gradient = &mut run.dlogprob[range.clone()];
    load(&run.mask[range.clone()], off_policy, tile);
    match run.advantage {
        Lane::Same(value) => advantages(count, |_| value, tile),
        Lane::Each(values) => {
            let values = &values[range.clone()][..count];
            advantages(count, |i| values[i], tile);
        }
    }
    surrogate::<FMA>(rule, run.factors, &of, tile, gradient, &mut sums.counts);
    if let (Some(replay), Some(_)) = (&rule.replay, off_policy) {
        replayed::<FMA>(replay, rule.log_ratio_limit, &of, tile, gradient, sums);
    }
    moments(count, tile, sums);
    let drop_negative = run.factors.drop_negative;
    picked(rule, drop_negative, selected, &of, tile, gradient, &mut sums.counts);
    let weight = run.weight.map(|weight| &weight[range.clone()]);
    weighted(rule, run.factors.weight, weight, tile, gradient);
    add(&mut sums.policy, &tile.value[..count]);
    if off_policy.is_some() {
        let value = |tile: &Tile, i: usize| if tile.fresh[i] == 0 { tile.value[i] } else { 0.0 };
        add_each(&mut sums.replay.value, count, |i| value(tile, i));
    }
    // The surrogate has been added up: its place takes what comes next.
    if let Some(drift) = rule.drift {
        drifted(drift.coefficient, drift.cap, &of, tile, gradient);
        add(&mut sums.drift, &tile.value[..count]);
    }
    if let (Some(kl), Some(reference)) = (rule.kl, run.reference) {
        let reference = &reference[range.clone()];
        let of = Tokens { coefficient: run.kl_coefficient, ..of };
        penalty::penalty::<FMA>(rule.log_ratio_limit, &kl, &of, reference, tile, gradient);
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

#[inline(always)]
fn load(mask: &[u8], off_policy: Option<&[u8]>, tile: &mut Tile) {
    for (live, mask) in tile.live.iter_mut().zip(mask) {
        *live = u32::from(*mask != 0);
    }
    match off_policy {
        None => tile.fresh = tile.live,
        Some(off_policy) => {
            let fresh = tile.fresh.iter_mut().zip(&tile.live).zip(off_policy);
            for ((fresh, live), off) in fresh {
                *fresh = live & u32::from(*off == 0);
            }
        }
    }
}

#[inline(always)]
fn advantages(count: usize, advantage: impl Fn(usize) -> f32, tile: &mut Tile) {
    for i in 0..count.min(TILE) {
        let a = advantage(i);
        tile.advantage[i] = if tile.live[i] != 0 { a } else { 0.0 };
    }
}

/// The surrogate by its kind.
#[inline(always)]
fn surrogate<const FMA: bool>(
    rule: &Rule,
    factors: Factors,
    of: &Tokens<'_>,
    tile: &mut Tile,
    gradient: &mut [f32],
    counts: &mut Counts,
) {
    let token = TokenRatio { limit: rule.log_ratio_limit };
    let (ratio, stopped) = (factors.ratio, factors.stopped);
    let sequence = SequenceRatio { ratio, stopped, limit: rule.log_ratio_limit };
    match rule.surrogate {
        SurrogateRule::Clip(clip) if rule.of_sequence => {
            points::<FMA>(sequence, clip, of, tile, gradient, counts);
        }
        SurrogateRule::Clip(clip) => points::<FMA>(token, clip, of, tile, gradient, counts),
        SurrogateRule::Reshaped(r) => points::<FMA>(token, r, of, tile, gradient, counts),
        SurrogateRule::Cispo(cispo) if rule.of_sequence => {
            points::<FMA>(sequence, cispo, of, tile, gradient, counts);
        }
        SurrogateRule::Cispo(cispo) => points::<FMA>(token, cispo, of, tile, gradient, counts),
        SurrogateRule::Gmpo(gmpo) => points::<FMA>(sequence, gmpo, of, tile, gradient, counts),
        SurrogateRule::Sapo(sapo) if rule.of_sequence => {
            points::<FMA>(sequence, sapo, of, tile, gradient, counts);
        }
        SurrogateRule::Sapo(sapo) => points::<FMA>(token, sapo, of, tile, gradient, counts),
        SurrogateRule::Reinforce(of_token) => {
            points::<FMA>(token, of_token, of, tile, gradient, counts);
        }
        SurrogateRule::Cpgd(cpgd) => points::<FMA>(token, cpgd, of, tile, gradient, counts),
        SurrogateRule::Value(value) => points::<FMA>(token, value, of, tile, gradient, counts),
        SurrogateRule::Vespo => {
            let Factors { phi_positive: positive, phi_negative: negative, .. } = factors;
            points::<FMA>(token, Vespo { positive, negative }, of, tile, gradient, counts);
        }
    }
}

/// A surrogate over the fresh tokens: writes the gradient and the tile's values, and counts.
#[inline(always)]
fn points<const FMA: bool>(
    source: impl RatioSource,
    formula: impl Formula,
    of: &Tokens<'_>,
    tile: &mut Tile,
    gradient: &mut [f32],
    counts: &mut Counts,
) {
    let n = gradient.len().min(TILE);
    let (logprob, old) = (&of.logprob[..n], &of.old_logprob[..n]);
    let [mut clipped, mut high, mut low, mut dual] = [0u32; 4];
    for i in 0..n {
        let fresh = tile.fresh[i] != 0;
        // Read first and selected then: a read that depends on the mask would not vectorise.
        let (now, before, a) = (logprob[i], old[i], tile.advantage[i]);
        let now = if fresh { now } else { 0.0 };
        let before = if fresh { before } else { 0.0 };
        let a = if fresh { a } else { 0.0 };
        let (log_ratio, ratio, stopped) = source.of::<FMA>(now - before);
        let point = formula.at::<FMA>(&Token {
            logprob: now,
            old_logprob: before,
            advantage: a,
            log_ratio,
            ratio,
            stopped,
        });
        let slope = of.coefficient * point.slope;
        gradient[i] = if fresh { slope } else { 0.0 };
        tile.value[i] = if fresh { point.value } else { 0.0 };
        tile.log_ratio[i] = log_ratio;
        tile.ratio[i] = if fresh { ratio } else { 0.0 };
        tile.reported[i] = if fresh { point.reported } else { 0.0 };
        // A token that is not fresh may lie outside a clip: its own ratio is 1 but its sequence's is not.
        clipped += u32::from(fresh & point.clipped);
        high += u32::from(fresh & point.high);
        low += u32::from(fresh & point.low);
        dual += u32::from(fresh & point.dual);
    }
    counts.clipped += clipped;
    counts.high += high;
    counts.low += low;
    counts.dual += dual;
}

/// The replay term of the tokens that are live and not fresh.
#[inline(always)]
fn replayed<const FMA: bool>(
    replay: &Replay,
    limit: f32,
    of: &Tokens<'_>,
    tile: &mut Tile,
    gradient: &mut [f32],
    sums: &mut RunSums,
) {
    let n = gradient.len().min(TILE);
    let (logprob, old) = (&of.logprob[..n], &of.old_logprob[..n]);
    let lanes = &mut sums.replay;
    let (mut shaped, mut ratio) = ([0f32; TILE], [0f32; TILE]);
    let [mut count, mut high, mut low] = [0u32; 3];
    for i in 0..n {
        let off = (tile.live[i] != 0) & (tile.fresh[i] == 0);
        let (now, before) = (logprob[i], old[i]);
        let now = if off { now } else { 0.0 };
        let d = if off { now - before } else { 0.0 };
        let clamped = clamp(d, limit);
        let point = replay.at::<FMA>(now, clamped, (clamped < d) | (clamped > d));
        let a = tile.advantage[i];
        let slope = of.coefficient * (-a * point.slope);
        if off {
            gradient[i] = slope;
            tile.value[i] = -a * point.value;
            tile.log_ratio[i] = clamped;
            // For a penalty's bias correction; metrics of ratios do not count it.
            tile.ratio[i] = exp::<FMA>(clamped);
        }
        shaped[i] = if off { point.value } else { 0.0 };
        ratio[i] = if off { point.ratio } else { 0.0 };
        count += u32::from(off);
        high += u32::from(off & point.high);
        low += u32::from(off & point.low);
    }
    sums.counts.replayed += count;
    sums.counts.replay_high += high;
    sums.counts.replay_low += low;
    add(&mut lanes.shaped, &shaped[..n]);
    add_each(&mut lanes.shaped_squared, n, |i| shaped[i] * shaped[i]);
    raise(&mut lanes.ratio_max, &ratio[..n]);
    let probability = |wanted: u32, from: &[f32], i: usize, tile: &Tile| {
        let (live, fresh) = (tile.live[i], tile.fresh[i]);
        let p = exp::<FMA>(if live != 0 { from[i] } else { 0.0 });
        if (live != 0) & (fresh == wanted) { p } else { 0.0 }
    };
    add_each(&mut lanes.probability, n, |i| probability(0, logprob, i, tile));
    add_each(&mut lanes.fresh_probability, n, |i| probability(1, old, i, tile));
}

/// Sums that metrics are made of.
#[inline(always)]
fn moments(count: usize, tile: &Tile, sums: &mut RunSums) {
    add(&mut sums.log_ratio, &tile.log_ratio[..count]);
    add_each(&mut sums.absolute, count, |i| tile.log_ratio[i].abs());
    add(&mut sums.ratio, &tile.reported[..count]);
    add_each(&mut sums.ratio_squared, count, |i| tile.reported[i] * tile.reported[i]);
    raise(&mut sums.ratio_max, &tile.reported[..count]);
}

/// Drops what a selection or the off-policy mask drops, and adds KL-Cov's penalty.
#[inline(always)]
fn picked(
    rule: &Rule,
    drop_negative: bool,
    selected: Option<&[u8]>,
    of: &Tokens<'_>,
    tile: &mut Tile,
    gradient: &mut [f32],
    counts: &mut Counts,
) {
    let n = gradient.len().min(TILE);
    // Through a sequence's ratio the token has a gradient all the same.
    let keeps_gradient = rule.weighting == Weighting::Mean;
    if let Some(selected) = selected {
        let selected = &selected[..n];
        let mut picked = 0u32;
        for i in 0..n {
            picked += tile.live[i] & u32::from(selected[i] != 0);
        }
        counts.selected += picked;
        if let Pick::Penalise(coefficient) = rule.pick {
            penalise(coefficient, selected, of, tile, gradient);
        } else if rule.pick != Pick::Nothing {
            let keep = rule.pick == Pick::Keep;
            let mut dropped = 0u32;
            for i in 0..n {
                let drops = (selected[i] != 0) != keep;
                tile.value[i] = if drops { 0.0 } else { tile.value[i] };
                gradient[i] = if drops & !keeps_gradient { 0.0 } else { gradient[i] };
                dropped += tile.live[i] & u32::from(drops);
            }
            counts.dropped += dropped;
        }
    }
    if drop_negative {
        let mut dropped = 0u32;
        for i in 0..n {
            let drops = tile.advantage[i] < 0.0;
            tile.value[i] = if drops { 0.0 } else { tile.value[i] };
            gradient[i] = if drops { 0.0 } else { gradient[i] };
            dropped += u32::from(drops);
        }
        counts.dropped += dropped;
    }
}

/// KL-Cov: `coefficient · |logprob - old_logprob|` on picked fresh tokens, not clamped (verl).
#[inline(always)]
fn penalise(
    coefficient: f32,
    selected: &[u8],
    of: &Tokens<'_>,
    tile: &mut Tile,
    gradient: &mut [f32],
) {
    let n = gradient.len().min(TILE);
    let (logprob, old, selected) = (&of.logprob[..n], &of.old_logprob[..n], &selected[..n]);
    let weight = of.coefficient * coefficient;
    for i in 0..n {
        let pays = (tile.fresh[i] != 0) & (selected[i] != 0);
        let d = logprob[i] - old[i];
        let d = if pays { d } else { 0.0 };
        tile.value[i] += coefficient * d.abs();
        gradient[i] += weight * sign(d);
    }
}

/// -1, 0 or 1; NaN stays.
#[inline(always)]
pub(super) fn sign(d: f32) -> f32 {
    let sign = if d > 0.0 { 1.0 } else { 0.0 } - if d < 0.0 { 1.0 } else { 0.0 };
    if d.is_nan() { d } else { sign }
}

/// Importance weights.
#[inline(always)]
fn weighted(
    rule: &Rule,
    of_sequence: f32,
    weight: Option<&[f32]>,
    tile: &mut Tile,
    gradient: &mut [f32],
) {
    let n = gradient.len().min(TILE);
    match (rule.weighting, weight) {
        (Weighting::Consumed, _) | (Weighting::Token, None) => {}
        (Weighting::Token, Some(weight)) => {
            let weight = &weight[..n];
            for i in 0..n {
                let weight = weight[i];
                let weight = if tile.live[i] != 0 { weight } else { 0.0 };
                tile.value[i] *= weight;
                gradient[i] *= weight;
            }
        }
        (Weighting::Mean, _) => {
            for gradient in gradient.iter_mut() {
                *gradient *= of_sequence;
            }
            if let Some(weight) = weight {
                let weight = &weight[..n];
                for i in 0..n {
                    let weight = weight[i];
                    tile.value[i] *= if tile.live[i] != 0 { weight } else { 0.0 };
                }
            }
        }
        (Weighting::Geometric, _) => {
            for i in 0..n {
                tile.value[i] *= of_sequence;
                gradient[i] *= of_sequence;
            }
        }
    }
}

/// CPGD's drift into `tile.value`, its gradient added.
#[inline(always)]
fn drifted(coefficient: f32, cap: f32, of: &Tokens<'_>, tile: &mut Tile, gradient: &mut [f32]) {
    let n = gradient.len().min(TILE);
    let logprob = &of.logprob[..n];
    let weight = of.coefficient * coefficient;
    for i in 0..n {
        let fresh = tile.fresh[i] != 0;
        let (d, logprob) = (tile.ratio[i] - 1.0, logprob[i]);
        let slope = if d > cap { cap } else { d };
        let (slope, logprob) = (if fresh { slope } else { 0.0 }, if fresh { logprob } else { 0.0 });
        tile.value[i] = slope * logprob;
        gradient[i] += weight * slope;
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

/// Adds `value` of `0..count` to lanes.
#[inline(always)]
fn add_each(sums: &mut [f32; LANES], count: usize, value: impl Fn(usize) -> f32) {
    let mut values = [0f32; TILE];
    for (i, out) in values[..count.min(TILE)].iter_mut().enumerate() {
        *out = value(i);
    }
    add(sums, &values[..count.min(TILE)]);
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
