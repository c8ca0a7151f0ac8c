//! DAPO's dynamic sampling: groups that teach nothing are dropped and others drawn until there are enough.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which groups are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Criterion {
    /// Some responses are correct and some are not: `0 < k < K`. Responses that are not scored (NaN) do not count.
    MixedCorrectness {
        /// A response with a larger reward is correct.
        #[serde(default = "half")]
        above: f32,
    },
    /// Two scored responses have different rewards.
    DifferentRewards {},
}

fn half() -> f32 {
    0.5
}

impl Default for Criterion {
    fn default() -> Criterion {
        Criterion::MixedCorrectness { above: half() }
    }
}

impl Criterion {
    /// True for a group that is kept.
    pub fn keeps(&self, rewards: &[f32]) -> bool {
        let scored = || rewards.iter().copied().filter(|reward| !reward.is_nan());
        match *self {
            Criterion::MixedCorrectness { above } => {
                let correct = scored().filter(|reward| *reward > above).count();
                correct > 0 && correct < scored().count()
            }
            Criterion::DifferentRewards {} => {
                let mut rewards = scored();
                rewards.next().is_some_and(|first| rewards.any(|reward| reward != first))
            }
        }
    }
}

/// How groups are drawn until a batch is full.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicSampling {
    /// Which groups are kept.
    #[serde(default)]
    pub criterion: Criterion,
    /// Most rounds of generation a step; 0: as many as it takes.
    #[serde(default)]
    pub max_rounds: usize,
}

/// What a step has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The batch is full.
    Train,
    /// So many groups are missing: draw at least as many.
    Draw(usize),
    /// The rounds are used up with so many groups missing: train on what there is, or stop.
    GiveUp(usize),
}

/// The batch of one step while it is filled.
#[derive(Clone, Debug)]
pub struct Refill<T> {
    sampling: DynamicSampling,
    wanted: usize,
    kept: Vec<T>,
    /// Some that the criterion dropped, for a step that keeps none.
    left_out: Vec<T>,
    surplus: usize,
    rounds: usize,
    drawn: usize,
}

impl<T> Refill<T> {
    /// An empty batch for `wanted` groups.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when no group is wanted.
    pub fn new(sampling: DynamicSampling, wanted: usize) -> Result<Refill<T>> {
        if wanted == 0 {
            return Err(Error::invalid("dynamic sampling: a batch of 0 groups"));
        }
        Ok(Refill {
            sampling,
            wanted,
            kept: Vec::new(),
            left_out: Vec::new(),
            surplus: 0,
            rounds: 0,
            drawn: 0,
        })
    }

    /// Takes one round of generated groups with their rewards, in order; what the batch has no room for is counted and
    /// left out.
    pub fn add_round(&mut self, groups: impl IntoIterator<Item = (T, Vec<f32>)>) {
        self.rounds += 1;
        for (group, rewards) in groups {
            self.drawn += 1;
            if !self.sampling.criterion.keeps(&rewards) {
                if self.left_out.len() < self.wanted {
                    self.left_out.push(group);
                }
                continue;
            }
            if self.kept.len() < self.wanted {
                self.kept.push(group);
            } else {
                self.surplus += 1;
            }
        }
    }

    /// What to do next.
    pub fn next(&self) -> Next {
        match self.wanted - self.kept.len() {
            0 => Next::Train,
            missing if self.sampling.max_rounds > 0 && self.rounds >= self.sampling.max_rounds => {
                Next::GiveUp(missing)
            }
            missing => Next::Draw(missing),
        }
    }

    /// Rounds of generation so far.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// Groups drawn so far, kept or not.
    pub fn drawn(&self) -> usize {
        self.drawn
    }

    /// The share of drawn groups that the criterion dropped; 0 when none was drawn.
    pub fn dropped_share(&self) -> f64 {
        let dropped = self.drawn - self.kept.len() - self.surplus;
        dropped as f64 / self.drawn.max(1) as f64
    }

    /// The kept groups, and as many at most of those that the criterion dropped, in the order in which they were drawn.
    pub fn into_groups(self) -> (Vec<T>, Vec<T>) {
        (self.kept, self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_two_outcomes_is_dropped() {
        let mixed = Criterion::default();
        assert!(mixed.keeps(&[1.0, 0.0, 0.0]));
        for rewards in [&[0.0, 0.0][..], &[1.0, 1.0], &[1.0, f32::NAN], &[], &[0.2, 0.4]] {
            assert!(!mixed.keeps(rewards), "{rewards:?}");
        }
        let different = Criterion::DifferentRewards {};
        assert!(different.keeps(&[0.2, 0.4]) && different.keeps(&[f32::NAN, 1.0, 0.0]));
        assert!(!different.keeps(&[0.2, 0.2, f32::NAN]) && !different.keeps(&[]));
    }

    #[test]
    fn rounds_go_on_until_the_batch_is_full() {
        let (good, bad) = (vec![1.0, 0.0], vec![0.0, 0.0]);
        let mut refill =
            Refill::new(DynamicSampling { criterion: Criterion::default(), max_rounds: 3 }, 3)
                .unwrap();
        refill.add_round([(1, good.clone()), (2, bad.clone())]);
        assert_eq!(refill.next(), Next::Draw(2));
        refill.add_round([
            (3, bad.clone()),
            (4, good.clone()),
            (5, good.clone()),
            (6, good.clone()),
        ]);
        assert_eq!((refill.next(), refill.rounds(), refill.drawn()), (Next::Train, 2, 6));
        assert!((refill.dropped_share() - 2.0 / 6.0).abs() < 1e-12);
        assert_eq!(refill.into_groups().0, [1, 4, 5]);

        let limited = DynamicSampling { criterion: Criterion::default(), max_rounds: 1 };
        let mut short = Refill::new(limited, 2).unwrap();
        assert_eq!((short.next(), short.dropped_share()), (Next::Draw(2), 0.0));
        short.add_round([(1, good), (2, bad)]);
        assert_eq!(short.next(), Next::GiveUp(1));
        assert!(Refill::<u8>::new(limited, 0).is_err_and(|e| e.is_invalid()));
    }
}
