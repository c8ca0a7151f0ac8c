//! PF-PPO's resampling: a batch drawn again from itself, with chances by score, so that noisy middling scores teach less.

use crate::error::{Error, Result};
use crate::rng::Sequence;
use serde::{Deserialize, Serialize};

/// The chance of a response by its score, before it is normalised over the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Resampling {
    /// `|score|^exponent`.
    Power {
        /// 2 in verl.
        #[serde(default = "two")]
        exponent: f64,
    },
    /// 1 for the best and the worst score of the batch, else 0.
    MaxMin {},
    /// `best` for the best score, `others` for the others.
    MaxRandom {
        /// 0.4 in verl.
        #[serde(default = "likely")]
        best: f64,
        /// 0.1 in verl.
        #[serde(default = "unlikely")]
        others: f64,
    },
}

fn two() -> f64 {
    2.0
}

fn likely() -> f64 {
    0.4
}

fn unlikely() -> f64 {
    0.1
}

/// What every weight is at least, so that a batch of zeros can be drawn from. A response that is not scored has 0.
const FLOOR: f64 = 1e-8;

impl Resampling {
    /// The weight of every response; NaN scores have 0.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for an infinite score or a parameter below 0.
    ///
    /// # Source
    /// PF-PPO, arXiv 2409.06957; verl `compute_pf_ppo_reweight_data`.
    pub fn weights(&self, scores: &[f32]) -> Result<Vec<f64>> {
        let parameters = match *self {
            Resampling::Power { exponent } => [exponent, 0.0],
            Resampling::MaxMin {} => [0.0, 0.0],
            Resampling::MaxRandom { best, others } => [best, others],
        };
        if parameters.iter().any(|p| !(p.is_finite() && *p >= 0.0)) {
            return Err(Error::invalid(format!("resampling: {self:?}")));
        }
        if let Some(i) = scores.iter().position(|score| score.is_infinite()) {
            return Err(Error::invalid(format!("resampling: score {i} is {}", scores[i])));
        }
        let scored = || scores.iter().copied().filter(|score| !score.is_nan());
        let (least, most) =
            (scored().fold(f32::INFINITY, f32::min), scored().fold(f32::NEG_INFINITY, f32::max));
        let weight = |score: f32| match *self {
            Resampling::Power { exponent } => f64::from(score.abs()).powf(exponent),
            Resampling::MaxMin {} => f64::from(u8::from(score == least || score == most)),
            Resampling::MaxRandom { best, others } => {
                if score == most {
                    best
                } else {
                    others
                }
            }
        };
        let floored = |score: &f32| if score.is_nan() { 0.0 } else { weight(*score).max(FLOOR) };
        Ok(scores.iter().map(floored).collect())
    }

    /// Indices of `count` responses, drawn with replacement by weight.
    ///
    /// # Errors
    /// As [`Resampling::weights`]; [`Error::is_invalid`] when no response is scored and `count` is not 0.
    pub fn draw(&self, scores: &[f32], count: usize, draws: &mut Sequence) -> Result<Vec<usize>> {
        let weights = self.weights(scores)?;
        let total: f64 = weights.iter().sum();
        let Some(last) = weights.iter().rposition(|weight| *weight > 0.0) else {
            return match count {
                0 => Ok(Vec::new()),
                _ => Err(Error::invalid("resampling: no response is scored")),
            };
        };
        let one = |_| {
            let mut left = f64::from(draws.next_unit()) * total;
            let passed = |weight: &f64| {
                left -= weight;
                left < 0.0
            };
            weights.iter().position(passed).unwrap_or(last)
        };
        Ok((0..count).map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn weights_follow_the_score() {
        let scores = [0.5, -2.0, 0.0, f32::NAN];
        let power = Resampling::Power { exponent: 2.0 }.weights(&scores).unwrap();
        assert_eq!(power, [0.25, 4.0, FLOOR, 0.0]);
        assert_eq!(Resampling::MaxMin {}.weights(&scores).unwrap(), [1.0, 1.0, FLOOR, 0.0]);
        let random = Resampling::MaxRandom { best: 0.4, others: 0.1 }.weights(&scores).unwrap();
        assert_eq!(random, [0.4, 0.1, 0.1, 0.0]);
        assert!(Resampling::MaxMin {}.weights(&[f32::INFINITY]).is_err_and(|e| e.is_invalid()));
        assert!(
            Resampling::Power { exponent: -1.0 }.weights(&scores).is_err_and(|e| e.is_invalid())
        );
    }

    #[test]
    fn draws_follow_the_weights() {
        let mut draws = Sequence::new(3, Stream::Free, 0);
        let rule = Resampling::MaxRandom { best: 0.4, others: 0.1 };
        let drawn = rule.draw(&[0.0, 1.0, f32::NAN, 0.5], 6000, &mut draws).unwrap();
        let share = |i: usize| drawn.iter().filter(|d| **d == i).count() as f64 / 6000.0;
        assert_eq!(share(2), 0.0);
        for (i, want) in [(0, 1.0 / 6.0), (1, 4.0 / 6.0), (3, 1.0 / 6.0)] {
            // Five standard deviations of a share of 6000 draws.
            assert!((share(i) - want).abs() < 0.031, "{i} {}", share(i));
        }
        assert!(rule.draw(&[f32::NAN], 1, &mut draws).is_err_and(|e| e.is_invalid()));
        assert!(rule.draw(&[], 0, &mut draws).unwrap().is_empty());
    }
}
