//! The term of replayed (off-policy) tokens: LUFFY's and ExGRPO's policy shaping. Data here; arithmetic in `formula`.

use super::within;
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// What replaces the surrogate on tokens that another policy wrote ([`Inputs::off_policy`](super::Inputs::off_policy)):
/// `-A clamp(f(w), least, most)`, without PPO's clip.
///
/// Source: ExGRPO (arXiv 2510.02245) and LUFFY (arXiv 2504.14945), `mix_core_alg.py` of their release.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replay {
    /// What `w` is.
    pub ratio: ReplayRatio,
    /// What `f` is.
    pub shape: ReplayShape,
    /// Smallest `f(w)`; the gradient is 0 below it.
    pub least: Option<f32>,
    /// Largest `f(w)`; the gradient is 0 above it.
    pub most: Option<f32>,
}

impl Default for Replay {
    fn default() -> Replay {
        Replay {
            ratio: ReplayRatio::Recorded,
            shape: ReplayShape::Sigmoid { beta: 0.1, gain: 1.0 },
            least: None,
            most: None,
        }
    }
}

/// The ratio of a replayed token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ReplayRatio {
    /// To the policy that wrote it, whose log-prob was recorded: `exp(logprob - old_logprob)` (ExGRPO).
    #[default]
    Recorded,
    /// To nothing, the writer being unknown: the probability `exp(logprob)` itself (LUFFY).
    Probability,
}

/// The shaping `f` of a replayed token's ratio `w`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ReplayShape {
    /// `w` (`no_reshape`).
    Plain {},
    /// `weight · logprob` (`logp`).
    Logprob {
        /// The factor.
        weight: f32,
    },
    /// `w + weight · logprob` (`p_logp`).
    RatioPlusLogprob {
        /// Of the log-prob.
        weight: f32,
    },
    /// `w^exponent` (`pow`; `square_root` is 0.5).
    Power {
        /// The exponent.
        exponent: f32,
    },
    /// `gain · w / (w + beta)`, computed as `gain · sigmoid(ln w - ln beta)` so that it never overflows (`p_div_p`).
    ///
    /// With gain 1 (the release) a token at `w = 1` weighs `beta / (1 + beta)²`, 0.083 at beta 0.1, against a fresh
    /// token's 1; [`ReplayShape::balanced`] has the gain that makes it 1.
    Sigmoid {
        /// Where half of the gain is reached.
        beta: f32,
        /// The largest value.
        #[serde(default = "one")]
        gain: f32,
    },
}

fn one() -> f32 {
    1.0
}

impl ReplayShape {
    /// [`ReplayShape::Sigmoid`] with gain `(1 + beta)² / beta`: a replayed token on the policy (`w = 1`) has the
    /// gradient of a fresh one.
    pub fn balanced(beta: f32) -> ReplayShape {
        ReplayShape::Sigmoid { beta, gain: (1.0 + beta) * (1.0 + beta) / beta }
    }
}

impl Replay {
    /// What the old log-prob of a replayed token is where its writer's `probability` is known (LUFFY's `target_probs`): the
    /// ratio [`ReplayRatio::Recorded`] to it is `exp(logprob) / (probability + 1e-6)`. LUFFY does not reshape that ratio.
    pub fn recorded_logprob(probability: f32) -> f32 {
        (probability + 1e-6).ln()
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.shape {
            ReplayShape::Plain {} => {}
            ReplayShape::Logprob { weight } | ReplayShape::RatioPlusLogprob { weight } => {
                within("replay.shape.weight", weight, -f32::MAX, f32::MAX)?;
            }
            ReplayShape::Power { exponent } => {
                within("replay.shape.exponent", exponent, -f32::MAX, f32::MAX)?;
            }
            ReplayShape::Sigmoid { beta, gain } => {
                within("replay.shape.beta", beta, 0.0, f32::MAX)?;
                within("replay.shape.gain", gain, f32::MIN_POSITIVE, f32::MAX)?;
            }
        }
        let finite = |name, bound: Option<f32>| {
            bound.map_or(Ok(()), |bound| within(name, bound, -f32::MAX, f32::MAX))
        };
        finite("replay.least", self.least)?;
        finite("replay.most", self.most)?;
        match (self.least, self.most) {
            (Some(least), Some(most)) => within("replay.least", least, -f32::MAX, most),
            _ => Ok(()),
        }
    }
}
