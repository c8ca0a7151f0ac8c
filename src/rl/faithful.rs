//! Rewards by the label of an outcome: right, refused, wrong (hallucinated). The geometric reward of FaithRL and its rivals.
//!
//! A verifier gives labels; what a label is worth is decided here, on the host, one number a response. Step-level credit
//! is a kernel family: [`step_credit`](crate::kernels::step_credit).

use crate::error::{Error, Result};
use crate::tasks::Label;
use serde::{Deserialize, Serialize};

/// How often a policy is right and how often it hallucinates, measured before training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Rate of correct answers `x0`.
    pub correct: f64,
    /// Rate of hallucinations `y0`.
    pub hallucinated: f64,
}

impl Baseline {
    /// A baseline from counted outcomes.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when there is none.
    pub fn measured(outcomes: &[Label]) -> Result<Baseline> {
        if outcomes.is_empty() {
            return Err(Error::invalid("faithful: a baseline of no outcomes"));
        }
        let share =
            |label| outcomes.iter().filter(|o| **o == label).count() as f64 / outcomes.len() as f64;
        Ok(Baseline { correct: share(Label::Right), hallucinated: share(Label::Wrong) })
    }

    /// The same with both rates at least `floor`: a baseline without hallucinations would make a correct answer worth
    /// nothing.
    #[must_use]
    pub fn at_least(self, floor: f64) -> Baseline {
        Baseline { correct: self.correct.max(floor), hallucinated: self.hallucinated.max(floor) }
    }

    /// Checks the rates.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for one outside `0..=1`.
    pub fn check(&self) -> Result<()> {
        for (name, rate) in [("correct", self.correct), ("hallucinated", self.hallucinated)] {
            if !(0.0..=1.0).contains(&rate) {
                return Err(Error::invalid(format!("faithful: baseline rate `{name}` is {rate}")));
            }
        }
        Ok(())
    }

    /// Answering beats refusing, for the geometric reward, where the chance of being right is above `x0 / (x0 + y0)`: the
    /// baseline's precision when it answers. 0 when it never answers.
    pub fn threshold(&self) -> f64 {
        let answered = self.correct + self.hallucinated;
        if answered > 0.0 { self.correct / answered } else { 0.0 }
    }

    /// The truthful helpfulness score of a policy that is right at rate `correct` and hallucinates at rate
    /// `hallucinated`: `x1 - x0 y1 / y0`; 0 when the baseline does not hallucinate.
    pub fn truthful_helpfulness(&self, correct: f64, hallucinated: f64) -> f64 {
        if self.hallucinated > 0.0 {
            correct - self.correct * hallucinated / self.hallucinated
        } else {
            0.0
        }
    }
}

/// What an outcome is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OutcomeReward {
    /// 1 for correct, else 0.
    Binary {},
    /// 1 correct, 0 refused, -1 hallucinated (TruthRL).
    Ternary {},
    /// `y0` correct, 0 refused, `-x0` hallucinated (FaithRL). After a group's z-score this is the ternary reward
    /// `{1, x0 / (x0 + y0), 0}`: it differs from the others only in groups with a refusal.
    Geometric {
        /// The rates before training.
        baseline: Baseline,
    },
    /// The score itself: what a verifier of several parts has added up ([`knowledge_score`]) passes through (KnowRL).
    Score {},
}

/// How a penalty for length meets the mapping of labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// The label's worth minus the penalty.
    #[default]
    ByLabel,
    /// FaithRL's released code, a quirk: [`OutcomeReward::of_total`] of the score minus the penalty. So a correct answer with a
    /// penalty is not "correct": the geometric reward leaves its raw 0.8 (more than `y0`), the others count it as neither.
    Thresholded,
}

impl OutcomeReward {
    /// The reward of one response.
    pub fn reward(&self, label: Label, length_penalty: f64, mapping: Mapping) -> f64 {
        match mapping {
            Mapping::ByLabel => self.worth(label) - length_penalty,
            Mapping::Thresholded => self.of_total(label.score() - length_penalty),
        }
    }

    /// The reward of a response by its total score, as FaithRL's released code maps it (`USE_REWARD`): at least 0.999 is
    /// correct, at most -0.999 is hallucinated. What lies between is neither, but for the geometric reward, which leaves it as
    /// it is. [`OutcomeReward::Score`] leaves every total as it is.
    pub fn of_total(&self, total: f64) -> f64 {
        match self {
            OutcomeReward::Score {} => total,
            _ if total >= 0.999 => self.worth(Label::Right),
            _ if total <= -0.999 => self.worth(Label::Wrong),
            OutcomeReward::Geometric { .. } => total,
            _ => self.worth(Label::Refused),
        }
    }

    fn worth(&self, label: Label) -> f64 {
        match (self, label) {
            (_, Label::Refused) | (OutcomeReward::Binary {}, Label::Wrong) => 0.0,
            (OutcomeReward::Geometric { baseline }, Label::Right) => baseline.hallucinated,
            (OutcomeReward::Geometric { baseline }, Label::Wrong) => -baseline.correct,
            _ => label.score(),
        }
    }
}

