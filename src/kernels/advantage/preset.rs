//! Estimators by name: what papers and trainers call them, with their numerics.

use super::estimator::{Counted, Estimator, Gae, Positions, Scale, Singleton};
use crate::error::{Error, Result};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::str::FromStr;

/// A named estimator.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The name in settings.
    pub name: &'static str,
    /// What it is, in a few words.
    pub summary: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// The estimator.
    pub estimator: Estimator,
}

const fn grpo(epsilon: f64, scale: Scale, singleton: Singleton, variance_floor: f64) -> Estimator {
    Estimator::Grpo { epsilon, scale, singleton, variance_floor, variance_threshold: 0.0 }
}

const fn preset(
    name: &'static str,
    estimator: Estimator,
    summary: &'static str,
    source: &'static str,
) -> Preset {
    Preset { name, summary, source, estimator }
}

const VAPO: Gae = Gae {
    gamma: 1.0,
    lambda: 1.0,
    length_alpha: Some(0.05),
    critic_lambda: Some(1.0),
    whiten: true,
    masked: super::Masked::Zero,
};

const GAE: Gae = Gae { length_alpha: None, critic_lambda: None, ..VAPO };

/// All named estimators.
pub const PRESETS: &[Preset] = &[
    preset(
        "grpo",
        grpo(1e-6, Scale::Group, Singleton::Zero, 0.0),
        "z-score in the group; a group of one has 0",
        "arXiv 2402.03300",
    ),
    preset(
        "grpo_verl",
        grpo(1e-6, Scale::Group, Singleton::Reward, 0.0),
        "the same; a group of one has its reward",
        "verl compute_grpo_outcome_advantage",
    ),
    preset(
        "grpo_verl_vectorized",
        grpo(1e-6, Scale::Group, Singleton::Reward, 1e-6),
        "the same with a variance of at least 1e-6",
        "verl compute_grpo_vectorized_outcome_advantage",
    ),
    preset(
        "grpo_trl",
        grpo(1e-4, Scale::Group, Singleton::Zero, 0.0),
        "z-score with epsilon 1e-4",
        "TRL GRPOTrainer, scale_rewards=group",
    ),
    preset(
        "batch_std",
        grpo(1e-4, Scale::Batch, Singleton::Zero, 0.0),
        "group mean, deviation of the batch (LitePPO)",
        "arXiv 2508.08221; TRL scale_rewards=batch",
    ),
    preset(
        "dr_grpo",
        Estimator::DrGrpo { singleton: Singleton::Zero },
        "reward minus group mean",
        "arXiv 2503.20783",
    ),
    preset(
        "rloo",
        Estimator::Rloo { singleton: Singleton::Zero },
        "reward minus the mean of the others",
        "arXiv 2402.14740",
    ),
    preset(
        "rloo_verl",
        Estimator::Rloo { singleton: Singleton::Reward },
        "the same; a group of one has its reward (verl's vectorised form: 0)",
        "verl compute_rloo_outcome_advantage",
    ),
    preset(
        "pass_k",
        Estimator::PassK { epsilon: 1e-6, divide: true },
        "only the best, by its distance to the second",
        "arXiv 2503.19595; verl grpo_passk",
    ),
    preset(
        "opo",
        Estimator::Opo { singleton: Singleton::Zero },
        "baseline weighed by length",
        "arXiv 2505.23585",
    ),
    preset(
        "reinforce_plus_plus",
        Estimator::ReinforcePlusPlus { gamma: 1.0, epsilon: 1e-8 },
        "returns whitened over the tokens of the batch",
        "arXiv 2501.03262",
    ),
    preset(
        "reinforce_plus_plus_baseline",
        Estimator::ReinforcePlusPlusBaseline { singleton: Singleton::Zero, epsilon: 1e-8 },
        "reward minus group mean, whitened over the tokens of the batch",
        "arXiv 2501.03262",
    ),
    preset(
        "remax",
        Estimator::Remax {},
        "reward minus that of the greedy response",
        "arXiv 2310.10505",
    ),
    preset(
        "gpg",
        Estimator::Gpg { f_norm: 1.0, singleton: Singleton::Zero },
        "reward minus group mean, scaled by the share of rewards that are not 0",
        "arXiv 2504.02546",
    ),
    preset(
        "cpgd",
        Estimator::Cpgd { cap: 3.0, counted: Counted::Groups, singleton: Singleton::Zero },
        "reward minus group mean, scaled up by what the filter dropped, at most 3",
        "arXiv 2505.12504",
    ),
    preset(
        "cpgd_siirl",
        Estimator::Cpgd { cap: 3.0, counted: Counted::Responses, singleton: Singleton::Zero },
        "the same counting responses against groups, as the code does: nearly always times 3",
        "siiRL compute_cpgd_outcome_advantage",
    ),
    preset(
        "cale",
        Estimator::Cale { eta: 0.1, correct_above: 0.5, epsilon: 1e-6 },
        "GRPO and a bonus for short correct responses; our reading, the formula is not published",
        "arXiv 2507.18576",
    ),
    preset("gae", Estimator::Gae(GAE), "values of a critic, whitened", "arXiv 1506.02438"),
    preset(
        "vapo",
        Estimator::Gae(VAPO),
        "GAE with lambda by length, 1 for the critic",
        "arXiv 2504.05118",
    ),
    preset(
        "prime",
        Estimator::Prime { gamma: 1.0 },
        "outcomes against the others' mean, and implicit process rewards",
        "arXiv 2502.01456",
    ),
    preset(
        "optimal_token_baseline",
        Estimator::OptimalTokenBaseline {
            epsilon: 1e-8,
            zero_tail: false,
            positions: Positions::Position,
        },
        "a baseline a position, weighed by accumulated variance",
        "verl compute_optimal_token_baseline_advantage",
    ),
    preset(
        "tir_optimal_token_baseline",
        Estimator::OptimalTokenBaseline {
            epsilon: 1e-8,
            zero_tail: true,
            positions: Positions::LiveToken,
        },
        "the same by live tokens, for turns with tool output between",
        "verl compute_multi_turn_optimal_token_baseline_advantage",
    ),
];

/// The estimator of a name; `-` and `_` are the same.
///
/// # Errors
/// [`Error::is_invalid`] with all names.
pub(super) fn named(name: &str) -> Result<Estimator> {
    let wanted = name.replace('-', "_");
    match PRESETS.iter().find(|preset| preset.name == wanted) {
        Some(preset) => Ok(preset.estimator),
        None => {
            let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
            Err(Error::invalid(format!(
                "no advantage is named `{name}`; there are {}",
                names.join(", ")
            )))
        }
    }
}

impl Estimator {
    /// The estimator of a name of [`PRESETS`].
    ///
    /// # Errors
    /// [`Error::is_invalid`] with all names.
    pub fn preset(name: &str) -> Result<Estimator> {
        named(name)
    }
}

impl FromStr for Estimator {
    type Err = Error;

    /// Reads the name of a preset.
    fn from_str(name: &str) -> Result<Estimator> {
        named(name)
    }
}

impl<'de> Deserialize<'de> for Estimator {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Estimator, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = Estimator;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an estimator, or a table with its `kind`")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Estimator, E> {
                name.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Estimator, A::Error> {
                Estimator::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}
