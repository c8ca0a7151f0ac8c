//! One advantage a response, from rewards of outcomes in groups.

use super::estimator::{Counted, Estimator, Need, Scale, Singleton};
use super::groups::Groups;
use super::statistics::{Statistics, Weighed};
use crate::error::{Error, Result};

/// The group has no two different rewards: every advantage in it is exactly 0 (unless [`Singleton::Reward`] acts, or the
/// estimator whitens the batch).
pub const FLAG_DEGENERATE: u8 = 1;
/// The group has exactly one scored response.
pub const FLAG_SINGLETON: u8 = 2;
/// A reward of the group is NaN: that response was left out of the statistics and its advantage is 0.
pub const FLAG_NAN: u8 = 4;

/// What [`of_responses`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Responses<'a> {
    /// `[responses]`; NaN: not scored.
    pub rewards: &'a [f32],
    /// Which belong together.
    pub groups: Groups<'a>,
    /// `[responses]` live tokens of each; needed where [`Estimator::needs`] says [`Need::Lengths`].
    pub lengths: Option<&'a [i64]>,
    /// `[responses]` reward of a greedy response to the same prompt; needed for [`Estimator::Remax`]. NaN: advantage 0.
    pub greedy: Option<&'a [f32]>,
    /// `[responses]` non-zero: the response is in its group's statistics; the others are only compared with them (LUFFY's
    /// off-policy samples). `None`: all are.
    pub basis: Option<&'a [u8]>,
}

impl<'a> Responses<'a> {
    /// Rewards in groups and nothing else.
    pub fn new(rewards: &'a [f32], groups: Groups<'a>) -> Responses<'a> {
        Responses { rewards, groups, lengths: None, greedy: None, basis: None }
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

/// The advantage of every response, for estimators that need rewards and groups only.
///
/// A NaN reward means "not scored": it is left out of its group's statistics and its advantage is 0. A group whose
/// scored rewards are all equal has advantage exactly 0.
///
/// # Shapes
/// `rewards [responses]`; outputs as [`Outputs`] says, with `[groups]` being [`Groups::count`].
///
/// # Errors
/// As [`of_responses`].
pub fn forward(
    estimator: &Estimator,
    rewards: &[f32],
    groups: Groups<'_>,
    outputs: Outputs<'_>,
) -> Result<Counts> {
    of_responses(estimator, &Responses::new(rewards, groups), outputs)
}

/// The advantage of every response; see [`forward`].
///
/// # Shapes
/// As [`Responses`] and [`Outputs`] say.
///
/// # Errors
/// [`Error::is_shape`] for a length that does not fit or offsets that do not cover the rewards, [`Error::is_index`]
/// for a negative id, [`Error::is_invalid`] for an infinite reward, an option out of range, or an estimator that needs
/// what is not given (its message names both).
///
/// # Source
/// Each estimator's in [`PRESETS`](super::PRESETS).
pub fn of_responses(
    estimator: &Estimator,
    responses: &Responses<'_>,
    mut outputs: Outputs<'_>,
) -> Result<Counts> {
    let given = [
        (Need::Lengths, responses.lengths.is_some()),
        (Need::GreedyRewards, responses.greedy.is_some()),
    ];
    check_needs(estimator, &given)?;
    let rewards = responses.rewards;
    let plan = responses.groups.plan(rewards.len())?;
    check_lengths(rewards.len(), plan.count(), &lengths_of(responses, &outputs))?;
    for (name, values) in [("reward", Some(rewards)), ("greedy reward", responses.greedy)] {
        let values = values.unwrap_or_default();
        if let Some(i) = values.iter().position(|r| r.is_infinite()) {
            return Err(Error::invalid(format!("advantage: {name} {i} is {}", values[i])));
        }
    }
    let batch = Batch::of(estimator, rewards);
    let mut counts = Counts::default();
    for group in 0..plan.count() {
        let members = plan.members(group);
        let basis = |i: usize| responses.basis.is_none_or(|basis| basis[i] != 0);
        let in_basis = |i: usize| if basis(i) { rewards[i] } else { f32::NAN };
        let statistics = Statistics::of(members.clone().map(in_basis));
        let (mut size, mut unscored) = (0, 0);
        for i in members.clone() {
            size += 1;
            unscored += usize::from(rewards[i].is_nan());
        }
        let mut flags = 0;
        flags |= if statistics.all_equal { FLAG_DEGENERATE } else { 0 };
        flags |= if statistics.scored == 1 { FLAG_SINGLETON } else { 0 };
        flags |= if unscored > 0 { FLAG_NAN } else { 0 };
        counts.groups += usize::from(size > 0);
        counts.degenerate += usize::from(size > 0 && statistics.all_equal);
        counts.unscored += unscored;

        let group_of = Group { estimator, responses, statistics: &statistics, batch: &batch };
        group_of.write(members.clone(), in_basis, outputs.advantage);
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
    finish(estimator, responses, counts, outputs.advantage);
    Ok(counts)
}

/// Checks options and needs of an estimator that gives one advantage a response.
pub(super) fn check_needs(estimator: &Estimator, given: &[(Need, bool)]) -> Result<()> {
    let have: Vec<Need> = given.iter().filter(|(_, there)| *there).map(|(need, _)| *need).collect();
    estimator.check_available(&have, "this call")
}

fn lengths_of<'a>(of: &Responses<'_>, out: &Outputs<'_>) -> [(&'a str, Option<usize>, bool); 7] {
    [
        ("lengths", of.lengths.map(<[i64]>::len), false),
        ("greedy rewards", of.greedy.map(<[f32]>::len), false),
        ("basis", of.basis.map(<[u8]>::len), false),
        ("output `advantage`", Some(out.advantage.len()), false),
        ("output `mean`", out.mean.as_ref().map(|x| x.len()), true),
        ("output `std`", out.std.as_ref().map(|x| x.len()), true),
        ("output `flags`", out.flags.as_ref().map(|x| x.len()), true),
    ]
}

