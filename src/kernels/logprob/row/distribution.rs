//! One row as a distribution to draw from, on the sums that the forward pass made of it.
//!
//! What to draw is not decided here (`kernels::sample`).

pub(in crate::kernels) mod buckets;

use super::{LANES, PIECE, Piece, Reading, Scratch, load};
use crate::device::cpu::math;
use crate::device::cpu::simd::simd_fn;
use crate::dtype::Float;

/// The tempered distribution of one row without some excluded ids. Weights are probabilities times a constant of the
/// row.
pub(in crate::kernels) struct Distribution<'a, T> {
    pub(in crate::kernels::logprob) row: &'a [T],
    pub(in crate::kernels::logprob) how: &'a Reading<'a>,
    pub(in crate::kernels::logprob) pieces: &'a [Piece],
    pub(in crate::kernels::logprob) scratch: &'a mut Scratch,
    /// The piece whose logits the scratch holds.
    pub(in crate::kernels::logprob) held: Option<usize>,
    /// Sorted ids whose weight is 0.
    pub(in crate::kernels::logprob) excluded: &'a [usize],
}

/// Capped logits and weights of consecutive ids. An excluded id has logit -inf and weight 0.
pub(in crate::kernels) struct Weights<'a> {
    pub first: usize,
    pub logits: &'a [f32],
    /// Relative to the largest logit of the piece: times `factor` relative to the row's.
    pub weights: &'a [f32],
    pub factor: f64,
}

impl<T: Float> Distribution<'_, T> {
    /// Pieces of the row: consecutive ids that were summed together.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// True when a logit is NaN or +inf.
    pub fn is_broken(&self) -> bool {
        self.pieces.iter().any(|piece| piece.sum.is_nan() || piece.max == f32::INFINITY)
    }

    /// The largest logit of a piece that is not excluded; -inf when there is none.
    pub fn largest(&mut self, piece: usize) -> f32 {
        let max = self.pieces[piece].max;
        if within(self.excluded, piece).is_empty() || max == f32::NEG_INFINITY {
            return max;
        }
        let (_, len) = self.read(piece);
        let logits = &self.scratch.0[0][..len];
        logits.iter().fold(f32::NEG_INFINITY, |max, z| if *z > max { *z } else { max })
    }

    /// The largest logit of the row that is not excluded. An excluded one may be so far above it that nothing else has
    /// a weight relative to it.
    pub fn max(&mut self) -> f32 {
        let all = (0..self.pieces()).map(|piece| self.largest(piece));
        all.fold(f32::NEG_INFINITY, |max, z| if z > max { z } else { max })
    }

    /// The weight of one logit.
    pub fn weight(&self, logit: f32, max: f32) -> f64 {
        let y = (f64::from(logit) - f64::from(max)) * f64::from(self.how.scale());
        if y == 0.0 { 1.0 } else { y.exp2() }
    }

    /// The sum of the weights of a piece.
    pub fn mass(&mut self, piece: usize, max: f32) -> f64 {
        let sums = self.pieces[piece];
        if sums.max == f32::NEG_INFINITY {
            return 0.0;
        }
        if within(self.excluded, piece).is_empty() {
            return f64::from(sums.sum) * self.weight(sums.max, max);
        }
        let all = self.weights(piece, max);
        all.weights.iter().map(|w| f64::from(*w)).sum::<f64>() * all.factor
    }

    /// How many powers of two the ids lie below the largest logit `max`, in the mean over the distribution; nothing to rely
    /// on where ids are excluded.
    pub fn depth(&self, max: f32) -> f64 {
        let (mut sum, mut weighted) = (0f64, 0f64);
        for piece in self.pieces.iter().filter(|piece| piece.max > f32::NEG_INFINITY) {
            let y = (f64::from(piece.max) - f64::from(max)) * f64::from(self.how.scale());
            let factor = self.weight(piece.max, max);
            sum += factor * f64::from(piece.sum);
            weighted += factor * (f64::from(piece.weighted) + y.max(-1e4) * f64::from(piece.sum));
        }
        -weighted / sum
    }

    /// Logits and weights of a piece.
    pub fn weights(&mut self, piece: usize, max: f32) -> Weights<'_> {
        let (first, len) = self.read(piece);
        let largest = self.pieces[piece].max.min(max);
        let reference = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let factor = self.weight(reference, max);
        let [logits, weights] = self.scratch.0.each_mut().map(Vec::as_mut_slice);
        powers(logits, reference, self.how.scale(), weights);
        Weights { first, logits: &logits[..len], weights: &weights[..len], factor }
    }

    /// Reads a piece: its logits, -inf where excluded and up to a whole number of lanes, into the first half of the
    /// scratch. Its first id and how many it has.
    fn read(&mut self, piece: usize) -> (usize, usize) {
        let first = piece * PIECE;
        if self.held != Some(piece) {
            let logits = &mut self.scratch.0[0];
            copy(self.row, first, self.how, logits);
            for id in within(self.excluded, piece) {
                logits[id - first] = f32::NEG_INFINITY;
            }
            self.held = Some(piece);
        }
        (first, PIECE.min(self.row.len() - first))
    }
}

/// Those of sorted `ids` that lie in a piece.
fn within(ids: &[usize], piece: usize) -> &[usize] {
    let from = ids.partition_point(|id| *id < piece * PIECE);
    let to = ids.partition_point(|id| *id < (piece + 1) * PIECE);
    &ids[from..to]
}

simd_fn! {
    /// The capped logits of the piece that starts at `first`.
    fn copy<T: Float>(row: &[T], first: usize, how: &Reading<'_>, logits: &mut [f32]) {
        load::<FMA, T>(row, first, how, logits);
    }
}

simd_fn! {
    /// `2^y` of each logit.
    fn powers(logits: &[f32], reference: f32, scale: f32, weights: &mut [f32]) {
        let (z, _) = logits.as_chunks::<LANES>();
        let (out, _) = weights.as_chunks_mut::<LANES>();
        for (z, out) in z.iter().zip(out) {
            for i in 0..LANES {
                out[i] = math::exp2::<FMA>((z[i] - reference) * scale);
            }
        }
    }
}
