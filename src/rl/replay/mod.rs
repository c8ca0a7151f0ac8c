//! Experience replay of past successes: the pool they are kept in, which of them come back, and the file that
//! survives a restart.
//!
//! A question whose rollouts partly succeed is kept with its successes, under the count `k` of successes among the
//! newest `of` rollouts. A question solved by all of them is retired. [`buckets`] decides which questions come back,
//! [`lowest`] which of a question's trajectories; the objective of replayed tokens is a kernel's.
//!
//! Source: ExGRPO (arXiv 2510.02245).

pub mod buckets;
mod file;
mod settings;

pub use buckets::BucketLaw;
pub use file::PoolFile;
pub use settings::ReplaySettings;

use crate::error::{Error, Result};
use crate::rng::Sequence;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A successful completion and the log-probs under which it was drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trajectory {
    /// The completion's tokens.
    pub tokens: Vec<i32>,
    /// The log-prob of each when it was drawn, nats.
    pub logprob: Vec<f32>,
    /// The update before which it was drawn.
    pub step: u64,
}

/// A question's place in the pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Successes among the newest `group` rollouts: its bucket.
    pub successes: u32,
    /// Its successful trajectories, no two of the same tokens, oldest first.
    pub trajectories: Vec<Trajectory>,
}

/// What the pool keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolLimits {
    /// Rollouts of a group: counts of successes are in units of it.
    pub group: u32,
    /// Most trajectories of a question; the first ones stay.
    pub trajectories: usize,
    /// Trajectories this many updates old are dropped by [`Pool::forget`]; 0: never.
    pub age: u64,
    /// Questions solved by a whole group leave the pool for good.
    pub retire: bool,
}

impl Default for PoolLimits {
    fn default() -> PoolLimits {
        PoolLimits { group: 8, trajectories: 8, age: 0, retire: true }
    }
}

/// The experience pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    limits: PoolLimits,
    entries: BTreeMap<u64, Entry>,
    retired: BTreeSet<u64>,
}

impl Pool {
    /// An empty pool.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a group or a number of trajectories of 0.
    pub fn new(limits: PoolLimits) -> Result<Pool> {
        if limits.group == 0 || limits.trajectories == 0 {
            return Err(Error::invalid(format!(
                "replay pool: {limits:?}: no limit may be 0 but age"
            )));
        }
        Ok(Pool { limits, entries: BTreeMap::new(), retired: BTreeSet::new() })
    }

    /// What it keeps.
    pub fn limits(&self) -> PoolLimits {
        self.limits
    }

    /// Questions that can come back.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when no question can come back.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Questions that were solved by a whole group.
    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    /// True for a question that was solved by a whole group and is not to be asked again.
    pub fn is_retired(&self, question: u64) -> bool {
        self.retired.contains(&question)
    }

    /// A question's entry.
    pub fn entry(&self, question: u64) -> Option<&Entry> {
        self.entries.get(&question)
    }

    /// The questions with their entries, in rising order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.iter().map(|(question, entry)| (*question, entry))
    }

    /// Notes that `successes` of `of` new rollouts of a question succeeded, with the trajectories of these.
    ///
    /// All of them: the question is retired (where [`PoolLimits::retire`] says so). Some: it is kept under this count,
    /// in units of a group. None: a question that is in the pool stays as it is, since its successes may still teach
    /// what the newest rollouts missed. Replayed trajectories are not to be counted: they would lift every count by one.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when there are more successes than rollouts, [`Error::is_shape`] for a trajectory without
    /// a log-prob for each token.
    pub fn record(
        &mut self,
        question: u64,
        successes: usize,
        of: usize,
        trajectories: Vec<Trajectory>,
    ) -> Result<()> {
        if successes > of {
            return Err(Error::invalid(format!(
                "replay pool: {successes} successes of {of} rollouts"
            )));
        }
        trajectories.iter().try_for_each(Trajectory::check)?;
        if successes == 0 || self.retired.contains(&question) {
            return Ok(());
        }
        if successes == of && self.limits.retire {
            self.entries.remove(&question);
            self.retired.insert(question);
            return Ok(());
        }
        let group = f64::from(self.limits.group);
        let count = (successes as f64 * group / of as f64).round();
        let entry = self
            .entries
            .entry(question)
            .or_insert_with(|| Entry { successes: 0, trajectories: Vec::new() });
        entry.successes = count.clamp(1.0, group) as u32;
        for trajectory in trajectories {
            let known = entry.trajectories.iter().any(|kept| kept.tokens == trajectory.tokens);
            if !known && entry.trajectories.len() < self.limits.trajectories {
                entry.trajectories.push(trajectory);
            }
        }
        if entry.trajectories.is_empty() {
            self.entries.remove(&question);
        }
        Ok(())
    }

    /// Drops trajectories that are too old at update `step`, and questions that have none left.
    pub fn forget(&mut self, step: u64) {
        let age = self.limits.age;
        if age == 0 {
            return;
        }
        self.entries.retain(|_, entry| {
            entry.trajectories.retain(|one| step.saturating_sub(one.step) < age);
            !entry.trajectories.is_empty()
        });
    }

    /// At most `count` different questions, drawn by a law over the buckets.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a law that makes no sense.
    pub fn draw(&self, law: &BucketLaw, count: usize, draws: &mut Sequence) -> Result<Vec<u64>> {
        let mut buckets: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for (question, entry) in &self.entries {
            buckets.entry(entry.successes).or_default().push(*question);
        }
        law.draw(buckets, self.limits.group, count, draws)
    }
}

