//! Advantages of responses that share a prompt: GRPO, Dr.GRPO and leave-one-out, over groups of any size.
//!
//! Contract: rewards and advantages are f32 `[responses]`; groups are CSR offsets or ids; every statistic is computed
//! in f64 in two passes, so rewards that nearly agree lose no digits. A group never looks at another (except for
//! [`Scale::Batch`], which is named so), and inside a group sums run in the order of the responses. Token-level
//! advantages, whitening and value functions do not live here.

pub mod launch;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The group has no two different rewards: every advantage in it is exactly 0 (unless [`Singleton::Reward`] acts).
pub const FLAG_DEGENERATE: u8 = 1;
/// The group has exactly one scored response.
pub const FLAG_SINGLETON: u8 = 2;
/// A reward of the group is NaN: that response was left out of the statistics and its advantage is 0.
pub const FLAG_NAN: u8 = 4;

/// Which responses belong together.
#[derive(Clone, Copy, Debug)]
pub enum Groups<'a> {
    /// Group `g` is the responses `offsets[g]..offsets[g + 1]`; the first offset is 0, the last is `responses`.
    Offsets(&'a [i64]),
    /// Response `i` belongs to group `ids[i] >= 0`. Ids need not be contiguous nor sorted; the outputs per group are
    /// in ascending order of the ids that occur.
    Ids(&'a [i32]),
}

/// Over what the standard deviation that scales an advantage is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// The response's own group.
    #[default]
    Group,
    /// All responses (group mean, batch deviation: LitePPO, TRL `scale_rewards="batch"`).
    Batch,
}

/// What a group with one scored response gets, whose deviation is undefined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Singleton {
    /// Advantage 0: with nothing to compare to there is nothing to learn.
    #[default]
    Zero,
    /// Mean 0 and deviation 1, so that the advantage is the reward (verl).
    Reward,
}

/// An estimator of the advantage `A` of a response with reward `R` in a group with mean `m` and deviation `s`
/// (unbiased: divided by `n - 1`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Estimator {
    /// `A = (R - m) / (max(s, sqrt(variance_floor)) + epsilon)`; `s` of the group or of the batch.
    Grpo {
        /// Added to the deviation: 1e-6 in verl, 1e-4 in TRL.
        #[serde(default = "default_epsilon")]
        epsilon: f64,
        /// Over what the deviation is taken.
        #[serde(default)]
        scale: Scale,
        /// What a group of one gets.
        #[serde(default)]
        singleton: Singleton,
        /// Smallest variance; verl's vectorised form uses 1e-6, everything else 0.
        #[serde(default)]
        variance_floor: f64,
    },
    /// `A = R - m`.
    DrGrpo {
        /// What a group of one gets.
        #[serde(default)]
        singleton: Singleton,
    },
    /// `A = n / (n - 1) (R - m)`: the reward minus the mean of the others.
    Rloo {
        /// What a group of one gets.
        #[serde(default)]
        singleton: Singleton,
    },
}

fn default_epsilon() -> f64 {
    1e-6
}

impl Default for Estimator {
    fn default() -> Estimator {
        Estimator::Grpo {
            epsilon: default_epsilon(),
            scale: Scale::default(),
            singleton: Singleton::default(),
            variance_floor: 0.0,
        }
    }
}

/// Where [`forward`] writes. Lengths: `advantage` is `[responses]`, the others `[groups]`.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// The advantage of each response.
    pub advantage: &'a mut [f32],
    /// Mean of the scored rewards of each group; 0 when none is scored.
    pub mean: Option<&'a mut [f32]>,
    /// Unbiased standard deviation of each group; 0 when fewer than two responses are scored or all are equal.
    pub std: Option<&'a mut [f32]>,
    /// `FLAG_*` bits of each group.
    pub flags: Option<&'a mut [u8]>,
}

/// What [`forward`] counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Groups with at least one response, scored or not.
    pub groups: usize,
    /// Of these, the ones without two different rewards.
    pub degenerate: usize,
    /// Responses whose reward is NaN.
    pub unscored: usize,
}

