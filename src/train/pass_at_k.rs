//! How often a problem is solved by at least one of k attempts, estimated from n of them, and how sure that is.

use crate::rng::{Sequence, Stream};
use serde::Serialize;

/// The share of sets of `k` attempts, drawn without replacement from `samples` attempts of which `right` are right, in which at
/// least one is right: `1 - C(samples - right, k) / C(samples, k)`, the unbiased estimator of Chen et al. 2021 (arXiv
/// 2107.03374, equation 1).
///
/// `None` where there are fewer attempts than `k`, or `k` is 0.
///
/// ```
/// use gradstone::train::pass_at_k::pass_at_k;
/// assert_eq!(pass_at_k(4, 1, 1), Some(0.25));
/// assert_eq!(pass_at_k(4, 1, 2), Some(0.5));
/// assert_eq!(pass_at_k(4, 3, 2), Some(1.0));
/// assert_eq!(pass_at_k(4, 3, 5), None);
/// ```
pub fn pass_at_k(samples: usize, right: usize, k: usize) -> Option<f64> {
    if k == 0 || k > samples || right > samples {
        return None;
    }
    if right == samples {
        return Some(1.0);
    }
    // C(n - c, k) / C(n, k) is the product of (n - c - j) / (n - j) over j below k.
    let wrong = samples - right;
    let all_wrong = (0..k).map(|j| wrong.saturating_sub(j) as f64 / (samples - j) as f64);
    Some(1.0 - all_wrong.product::<f64>())
}

/// How an interval was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Wilson's score interval of a share of problems, where every problem counts as 0 or 1.
    Wilson,
    /// The percentile bootstrap over problems: attempts at one problem are not independent, problems are.
    Bootstrap,
}

impl Method {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Method::Wilson => "Wilson",
            Method::Bootstrap => "bootstrap over problems",
        }
    }
}

/// A mean over problems with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// How the interval was found.
    pub interval: Method,
    /// Problems it is a mean of.
    pub problems: usize,
}

/// The standard normal distribution has 95 % between minus this and this.
const Z: f64 = 1.959_963_984_540_054;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

impl Estimate {
    /// Of one value from 0 to 1 per problem; `None` without any. `seed` decides the resamples of a bootstrap.
    pub fn of(values: &[f64], seed: u64) -> Option<Estimate> {
        let problems = values.len();
        let count = u32::try_from(problems).ok().filter(|count| *count > 0)?;
        let mean = mean(values.iter().copied(), problems);
        if values.iter().all(|value| *value == 0.0 || *value == 1.0) {
            let (low, high) = wilson(mean, problems);
            return Some(Estimate { mean, low, high, interval: Method::Wilson, problems });
        }
        let mut draws = Sequence::new(seed, Stream::Free, 0);
        let mut means: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let drawn = (0..problems).map(|_| values[draws.below(count) as usize]);
                self::mean(drawn, problems)
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let (low, high) = (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40]);
        Some(Estimate { mean, low, high, interval: Method::Bootstrap, problems })
    }
}

fn mean(values: impl Iterator<Item = f64>, count: usize) -> f64 {
    values.sum::<f64>() / count as f64
}

/// Wilson's score interval (Wilson 1927) of a share of so many.
fn wilson(share: f64, count: usize) -> (f64, f64) {
    let n = count as f64;
    let centre = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let whole = 1.0 + Z * Z / n;
    (((centre - half) / whole).max(0.0), ((centre + half) / whole).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Over all subsets, counted one by one.
    fn counted(samples: u32, right: u32, k: u32) -> f64 {
        let sets = (0u32..1 << samples).filter(|set| set.count_ones() == k);
        let (mut all, mut solved) = (0, 0);
        for set in sets {
            all += 1;
            solved += u32::from(set & ((1 << right) - 1) != 0);
        }
        f64::from(solved) / f64::from(all)
    }

    #[test]
    fn it_is_the_share_of_subsets() {
        for samples in 1..=9 {
            for right in 0..=samples {
                for k in 1..=samples {
                    let ours = pass_at_k(samples as usize, right as usize, k as usize).unwrap();
                    let all = counted(samples, right, k);
                    assert!((ours - all).abs() < 1e-12, "{samples} {right} {k}: {ours} {all}");
                }
            }
        }
        assert_eq!(
            (pass_at_k(3, 1, 0), pass_at_k(3, 1, 4), pass_at_k(0, 0, 1)),
            (None, None, None)
        );
    }

    /// Values of statsmodels' `proportion_confint(method="wilson")`.
    #[test]
    fn the_interval_of_a_share() {
        for (right, count, low, high) in [
            (0, 10, 0.0, 0.277_532_8),
            (10, 10, 0.722_467_2, 1.0),
            (5, 10, 0.236_593_1, 0.763_406_9),
            (1, 100, 0.001_767_5, 0.054_486_2),
        ] {
            let values: Vec<f64> = (0..count).map(|i| f64::from(u8::from(i < right))).collect();
            let found = Estimate::of(&values, 0).unwrap();
            assert_eq!((found.interval, found.problems), (Method::Wilson, count));
            assert!(
                (found.low - low).abs() < 1e-6 && (found.high - high).abs() < 1e-6,
                "{found:?}"
            );
        }
        assert_eq!(Estimate::of(&[], 0), None);
    }

    #[test]
    fn a_bootstrap_is_near_the_normal_interval_and_repeats() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 5) / 4.0).collect();
        let found = Estimate::of(&values, 3).unwrap();
        let half = 1.96 * (0.125f64 / 400.0).sqrt();
        assert_eq!((found.mean, found.interval), (0.5, Method::Bootstrap));
        assert!((found.low - (0.5 - half)).abs() < 0.004, "{found:?}");
        assert!((found.high - (0.5 + half)).abs() < 0.004, "{found:?}");
        assert_eq!(Estimate::of(&values, 3), Some(found));
        assert_ne!(Estimate::of(&values, 4), Some(found));
    }

    proptest! {
        #[test]
        fn an_interval_holds_its_mean(values in proptest::collection::vec(0.0..=1.0f64, 1..40), seed: u64) {
            let one = Estimate::of(&values, seed).unwrap();
            prop_assert!(0.0 <= one.low && one.low <= one.high && one.high <= 1.0, "{one:?}");
        }
    }
}
