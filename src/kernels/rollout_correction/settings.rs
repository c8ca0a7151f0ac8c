//! How weights are made and what is rejected: options, and the forms that trainers have, by name.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Most rejections of one correction.
pub const MAX_REJECTIONS: usize = 8;

/// What a weight is of, with `d = log policy - log sampler`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// `exp(d)` of each token: little variance, biased.
    #[default]
    Token,
    /// `exp(Σ d)`, the same for every token of a sequence: unbiased before it is bounded.
    Sequence,
    /// `exp(mean d)`: the geometric mean of the tokens' ratios, whatever the length.
    Geometric,
}

/// What happens to a weight outside `min..=max`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Bound {
    /// It is cut to the bound (TIS).
    Truncate {
        /// The largest weight.
        max: f64,
        /// The smallest; `None`: 0.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min: Option<f64>,
    },
    /// It becomes 0, and its token still counts in every mean (MIS, IcePop).
    Mask {
        /// The largest weight.
        max: f64,
        /// The smallest; `None`: 0.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min: Option<f64>,
    },
}

/// Importance weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// What a weight is of.
    pub level: Level,
    /// What it may be.
    pub bound: Bound,
    /// Divide by the mean weight: over tokens, or over sequences where a weight is a sequence's.
    #[serde(default)]
    pub normalize: bool,
}

/// Over what the statistic of a rejection is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Each token, which alone is rejected.
    #[default]
    Token,
    /// The sum of a sequence, which is rejected whole.
    SequenceSum,
    /// The mean of a sequence.
    SequenceMean,
    /// The largest of a sequence.
    SequenceMax,
}

/// What is bounded by a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Statistic {
    /// The ratio: `ln low <= d <= ln high`.
    K1 {
        /// The smallest ratio; `None`: `1 / high`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        low: Option<f64>,
        /// The largest ratio.
        high: f64,
        /// Bound `-d` instead: verl's quirk, which turns the bounds over unless `low` is `1 / high`.
        #[serde(default)]
        mirrored: bool,
    },
    /// `d² / 2 <= high`.
    K2 {
        /// The largest value.
        high: f64,
    },
    /// `exp(d) - 1 - d <= high`.
    K3 {
        /// The largest value.
        high: f64,
    },
}

/// A condition that tokens have to meet to stay in the mask.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejection {
    /// Over what.
    #[serde(default)]
    pub over: Over,
    /// Which bound.
    pub statistic: Statistic,
}

/// How tokens that a sampler drew are corrected to the policy that learns from them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutCorrection {
    /// Importance weights; `None`: every weight is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// Conditions, all of which have to hold.
    pub reject: Vec<Rejection>,
}

/// A named correction.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The name.
    pub name: &'static str,
    /// What it is, in a few words.
    pub summary: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    weight: Option<Weight>,
    reject: Option<Rejection>,
}

const fn truncate(level: Level, max: f64) -> Option<Weight> {
    Some(Weight { level, bound: Bound::Truncate { max, min: None }, normalize: false })
}

const fn masked(level: Level, max: f64, min: Option<f64>) -> Option<Weight> {
    Some(Weight { level, bound: Bound::Mask { max, min }, normalize: false })
}

const fn k1(over: Over, low: f64, high: f64) -> Option<Rejection> {
    Some(Rejection { over, statistic: Statistic::K1 { low: Some(low), high, mirrored: true } })
}

