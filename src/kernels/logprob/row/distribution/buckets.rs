//! The ids of a row by falling likelihood, in buckets: what it takes to find a place in that order without sorting it.
//!
//! Weights are integers in units of 2⁻⁴⁰ of the largest, as in `kernels/sample.cu`: their sums are the same in any order,
//! so neither the order in which pieces are read nor that inside a bucket can change a draw.

use super::Distribution;
use crate::device::cpu::math;
use crate::device::cpu::simd::simd_fn;
use crate::dtype::Float;
use std::ops::Range;

/// Ids of a bucket on average, where they spread evenly: few enough to partition, and a vocabulary of a hundred has no
/// thousand buckets to walk.
const EACH: usize = 8;
const LEAST: usize = 16;
/// 32 KiB of tallies: they stay in the first-level cache.
const MOST: usize = 2048;

/// Powers of two that the buckets span, in units of how far the mean weight lies below the largest: all of a flat row, and
/// of one whose weight lies in few ids what can be drawn.
const REACH: f64 = 8.0;

/// Equal steps of the logit, down from the largest; what lies below them all is in the last one.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Buckets {
    max: f32,
    scale: f32,
    /// Buckets for each unit of the logit.
    steps: f32,
    last: f32,
    /// The weight of the largest logit.
    whole: f64,
}

/// What lies in a bucket.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::kernels) struct Tally {
    pub weight: u64,
    pub count: u64,
}

/// An id that can be drawn.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Candidate {
    pub logit: f32,
    pub id: u32,
    pub weight: u64,
}

/// Added to a number from 0 to 2^52 it leaves the nearest integer in the low bits.
const ROUND: f64 = 4_503_599_627_370_496.0;
/// The same for an f32, up to 2^23.
const ROUND_SHORT: f32 = 8_388_608.0;

/// Logits whose places are found together.
const STAGE: usize = 64;

#[inline(always)]
fn bucket_at(place: f32) -> usize {
    place.to_bits().wrapping_sub(ROUND_SHORT.to_bits()) as usize
}

#[inline(always)]
fn place_of(bucket: usize) -> f32 {
    bucket as f32 + ROUND_SHORT
}

impl Buckets {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.last as usize + 1
    }

    /// The weight of the largest logit, of which the others' are parts.
    pub fn largest_weight(&self) -> f64 {
        self.whole
    }

    /// The bucket of a logit that is `powers` of two less likely than the largest one.
    pub fn below(&self, powers: f64) -> usize {
        (powers / f64::from(self.scale) * f64::from(self.steps)).min(self.last.into()) as usize
    }

    /// The bucket of a logit above -inf: never a lower one for a smaller logit.
    pub fn of(&self, logit: f32) -> usize {
        bucket_at(self.place(logit))
    }

    /// The bucket as the low bits of a number, which a loop over lanes can make.
    #[inline(always)]
    fn place(&self, logit: f32) -> f32 {
        let place = (self.max - logit) * self.steps;
        let place = if place < self.last { place } else { self.last };
        // One past the last for what cannot be drawn.
        (if logit > f32::NEG_INFINITY { place } else { self.last + 1.0 }) + ROUND_SHORT
    }

    #[inline(always)]
    fn weight<const FMA: bool>(&self, logit: f32) -> u64 {
        let power = math::exp2::<FMA>((logit - self.max) * self.scale);
        (f64::from(power) * self.whole + ROUND).to_bits().wrapping_sub(ROUND.to_bits())
    }
}

