//! What happens to a tile's surrogates after they were computed: replayed tokens, selections, importance weights, drift.

use super::formula::clamp;
use super::lanes::{Counts, RunSums, add, add_each, raise};
use super::replay::Replay;
use super::steps::{Pick, Rule, Weighting};
use super::tile::{TILE, Tile, Tokens};
use crate::device::cpu::math::exp;

/// The replay term of the tokens that are live and not fresh.
#[inline(always)]
pub(super) fn replayed<const FMA: bool>(
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

/// Drops what a selection or the off-policy mask drops, and adds KL-Cov's penalty.
#[inline(always)]
pub(super) fn picked(
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
fn sign(d: f32) -> f32 {
    let sign = if d > 0.0 { 1.0 } else { 0.0 } - if d < 0.0 { 1.0 } else { 0.0 };
    if d.is_nan() { d } else { sign }
}

/// Importance weights.
#[inline(always)]
pub(super) fn weighted(
    rule: &Rule,
    of_sequence: f32,
    weight: Option<&[f32]>,
    tile: &mut Tile,
    gradient: &mut [f32],
) {
    let n = gradient.len().min(TILE);
    match (rule.weighting, weight) {
        (Weighting::Consumed, _) | (Weighting::Token, None) => {}
        (Weighting::Mean | Weighting::Geometric, None) if of_sequence == 1.0 => {}
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
pub(super) fn drifted(
    coefficient: f32,
    cap: f32,
    of: &Tokens<'_>,
    tile: &mut Tile,
    gradient: &mut [f32],
) {
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
