//! The walk over a run of tokens: losses, gradients and sums.
//!
//! A run is walked in tiles, and each step is one plain loop over a tile, which the compiler vectorises; a tile's
//! arrays stay in the first-level cache. What masked tokens hold is dropped on load: they go on as tokens with ratio 1
//! and advantage 0. Replayed tokens go on so too, until the replay term takes their place.

use super::adjust::{drifted, picked, replayed, weighted};
use super::formula::{Formula, RatioSource, SequenceRatio, Token, TokenRatio, Vespo};
use super::lanes::{Counts, LANES, RunSums, add, add_each};
use super::metrics::Sums;
use super::penalty;
use super::run::{Lane, Run};
use super::sequence::Factors;
use super::steps::{Rule, SurrogateRule};
use super::tile::{TILE, Tile, Tokens};
use crate::device::cpu::simd::simd_fn;

simd_fn! {
    /// Losses and gradients of one run; its sums are added to `sums`.
    pub(super) fn one_run(rule: &Rule, run: &mut Run<'_>, sums: &mut Sums) {
        let mut tile = Tile::EMPTY;
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

simd_fn! {
    /// Gradients of a run of at most [`TILE`] tokens; its sums are not kept.
    pub(super) fn gradients_of_run(rule: &Rule, run: &mut Run<'_>) {
        let count = run.logprob.len().min(TILE);
        let mut tile = Tile::EMPTY;
        one_tile::<FMA>(rule, run, 0, count, &mut tile, &mut RunSums::default());
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

/// Sums that metrics are made of.
#[inline(always)]
fn moments(count: usize, tile: &Tile, sums: &mut RunSums) {
    let log_ratio = &tile.log_ratio[..count.min(TILE)];
    let reported = &tile.reported[..count.min(TILE)];
    let (full, rest) = log_ratio.as_chunks::<LANES>();
    let (full_reported, rest_reported) = reported.as_chunks::<LANES>();
    for (d, r) in full.iter().zip(full_reported) {
        for lane in 0..LANES {
            sums.moment(lane, d[lane], r[lane]);
        }
    }
    for (lane, (d, r)) in rest.iter().zip(rest_reported).enumerate() {
        sums.moment(lane, *d, *r);
    }
}
