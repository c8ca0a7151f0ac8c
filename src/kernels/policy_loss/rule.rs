//! The objective as the kernels read it.

use super::aggregation::{Aggregation, Rows};
use super::formula::Bounds;
use super::kl::Estimator;
use super::objective::Objective;
use super::replay::{Replay, ReplayRatio, ReplayShape};
use super::steps::{Pick, Weighting, pick_of, weighting_of};
use super::surrogate::{ImportanceLevel, RatioShape, Surrogate};
use super::value::ValueLoss;
use crate::kernels::args::{
    self, AggregationRule, ClipBounds, ObjectiveRule, ReplayRule, SurrogateNumbers,
};

pub(super) fn of(objective: &Objective) -> ObjectiveRule {
    let kl = objective.kl.as_ref();
    let limits = kl.map_or((0.0, 0.0), |kl| kl.clamp.bounds());
    let of_loss = aggregation(&objective.aggregation);
    let or_of_loss = |of: Option<&Aggregation>| of.map_or(of_loss, aggregation);
    let (ratio_shape, ratio_number) = match objective.ratio_shape {
        RatioShape::Plain => (args::RATIO_PLAIN, 0.0),
        RatioShape::Logarithm {} => (args::RATIO_LOGARITHM, 0.0),
        RatioShape::RatioPlusLogarithm { weight } => (args::RATIO_PLUS_LOGARITHM, weight),
        RatioShape::Power { exponent } => (args::RATIO_POWER, exponent),
        RatioShape::Probability { offset } => (args::RATIO_PROBABILITY, offset.ln()),
    };
    let (pick, pick_coefficient) = match pick_of(objective) {
        Pick::Nothing => (args::PICK_NOTHING, 0.0),
        Pick::Drop => (args::PICK_DROP, 0.0),
        Pick::Keep => (args::PICK_KEEP, 0.0),
        Pick::Penalise(coefficient) => (args::PICK_PENALISE, coefficient),
    };
    let (surrogate, numbers) = surrogate(&objective.surrogate);
    ObjectiveRule {
        of_loss,
        of_kl: or_of_loss(kl.and_then(|kl| kl.aggregation.as_ref())),
        of_entropy: or_of_loss(objective.entropy_aggregation.as_ref()),
        clip: clip(&objective.surrogate),
        numbers,
        replay: replay(objective.replay.as_ref()),
        surrogate,
        of_sequence: u32::from(objective.importance_level != ImportanceLevel::Token),
        ratio_shape,
        ratio_number,
        log_ratio_limit: objective.log_ratio.limit(),
        sequence_limit: objective.log_ratio.sequence_limit(),
        weighting: match weighting_of(objective) {
            Weighting::Token => args::WEIGHTING_TOKEN,
            Weighting::Mean => args::WEIGHTING_MEAN,
            Weighting::Geometric => args::WEIGHTING_GEOMETRIC,
            Weighting::Consumed => args::WEIGHTING_CONSUMED,
        },
        pick,
        pick_coefficient,
        has_off_policy_threshold: u32::from(objective.off_policy_threshold.is_some()),
        off_policy_threshold: objective.off_policy_threshold.unwrap_or(0.0),
        drift_coefficient: objective.drift.map_or(0.0, |drift| drift.coefficient),
        drift_cap: objective.drift.map_or(0.0, |drift| drift.cap),
        has_drift: u32::from(objective.drift.is_some()),
        kl_coefficient: kl.map_or(0.0, |kl| kl.coefficient),
        kl_argument_limit: limits.0,
        kl_value_limit: limits.1,
        kl: kl.map_or(args::KL_NONE, |kl| match kl.estimator {
            Estimator::K1 => args::KL_K1,
            Estimator::K2 => args::KL_K2,
            Estimator::K3 => args::KL_K3,
            Estimator::Abs => args::KL_ABS,
        }),
        kl_bias_correction: u32::from(kl.is_some_and(|kl| kl.bias_correction)),
        kl_straight_through: u32::from(kl.is_some_and(|kl| kl.straight_through)),
        entropy_coefficient: objective.entropy_coefficient,
        unused: 0,
    }
}

/// A value function's loss in an objective's place.
pub(super) fn of_value(loss: &ValueLoss) -> ObjectiveRule {
    let carrier = of(&loss.carrier());
    ObjectiveRule {
        surrogate: args::SURROGATE_VALUE,
        numbers: SurrogateNumbers { high: loss.clip(), ..carrier.numbers },
        log_ratio_limit: f32::INFINITY,
        ..carrier
    }
}

