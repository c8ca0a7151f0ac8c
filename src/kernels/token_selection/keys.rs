//! A number for each token whose order is the order of picking: the smallest are picked.

use super::inputs::Inputs;
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::rng::{self, Stream};

/// The key of a token that is no candidate: larger than all others.
pub(super) const NO_CANDIDATE: u32 = u32::MAX;

/// Tokens that a loop goes over: the words of 16 Philox counters.
const BLOCK: usize = 64;
const COUNTERS: usize = BLOCK / 4;

/// Tokens whose sums are taken together, and that one task works on: not a function of the number of threads.
const PART: usize = 16 * 1024;

const LANES: usize = 8;

/// A number whose order is that of the floats: NaN of either sign has no place in it and is no candidate.
#[inline(always)]
fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}

/// The float of an [`ordered`] number.
pub(super) fn unordered(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & 0x7fff_ffff } else { !key })
}

/// Means over live tokens of advantages and log-probs.
#[derive(Clone, Copy, Default)]
struct Means {
    advantage: f32,
    logprob: f32,
}

impl Means {
    /// Added part by part, in their order.
    fn of(inputs: &Inputs<'_>, live: usize) -> Means {
        let mut sums = vec![[0f64; 2]; inputs.mask.len().div_ceil(PART)];
        let parts = inputs.advantage.chunks(PART).zip(inputs.logprob.chunks(PART));
        let parts = parts.zip(inputs.mask.chunks(PART)).zip(&mut sums);
        pool::each(parts, 1, |_, (((advantage, logprob), mask), sums)| {
            *sums = [sum(advantage, mask), sum(logprob, mask)];
        });
        let mean = |of: usize| {
            let sum: f64 = sums.iter().map(|sums| sums[of]).sum();
            (sum / live.max(1) as f64) as f32
        };
        Means { advantage: mean(0), logprob: mean(1) }
    }

    #[inline(always)]
    fn covariance(&self, advantage: f32, logprob: f32) -> f32 {
        (advantage - self.advantage) * (logprob - self.logprob)
    }
}

simd_fn! {
    /// The sum of what is live.
    fn sum(values: &[f32], mask: &[u8]) -> f64 {
        let mut lanes = [0f64; LANES];
        for (values, mask) in values.chunks(BLOCK).zip(mask.chunks(BLOCK)) {
            // A loop of its own: beside the accumulators the selection would not be vectorised.
            let mut live = [0f64; BLOCK];
            for ((live, value), mask) in live.iter_mut().zip(values).zip(mask) {
                *live = if *mask != 0 { f64::from(*value) } else { 0.0 };
            }
            for live in live.as_chunks::<LANES>().0 {
                for (lane, live) in lanes.iter_mut().zip(live) {
                    *lane += live;
                }
            }
        }
        lanes.iter().sum()
    }
}

simd_fn! {
    /// How many tokens are live.
    pub(super) fn live(mask: &[u8]) -> usize {
        // No more than a byte can count.
        let parts = mask.chunks(255).map(|mask| mask.iter().map(|mask| u8::from(*mask != 0)).sum::<u8>());
        parts.map(usize::from).sum()
    }
}

simd_fn! {
    /// How many keys are those of candidates.
    pub(super) fn candidates(keys: &[u32]) -> usize {
        let of = |keys: &[u32]| keys.iter().map(|key| u32::from(*key != NO_CANDIDATE)).sum::<u32>();
        keys.chunks(PART).map(|keys| of(keys) as usize).sum()
    }
}

/// Keys of all tokens, by `of(first, keys)` for those from `first` on.
fn all(tokens: usize, of: impl Fn(usize, &mut [u32]) + Sync) -> Vec<u32> {
    let mut keys = vec![NO_CANDIDATE; tokens];
    pool::blocks(&mut keys, PART, |part, keys| of(part * PART, keys));
    keys
}

/// The largest covariances first.
pub(super) fn kl_cov(inputs: &Inputs<'_>, live: usize) -> Vec<u32> {
    let means = Means::of(inputs, live);
    all(inputs.mask.len(), |first, keys| covariances(inputs, &means, first, keys))
}

simd_fn! {
    fn covariances(inputs: &Inputs<'_>, means: &Means, first: usize, keys: &mut [u32]) {
        let read = inputs.advantage[first..].iter().zip(&inputs.logprob[first..]).zip(&inputs.mask[first..]);
        for (key, ((advantage, logprob), mask)) in keys.iter_mut().zip(read) {
            let covariance = means.covariance(*advantage, *logprob);
            let is_candidate = (*mask != 0) & !covariance.is_nan();
            *key = if is_candidate { !ordered(covariance) } else { NO_CANDIDATE };
        }
    }
}

/// The least entropies first.
pub(super) fn entropies(inputs: &Inputs<'_>) -> Vec<u32> {
    all(inputs.mask.len(), |first, keys| {
        of_entropies(&inputs.entropy[first..], &inputs.mask[first..], keys)
    })
}

