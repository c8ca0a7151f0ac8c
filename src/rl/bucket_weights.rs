//! How likely each bucket of replayable questions is drawn, by its number of solved rollouts.
//!
//! Source: ExGRPO's release (arXiv 2510.02245), `WeightedBucketSampler`. Which question of a bucket is taken, and the pool
//! itself, are not here.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The weight of the bucket whose questions had `k` of `n` rollouts correct.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BucketWeighting {
    /// A normal density around `n / 2` in units of rollouts. The release has deviation 1: for 8 rollouts its middle
    /// bucket is drawn ninety times as often as an outer one; a deviation of `n` makes the buckets nearly equal.
    Normal {
        /// Standard deviation, rollouts.
        deviation: f64,
    },
    /// `k / n`.
    Linear {},
    /// `k / n`, at most one half.
    LinearClip {},
    /// `sqrt(k / n)`.
    SquareRoot {},
}

impl Default for BucketWeighting {
    fn default() -> BucketWeighting {
        BucketWeighting::Normal { deviation: 1.0 }
    }
}

impl BucketWeighting {
    /// The weight of a bucket of `successes` of `rollouts`.
    pub fn weight(self, successes: u32, rollouts: u32) -> f64 {
        let (k, n) = (f64::from(successes), f64::from(rollouts));
        match self {
            BucketWeighting::Normal { deviation } => {
                let z = (k - n / 2.0) / deviation;
                (-0.5 * z * z).exp()
            }
            BucketWeighting::Linear {} => k / n,
            BucketWeighting::LinearClip {} => (k / n).min(0.5),
            BucketWeighting::SquareRoot {} => (k / n).sqrt(),
        }
    }

    /// The probability of drawing from each bucket, given its successes and how many questions it holds. An empty bucket
    /// has 0; where no bucket has a weight, so have all.
    ///
    /// # Errors
    /// [`Error::is_shape`] for lists of unequal lengths, [`Error::is_invalid`] for no rollouts, more successes than
    /// rollouts, or a deviation that is not above 0.
    pub fn probabilities(
        self,
        successes: &[u32],
        questions: &[usize],
        rollouts: u32,
    ) -> Result<Vec<f64>> {
        if successes.len() != questions.len() {
            let (a, b) = (successes.len(), questions.len());
            return Err(Error::shape(format!("bucket_weights: {a} buckets with {b} sizes")));
        }
        if let BucketWeighting::Normal { deviation } = self
            && !(deviation > 0.0 && deviation.is_finite())
        {
            return Err(Error::invalid(format!("bucket_weights: deviation is {deviation}")));
        }
        if let Some(k) = successes.iter().find(|k| **k > rollouts || rollouts == 0) {
            return Err(Error::invalid(format!(
                "bucket_weights: a bucket of {k} successes of {rollouts} rollouts"
            )));
        }
        let weight = |(k, size): (&u32, &usize)| {
            if *size > 0 { self.weight(*k, rollouts) } else { 0.0 }
        };
        let weights: Vec<f64> = successes.iter().zip(questions).map(weight).collect();
        let total: f64 = weights.iter().sum();
        let over = |weight: &f64| if total > 0.0 { weight / total } else { 0.0 };
        Ok(weights.iter().map(over).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_buckets_and_bad_ones() {
        let law = BucketWeighting::SquareRoot {};
        assert_eq!(law.probabilities(&[1, 4], &[3, 0], 4).unwrap(), [1.0, 0.0]);
        assert_eq!(law.probabilities(&[1, 4], &[3, 9], 4).unwrap(), [1.0 / 3.0, 2.0 / 3.0]);
        assert_eq!(law.probabilities(&[0], &[3], 4).unwrap(), [0.0]);
        assert!(law.probabilities(&[5], &[3], 4).unwrap_err().is_invalid());
        assert!(law.probabilities(&[5], &[], 4).unwrap_err().is_shape());
        let flat = BucketWeighting::Normal { deviation: 0.0 };
        assert!(flat.probabilities(&[1], &[3], 4).unwrap_err().is_invalid());
    }
}
