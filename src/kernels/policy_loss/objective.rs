//! The objective as data: what a recipe names, checked before it is used. No arithmetic on tokens here.

use super::aggregation::Aggregation;
use super::kl::Kl;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A policy-gradient objective: everything about the loss that does not change from step to step.
///
/// `loss = Σ c_i (surrogate_it · weight_it + kl.coefficient · kl_it) - entropy_coefficient Σ e_i · entropy_it` over the
/// live tokens `t` of the sequences `i`, where an [`Aggregation`] each gives the `c_i` and the `e_i`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// The per-token loss.
    pub surrogate: Surrogate,
    /// What a ratio compares.
    pub importance_level: ImportanceLevel,
    /// What keeps `exp` of the log ratio finite.
    pub log_ratio: LogRatio,
    /// Penalty for leaving a reference policy; `None`: the reference is not read.
    pub kl: Option<Kl>,
    /// Weight of the entropy bonus; 0: entropies are only reported.
    pub entropy_coefficient: f32,
    /// How token losses become one number.
    pub aggregation: Aggregation,
    /// How entropies become one number; `None`: as losses do (verl). TRL always takes their mean over tokens.
    pub entropy_aggregation: Option<Aggregation>,
}

/// The per-token loss as a function of the ratio `w = exp(logprob - old_logprob)` and the advantage `A`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Surrogate {
    /// `max(-A min(w, delta), -A clip(w, 1 - clip_low, 1 + clip_high))`, and for `A < 0` at most `-A dual_clip`.
    ///
    /// PPO, GRPO, DAPO (asymmetric), dual clip (arXiv 1912.09729) and TRL's two-sided form. The gradient passes where
    /// the value is the unclipped one, bounds included, and is zero elsewhere.
    PpoClip {
        /// How far below 1 the ratio may go.
        #[serde(default = "default_clip")]
        clip_low: f32,
        /// How far above 1 the ratio may go.
        #[serde(default = "default_clip")]
        clip_high: f32,
        /// Largest ratio that a negative advantage feels (verl: 3).
        #[serde(default)]
        dual_clip: Option<f32>,
        /// Largest ratio in the unclipped branch, for either sign (TRL).
        #[serde(default)]
        delta: Option<f32>,
    },
}

fn default_clip() -> f32 {
    0.2
}

impl Default for Surrogate {
    fn default() -> Surrogate {
        Surrogate::PpoClip {
            clip_low: default_clip(),
            clip_high: default_clip(),
            dual_clip: None,
            delta: None,
        }
    }
}

/// What an importance ratio compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ImportanceLevel {
    /// One token.
    #[default]
    Token,
}

/// What keeps the exponential of a log ratio finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogRatio {
    /// Clamped to ±20, with gradient 0 where the clamp acts (verl).
    #[default]
    Clamped,
    /// Taken as it is (TRL).
    Unclamped,
}

impl LogRatio {
    /// The bound on `|logprob - old_logprob|`.
    pub(super) fn limit(self) -> f32 {
        match self {
            LogRatio::Clamped => 20.0,
            LogRatio::Unclamped => f32::INFINITY,
        }
    }
}

impl Objective {
    /// Checks every number in it.
    ///
    /// # Errors
    /// [`Error::is_invalid`], naming the field, for a value that is not finite or outside its range.
    pub fn check(&self) -> Result<()> {
        let Surrogate::PpoClip { clip_low, clip_high, dual_clip, delta } = &self.surrogate;
        within("clip_low", *clip_low, 0.0, 1.0)?;
        within("clip_high", *clip_high, 0.0, f32::MAX)?;
        if let Some(bound) = dual_clip {
            within("dual_clip", *bound, 1.0, f32::MAX)?;
        }
        if let Some(delta) = delta {
            within("delta", *delta, f32::MIN_POSITIVE, f32::MAX)?;
        }
        if let Some(kl) = &self.kl {
            within("kl.coefficient", kl.coefficient, 0.0, f32::MAX)?;
        }
        within("entropy_coefficient", self.entropy_coefficient, -f32::MAX, f32::MAX)?;
        for aggregation in [Some(&self.aggregation), self.entropy_aggregation.as_ref()] {
            if let Some(length) = aggregation.and_then(Aggregation::length) {
                within("aggregation.length", length, f32::MIN_POSITIVE, f32::MAX)?;
            }
        }
        Ok(())
    }
}

fn within(field: &str, value: f32, least: f32, most: f32) -> Result<()> {
    if value >= least && value <= most {
        return Ok(());
    }
    let range = match (least, most) {
        (f32::MIN_POSITIVE, _) => "finite and above 0".to_string(),
        (least, f32::MAX) if least == -f32::MAX => "finite".to_string(),
        (least, f32::MAX) => format!("finite and at least {least}"),
        _ => format!("in {least}..={most}"),
    };
    Err(Error::invalid(format!("policy_loss: {field} is {value}; it must be {range}")))
}

/// The PPO-clip family as intervals: the loss is `-A clamp(w, low, high)` with bounds chosen by the sign of `A`, and
/// its gradient is `-A w` where the clamp left `w` alone. Every member (asymmetric, dual, two-sided) is such a pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Largest ratio for `A >= 0`; there is no smallest.
    pub high_positive: f32,
    /// Smallest ratio for `A < 0`.
    pub low_negative: f32,
    /// Largest ratio for `A < 0`; it wins over `low_negative`.
    pub high_negative: f32,
    /// Above it a positive advantage counts as clipped; infinite where `delta` already stops every ratio below it.
    pub report_high: f32,
    /// Below it a negative advantage counts as clipped.
    pub report_low: f32,
}

impl Bounds {
    pub(super) fn of(surrogate: &Surrogate) -> Bounds {
        let Surrogate::PpoClip { clip_low, clip_high, dual_clip, delta } = surrogate;
        let (low, high) = (1.0 - clip_low, 1.0 + clip_high);
        let cap = delta.unwrap_or(f32::INFINITY);
        Bounds {
            high_positive: high.min(cap),
            low_negative: low,
            high_negative: high.max(cap).min(dual_clip.unwrap_or(f32::INFINITY)),
            report_high: if cap > high { high } else { f32::INFINITY },
            // With a cap below `low` every ratio of the unclipped branch is.
            report_low: if cap < low { f32::INFINITY } else { low },
        }
    }
}