/// Mean, unbiased deviation and size of a set of rewards, NaN left out.
struct Statistics {
    scored: usize,
    mean: f64,
    std: f64,
    all_equal: bool,
}

impl Statistics {
    fn of(rewards: impl Iterator<Item = f32> + Clone) -> Statistics {
        let scored_rewards = || rewards.clone().filter(|r| !r.is_nan());
        let (mut scored, mut sum) = (0usize, 0f64);
        let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
        for reward in scored_rewards() {
            scored += 1;
            sum += f64::from(reward);
            least = least.min(reward);
            most = most.max(reward);
        }
        // `max == min` and not a small deviation: rounding in the mean must never be divided by epsilon.
        let all_equal = scored == 0 || least == most;
        let mean = if all_equal { f64::from(most) } else { sum / scored as f64 };
        let mean = if scored == 0 { 0.0 } else { mean };
        let squares: f64 = scored_rewards().map(|r| (f64::from(r) - mean).powi(2)).sum();
        let std = if all_equal { 0.0 } else { (squares / (scored - 1) as f64).sqrt() };
        Statistics { scored, mean, std, all_equal }
    }
}

/// The groups as CSR offsets over a permutation of the responses.
struct Plan {
    offsets: Vec<usize>,
    order: Option<Vec<usize>>,
}

impl Groups<'_> {
    /// How many groups there are: the length of the outputs per group.
    ///
    /// # Errors
    /// As [`forward`].
    pub fn count(&self) -> Result<usize> {
        let responses = match self {
            Groups::Offsets(offsets) => offsets.last().copied().unwrap_or(0).max(0) as usize,
            Groups::Ids(ids) => ids.len(),
        };
        Ok(self.plan(responses)?.offsets.len() - 1)
    }

    fn plan(&self, responses: usize) -> Result<Plan> {
        match self {
            Groups::Offsets(offsets) => {
                let offsets =
                    crate::kernels::offsets::checked("advantage", "group", offsets, responses)?;
                Ok(Plan { offsets, order: None })
            }
            Groups::Ids(ids) => {
                if ids.len() != responses {
                    return Err(Error::shape(format!(
                        "advantage: {} group ids for {responses} rewards",
                        ids.len()
                    )));
                }
                if let Some(i) = ids.iter().position(|id| *id < 0) {
                    return Err(Error::index(format!(
                        "advantage: group id {} of response {i} is negative",
                        ids[i]
                    )));
                }
                let mut order: Vec<usize> = (0..responses).collect();
                order.sort_by_key(|i| ids[*i]);
                let mut offsets = vec![0];
                offsets.extend((1..responses).filter(|i| ids[order[*i]] != ids[order[i - 1]]));
                if responses > 0 {
                    offsets.push(responses);
                }
                Ok(Plan { offsets, order: Some(order) })
            }
        }
    }
}