/// Compares lengths that are there with the number of responses, or of groups where the last field is true.
pub(super) fn check_lengths(
    responses: usize,
    groups: usize,
    lengths: &[(&str, Option<usize>, bool)],
) -> Result<()> {
    for (name, got, of_groups) in lengths {
        let want = if *of_groups { groups } else { responses };
        if let Some(got) = got.filter(|got| *got != want) {
            return Err(Error::shape(format!(
                "advantage: {name} has {got} elements, not {want} ({responses} responses in {groups} groups)"
            )));
        }
    }
    Ok(())
}

/// What all responses together say.
struct Batch {
    std: Option<f64>,
    /// Scored responses over those with a reward that is not 0.
    scale: f64,
}

impl Batch {
    fn of(estimator: &Estimator, rewards: &[f32]) -> Batch {
        let of_batch = matches!(estimator, Estimator::Grpo { scale: Scale::Batch, .. });
        let all = || Statistics::of(rewards.iter().copied());
        // A batch of equal rewards has deviation 1, as a group has: only what is outside a basis differs from its mean.
        let std = of_batch.then(|| if all().all_equal { 1.0 } else { all().std });
        let scored = rewards.iter().filter(|r| !r.is_nan()).count();
        let nonzero = rewards.iter().filter(|r| !r.is_nan() && **r != 0.0).count();
        Batch { std, scale: scored as f64 / nonzero.max(1) as f64 }
    }
}

/// One group and what its advantages are made of.
struct Group<'a> {
    estimator: &'a Estimator,
    responses: &'a Responses<'a>,
    statistics: &'a Statistics,
    batch: &'a Batch,
}

impl Group<'_> {
    fn write(
        &self,
        members: impl Iterator<Item = usize> + Clone,
        in_basis: impl Fn(usize) -> f32,
        advantage: &mut [f32],
    ) {
        let factor = self.factor();
        if let Estimator::PassK { .. } = self.estimator {
            return write_best(factor, members, in_basis, advantage);
        }
        let center = self.center(members.clone(), &in_basis);
        let short = self.shortness(members.clone(), &in_basis);
        for i in members {
            let reward = self.responses.rewards[i];
            let baseline = match self.estimator {
                Estimator::Remax {} => self.responses.greedy.map_or(0.0, |greedy| greedy[i]),
                _ => 0.0,
            };
            let away = f64::from(reward) - (center + f64::from(baseline));
            let value = away * factor + short.as_ref().map_or(0.0, |short| short.bonus(self, i));
            advantage[i] = if reward.is_nan() || baseline.is_nan() { 0.0 } else { value as f32 };
        }
    }

    fn length(&self, i: usize) -> f64 {
        self.responses.lengths.map_or(0.0, |lengths| lengths[i].max(0) as f64)
    }

    /// What is subtracted from every reward.
    fn center(
        &self,
        members: impl Iterator<Item = usize> + Clone,
        in_basis: impl Fn(usize) -> f32,
    ) -> f64 {
        let alone = self.statistics.scored == 1 && self.estimator.singleton() == Singleton::Reward;
        match self.estimator {
            Estimator::ReinforcePlusPlus { .. } | Estimator::Remax {} => 0.0,
            _ if alone => 0.0,
            Estimator::Opo { .. } if !self.statistics.all_equal => {
                let scored = members.filter(|i| !in_basis(*i).is_nan());
                let weighed = Weighed::of(scored.map(|i| (in_basis(i), self.length(i))));
                if weighed.weight > 0.0 { weighed.mean } else { self.statistics.mean }
            }
            _ => self.statistics.mean,
        }
    }

    fn factor(&self) -> f64 {
        let Statistics { scored, std, all_equal, .. } = *self.statistics;
        let over = |std: f64, least: f64, epsilon: f64| match std.max(least) + epsilon {
            divisor if divisor > 0.0 => 1.0 / divisor,
            _ => 0.0,
        };
        // Where all are equal the distance to the centre is 0, except outside the basis: then the deviation counts as 1.
        let own = if all_equal { 1.0 } else { std };
        match *self.estimator {
            Estimator::ReinforcePlusPlus { .. } | Estimator::Remax {} => 1.0,
            // Nothing to compare with.
            _ if scored == 0 => 0.0,
            Estimator::Grpo { variance_threshold, .. } if std * std < variance_threshold => 0.0,
            Estimator::Grpo { epsilon, variance_floor, .. } => {
                over(self.batch.std.unwrap_or(own), variance_floor.sqrt(), epsilon)
            }
            Estimator::Cale { epsilon, .. } => over(own, 0.0, epsilon),
            Estimator::PassK { epsilon, divide: true } => over(own, 0.0, epsilon),
            Estimator::Rloo { .. } if scored > 1 => scored as f64 / (scored - 1) as f64,
            Estimator::Gpg { f_norm, .. } => self.batch.scale / f_norm,
            _ => 1.0,
        }
    }

    /// The lengths of correct responses, where there are two different ones and the estimator looks at them.
    fn shortness(
        &self,
        members: impl Iterator<Item = usize> + Clone,
        in_basis: impl Fn(usize) -> f32,
    ) -> Option<Shortness> {
        let Estimator::Cale { eta, correct_above, .. } = *self.estimator else { return None };
        let correct = members.filter(|i| f64::from(in_basis(*i)) > correct_above);
        let lengths = Statistics::of(correct.map(|i| self.length(i) as f32));
        (!lengths.all_equal).then_some(Shortness { lengths, eta, correct_above })
    }
}

