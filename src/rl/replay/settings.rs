//! How replay is done in a run.

use super::{BucketLaw, PoolLimits};
use crate::error::{Error, Result};
use crate::kernels::policy_loss::Objective;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Replay of past successes, as ExGRPO does it (arXiv 2510.02245).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplaySettings {
    /// At most this share of a batch's problems comes back from the pool, each with one of its past successes.
    pub share: f64,
    /// Which problems come back.
    pub law: BucketLaw,
    /// Of a problem's successes the one of lowest mean entropy under the policy of now comes back; otherwise any.
    pub lowest_entropy: bool,
    /// Replay, and what the pool keeps for it, begins after a step in which a larger share of episodes was right.
    pub starts_at: f64,
    /// Problems that a whole group solves are not asked again.
    pub retire: bool,
    /// The pool keeps successes and brings them back; without, only retirement is done.
    pub enabled: bool,
    /// Most successes that are kept of a problem; the first ones stay.
    pub trajectories: usize,
    /// Successes this many updates old are dropped; 0: never.
    pub age: u64,
    /// An episode with a larger reward is right.
    pub correct_above: f32,
    /// What is minimised until replay begins; absent: the objective without its replay term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective_before: Option<Objective>,
    /// A pool to begin with, as an earlier run saved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PathBuf>,
}

impl Default for ReplaySettings {
    /// The released constants.
    fn default() -> ReplaySettings {
        ReplaySettings {
            share: 0.5,
            law: BucketLaw::Normal { center: None, deviation: 1.0 },
            lowest_entropy: true,
            starts_at: 0.35,
            retire: true,
            enabled: true,
            trajectories: 8,
            age: 0,
            correct_above: 0.5,
            objective_before: None,
            pool: None,
        }
    }
}

impl ReplaySettings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self, group: usize) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(format!("replay.{what}")));
        if !(0.0..=1.0).contains(&self.share) {
            return bad(format!("share is {}; it must lie in 0..=1", self.share));
        }
        if !self.starts_at.is_finite() {
            return bad(format!("starts_at is {}", self.starts_at));
        }
        if self.trajectories == 0 {
            return bad("trajectories is 0; it must be at least 1".into());
        }
        if self.enabled && group < 2 {
            return bad(
                "enabled needs rollout.group of at least 2: one of a group is the past success"
                    .into(),
            );
        }
        if let Some(before) = &self.objective_before {
            before.check().map_err(|e| e.at("replay.objective_before"))?;
            if before.replay.is_some() {
                return bad(
                    "objective_before has a replay term, and nothing is replayed then".into()
                );
            }
        }
        Ok(())
    }

    /// What the pool keeps, for groups of `group`.
    pub fn limits(&self, group: usize) -> PoolLimits {
        PoolLimits {
            group: group as u32,
            trajectories: self.trajectories,
            age: self.age,
            retire: self.retire,
        }
    }
}