fn clip(of: &Surrogate) -> ClipBounds {
    let bounds = Bounds::of(of);
    ClipBounds {
        high_positive: bounds.high_positive,
        low_negative: bounds.low_negative,
        high_negative: bounds.high_negative,
        report_high: bounds.report_high,
        report_low: bounds.report_low,
    }
}

fn surrogate(of: &Surrogate) -> (u32, SurrogateNumbers) {
    let none = SurrogateNumbers {
        low: 0.0,
        high: 0.0,
        positive: 0.0,
        negative: 0.0,
        lambda_positive: 0.0,
        lambda_negative: 0.0,
    };
    match of {
        Surrogate::PpoClip { .. } | Surrogate::Ratio {} => (args::SURROGATE_CLIP, none),
        Surrogate::Cispo { least, most } => {
            let (low, high) = (least.unwrap_or(0.0), *most);
            (args::SURROGATE_CISPO, SurrogateNumbers { low, high, ..none })
        }
        Surrogate::Gmpo { clip_low, clip_high } => {
            let (low, high) = (-clip_low, *clip_high);
            (args::SURROGATE_GMPO, SurrogateNumbers { low, high, ..none })
        }
        Surrogate::Sapo { temperature_positive, temperature_negative } => {
            let (positive, negative) = (*temperature_positive, *temperature_negative);
            (args::SURROGATE_SAPO, SurrogateNumbers { positive, negative, ..none })
        }
        Surrogate::Reinforce {} => (args::SURROGATE_REINFORCE, none),
        Surrogate::Cpgd { clip_low, clip_high } => {
            let (low, high) = ((-clip_low).ln_1p(), clip_high.ln_1p());
            (args::SURROGATE_CPGD, SurrogateNumbers { low, high, ..none })
        }
        Surrogate::Vespo { k_positive, lambda_positive, k_negative, lambda_negative } => {
            let numbers = SurrogateNumbers {
                positive: *k_positive,
                negative: *k_negative,
                lambda_positive: *lambda_positive,
                lambda_negative: *lambda_negative,
                ..none
            };
            (args::SURROGATE_VESPO, numbers)
        }
    }
}

fn replay(of: Option<&Replay>) -> ReplayRule {
    let (shape, number, gain) = match of.map(|replay| replay.shape) {
        None => (args::REPLAY_NONE, 0.0, 0.0),
        Some(ReplayShape::Plain {}) => (args::REPLAY_PLAIN, 0.0, 0.0),
        Some(ReplayShape::Logprob { weight }) => (args::REPLAY_LOGPROB, weight, 0.0),
        Some(ReplayShape::RatioPlusLogprob { weight }) => {
            (args::REPLAY_RATIO_PLUS_LOGPROB, weight, 0.0)
        }
        Some(ReplayShape::Power { exponent }) => (args::REPLAY_POWER, exponent, 0.0),
        Some(ReplayShape::Sigmoid { beta, gain }) => (args::REPLAY_SIGMOID, beta.ln(), gain),
    };
    ReplayRule {
        shape,
        probability: u32::from(of.is_some_and(|of| of.ratio == ReplayRatio::Probability)),
        number,
        gain,
        least: of.and_then(|of| of.least).unwrap_or(f32::NEG_INFINITY),
        most: of.and_then(|of| of.most).unwrap_or(f32::INFINITY),
    }
}

fn aggregation(of: &Aggregation) -> AggregationRule {
    let (mode, rows) = match of {
        Aggregation::TokenMean {} => (args::AGGREGATION_TOKEN_MEAN, Rows::NonEmpty),
        Aggregation::SequenceMeanTokenMean { rows } => {
            (args::AGGREGATION_SEQUENCE_MEAN_TOKEN_MEAN, *rows)
        }
        Aggregation::SequenceMeanTokenSum { rows, .. } | Aggregation::SequenceLength { rows } => {
            (args::AGGREGATION_SEQUENCE_MEAN_TOKEN_SUM, *rows)
        }
        Aggregation::TokenSum { .. } => (args::AGGREGATION_TOKEN_SUM, Rows::NonEmpty),
    };
    let length = f64::from(of.length().unwrap_or(1.0));
    AggregationRule { length, mode, all_rows: u32::from(rows == Rows::All) }
}
