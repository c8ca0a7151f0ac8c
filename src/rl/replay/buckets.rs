//! Which questions come back: a law over the buckets of equal success counts.

use crate::error::{Error, Result};
use crate::rng::Sequence;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How often a question comes back, by its count of successes `k` of a group of `K`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BucketLaw {
    /// Every question alike, whatever its bucket.
    Uniform {},
    /// Buckets by a normal density of `k`, questions of a bucket alike.
    Normal {
        /// Where the density is highest, in successes; `None`: `K/2`.
        #[serde(default)]
        center: Option<f64>,
        /// Its deviation, in successes. The released code's 1 prefers the middle; much above `K` is flat over buckets.
        deviation: f64,
    },
    /// Buckets by `k/K`: what is nearly solved first.
    Linear {},
    /// By `k/K`, at most one half.
    LinearClip {},
    /// By `sqrt(k/K)`.
    SquareRoot {},
}

impl BucketLaw {
    fn weight(self, successes: u32, group: u32) -> f64 {
        let (k, group) = (f64::from(successes), f64::from(group));
        match self {
            BucketLaw::Uniform {} => 1.0,
            BucketLaw::Normal { center, deviation } => {
                let z = (k - center.unwrap_or(group / 2.0)) / deviation;
                (-0.5 * z * z).exp()
            }
            BucketLaw::Linear {} => k / group,
            BucketLaw::LinearClip {} => (k / group).min(0.5),
            BucketLaw::SquareRoot {} => (k / group).sqrt(),
        }
    }

    fn check(self) -> Result<()> {
        let fine = match self {
            BucketLaw::Normal { center, deviation } => {
                center.is_none_or(f64::is_finite) && deviation > 0.0 && !deviation.is_nan()
            }
            _ => true,
        };
        if fine { Ok(()) } else { Err(Error::invalid(format!("replay: bucket law {self:?}"))) }
    }

    /// The probability that the next question comes from each bucket, given the buckets' successes of `group` rollouts and
    /// how many questions each holds. An empty bucket has 0; where no bucket has a weight, so have all.
    ///
    /// # Errors
    /// [`Error::is_shape`] for lists of unequal lengths, [`Error::is_invalid`] for an empty group, more successes than the
    /// group has, or a law with a number out of range.
    ///
    /// # Source
    /// ExGRPO's release (arXiv 2510.02245), `WeightedBucketSampler`.
    pub fn probabilities(
        self,
        successes: &[u32],
        questions: &[usize],
        group: u32,
    ) -> Result<Vec<f64>> {
        self.check()?;
        if successes.len() != questions.len() {
            let (a, b) = (successes.len(), questions.len());
            return Err(Error::shape(format!("replay: {a} buckets with {b} sizes")));
        }
        if let Some(k) = successes.iter().find(|k| **k > group || group == 0) {
            return Err(Error::invalid(format!(
                "replay: a bucket of {k} successes of {group} rollouts"
            )));
        }
        let weight = |(k, size): (&u32, &usize)| match (self, *size) {
            (_, 0) => 0.0,
            (BucketLaw::Uniform {}, size) => size as f64,
            _ => self.weight(*k, group),
        };
        let weights: Vec<f64> = successes.iter().zip(questions).map(weight).collect();
        let whole: f64 = weights.iter().sum();
        Ok(weights.iter().map(|weight| if whole > 0.0 { weight / whole } else { 0.0 }).collect())
    }

