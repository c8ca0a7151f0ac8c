//! Sums over a run of tokens, in lanes whose number is part of the result's bits.

use super::metrics::Sums;
use super::run::Run;
use super::tile::TILE;

/// Lanes of a sum; part of the result's bits.
pub(super) const LANES: usize = 16;

/// Tokens that were counted.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub clipped: u32,
    pub high: u32,
    pub low: u32,
    pub dual: u32,
    pub dropped: u32,
    pub selected: u32,
    pub replayed: u32,
    pub replay_high: u32,
    pub replay_low: u32,
}

/// Sums over a run.
#[derive(Default)]
pub(super) struct RunSums {
    pub policy: [f32; LANES],
    pub kl: [f32; LANES],
    pub entropy: [f32; LANES],
    pub drift: [f32; LANES],
    pub log_ratio: [f32; LANES],
    pub absolute: [f32; LANES],
    pub ratio: [f32; LANES],
    pub ratio_squared: [f32; LANES],
    pub ratio_max: [f32; LANES],
    pub replay: ReplayLanes,
    pub counts: Counts,
}

/// Sums over its replayed tokens.
#[derive(Default)]
pub(super) struct ReplayLanes {
    pub value: [f32; LANES],
    pub shaped: [f32; LANES],
    pub shaped_squared: [f32; LANES],
    pub probability: [f32; LANES],
    pub fresh_probability: [f32; LANES],
    pub ratio_max: [f32; LANES],
}

impl RunSums {
    #[inline(always)]
    pub fn add_to(&self, sums: &mut Sums, run: &Run<'_>) {
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

    /// One token's clamped log ratio and what it reports as its ratio.
    #[inline(always)]
    pub fn moment(&mut self, lane: usize, log_ratio: f32, reported: f32) {
        self.log_ratio[lane] += log_ratio;
        self.absolute[lane] += log_ratio.abs();
        self.ratio[lane] += reported;
        self.ratio_squared[lane] += reported * reported;
        self.ratio_max[lane] = larger(self.ratio_max[lane], reported);
    }
}

/// Adds values to lanes.
#[inline(always)]
pub(super) fn add(sums: &mut [f32; LANES], values: &[f32]) {
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
pub(super) fn add_each(sums: &mut [f32; LANES], count: usize, value: impl Fn(usize) -> f32) {
    let mut values = [0f32; TILE];
    for (i, out) in values[..count.min(TILE)].iter_mut().enumerate() {
        *out = value(i);
    }
    add(sums, &values[..count.min(TILE)]);
}

/// Keeps the largest; NaN stays.
#[inline(always)]
pub(super) fn raise(largest: &mut [f32; LANES], values: &[f32]) {
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

/// The larger one; NaN stays.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if (b > a) | b.is_nan() { b } else { a }
}