/// FaithRL's penalty for length: 0.2 for each started 100 tokens over 500.
pub fn length_penalty(tokens: usize) -> f64 {
    0.2 * tokens.saturating_sub(500).div_ceil(100) as f64
}

/// KnowRL's score as FaithRL's released code adds it up: 1 for a response of the form that was asked for and -1 for any other,
/// 2 for a correct answer, 1 for a refusal and -1 for a hallucination, and the share of the steps that the documents support.
/// [`OutcomeReward::Score`] passes it through.
pub fn knowledge_score(label: Label, well_formed: bool, supported: f64) -> f64 {
    let form = if well_formed { 1.0 } else { -1.0 };
    let answer = match label {
        Label::Right => 2.0,
        Label::Refused => 1.0,
        Label::Wrong => -1.0,
    };
    form + answer + supported
}

/// The reward of a stated confidence (RLCR): `1 - (correct - confidence)²`.
pub fn calibration_reward(correct: bool, confidence: f64) -> f64 {
    1.0 - (f64::from(u8::from(correct)) - confidence).powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASELINE: Baseline = Baseline { correct: 0.6, hallucinated: 0.2 };

    #[test]
    fn a_label_has_its_worth() {
        let geometric = OutcomeReward::Geometric { baseline: BASELINE };
        let all = [Label::Right, Label::Refused, Label::Wrong];
        let worth = |rule: OutcomeReward| all.map(|o| rule.reward(o, 0.0, Mapping::ByLabel));
        assert_eq!(worth(geometric), [0.2, 0.0, -0.6]);
        assert_eq!(worth(OutcomeReward::Ternary {}), [1.0, 0.0, -1.0]);
        assert_eq!(worth(OutcomeReward::Binary {}), [1.0, 0.0, 0.0]);
        let long = |mapping| geometric.reward(Label::Right, length_penalty(501), mapping);
        assert_eq!((long(Mapping::ByLabel), long(Mapping::Thresholded)), (0.0, 0.8));
    }

    #[test]
    fn totals_of_any_size_are_mapped_as_the_release_does() {
        let rules = [
            OutcomeReward::Binary {},
            OutcomeReward::Ternary {},
            OutcomeReward::Geometric { baseline: BASELINE },
            OutcomeReward::Score {},
        ];
        let mapped = |total| rules.map(|rule| rule.of_total(total));
        assert_eq!(mapped(1.0), [1.0, 1.0, 0.2, 1.0]);
        assert_eq!(mapped(0.35), [0.0, 0.0, 0.35, 0.35]);
        assert_eq!(mapped(-0.2), [0.0, 0.0, -0.2, -0.2]);
        assert_eq!(mapped(-1.4), [0.0, -1.0, -0.6, -1.4]);
        let passed = OutcomeReward::Score {}.reward(Label::Right, 0.4, Mapping::Thresholded);
        assert_eq!(passed, 0.6);
        assert_eq!(knowledge_score(Label::Right, true, 0.5), 3.5);
        assert_eq!(knowledge_score(Label::Wrong, false, 0.0), -2.0);
    }

    #[test]
    fn length_is_free_up_to_500_tokens() {
        let penalties = [0, 500, 501, 600, 601].map(length_penalty);
        assert_eq!(penalties, [0.0, 0.0, 0.2, 0.2, 0.4]);
    }

    #[test]
    fn answering_pays_above_the_precision_of_the_baseline() {
        assert_eq!(BASELINE.threshold(), 0.6 / 0.8);
        let geometric = OutcomeReward::Geometric { baseline: BASELINE };
        let value = |o| geometric.reward(o, 0.0, Mapping::ByLabel);
        let expected = |p: f64| p * value(Label::Right) + (1.0 - p) * value(Label::Wrong);
        assert!(expected(0.76) > 0.0 && expected(0.74) < 0.0);
        let never = Baseline { correct: 0.0, hallucinated: 0.0 };
        assert_eq!((never.threshold(), never.truthful_helpfulness(0.5, 0.1)), (0.0, 0.0));
    }

    #[test]
    fn the_score_of_the_baseline_itself_is_zero() {
        assert!((BASELINE.truthful_helpfulness(0.7, 0.1) - 0.4).abs() < 1e-12);
        assert!(BASELINE.truthful_helpfulness(0.6, 0.2).abs() < 1e-12);
        let outcomes = [Label::Right, Label::Refused, Label::Right, Label::Wrong];
        let measured = Baseline::measured(&outcomes).unwrap();
        assert_eq!(measured, Baseline { correct: 0.5, hallucinated: 0.25 });
        assert!(Baseline::measured(&[]).is_err_and(|e| e.is_invalid()));
        assert_eq!(Baseline { correct: 0.5, hallucinated: 0.0 }.at_least(0.01).hallucinated, 0.01);
        assert!(
            Baseline { correct: 1.5, hallucinated: 0.0 }.check().is_err_and(|e| e.is_invalid())
        );
    }
}