    /// At most `count` questions without repetition. A bucket that is exhausted gives its share to the others; where no
    /// bucket with questions has a weight, all questions are alike.
    pub(super) fn draw(
        self,
        mut buckets: BTreeMap<u32, Vec<u64>>,
        group: u32,
        count: usize,
        draws: &mut Sequence,
    ) -> Result<Vec<u64>> {
        self.check()?;
        if self == (BucketLaw::Uniform {}) {
            let mut all: Vec<u64> = buckets.into_values().flatten().collect();
            all.sort_unstable();
            draws.shuffle(&mut all);
            all.truncate(count);
            return Ok(all);
        }
        for questions in buckets.values_mut() {
            draws.shuffle(questions);
        }
        let mut drawn = Vec::new();
        while drawn.len() < count {
            buckets.retain(|_, questions| !questions.is_empty());
            let weights: Vec<f64> = buckets.keys().map(|k| self.weight(*k, group)).collect();
            let whole: f64 = weights.iter().sum();
            let weights = if whole > 0.0 { weights } else { vec![1.0; weights.len()] };
            let mut left = f64::from(draws.next_unit()) * weights.iter().sum::<f64>();
            let chosen = weights.iter().position(|weight| {
                left -= weight;
                left < 0.0
            });
            let chosen = chosen.unwrap_or(weights.len().saturating_sub(1));
            match buckets.values_mut().nth(chosen).and_then(Vec::pop) {
                Some(question) => drawn.push(question),
                None => break,
            }
        }
        Ok(drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn the_released_constants() {
        let law = BucketLaw::Normal { center: None, deviation: 1.0 };
        let got = law.probabilities(&[1, 2, 3, 4, 5, 6, 7], &[1; 7], 8).unwrap();
        let shares = [0.0044, 0.0540, 0.2420, 0.3991, 0.2420, 0.0540, 0.0044];
        for (got, share) in got.iter().zip(shares) {
            assert!((got - share).abs() < 1e-4, "{got} {share}");
        }
    }

    #[test]
    fn empty_buckets_and_bad_ones() {
        let law = BucketLaw::SquareRoot {};
        assert_eq!(law.probabilities(&[1, 4], &[3, 0], 4).unwrap(), [1.0, 0.0]);
        assert_eq!(law.probabilities(&[1, 4], &[3, 9], 4).unwrap(), [1.0 / 3.0, 2.0 / 3.0]);
        assert_eq!(law.probabilities(&[0], &[3], 4).unwrap(), [0.0]);
        let uniform = BucketLaw::Uniform {};
        assert_eq!(uniform.probabilities(&[1, 4], &[3, 9], 4).unwrap(), [0.25, 0.75]);
        assert!(law.probabilities(&[5], &[3], 4).unwrap_err().is_invalid());
        assert!(law.probabilities(&[5], &[], 4).unwrap_err().is_shape());
        let flat = BucketLaw::Normal { center: None, deviation: 0.0 };
        assert!(flat.probabilities(&[1], &[3], 4).unwrap_err().is_invalid());
    }

    #[test]
    fn shares_follow_the_law_until_a_bucket_is_empty() {
        let law = BucketLaw::Normal { center: Some(2.0), deviation: 0.7 };
        let buckets: BTreeMap<u32, Vec<u64>> =
            (1..4).map(|k| (k, (0..500).map(|q| u64::from(k) * 1000 + q).collect())).collect();
        let mut draws = Sequence::new(5, Stream::Free, 0);
        let drawn = law.draw(buckets.clone(), 4, 400, &mut draws).unwrap();
        let middle = drawn.iter().filter(|q| **q / 1000 == 2).count() as f64 / 400.0;
        let expected = 1.0 / (1.0 + 2.0 * (-0.5f64 / 0.49).exp());
        assert!((middle - expected).abs() < 0.07, "{middle} {expected}");
        assert_eq!(law.draw(buckets, 4, 5000, &mut draws).unwrap().len(), 1500);
    }

    #[test]
    fn no_weight_anywhere_is_uniform_and_nonsense_is_an_error() {
        let mut draws = Sequence::new(5, Stream::Free, 0);
        let far = BucketLaw::Normal { center: Some(1e6), deviation: 1.0 };
        let buckets = BTreeMap::from([(1, vec![1, 2]), (3, vec![3])]);
        assert_eq!(far.draw(buckets, 4, 3, &mut draws).unwrap().len(), 3);
        for deviation in [0.0, -1.0, f64::NAN] {
            let law = BucketLaw::Normal { center: None, deviation };
            assert!(law.draw(BTreeMap::new(), 4, 1, &mut draws).unwrap_err().is_invalid());
        }
        assert!(BucketLaw::Uniform {}.draw(BTreeMap::new(), 4, 1, &mut draws).unwrap().is_empty());
    }
}
