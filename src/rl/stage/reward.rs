//! From what verifiers say to one reward per episode: labels priced, several rewards combined, length and cost taken off.

use super::token_reward::KlPenalty;
use super::{Stage, Step};
use crate::error::{Error, Result};
use crate::kernels::advantage::Combination;
use crate::kernels::step_credit::Shaping;
use crate::rl::batch::{Batch, Column, missing};
use crate::rl::faithful::{self, Baseline, Mapping, OutcomeReward};
use crate::rl::length::OverlongShaping;
use crate::tasks::Label;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How the rewards of several functions become one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardSettings {
    /// The weight of each reward function by its name; one that is not named weighs 1.
    pub weights: BTreeMap<String, f64>,
    /// Add and then normalise, or normalise each function in its group and then add (GDPO).
    pub combination: Combination,
    /// The reward of an outcome's label, in place of the verifier's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<OutcomePrice>,
    /// What tokens and turns cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// A KL penalty per token, for estimators that read token rewards (GAE, REINFORCE++).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<KlPenalty>,
    /// Potential-based shaping by the labels of steps, for estimators that read token rewards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shaping: Option<Shaping>,
}

/// What the label of an outcome is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutcomePrice {
    /// Binary, ternary or geometric. The baseline of the geometric reward, where it is absent, is measured by sampling
    /// before the first step.
    pub reward: Price,
    /// Take FaithRL's penalty for length off.
    #[serde(default)]
    pub length_penalty: bool,
    /// How the penalty meets the labels.
    #[serde(default)]
    pub mapping: Mapping,
}

/// How labels are priced.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Price {
    /// 1 for correct, else 0.
    Binary {},
    /// 1 correct, 0 refused, -1 hallucinated (TruthRL).
    Ternary {},
    /// `y0` correct, 0 refused, `-x0` hallucinated (FaithRL), with the rates of the policy before training.
    Geometric {
        /// The rates; `None`: measured by sampling before the first step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        baseline: Option<Baseline>,
        /// Problems that a measured baseline is sampled on.
        #[serde(default = "many")]
        problems: usize,
    },
}

fn many() -> usize {
    256
}

impl Price {
    /// What is still to be measured: on how many problems.
    pub fn unmeasured(&self) -> Option<usize> {
        match self {
            Price::Geometric { baseline: None, problems } => Some(*problems),
            _ => None,
        }
    }
}

/// A cost that is taken off the reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cost {
    /// Per token that the policy wrote.
    pub per_token: f64,
    /// Per turn of the environment.
    pub per_turn: f64,
    /// The cost is taken off correct episodes only (reward above one half), so that being wrong is never made cheaper.
    pub correct_only: bool,
}

impl RewardSettings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        for (name, weight) in &self.weights {
            if !weight.is_finite() {
                return Err(Error::invalid(format!("reward.weights.{name} is {weight}")));
            }
        }
        if let Some(cost) = &self.cost {
            for (name, value) in [("per_token", cost.per_token), ("per_turn", cost.per_turn)] {
                if !(value.is_finite() && value >= 0.0) {
                    return Err(Error::invalid(format!(
                        "reward.cost.{name} is {value}; it must be finite and at least 0"
                    )));
                }
            }
        }
        if let Some(kl) = &self.kl {
            kl.check()?;
        }
        if let Some(shaping) = &self.shaping {
            shaping.check().map_err(|e| e.at("reward.shaping"))?;
        }
        if let Some(OutcomePrice { reward: Price::Geometric { baseline, problems }, .. }) =
            &self.outcome
        {
            baseline.map_or(Ok(()), |baseline| baseline.check())?;
            if baseline.is_none() && *problems == 0 {
                return Err(Error::invalid("reward.outcome.reward.problems is 0"));
            }
        }
        Ok(())
    }

    /// The weight of each function.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a weight of a function that the verifier does not have.
    pub fn weights_of(&self, functions: &[String]) -> Result<Vec<f64>> {
        if let Some(name) = self.weights.keys().find(|name| !functions.contains(name)) {
            return Err(Error::invalid(format!(
                "reward.weights.{name}: the verifier has no such reward (it has: {})",
                functions.join(", ")
            )));
        }
        Ok(functions.iter().map(|name| self.weights.get(name).copied().unwrap_or(1.0)).collect())
    }
}

/// The weighted sum of the named rewards.
pub struct Combine {
    /// `[functions]`.
    pub weights: Vec<f64>,
}

impl Stage for Combine {
    fn name(&self) -> String {
        "reward.weights".into()
    }