impl Trajectory {
    fn check(&self) -> Result<()> {
        if self.tokens.len() == self.logprob.len() && !self.tokens.is_empty() {
            return Ok(());
        }
        Err(Error::shape(format!(
            "replay pool: a trajectory of {} tokens with {} log-probs",
            self.tokens.len(),
            self.logprob.len()
        )))
    }
}

/// The place of the lowest score; of equal ones the first. NaN counts as the highest. `None` for no score.
///
/// With the mean entropy of each trajectory's tokens under the current policy as scores, this is ExGRPO's choice.
pub fn lowest(scores: &[f32]) -> Option<usize> {
    let rank = |score: f32| if score.is_nan() { f32::INFINITY } else { score };
    (0..scores.len()).reduce(|best, i| if rank(scores[i]) < rank(scores[best]) { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn trajectory(token: i32) -> Trajectory {
        Trajectory { tokens: vec![token, 9], logprob: vec![-0.5, -0.25], step: 3 }
    }

    fn pool() -> Pool {
        Pool::new(PoolLimits { group: 4, trajectories: 2, ..PoolLimits::default() }).unwrap()
    }

    #[test]
    fn successes_come_in_once_and_solved_questions_leave() {
        let mut pool = pool();
        pool.record(7, 0, 4, vec![]).unwrap();
        assert!(pool.is_empty());
        pool.record(7, 2, 4, vec![trajectory(1), trajectory(1)]).unwrap();
        pool.record(7, 1, 3, vec![trajectory(2)]).unwrap();
        let entry = pool.entry(7).unwrap();
        assert_eq!((entry.successes, entry.trajectories.len()), (1, 2));
        pool.record(7, 3, 4, vec![trajectory(3)]).unwrap();
        assert_eq!(pool.entry(7).unwrap().trajectories.len(), 2, "full");
        pool.record(7, 0, 4, vec![]).unwrap();
        assert_eq!(pool.entry(7).unwrap().successes, 3, "failures leave it");
        pool.record(7, 4, 4, vec![trajectory(4)]).unwrap();
        assert!(pool.is_empty() && pool.is_retired(7));
        pool.record(7, 1, 4, vec![trajectory(1)]).unwrap();
        assert!(pool.is_empty(), "retired for good");
        assert!(pool.record(8, 5, 4, vec![]).unwrap_err().is_invalid());
        let torn = Trajectory { logprob: vec![0.0], ..trajectory(1) };
        assert!(pool.record(8, 1, 4, vec![torn]).unwrap_err().is_shape());
    }

    #[test]
    fn without_retirement_the_solved_stay() {
        let mut pool =
            Pool::new(PoolLimits { group: 4, retire: false, ..PoolLimits::default() }).unwrap();
        pool.record(1, 3, 3, vec![trajectory(1)]).unwrap();
        assert_eq!(pool.entry(1).unwrap().successes, 4);
        assert_eq!(pool.retired(), 0);
    }

    #[test]
    fn the_old_is_forgotten() {
        let mut pool = Pool::new(PoolLimits { age: 10, ..PoolLimits::default() }).unwrap();
        pool.record(1, 1, 8, vec![trajectory(1)]).unwrap();
        pool.forget(12);
        assert_eq!(pool.len(), 1);
        pool.forget(13);
        assert!(pool.is_empty());
    }

    #[test]
    fn the_lowest_score_wins() {
        assert_eq!(lowest(&[]), None);
        assert_eq!(lowest(&[f32::NAN, 2.0, 1.0, 1.0]), Some(2));
        assert_eq!(lowest(&[f32::NAN, f32::NAN]), Some(0));
    }

    #[test]
    fn a_draw_has_no_question_twice() {
        let mut pool = pool();
        for question in 0..20 {
            pool.record(question, 1 + question as usize % 3, 4, vec![trajectory(1)]).unwrap();
        }
        for law in [BucketLaw::Uniform {}, BucketLaw::Normal { center: None, deviation: 1.0 }] {
            let mut draws = Sequence::new(1, Stream::Free, 0);
            let mut drawn = pool.draw(&law, 15, &mut draws).unwrap();
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), 15);
            assert_eq!(pool.draw(&law, 99, &mut draws).unwrap().len(), 20);
        }
    }
}
