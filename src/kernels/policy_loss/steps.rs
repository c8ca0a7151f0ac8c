//! An objective taken apart for the CPU: what each step of a token does, decided once for all tokens.

use super::formula::{Bounds, Cispo, Clip, Cpgd, Gmpo, Reinforce, Reshaped, Sapo, Value};
use super::kl::{Estimator, K3Limits};
use super::objective::Objective;
use super::replay::Replay;
use super::surrogate::{Drift, ImportanceLevel, RatioShape, Surrogate};
use crate::kernels::token_selection::Selection;

/// Tokens whose sums make one record.
pub(super) const BLOCK: usize = 4096;

/// What is the same for every token.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub surrogate: SurrogateRule,
    /// The ratio is the sequence's.
    pub of_sequence: bool,
    pub log_ratio_limit: f32,
    pub weighting: Weighting,
    pub pick: Pick,
    pub replay: Option<Replay>,
    pub drift: Option<Drift>,
    pub kl: Option<KlRule>,
    pub entropy_coefficient: f32,
}

/// A surrogate with its numbers ready.
#[derive(Clone, Copy)]
pub(super) enum SurrogateRule {
    Clip(Clip),
    Reshaped(Reshaped),
    Cispo(Cispo),
    Gmpo(Gmpo),
    Sapo(Sapo),
    Reinforce(Reinforce),
    Cpgd(Cpgd),
    /// φ is the sequence's.
    Vespo,
    /// No surrogate: a value function's error.
    Value(Value),
}

impl SurrogateRule {
    fn of(objective: &Objective) -> SurrogateRule {
        let bounds = Bounds::of(&objective.surrogate);
        match &objective.surrogate {
            Surrogate::PpoClip { .. } | Surrogate::Ratio {} => match objective.ratio_shape {
                RatioShape::Plain => SurrogateRule::Clip(Clip(bounds)),
                shape => SurrogateRule::Reshaped(Reshaped { bounds, shape }),
            },
            Surrogate::Cispo { least, most } => {
                SurrogateRule::Cispo(Cispo { least: least.unwrap_or(0.0), most: *most })
            }
            Surrogate::Gmpo { clip_low, clip_high } => {
                SurrogateRule::Gmpo(Gmpo { low: -clip_low, high: *clip_high })
            }
            Surrogate::Sapo { temperature_positive, temperature_negative } => {
                let (positive, negative) = (*temperature_positive, *temperature_negative);
                SurrogateRule::Sapo(Sapo { positive, negative })
            }
            Surrogate::Reinforce {} => SurrogateRule::Reinforce(Reinforce),
            Surrogate::Cpgd { clip_low, clip_high } => {
                let (low, high) = ((-clip_low).ln_1p(), clip_high.ln_1p());
                SurrogateRule::Cpgd(Cpgd { low, high })
            }
            Surrogate::Vespo { .. } => SurrogateRule::Vespo,
        }
    }
}

/// How importance weights enter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weighting {
    /// Each token's surrogate is multiplied by its weight.
    Token,
    /// So is its value, but the gradient goes through the sequence's ratio: it has the mean of them all.
    Mean,
    /// The sequence's surrogate is multiplied by their geometric mean.
    Geometric,
    /// They are in the sequence's ratio already.
    Consumed,
}

/// What happens to tokens that a selection picked.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pick {
    Nothing,
    /// Picked tokens lose their surrogate.
    Drop,
    /// The others do.
    Keep,
    /// Picked tokens pay this much for each unit of |log ratio|.
    Penalise(f32),
}

pub(super) fn weighting_of(objective: &Objective) -> Weighting {
    match (&objective.surrogate, objective.importance_level) {
        (Surrogate::Gmpo { .. }, _) => Weighting::Geometric,
        (Surrogate::Vespo { .. }, _) => Weighting::Consumed,
        // The gradient of CISPO's log-prob is its token's.
        (Surrogate::Cispo { .. }, _) => Weighting::Token,
        (_, ImportanceLevel::Sequence) => Weighting::Mean,
        _ => Weighting::Token,
    }
}

pub(super) fn pick_of(objective: &Objective) -> Pick {
    match objective.selection {
        None => Pick::Nothing,
        Some(Selection::ClipCov { .. }) => Pick::Drop,
        Some(Selection::TopEntropy { .. }) => Pick::Keep,
        Some(Selection::KlCov { coefficient, .. }) => Pick::Penalise(coefficient),
    }
}

#[derive(Clone, Copy)]
pub(super) struct KlRule {
    pub estimator: Estimator,
    pub limits: K3Limits,
    pub coefficient: f32,
    pub bias_correction: bool,
    pub straight_through: bool,
}

impl Rule {
    pub fn of(objective: &Objective) -> Rule {
        let of_sequence = objective.importance_level != ImportanceLevel::Token;
        Rule {
            surrogate: SurrogateRule::of(objective),
            of_sequence,
            // A sequence's ratio is bounded as a whole.
            log_ratio_limit: if of_sequence { f32::INFINITY } else { objective.log_ratio.limit() },
            weighting: weighting_of(objective),
            pick: pick_of(objective),
            replay: objective.replay,
            drift: objective.drift,
            kl: objective.kl.as_ref().map(|kl| KlRule {
                estimator: kl.estimator,
                limits: kl.clamp.limits(),
                coefficient: kl.coefficient,
                bias_correction: kl.bias_correction,
                straight_through: kl.straight_through,
            }),
            entropy_coefficient: objective.entropy_coefficient,
        }
    }
}