    fn needs(&self) -> Vec<Column> {
        vec![Column::NamedRewards]
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::Reward]
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let functions = self.weights.len();
        if batch.named_rewards.len() != functions * batch.episodes.len() {
            return Err(Error::shape(format!(
                "{} rewards of {functions} functions for {} episodes",
                batch.named_rewards.len(),
                batch.episodes.len()
            )));
        }
        batch.reward = match self.weights[..] {
            // One function that weighs 1: its reward is the reward, to the bit.
            [1.0] => batch.named_rewards.clone(),
            _ => batch.named_rewards.chunks(functions).map(|row| self.sum(row)).collect(),
        };
        batch.shaped_reward = batch.reward.clone();
        if functions > 1 {
            for (function, name) in batch.reward_names.iter().enumerate() {
                let all = batch.named_rewards.iter().skip(function).step_by(functions);
                let scored: Vec<f64> = all.filter(|r| !r.is_nan()).map(|r| f64::from(*r)).collect();
                let mean = scored.iter().sum::<f64>() / scored.len().max(1) as f64;
                step.note(&format!("reward_{name}"), mean);
            }
        }
        Ok(())
    }
}

impl Combine {
    /// NaN where no function scores the episode.
    fn sum(&self, row: &[f32]) -> f32 {
        let scored = row.iter().zip(&self.weights).filter(|(reward, _)| !reward.is_nan());
        let sum = scored.fold(None, |sum: Option<f64>, (reward, weight)| {
            Some(sum.unwrap_or(0.0) + f64::from(*reward) * weight)
        });
        sum.map_or(f32::NAN, |sum| sum as f32)
    }
}

/// The reward of an outcome's label.
pub struct Outcomes {
    /// What labels are worth.
    pub price: OutcomePrice,
}

impl Outcomes {
    fn reward(&self) -> Result<OutcomeReward> {
        Ok(match self.price.reward {
            Price::Binary {} => OutcomeReward::Binary {},
            Price::Ternary {} => OutcomeReward::Ternary {},
            Price::Geometric { baseline, .. } => OutcomeReward::Geometric {
                baseline: baseline
                    .ok_or_else(|| Error::state("the baseline has not been measured"))?,
            },
        })
    }
}

impl Stage for Outcomes {
    fn name(&self) -> String {
        "reward.outcome".into()
    }

    fn needs(&self) -> Vec<Column> {
        vec![Column::Label]
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::Reward]
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let reward = self.reward()?;
        let labels = batch.label.as_ref().ok_or_else(|| missing(Column::Label))?;
        let of = |(label, episode): (&Option<_>, &crate::rl::episode::Episode)| match label {
            None => f32::NAN,
            Some(label) => {
                let penalty = if self.price.length_penalty {
                    faithful::length_penalty(episode.written())
                } else {
                    0.0
                };
                reward.reward(*label, penalty, self.price.mapping) as f32
            }
        };
        batch.reward = labels.iter().zip(&batch.episodes).map(of).collect();
        batch.shaped_reward = batch.reward.clone();
        let labelled: Vec<_> = labels.iter().flatten().collect();
        for label in Label::ALL {
            let count = labelled.iter().filter(|one| ***one == label).count();
            step.note(label.name(), count as f64 / labelled.len().max(1) as f64);
        }
        Ok(())
    }
}

/// Length and cost taken off the reward that the estimator sees. The reward in the logs stays what the verifier gave.
pub struct Shape {
    /// What is taken off.
    pub cost: Option<Cost>,
    /// A penalty near the length limit.
    pub overlong: Option<OverlongShaping>,
}

impl Stage for Shape {
    fn name(&self) -> String {
        "reward.cost".into()
    }

    fn needs(&self) -> Vec<Column> {
        vec![Column::Reward]
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::Reward]
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let mut spent = 0.0;
        for (episode, reward) in batch.episodes.iter().zip(&mut batch.shaped_reward) {
            let penalty = self.overlong.map_or(0.0, |one| one.penalty(episode.written()));
            *reward += penalty as f32;
            if let Some(cost) = self.cost.filter(|cost| !cost.correct_only || *reward > 0.5) {
                let turns = episode.mask.windows(2).filter(|pair| pair[0] != 0 && pair[1] == 0);
                let taken = cost.per_token * episode.written() as f64
                    + cost.per_turn * turns.count() as f64;
                *reward -= taken as f32;
                spent += taken;
            }
        }
        if self.cost.is_some() {
            step.note("cost", spent / batch.episodes.len().max(1) as f64);
        }
        Ok(())
    }
}
