//! What both ways to noise start from: random words, rates, and the bound below which a key is masked.

use super::rate::{Curve, last_key};
use crate::device::cpu::simd::simd_fn;
use crate::rng::{Stream, philox_lanes};

/// Counters, or blocks of four, side by side.
pub(super) const LANES: usize = 8;

/// The words of eight counters: `[word][counter]`.
pub(super) type Words = [[u32; LANES]; 4];

/// Memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// A random word a token; the highest where it is not eligible.
    pub(super) keys: Vec<u32>,
    /// A random word a block: its level, then its count.
    pub(super) words: Vec<u32>,
    /// By block: the largest key that is masked.
    pub(super) last: Vec<u32>,
    /// The same by token.
    pub(super) last_by_token: Vec<u32>,
    /// By block: the weight of a masked token.
    pub(super) worth: Vec<f32>,
    /// Eligible keys of one block with their places, for the exact counts.
    pub(super) ranked: Vec<u64>,
    /// Keys of blocks of four, eight blocks side by side.
    pub(super) quads: Vec<Words>,
}

simd_fn! {
    /// Words `from..from + words.len()` of the counters that begin at `base`, four to a counter.
    pub(super) fn fill_words(seed: u64, sequence: u64, base: u32, from: usize, words: &mut [u32]) {
        let key = [seed as u32, (seed >> 32) as u32];
        let [low, high] = [sequence as u32, (sequence >> 32) as u32];
        let mut quad = from / 4;
        let mut skip = from % 4;
        let mut done = 0;
        while done < words.len() {
            let mut counter = [[0; LANES], [low; LANES], [high; LANES], [Stream::Noise as u32; LANES]];
            for lane in 0..LANES {
                counter[0][lane] = base.wrapping_add((quad + lane) as u32);
            }
            let mut drawn = [[0; 4]; LANES];
            philox_lanes::<LANES>(counter, key, &mut drawn);
            let flat: &[u32] = drawn.as_flattened();
            let rest = &mut words[done..];
            let fresh = &flat[skip..];
            let taken = fresh.len().min(rest.len());
            rest[..taken].copy_from_slice(&fresh[..taken]);
            done += taken;
            skip = 0;
            quad += LANES;
        }
    }
}

simd_fn! {
    /// Rates of level words.
    pub(super) fn rates(curve: &Curve, words: &[u32], rates: &mut [f32]) {
        let curve = *curve;
        for (rate, word) in rates.iter_mut().zip(words) {
            *rate = curve.rate(*word);
        }
    }
}

simd_fn! {
    /// By block, the largest key that its rate masks, and the reciprocal of the rate.
    pub(super) fn bounds(rates: &[f32], last: &mut [u32], worth: &mut [f32]) {
        for ((rate, last), worth) in rates.iter().zip(last).zip(worth) {
            *last = last_key(*rate);
            *worth = 1.0 / *rate;
        }
    }
}

/// `1 / P(masked)` of a token among `places` of a block whose mask is forced where it would be empty:
/// `P = rate + (1 - rate)^places / places`.
pub(super) fn forced_weight(rate: f32, places: u32) -> f32 {
    let rate = f64::from(rate);
    // The power by squaring, from the lowest bit of the exponent.
    let (mut power, mut square, mut exponent) = (1.0, 1.0 - rate, places);
    while exponent > 0 {
        if exponent & 1 == 1 {
            power *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    (1.0 / (rate + power / f64::from(places))) as f32
}
