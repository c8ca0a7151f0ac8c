//! Which masked places of a block are filled in a step of decoding.
//!
//! Every rule fills at least one place, so decoding ends; places of equal confidence are taken from the left, so it is a
//! function of its input. Sources: LLaDA (static), SDAR and Fast-dLLM (threshold, factor), the entropy bound of
//! Ben-Hamu et al. 2025; in the forms that `docs/diffusion.md` writes out.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How many places are filled, and which.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Selection {
    /// The most confident ones, in `steps` equal shares of the block, the first ones larger where it does not divide.
    Static {
        /// Passes a block; more than there are places: one place a pass.
        steps: usize,
    },
    /// As static, from left to right.
    Sequential {
        /// Passes a block.
        steps: usize,
    },
    /// All whose confidence is above `threshold`, at least the most confident.
    Threshold {
        /// SDAR's is 0.85, Fast-dLLM's 0.9.
        threshold: f32,
    },
    /// The largest n whose n-th best confidence is at least `1 - factor / (n + 1)`, at least the most confident.
    Factor {
        /// Larger fills more at once.
        factor: f32,
    },
    /// Of the least uncertain ones as many as have entropies that add up to less than `bound` nats, at least one.
    Entropy {
        /// Larger fills more at once.
        bound: f32,
    },
}

/// What confidence in a place is. What is not chosen stays masked and is predicted anew (low-confidence remasking).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// The probability of the token that would be set.
    #[default]
    Probability,
    /// How much likelier the likeliest token is than the second.
    Margin,
    /// Minus the entropy, in nats. Not for thresholds and factors.
    NegativeEntropy,
    /// A random number: the order of the places is a draw.
    Random,
}

/// A masked place and what the model says of it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Where it is.
    pub place: usize,
    /// Larger is surer.
    pub confidence: f32,
    /// Entropy of its distribution, nats.
    pub entropy: f32,
}

impl Selection {
    /// # Errors
    /// [`Error::is_invalid`] for values that make no sense, and for a threshold or a factor on confidences that are no
    /// probabilities.
    pub fn check(self, confidence: Confidence) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(format!("decoding: {what}")));
        match self {
            Selection::Static { steps: 0 } | Selection::Sequential { steps: 0 } => {
                bad("0 steps a block".into())
            }
            Selection::Threshold { threshold } if !(0.0..=1.0).contains(&threshold) => {
                bad(format!("a threshold of {threshold} is not between 0 and 1"))
            }
            Selection::Factor { factor } if !(factor >= 0.0 && factor.is_finite()) => {
                bad(format!("a factor of {factor} is not 0 or more"))
            }
            Selection::Entropy { bound } if !(bound >= 0.0 && bound.is_finite()) => {
                bad(format!("an entropy bound of {bound} is not 0 or more"))
            }
            Selection::Threshold { .. } | Selection::Factor { .. }
                if confidence == Confidence::NegativeEntropy =>
            {
                bad(format!("{self:?} needs confidences between 0 and 1, not entropies"))
            }
            _ => Ok(()),
        }
    }

    /// The places that are filled in step `step` of a block that had `masked` of them at first. `candidates` are those
    /// still masked, from left to right, at least one.
    pub fn choose(self, candidates: &[Candidate], step: usize, masked: usize) -> Vec<usize> {
        let mut ranked: Vec<&Candidate> = candidates.iter().collect();
        // A stable sort: of equal ones the left.
        ranked.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
        let share = |steps: usize| {
            let steps = steps.min(masked).max(1);
            (masked / steps + usize::from(step < masked % steps)).max(1)
        };
        let count = match self {
            Selection::Static { steps } => share(steps),
            Selection::Sequential { steps } => {
                ranked = candidates.iter().collect();
                share(steps)
            }
            Selection::Threshold { threshold } => {
                ranked.iter().take_while(|c| c.confidence > threshold).count()
            }
            Selection::Factor { factor } => {
                let enough = |n: usize| ranked[n - 1].confidence >= 1.0 - factor / (n as f32 + 1.0);
                (1..=ranked.len()).rev().find(|n| enough(*n)).unwrap_or(0)
            }
            Selection::Entropy { bound } => {
                ranked.sort_by(|a, b| a.entropy.total_cmp(&b.entropy));
                let mut sum = 0f32;
                let below = ranked.iter().take_while(|c| {
                    sum += c.entropy;
                    sum < bound
                });
                below.count()
            }
        };
        ranked.iter().take(count.max(1)).map(|candidate| candidate.place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(confidences: &[f32]) -> Vec<Candidate> {
        let one = |(place, c): (usize, &f32)| Candidate {
            place: place + 10,
            confidence: *c,
            entropy: 1.0 - *c,
        };
        confidences.iter().enumerate().map(one).collect()
    }

    #[test]
    fn the_rules_are_as_written() {
        let all = of(&[0.5, 0.9, 0.9, 0.97]);
        let choose = |selection: Selection, step| selection.choose(&all, step, 4);
        assert_eq!(choose(Selection::Static { steps: 4 }, 0), [13]);
        assert_eq!(choose(Selection::Static { steps: 2 }, 1), [13, 11]);
        // Four in three shares: two, one, one; of equal ones the left.
        assert_eq!(choose(Selection::Static { steps: 3 }, 0), [13, 11]);
        assert_eq!(choose(Selection::Static { steps: 3 }, 1), [13]);
        assert_eq!(choose(Selection::Static { steps: 900 }, 7), [13]);
        assert_eq!(choose(Selection::Sequential { steps: 2 }, 0), [10, 11]);
        assert_eq!(choose(Selection::Threshold { threshold: 0.85 }, 0), [13, 11, 12]);
        assert_eq!(choose(Selection::Threshold { threshold: 0.99 }, 0), [13]);
        // n = 3 wants 0.9 >= 1 - f/4, n = 4 wants 0.5 >= 1 - f/5.
        assert_eq!(choose(Selection::Factor { factor: 0.41 }, 0), [13, 11, 12]);
        assert_eq!(choose(Selection::Factor { factor: 2.5 }, 0).len(), 4);
        assert_eq!(choose(Selection::Factor { factor: 0.0 }, 0), [13]);
        // Entropies 0.03, 0.1, 0.1, 0.5.
        assert_eq!(choose(Selection::Entropy { bound: 0.2 }, 0), [13, 11]);
        assert_eq!(choose(Selection::Entropy { bound: 0.0 }, 0), [13]);
        assert_eq!(choose(Selection::Entropy { bound: 9.0 }, 0).len(), 4);
    }

    #[test]
    fn shares_fill_a_block_in_the_steps_that_were_asked() {
        for masked in 1..12usize {
            for steps in 1..14 {
                let (mut left, mut step) = (masked, 0);
                while left > 0 {
                    let all = of(&vec![0.5; left]);
                    left -= Selection::Static { steps }.choose(&all, step, masked).len();
                    step += 1;
                }
                assert_eq!(step, steps.min(masked), "{masked} in {steps}");
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = [
            Selection::Static { steps: 0 },
            Selection::Threshold { threshold: f32::NAN },
            Selection::Threshold { threshold: 1.1 },
            Selection::Factor { factor: -1.0 },
            Selection::Entropy { bound: f32::INFINITY },
        ];
        for selection in bad {
            assert!(selection.check(Confidence::Probability).unwrap_err().is_invalid());
        }
        let threshold = Selection::Threshold { threshold: 0.9 };
        assert!(threshold.check(Confidence::Margin).is_ok());
        assert!(threshold.check(Confidence::NegativeEntropy).unwrap_err().is_invalid());
    }
}
