//! Several reward functions a response: added and then normalised, or normalised and then added.

use super::estimator::{Estimator, Scale};
use super::groups::Groups;
use super::outcome::{Counts, Outputs, check_lengths, forward, standardize};
use super::statistics::Weighed;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// In which order rewards of several functions are normalised and added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Combination {
    /// The weighted sum is the reward that any estimator takes.
    #[default]
    SumThenNormalize,
    /// Each function's rewards are z-scored in their group, added with weights, and z-scored over the batch, so that no
    /// function drowns another (GDPO; TRL `multi_objective_aggregation`). For [`Estimator::Grpo`] only.
    NormalizeThenSum,
}

/// What [`several_rewards`] reads.
#[derive(Clone, Copy, Debug)]
pub struct SeveralRewards<'a> {
    /// `[responses, functions]`; NaN: the function does not score the response. One that none scores is not scored.
    pub rewards: &'a [f32],
    /// `[functions]`.
    pub weights: &'a [f64],
    /// Which responses belong together.
    pub groups: Groups<'a>,
}

/// How many responses have `functions` rewards each.
pub(super) fn rows(rewards: usize, functions: usize) -> Result<usize> {
    if functions == 0 || !rewards.is_multiple_of(functions) {
        return Err(Error::shape(format!(
            "advantage: {rewards} rewards are no rows of {functions} functions"
        )));
    }
    Ok(rewards / functions)
}

/// What [`several_rewards`] returns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Several {
    /// What was counted; a group of [`Combination::NormalizeThenSum`] is degenerate when its sums are equal.
    pub counts: Counts,
    /// The deviation over the batch of what was added, for [`Combination::NormalizeThenSum`].
    pub batch_std: Option<f64>,
}

/// The epsilon of an estimator that can normalise a function's rewards.
pub(super) fn normalizer(estimator: &Estimator) -> Result<f64> {
    match *estimator {
        Estimator::Grpo { epsilon, scale: Scale::Group, .. } => Ok(epsilon),
        Estimator::Grpo { .. } => Err(Error::invalid(
            "advantage: `normalize-then-sum` and `scale = \"batch\"` do not go together: \
             its functions are normalised in their group, its sum over the batch",
        )),
        other => Err(Error::invalid(format!(
            "advantage: `normalize-then-sum` and `{}` do not go together: it is made of z-scores (`grpo`)",
            other.kind()
        ))),
    }
}

/// The advantage of every response from the rewards of several functions.
///
/// # Shapes
/// As [`SeveralRewards`] and [`Outputs`] say; `mean`, `std` and `flags` are those of the sums.
///
/// # Errors
/// As [`of_responses`](super::of_responses); [`Error::is_invalid`] naming both for a combination and an estimator that do not
/// go together, and for a weight that is not finite.
///
/// # Source
/// TRL `GRPOTrainer`, `multi_objective_aggregation`; GDPO, arXiv 2601.05242.
pub fn several_rewards(
    estimator: &Estimator,
    combination: Combination,
    of: &SeveralRewards<'_>,
    outputs: Outputs<'_>,
) -> Result<Several> {
    let functions = of.weights.len();
    let responses = rows(of.rewards.len(), functions)?;
    check_weights(of.weights)?;
    let row = |i: usize| &of.rewards[i * functions..(i + 1) * functions];
    let sums = |score: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        let sum = |i: usize| {
            let scored = (0..functions).filter(|f| !row(i)[*f].is_nan());
            let terms = scored.map(|f| of.weights[f] * f64::from(score(i, f)));
            terms.fold(None, |sum: Option<f64>, term| Some(sum.unwrap_or(0.0) + term))
        };
        (0..responses).map(|i| sum(i).map_or(f32::NAN, |sum| sum as f32)).collect()
    };
    if combination == Combination::SumThenNormalize {
        let total = sums(&|i, f| row(i)[f]);
        let counts = forward(estimator, &total, of.groups, outputs)?;
        return Ok(Several { counts, batch_std: None });
    }
    let epsilon = normalizer(estimator)?;
    let groups = of.groups.count()?;
    check_lengths(
        responses,
        groups,
        &[("output `advantage`", Some(outputs.advantage.len()), false)],
    )?;
    let mut scores = vec![0f32; responses * functions];
    for (f, scores) in scores.chunks_mut(responses.max(1)).enumerate() {
        let column: Vec<f32> = (0..responses).map(|i| row(i)[f]).collect();
        let out = Outputs { advantage: scores, mean: None, std: None, flags: None };
        forward(estimator, &column, of.groups, out)?;
    }
    let total = sums(&|i, f| scores[f * responses + i]);
    // The statistics of the sums, and their values where the advantages go.
    let Outputs { advantage, mean, std, flags } = outputs;
    let mut unused = vec![0f32; responses];
    let out = Outputs { advantage: &mut unused, mean, std, flags };
    let counts = forward(estimator, &total, of.groups, out)?;
    advantage.copy_from_slice(&total);
    let weight = |i: usize| f64::from(u8::from(!total[i].is_nan()));
    let all = Weighed::of((0..responses).map(|i| (total[i], weight(i))));
    standardize(advantage, &all, all.std + epsilon, weight);
    Ok(Several { counts, batch_std: Some(all.std) })
}

pub(super) fn check_weights(weights: &[f64]) -> Result<()> {
    match weights.iter().position(|weight| !weight.is_finite()) {
        Some(i) => {
            Err(Error::invalid(format!("advantage: the weight of function {i} is {}", weights[i])))
        }
        None => Ok(()),
    }
}
