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

/// The largest key that a rate masks: keys are uniform in `0..2³²`, `rate · 2³²` of them are masked, at least one.
///
/// The product is exact, so its whole part is the rate's own digits, moved: that is a vector instruction, where the
/// conversion of a float to 64 bits is none.
#[inline(always)]
pub(super) fn last_key(rate: f32) -> u32 {
    let bits = rate.to_bits();
    let digits = bits & 0x7F_FFFF | 0x80_0000;
    // The rate is digits · 2^(exponent - 150).
    let shift = (bits >> 23) as i32 - (150 - 32);
    let (up, down) = (shift.max(0) as u32, (-shift).clamp(0, 23) as u32);
    // A rate of 1 leaves nothing of its digits, and the key before 0 is the last of all.
    (digits.wrapping_shl(up) >> down).wrapping_sub(1)
}

/// The level that block `block` of sequence `sequence` draws, in `[0, 1)`, for callers who make rates of their own
/// ([`Given`](super::Given)). `blocks` is the number of blocks of a sequence.
pub fn level(noise: &Noise, sequence: u64, block: usize, blocks: usize) -> f32 {
    let words = rng::bits(noise.seed, Stream::Noise, sequence, LEVELS + (block / 4) as u32);
    let global = sequence.wrapping_mul(blocks as u64).wrapping_add(block as u64);
    rng::unit(stratified(noise, global, words[block % 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_key_is_the_product_less_one() {
        let by_product = |rate: f32| ((rate * 4_294_967_296.0) as u64).max(1) - 1;
        let rates = (1..100_000).map(|i| i as f32 / 100_000.0);
        let halves = (0..40).flat_map(|i| [0.5f32.powi(i), 0.7 * 0.5f32.powi(i)]);
        for rate in rates.chain(halves).chain([1.0, SMALLEST, f32::MIN_POSITIVE]) {
            assert_eq!(u64::from(last_key(rate)), by_product(rate), "{rate}");
        }
    }
}
