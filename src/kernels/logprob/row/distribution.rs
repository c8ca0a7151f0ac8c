//! One row as a distribution to draw from, on the sums that the forward pass made of it.
//!
//! What to draw is not decided here (`kernels::sample`).

use super::{LANES, PIECE, Piece, Reading, Scratch, load};
use crate::device::cpu::math;
use crate::device::cpu::simd::simd_fn;
use crate::dtype::Float;

/// The tempered distribution of one row without some excluded ids. Weights are probabilities times a constant of the
/// row: relative to its largest logit, excluded ones too.
pub(in crate::kernels) struct Distribution<'a, T> {
    pub(in crate::kernels::logprob) row: &'a [T],
    pub(in crate::kernels::logprob) how: &'a Reading<'a>,
    pub(in crate::kernels::logprob) pieces: &'a [Piece],
    pub(in crate::kernels::logprob) scratch: &'a mut Scratch,
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
        let all = self.weights(piece, max);
        all.logits.iter().fold(f32::NEG_INFINITY, |max, z| if *z > max { *z } else { max })
    }

    /// The largest logit of the row, excluded ids too.
    pub fn max(&self) -> f32 {
        self.pieces.iter().fold(f32::NEG_INFINITY, |max, p| if p.max > max { p.max } else { max })
    }

    /// The weight of one logit.
    pub fn weight(&self, logit: f32, max: f32) -> f64 {
        let y = (f64::from(logit) - f64::from(max)) * f64::from(self.how.scale());
        if y == 0.0 { 1.0 } else { y.exp2() }
    }

    /// The logit whose weight is `2^y`.
    pub fn logit_of(&self, y: f32, max: f32) -> f32 {
        max + y / self.how.scale()
    }

    /// The sum of all weights.
    pub fn whole(&mut self) -> f64 {
        let max = self.max();
        (0..self.pieces()).map(|piece| self.mass(piece, max)).sum()
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

    /// Logits and weights of a piece.
    pub fn weights(&mut self, piece: usize, max: f32) -> Weights<'_> {
        let first = piece * PIECE;
        let len = PIECE.min(self.row.len() - first);
        let largest = self.pieces[piece].max;
        let reference = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        powers(self.row, first, self.how, self.scratch, reference);
        let factor = self.weight(reference, max);
        let [logits, weights] = self.scratch.0.each_mut().map(|values| &mut values[..len]);
        for id in within(self.excluded, piece) {
            logits[id - first] = f32::NEG_INFINITY;
            weights[id - first] = 0.0;
        }
        Weights { first, logits, weights, factor }
    }
}

/// Those of sorted `ids` that lie in a piece.
fn within(ids: &[usize], piece: usize) -> &[usize] {
    let from = ids.partition_point(|id| *id < piece * PIECE);
    let to = ids.partition_point(|id| *id < (piece + 1) * PIECE);
    &ids[from..to]
}

simd_fn! {
    /// The capped logits of the piece that starts at `first`, and `2^y` of each.
    fn powers<T: Float>(row: &[T], first: usize, how: &Reading<'_>, scratch: &mut Scratch, reference: f32) {
        let [logits, weights] = scratch.0.each_mut().map(Vec::as_mut_slice);
        load::<FMA, T>(row, first, how, logits);
        let len = PIECE.min(row.len() - first).next_multiple_of(LANES);
        let scale = how.scale();
        let (z, _) = logits[..len].as_chunks::<LANES>();
        let (out, _) = weights[..len].as_chunks_mut::<LANES>();
        for (z, out) in z.iter().zip(out) {
            for i in 0..LANES {
                out[i] = math::exp2::<FMA>((z[i] - reference) * scale);
            }
        }
    }
}