/// Computes the advantage of every response.
///
/// A NaN reward means "not scored": it is left out of its group's statistics and its advantage is 0. A group whose
/// scored rewards are all equal has advantage exactly 0.
///
/// # Shapes
/// `rewards [responses]`; outputs as [`Outputs`] says, with `[groups]` being [`Groups::count`].
///
/// # Errors
/// [`Error::is_shape`] for a length that does not fit or offsets that do not cover the rewards, [`Error::is_index`]
/// for a negative id, [`Error::is_invalid`] for an infinite reward or an epsilon or floor below 0.
///
/// # Source
/// GRPO: arXiv 2402.03300; Dr.GRPO: arXiv 2503.20783; RLOO: arXiv 2402.14740.
pub fn forward(
    estimator: &Estimator,
    rewards: &[f32],
    groups: Groups<'_>,
    mut outputs: Outputs<'_>,
) -> Result<Counts> {
    estimator.check()?;
    let plan = groups.plan(rewards.len())?;
    let group_count = plan.offsets.len() - 1;
    check_outputs(&outputs, rewards.len(), group_count)?;
    if let Some(i) = rewards.iter().position(|r| r.is_infinite()) {
        return Err(Error::invalid(format!("advantage: reward {i} is {}", rewards[i])));
    }
    let batch_std = match estimator {
        Estimator::Grpo { scale: Scale::Batch, .. } => {
            Some(Statistics::of(rewards.iter().copied()).std)
        }
        _ => None,
    };

    let mut counts = Counts { groups: 0, degenerate: 0, unscored: 0 };
    for (group, bounds) in plan.offsets.windows(2).enumerate() {
        let members = bounds[0]..bounds[1];
        let response = |place: usize| plan.order.as_ref().map_or(place, |order| order[place]);
        let size = members.len();
        let statistics = Statistics::of(members.clone().map(|place| rewards[response(place)]));

        let mut flags = 0;
        flags |= if statistics.all_equal { FLAG_DEGENERATE } else { 0 };
        flags |= if statistics.scored == 1 { FLAG_SINGLETON } else { 0 };
        flags |= if statistics.scored < size { FLAG_NAN } else { 0 };
        counts.groups += usize::from(size > 0);
        counts.degenerate += usize::from(size > 0 && statistics.all_equal);
        counts.unscored += size - statistics.scored;

        let (center, factor) = estimator.affine(&statistics, batch_std);
        for place in members {
            let reward = rewards[response(place)];
            outputs.advantage[response(place)] =
                if reward.is_nan() { 0.0 } else { ((f64::from(reward) - center) * factor) as f32 };
        }
        if let Some(mean) = outputs.mean.as_deref_mut() {
            mean[group] = statistics.mean as f32;
        }
        if let Some(std) = outputs.std.as_deref_mut() {
            std[group] = statistics.std as f32;
        }
        if let Some(out) = outputs.flags.as_deref_mut() {
            out[group] = flags;
        }
    }
    Ok(counts)
}

fn check_outputs(outputs: &Outputs<'_>, responses: usize, groups: usize) -> Result<()> {
    let lengths = [
        ("advantage", Some(outputs.advantage.len()), responses),
        ("mean", outputs.mean.as_ref().map(|x| x.len()), groups),
        ("std", outputs.std.as_ref().map(|x| x.len()), groups),
        ("flags", outputs.flags.as_ref().map(|x| x.len()), groups),
    ];
    for (name, got, want) in lengths {
        if let Some(got) = got.filter(|got| *got != want) {
            return Err(Error::shape(format!(
                "advantage: output `{name}` has {got} elements, not {want} \
                 ({responses} responses in {groups} groups)"
            )));
        }
    }
    Ok(())
}

impl Estimator {
    fn check(&self) -> Result<()> {
        let Estimator::Grpo { epsilon, variance_floor, .. } = self else { return Ok(()) };
        for (name, value) in [("epsilon", epsilon), ("variance_floor", variance_floor)] {
            if !(value.is_finite() && *value >= 0.0) {
                return Err(Error::invalid(format!(
                    "advantage: {name} is {value}; it must be finite and at least 0"
                )));
            }
        }
        Ok(())
    }

    /// `A = (R - center) * factor` for every response of a group.
    fn affine(&self, group: &Statistics, batch_std: Option<f64>) -> (f64, f64) {
        let (singleton, scaled) = match self {
            Estimator::Grpo { singleton, epsilon, variance_floor, .. } => {
                let (least, epsilon) = (variance_floor.sqrt(), *epsilon);
                let divide = move |std: f64| 1.0 / (std.max(least) + epsilon);
                (singleton, Some(divide))
            }
            Estimator::DrGrpo { singleton } | Estimator::Rloo { singleton } => (singleton, None),
        };
        if group.scored == 1 && *singleton == Singleton::Reward {
            return (0.0, scaled.map_or(1.0, |divide| divide(batch_std.unwrap_or(1.0))));
        }
        if group.all_equal {
            return (group.mean, 0.0);
        }
        let factor = match (self, scaled) {
            (_, Some(divide)) => divide(batch_std.unwrap_or(group.std)),
            (Estimator::Rloo { .. }, None) => group.scored as f64 / (group.scored - 1) as f64,
            (_, None) => 1.0,
        };
        (group.mean, factor)
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/kernels/advantage.md")]
mod page {}
