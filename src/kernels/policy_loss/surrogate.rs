//! The per-token losses as data, and what their ratios compare. The arithmetic is in `formula`.

use super::within;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The per-token loss as a function of the ratio `w = exp(logprob - old_logprob)` and the advantage `A`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Surrogate {
    /// `max(-A min(w, delta), -A clip(w, 1 - clip_low, 1 + clip_high))`, and for `A < 0` at most `-A dual_clip`.
    ///
    /// PPO, GRPO, DAPO (asymmetric), dual clip (arXiv 1912.09729) and TRL's two-sided form; GSPO with
    /// [`ImportanceLevel::Sequence`]. The gradient passes where the value is the unclipped one, bounds included, and
    /// is zero elsewhere.
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
    /// `-A w`: the policy gradient with importance sampling and without a clip. KL-Cov (arXiv 2505.22617) and the
    /// released ExGRPO with `loss_remove_clip` stand on it.
    Ratio {},
    /// `-A sg(clamp(w, least, most)) logprob`: CISPO (arXiv 2506.13585). The gradient is `-A clamp(w)`, never cut.
    ///
    /// Bounds are of the ratio itself. verl has both, `1 - clip_low` and `1 + clip_high`; TRL and MiniMax have an upper
    /// one alone (TRL calls it `epsilon_high` and does not add 1 to it).
    Cispo {
        /// Smallest weight; absent: none (TRL).
        #[serde(default)]
        least: Option<f32>,
        /// Largest weight.
        most: f32,
    },
    /// `-A exp(mean of d)` over the sequence, `d` the log ratio kept below `clip_high` for `A > 0` and above
    /// `-clip_low` for `A < 0`: GMPO (arXiv 2507.20673). Clips are of the *log* ratio. One advantage a sequence.
    ///
    /// Importance weights enter as their geometric mean over the sequence (verl).
    Gmpo {
        /// How far below 0 the log ratio may go.
        clip_low: f32,
        /// How far above 0 the log ratio may go.
        clip_high: f32,
    },
    /// `-A (4 / τ) sigmoid(τ (w - 1))`, τ by the sign of `A`: SAPO (arXiv 2511.20347).
    Sapo {
        /// τ for `A > 0`.
        temperature_positive: f32,
        /// τ for `A <= 0`.
        temperature_negative: f32,
    },
    /// `-A logprob`: REINFORCE, GPG (arXiv 2504.02546). The old log-prob is read for metrics only.
    Reinforce {},
    /// `-A clipped logprob`: at most `old + ln(1 + clip_high)` for `A > 0`, at least `old + ln(1 - clip_low)` else; CPGD
    /// (arXiv 2505.12504). The gradient is `-A` inside and 0 outside, whatever the ratio.
    Cpgd {
        /// How far below 1 the ratio may go.
        #[serde(default = "default_clip")]
        clip_low: f32,
        /// How far above 1 the ratio may go.
        #[serde(default = "default_clip")]
        clip_high: f32,
    },
    /// `-sg(φ(W)) A logprob`, `W` the ratio of the whole sequence (its product), `φ(W) = e^λ W^k e^{-λ W}` so that
    /// `φ(1) = 1`: VESPO (arXiv 2602.10693) as TRL has it. Importance weights multiply into `W` and nowhere else; `ln W` is kept in
    /// `ln 1e-8..=20`, and a `φ` that is not finite is 0.
    Vespo {
        /// k for `A >= 0`.
        k_positive: f32,
        /// λ for `A >= 0`.
        lambda_positive: f32,
        /// k for `A < 0`.
        k_negative: f32,
        /// λ for `A < 0`.
        lambda_negative: f32,
    },
}

fn default_clip() -> f32 {
    0.2
}

impl Default for Surrogate {
    fn default() -> Surrogate {
        Surrogate::clip(default_clip(), default_clip())
    }
}

impl Surrogate {
    /// [`Surrogate::PpoClip`] with neither a dual clip nor a delta.
    pub fn clip(clip_low: f32, clip_high: f32) -> Surrogate {
        Surrogate::PpoClip { clip_low, clip_high, dual_clip: None, delta: None }
    }

