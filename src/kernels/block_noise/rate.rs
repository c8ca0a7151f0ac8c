//! From random words to levels, and from levels to rates. Every step is exact or rounded once, in the order written.

use super::{Noise, Order, Rate};
use crate::rng::{self, Stream};

/// Philox counters of a sequence: its tokens' keys four to a counter from 0, levels of its blocks from here on.
pub(super) const LEVELS: u32 = 1 << 30;
/// The words of the counts.
pub(super) const COUNTS: u32 = 2 << 30;
/// The word that turns a run of strata; its counter's sequence is the run.
const TURNS: u32 = 3 << 30;
/// The lowest rate, whatever the schedule: one key in 2³².
pub(super) const SMALLEST: f32 = 1.0 / 4_294_967_296.0;

/// The level of a block: `word` itself, or moved into the block's stratum. `block` counts over all sequences.
pub(super) fn stratified(noise: &Noise, block: u64, word: u32) -> u32 {
    let bits = noise.strata.trailing_zeros();
    if bits == 0 {
        return word;
    }
    let run = block >> bits;
    let [turn, ..] = rng::bits(noise.seed, Stream::Noise, run, TURNS);
    // An odd multiplier permutes the strata; neighbours end up far apart.
    let stratum = (block as u32).wrapping_mul(0x9E37_79B1).wrapping_add(turn) & (noise.strata - 1);
    stratum << (32 - bits) | word >> bits
}

/// The constants of a schedule, and its rate of a level.
#[derive(Clone, Copy)]
pub(super) struct Curve {
    /// Factor on the level before the schedule.
    before: f32,
    /// `max(least, low + slope · t)`, at most `high`.
    least: f32,
    low: f32,
    slope: f32,
    high: f32,
    /// Factor on the rate after it.
    after: f32,
}

impl Curve {
    pub fn new(noise: &Noise) -> Curve {
        let one = 1.0 / noise.block as f32;
        let (least, low, high) = match noise.rate {
            Rate::Clip => (one, 0.0, 1.0),
            Rate::Affine => (one, one, 1.0),
            Rate::Range { low, high } => (low, low, high),
        };
        let (before, after) = match noise.warm_up {
            None => (1.0, 1.0),
            Some(warm_up) => match warm_up.order {
                Order::CapThenRate => (warm_up.cap, 1.0),
                Order::RateThenCap => (1.0, warm_up.cap),
            },
        };
        Curve { before, least, low, slope: high - low, high, after }
    }

    /// The rate of a level word.
    #[inline(always)]
    pub fn rate(&self, word: u32) -> f32 {
        let level = self.before * rng::unit(word);
        let rate = self.low + self.slope * level;
        let rate = if rate < self.least { self.least } else { rate };
        let rate = if rate > self.high { self.high } else { rate };
        let rate = self.after * rate;
        if rate < SMALLEST { SMALLEST } else { rate }
    }

    /// The constants in the order that a device takes them: before, least, low, slope, high, after.
    pub fn constants(&self) -> [f32; 6] {
        [self.before, self.least, self.low, self.slope, self.high, self.after]
    }
}

/// The largest key that a rate masks: keys are uniform in `0..2³²`, `rate · 2³²` of them are masked.
#[inline(always)]
pub(super) fn last_key(rate: f32) -> u32 {
    // The product is exact, and at least 1.
    let keys = (rate * 4_294_967_296.0) as u64;
    (keys.max(1) - 1) as u32
}

/// The level that block `block` of sequence `sequence` draws, in `[0, 1)`, for callers who make rates of their own
/// ([`Given`](super::Given)). `blocks` is the number of blocks of a sequence.
pub fn level(noise: &Noise, sequence: u64, block: usize, blocks: usize) -> f32 {
    let words = rng::bits(noise.seed, Stream::Noise, sequence, LEVELS + (block / 4) as u32);
    let global = sequence.wrapping_mul(blocks as u64).wrapping_add(block as u64);
    rng::unit(stratified(noise, global, words[block % 4]))
}