/// All named corrections.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "token_tis",
        summary: "token weights, at most 2",
        source: "verl rollout_is=token",
        weight: truncate(Level::Token, 2.0),
        reject: None,
    },
    Preset {
        name: "sequence_tis",
        summary: "sequence weights, at most 2",
        source: "verl rollout_is=sequence",
        weight: truncate(Level::Sequence, 2.0),
        reject: None,
    },
    Preset {
        name: "sequence_mis",
        summary: "sequence weights, at most 2, and sequences outside 1/2..=2 rejected",
        source: "verl decoupled_seq_is_rs",
        weight: truncate(Level::Sequence, 2.0),
        reject: k1(Over::SequenceSum, 0.5, 2.0),
    },
    Preset {
        name: "geometric_rs",
        summary: "sequences whose mean ratio leaves 0.999..=1.001 are rejected",
        source: "verl decoupled_geo_rs",
        weight: None,
        reject: k1(Over::SequenceMean, 0.999, 1.001),
    },
    Preset {
        name: "icepop",
        summary: "token weights, 0 outside 0.5..=5",
        source: "IcePop; verl rollout_is_threshold=0.5_5.0",
        weight: masked(Level::Token, 5.0, Some(0.5)),
        reject: None,
    },
    Preset {
        name: "trl_token_truncate",
        summary: "token weights, at most 3",
        source: "TRL vllm_importance_sampling_mode=token_truncate",
        weight: truncate(Level::Token, 3.0),
        reject: None,
    },
    Preset {
        name: "trl_token_mask",
        summary: "token weights, 0 above 3",
        source: "TRL vllm_importance_sampling_mode=token_mask",
        weight: masked(Level::Token, 3.0, None),
        reject: None,
    },
    Preset {
        name: "trl_sequence_truncate",
        summary: "sequence weights, at most 3",
        source: "TRL vllm_importance_sampling_mode=sequence_truncate",
        weight: truncate(Level::Sequence, 3.0),
        reject: None,
    },
    Preset {
        name: "trl_sequence_mask",
        summary: "sequence weights, 0 above 3",
        source: "TRL vllm_importance_sampling_mode=sequence_mask, its default",
        weight: masked(Level::Sequence, 3.0, None),
        reject: None,
    },
];

impl RolloutCorrection {
    /// The correction of a name of [`PRESETS`]; `-` and `_` are the same.
    ///
    /// # Errors
    /// [`Error::is_invalid`] with all names.
    pub fn preset(name: &str) -> Result<RolloutCorrection> {
        let wanted = name.replace('-', "_");
        match PRESETS.iter().find(|preset| preset.name == wanted) {
            Some(preset) => Ok(RolloutCorrection {
                weight: preset.weight,
                reject: preset.reject.into_iter().collect(),
            }),
            None => {
                let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
                let names = names.join(", ");
                Err(Error::invalid(format!("no rollout correction `{name}`; there are {names}")))
            }
        }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the one that is out of range, or both of two that do not go together.
    pub fn check(&self) -> Result<()> {
        if let Some(weight) = &self.weight {
            let (least, most) = weight.bound.limits();
            check_bounds("weights", least, most)?;
        }
        if self.reject.len() > MAX_REJECTIONS {
            return Err(Error::invalid(format!(
                "rollout_correction: {} rejections; at most {MAX_REJECTIONS}",
                self.reject.len()
            )));
        }
        self.reject.iter().try_for_each(Rejection::check)
    }
}

fn check_bounds(what: &str, low: f64, high: f64) -> Result<()> {
    if low >= 0.0 && low <= high && high > 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "rollout_correction: {what} from {low} to {high}; wanted 0 <= low <= high, high > 0"
    )))
}

impl Bound {
    /// Smallest and largest weight.
    pub(super) fn limits(self) -> (f64, f64) {
        let (Bound::Truncate { max, min } | Bound::Mask { max, min }) = self;
        (min.unwrap_or(0.0), max)
    }
}

impl Rejection {
    fn check(&self) -> Result<()> {
        match self.statistic {
            Statistic::K1 { .. } if self.over == Over::SequenceMax => Err(Error::invalid(
                "rollout_correction: `sequence_max` and `k1` do not go together: a largest log-ratio has no lower side",
            )),
            Statistic::K1 { low, high, .. } => {
                let low = low.unwrap_or(1.0 / high);
                check_bounds("ratios", low, high)?;
                match low > 0.0 && high.is_finite() {
                    true => Ok(()),
                    false => Err(Error::invalid(format!(
                        "rollout_correction: ratios from {low} to {high} have no logarithm"
                    ))),
                }
            }
            Statistic::K2 { high } | Statistic::K3 { high } => {
                check_bounds("divergence", 0.0, high)
            }
        }
    }

    /// The interval that the statistic has to lie in: of `d` itself for k1.
    pub(super) fn interval(&self) -> (f64, f64) {
        match self.statistic {
            Statistic::K1 { low, high, mirrored } => {
                let (low, high) = (low.unwrap_or(1.0 / high).ln(), high.ln());
                if mirrored { (-high, -low) } else { (low, high) }
            }
            Statistic::K2 { high } | Statistic::K3 { high } => (0.0, high),
        }
    }
}