impl<T: Float> Distribution<'_, T> {
    /// Buckets for a row of largest logit `max`, above -inf, and the sum `whole` of weights relative to it. They depend on
    /// the row alone: narrow for a flat one, wide for one whose weight lies in few ids.
    pub fn buckets(&self, max: f32, whole: f64) -> Buckets {
        let (vocab, scale) = (self.row.len(), self.how.scale());
        let count = (vocab / EACH).clamp(LEAST, MOST);
        let depth = (vocab as f64 / whole).log2().max(1e-3);
        let steps = count as f64 * f64::from(scale) / (REACH * depth);
        // No sum of a row reaches 2^63.
        let exponent = 63 - (usize::BITS - vocab.leading_zeros()) as i32;
        Buckets {
            max,
            scale,
            // Not infinite: 0 times it is the largest logit's place.
            steps: (steps as f32).min(f32::MAX),
            last: (count - 1) as f32,
            whole: 2f64.powi(exponent.min(40)),
        }
    }

    /// Adds the ids of a piece that lie in some of the buckets to the tallies of these.
    pub fn tally(
        &mut self,
        piece: usize,
        by: &Buckets,
        buckets: Range<usize>,
        tallies: &mut [Tally],
    ) {
        let (_, len) = self.read(piece);
        tally(&self.scratch.0[0][..len], by, buckets, tallies);
    }

    /// Adds the ids of a piece that lie in one bucket to `found`.
    pub fn gather(
        &mut self,
        piece: usize,
        by: &Buckets,
        bucket: usize,
        found: &mut Vec<Candidate>,
    ) {
        let (first, len) = self.read(piece);
        gather(&self.scratch.0[0][..len], first, by, bucket, found);
    }
}

/// Some logits that lie in the wanted buckets, and where they were.
struct Hits {
    logits: [f32; STAGE],
    at: [u32; STAGE],
    weights: [u64; STAGE],
    count: usize,
}

impl Hits {
    const NONE: Hits = Hits { logits: [0.0; STAGE], at: [0; STAGE], weights: [0; STAGE], count: 0 };

    /// Finds those of at most [`STAGE`] logits. In place, and with loops of their own for what can be vectorised.
    #[inline(always)]
    fn find<const FMA: bool>(&mut self, logits: &[f32], by: &Buckets, buckets: &Range<usize>) {
        let (from, to) = (place_of(buckets.start), place_of(buckets.end));
        let mut is_hit = [0u32; STAGE];
        let mut any = 0;
        for (is_hit, logit) in is_hit.iter_mut().zip(logits) {
            let place = by.place(*logit);
            *is_hit = u32::from(place >= from) & u32::from(place < to);
            any |= *is_hit;
        }
        self.count = 0;
        if any == 0 {
            return;
        }
        // Each is written, and written over if it was no hit: a branch could not be predicted.
        for (at, (logit, is_hit)) in logits.iter().zip(is_hit).enumerate() {
            let to = self.count % STAGE;
            (self.logits[to], self.at[to]) = (*logit, at as u32);
            self.count += is_hit as usize;
        }
        for (weight, logit) in self.weights.iter_mut().zip(&self.logits[..self.count]) {
            *weight = by.weight::<FMA>(*logit);
        }
    }
}

simd_fn! {
    fn tally(logits: &[f32], by: &Buckets, buckets: Range<usize>, tallies: &mut [Tally]) {
        let mut hits = Hits::NONE;
        let mut places = [0.0; STAGE];
        for logits in logits.chunks(STAGE) {
            hits.find::<FMA>(logits, by, &buckets);
            for (place, logit) in places.iter_mut().zip(&hits.logits[..hits.count]) {
                *place = by.place(*logit);
            }
            for (place, weight) in places[..hits.count].iter().zip(&hits.weights) {
                if let Some(tally) = tallies.get_mut(bucket_at(*place)) {
                    tally.weight += weight;
                    tally.count += 1;
                }
            }
        }
    }
}

simd_fn! {
    fn gather(logits: &[f32], first: usize, by: &Buckets, bucket: usize, found: &mut Vec<Candidate>) {
        let mut hits = Hits::NONE;
        for (i, logits) in logits.chunks(STAGE).enumerate() {
            hits.find::<FMA>(logits, by, &(bucket..bucket + 1));
            for ((logit, at), weight) in hits.logits[..hits.count].iter().zip(&hits.at).zip(&hits.weights) {
                let id = (first + i * STAGE) as u32 + at;
                found.push(Candidate { logit: *logit, id, weight: *weight });
            }
        }
    }
}