struct Shortness {
    lengths: Statistics,
    eta: f64,
    correct_above: f64,
}

impl Shortness {
    fn bonus(&self, group: &Group<'_>, i: usize) -> f64 {
        if f64::from(group.responses.rewards[i]) > self.correct_above {
            let length = f64::from(group.length(i) as f32);
            self.eta * (self.lengths.mean - length) / self.lengths.std
        } else {
            0.0
        }
    }
}

/// The first of the best has its distance to the second, the others 0.
fn write_best(
    factor: f64,
    members: impl Iterator<Item = usize> + Clone,
    in_basis: impl Fn(usize) -> f32,
    advantage: &mut [f32],
) {
    let mut best: Option<(usize, f32)> = None;
    let mut second = f32::NEG_INFINITY;
    for i in members {
        advantage[i] = 0.0;
        let reward = in_basis(i);
        match best {
            _ if reward.is_nan() => {}
            Some((_, most)) if reward <= most => second = second.max(reward),
            _ => {
                second = best.map_or(second, |(_, most)| most);
                best = Some((i, reward));
            }
        }
    }
    if let Some((i, most)) = best.filter(|_| second > f32::NEG_INFINITY) {
        advantage[i] = ((f64::from(most) - f64::from(second)) * factor) as f32;
    }
}

/// The second step of the estimators that look at the whole batch.
fn finish(estimator: &Estimator, of: &Responses<'_>, counts: Counts, advantage: &mut [f32]) {
    match *estimator {
        Estimator::ReinforcePlusPlus { epsilon, .. }
        | Estimator::ReinforcePlusPlusBaseline { epsilon, .. } => {
            let weight = |i: usize| match of.rewards[i].is_nan() {
                true => 0.0,
                false => of.lengths.map_or(1.0, |lengths| lengths[i].max(0) as f64),
            };
            let all = Weighed::of((0..advantage.len()).map(|i| (advantage[i], weight(i))));
            standardize(advantage, &all, (all.std * all.std + epsilon).sqrt(), weight);
        }
        Estimator::Cpgd { cap, counted, .. } => {
            let all = match counted {
                Counted::Groups => counts.groups,
                Counted::Responses => of.rewards.len(),
            };
            let live = counts.groups - counts.degenerate;
            let factor = if live > 0 { cap.min(all as f64 / live as f64) } else { cap };
            advantage.iter_mut().for_each(|a| *a = (f64::from(*a) * factor) as f32);
        }
        _ => {}
    }
}

/// `(x - mean) / divisor` for values with a weight, 0 for the others and where all are equal.
pub(super) fn standardize(
    values: &mut [f32],
    of: &Weighed,
    divisor: f64,
    weight: impl Fn(usize) -> f64,
) {
    let factor = if of.all_equal { 0.0 } else { 1.0 / divisor };
    for (i, value) in values.iter_mut().enumerate() {
        let away = (f64::from(*value) - of.mean) * factor;
        *value = if weight(i) > 0.0 { away as f32 } else { 0.0 };
    }
}