    /// Its name in a settings file.
    pub fn name(&self) -> &'static str {
        match self {
            Surrogate::PpoClip { .. } => "ppo-clip",
            Surrogate::Ratio {} => "ratio",
            Surrogate::Cispo { .. } => "cispo",
            Surrogate::Gmpo { .. } => "gmpo",
            Surrogate::Sapo { .. } => "sapo",
            Surrogate::Reinforce {} => "reinforce",
            Surrogate::Cpgd { .. } => "cpgd",
            Surrogate::Vespo { .. } => "vespo",
        }
    }

    /// It makes a ratio of a whole sequence by itself.
    pub(super) fn is_of_sequences(&self) -> bool {
        matches!(self, Surrogate::Gmpo { .. } | Surrogate::Vespo { .. })
    }

    pub(super) fn check(&self) -> Result<()> {
        match self {
            Surrogate::PpoClip { clip_low, clip_high, dual_clip, delta } => {
                within("clip_low", *clip_low, 0.0, f32::MAX)?;
                within("clip_high", *clip_high, 0.0, f32::MAX)?;
                if let Some(bound) = dual_clip {
                    within("dual_clip", *bound, 1.0, f32::MAX)?;
                }
                delta.map_or(Ok(()), |delta| within("delta", delta, f32::MIN_POSITIVE, f32::MAX))
            }
            Surrogate::Ratio {} | Surrogate::Reinforce {} => Ok(()),
            Surrogate::Cispo { least, most } => {
                within("most", *most, f32::MIN_POSITIVE, f32::MAX)?;
                least.map_or(Ok(()), |least| within("least", least, 0.0, *most))
            }
            Surrogate::Gmpo { clip_low, clip_high } => {
                within("clip_low", *clip_low, 0.0, f32::MAX)?;
                within("clip_high", *clip_high, 0.0, f32::MAX)
            }
            Surrogate::Sapo { temperature_positive, temperature_negative } => {
                within("temperature_positive", *temperature_positive, 1e-6, f32::MAX)?;
                within("temperature_negative", *temperature_negative, 1e-6, f32::MAX)
            }
            Surrogate::Cpgd { clip_low, clip_high } => {
                within("clip_high", *clip_high, 0.0, f32::MAX)?;
                // 1 - clip_low has a logarithm.
                within("clip_low", *clip_low, 0.0, 1.0 - f32::EPSILON)
            }
            Surrogate::Vespo { k_positive, lambda_positive, k_negative, lambda_negative } => {
                within("k_positive", *k_positive, -f32::MAX, f32::MAX)?;
                within("k_negative", *k_negative, -f32::MAX, f32::MAX)?;
                within("lambda_positive", *lambda_positive, 1e-4, f32::MAX)?;
                within("lambda_negative", *lambda_negative, 1e-4, f32::MAX)
            }
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
    /// A sequence: `s = exp(mean of its log ratios)`, the same for each of its tokens: GSPO (arXiv 2507.18071). The
    /// gradient is that of this value, importance weights and selections included. One advantage a sequence.
    Sequence,
    /// The value of `Sequence` with the gradient of a token: `sg(s) logprob / sg(logprob)`, GSPO-token, which may have
    /// an advantage a token. With one a sequence and no weights it equals `Sequence`.
    SequenceToken,
}

impl ImportanceLevel {
    /// Its name in a settings file.
    pub fn name(self) -> &'static str {
        match self {
            ImportanceLevel::Token => "token",
            ImportanceLevel::Sequence => "sequence",
            ImportanceLevel::SequenceToken => "sequence-token",
        }
    }
}

/// What keeps the exponential of a log ratio finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogRatio {
    /// A token's to ±20, a sequence's mean to at most 10, with gradient 0 where the clamp acts (verl).
    #[default]
    Clamped,
    /// Taken as it is (TRL).
    Unclamped,
}

/// The largest mean log ratio of a sequence (verl's GSPO).
const SEQUENCE_LIMIT: f32 = 10.0;

impl LogRatio {
    /// The bound on a token's `|logprob - old_logprob|`.
    pub(super) fn limit(self) -> f32 {
        match self {
            LogRatio::Clamped => 20.0,
            LogRatio::Unclamped => f32::INFINITY,
        }
    }

    /// The bound on a sequence's mean log ratio, from above alone.
    pub(super) fn sequence_limit(self) -> f32 {
        match self {
            LogRatio::Clamped => SEQUENCE_LIMIT,
            LogRatio::Unclamped => f32::INFINITY,
        }
    }
}

/// What stands for the ratio in [`Surrogate::PpoClip`] and [`Surrogate::Ratio`]: `on_policy_reshape` of LUFFY and ExGRPO.
/// Anything but `plain` is there to reproduce them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum RatioShape {
    /// `w`.
    #[default]
    Plain,
    /// `ln w` (`logp`).
    Logarithm {},
    /// `w + weight ln w` (`p_logp`).
    RatioPlusLogarithm {
        /// Of the logarithm.
        weight: f32,
    },
    /// `w^exponent` (`pow`; `square_root` is 0.5).
    Power {
        /// The exponent.
        exponent: f32,
    },
    /// `f(p) / f(p_old)` with `f(p) = p / (p + offset)`, of the probabilities themselves (`p_div_p_X`, X any offset).
    Probability {
        /// Added to each probability.
        offset: f32,
    },
}

impl RatioShape {
    pub(super) fn check(self) -> Result<()> {
        match self {
            RatioShape::Plain | RatioShape::Logarithm {} => Ok(()),
            RatioShape::RatioPlusLogarithm { weight } => {
                within("ratio_shape.weight", weight, -f32::MAX, f32::MAX)
            }
            RatioShape::Power { exponent } => {
                within("ratio_shape.exponent", exponent, -f32::MAX, f32::MAX)
            }
            RatioShape::Probability { offset } => {
                within("ratio_shape.offset", offset, 0.0, f32::MAX)
            }
        }
    }
}

/// CPGD's policy drift: `coefficient · sg(min(w - 1, cap)) · logprob` beside the surrogate, whose gradient is that of
/// `w - 1 - ln w`, the divergence of the old policy from the new one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drift {
    /// Its weight in the loss.
    pub coefficient: f32,
    /// The largest `w - 1`.
    pub cap: f32,
}

impl Default for Drift {
    fn default() -> Drift {
        Drift { coefficient: 0.001, cap: 2.0 }
    }
}

impl Drift {
    pub(super) fn check(self) -> Result<()> {
        within("drift.coefficient", self.coefficient, 0.0, f32::MAX)?;
        within("drift.cap", self.cap, f32::MIN_POSITIVE, f32::MAX)
    }
}

/// Two parts of an objective that do not go together.
pub(super) fn together(one: &str, other: &str, why: &str) -> Error {
    Error::invalid(format!("policy_loss: {one} does not go with {other}: {why}"))
}