simd_fn! {
    fn of_entropies(entropy: &[f32], mask: &[u8], keys: &mut [u32]) {
        for (key, (entropy, mask)) in keys.iter_mut().zip(entropy.iter().zip(mask)) {
            *key = if (*mask != 0) & !entropy.is_nan() { ordered(*entropy) } else { NO_CANDIDATE };
        }
    }
}

/// One side of a clip, `exp(difference)` against a bound.
struct Side {
    bound: f32,
    log: f32,
    /// Differences this near to `log` are decided by `exp` itself, whose last bits are part of the definition.
    near: f32,
}

impl Side {
    fn new(bound: f32) -> Side {
        // The ratio of a bound that small has few bits.
        let near = if bound > 1e-30 { 1e-5 * bound.ln().abs().max(1.0) } else { f32::INFINITY };
        Side { bound, log: bound.ln(), near }
    }

    /// True when a difference is surely above, and when only `exp` can tell.
    #[inline(always)]
    fn is_above(&self, difference: f32) -> (bool, bool) {
        let over = difference - self.log;
        (over > self.near, (over.abs() <= self.near) | over.is_nan())
    }
}

/// What makes a token a candidate of Clip-Cov.
struct Candidates {
    means: Means,
    bounds: (f32, f32),
    low: Side,
    high: Side,
    draw: (u64, u64),
}

/// Random numbers of the tokens whose covariance lies between the bounds and that the clip leaves alone.
pub(super) fn clip_cov(inputs: &Inputs<'_>, live: usize, bounds: (f32, f32)) -> Vec<u32> {
    let (low, high) = inputs.clip;
    let candidates = Candidates {
        means: Means::of(inputs, live),
        bounds,
        low: Side::new(low),
        high: Side::new(high),
        draw: inputs.draw,
    };
    all(inputs.mask.len(), |first, keys| {
        for (i, keys) in keys.chunks_mut(BLOCK).enumerate() {
            candidate_keys(inputs, &candidates, first + i * BLOCK, keys);
        }
    })
}

simd_fn! {
    /// Of at most [`BLOCK`] tokens from a multiple of it.
    fn candidate_keys(inputs: &Inputs<'_>, of: &Candidates, first: usize, keys: &mut [u32]) {
        let here = first..first + keys.len();
        let (advantage, logprob) = (&inputs.advantage[here.clone()], &inputs.logprob[here.clone()]);
        let (old, mask) = (&inputs.old_logprob[here.clone()], &inputs.mask[here]);
        // 0: no candidate. 1: one. 2: `exp` has to tell.
        let mut states = [0u32; BLOCK];
        let mut any = 0;
        let read = advantage.iter().zip(logprob).zip(old.iter().zip(mask));
        for (state, ((advantage, logprob), (old, mask))) in states.iter_mut().zip(read) {
            let covariance = of.means.covariance(*advantage, *logprob);
            let is_between = (covariance > of.bounds.0) & (covariance < of.bounds.1) & (*mask != 0);
            let (is_high, is_near_high) = of.high.is_above(logprob - old);
            let (is_not_low, is_near_low) = of.low.is_above(logprob - old);
            let is_clipped = (*advantage > 0.0) & is_high | (*advantage < 0.0) & !is_not_low;
            let is_near = (*advantage > 0.0) & is_near_high | (*advantage < 0.0) & is_near_low;
            let when_between = if is_near { 2 } else { u32::from(!is_clipped) };
            *state = if is_between { when_between } else { 0 };
            any |= *state;
        }
        if any == 0 {
            keys.fill(NO_CANDIDATE);
            return;
        }
        let random = random_words(of.draw, first);
        let random = random.as_flattened();
        for ((key, state), random) in keys.iter_mut().zip(&states).zip(random) {
            *key = if *state == 0 { NO_CANDIDATE } else { (*random).min(NO_CANDIDATE - 1) };
        }
        if any > 1 {
            for (i, key) in keys.iter_mut().enumerate().filter(|(i, _)| states[*i] == 2) {
                let ratio = (logprob[i] - old[i]).exp();
                let above = advantage[i] > 0.0 && ratio > of.high.bound;
                if above || (advantage[i] < 0.0 && ratio < of.low.bound) {
                    *key = NO_CANDIDATE;
                }
            }
        }
    }
}

/// `rng::bits` of a token's place, four tokens a counter.
#[inline(always)]
fn random_words((seed, number): (u64, u64), first: usize) -> [[u32; 4]; COUNTERS] {
    let mut places = [0u32; COUNTERS];
    for (i, place) in places.iter_mut().enumerate() {
        *place = (first / 4 + i) as u32;
    }
    let words = [number as u32, (number >> 32) as u32, Stream::Select as u32];
    let [low, high, stream] = words.map(|word| [word; COUNTERS]);
    let mut out = [[0; 4]; COUNTERS];
    rng::philox_lanes([places, low, high, stream], [seed as u32, (seed >> 32) as u32], &mut out);
    out
}
