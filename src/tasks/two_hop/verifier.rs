//! The verdict about a response as a judgement.

use super::exercise::Exercise;
use super::verdict::{Outcome, Verdict, verdict};
use crate::tasks::judgement::{Extent, Judgement, Label, StepVerdict};
use crate::tasks::problem::Problem;
use crate::tasks::verifier::{Attempt, Gives, Verifier};

/// Judges the steps of a response against the given facts, and its answer against the key: 1 for a label that is right,
/// else 0. What is malformed is wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct TwoHopVerifier {
    /// As [`TwoHopConfig::flagged`](super::TwoHopConfig::flagged).
    pub flagged: bool,
}

impl TwoHopVerifier {
    /// The label of a verdict.
    pub fn label(&self, exercise: &Exercise, verdict: &Verdict) -> Label {
        let refused = verdict.outcome == Outcome::Refused;
        if self.flagged && exercise.class.is_unanswerable() {
            return if refused { Label::Right } else { Label::Wrong };
        }
        match verdict.outcome {
            Outcome::Correct => Label::Right,
            Outcome::Refused => Label::Refused,
            Outcome::Wrong | Outcome::Malformed => Label::Wrong,
        }
    }
}

impl Verifier for TwoHopVerifier {
    fn name(&self) -> &str {
        "two_hop"
    }

    fn rewards(&self) -> Vec<String> {
        vec!["right".to_owned()]
    }

    fn gives(&self) -> Gives {
        Gives { label: true, steps: true }
    }

    fn judge(&self, problem: &Problem, attempt: &Attempt<'_>) -> Judgement {
        let Some(exercise) = Exercise::read(problem) else { return Judgement::reward(f32::NAN) };
        let judged = verdict(&exercise, attempt.tokens, !attempt.truncated);
        let label = self.label(&exercise, &judged);
        let steps = judged.steps.iter().map(|step| StepVerdict {
            opening: Extent::Tokens(step.tokens.start..step.tokens.start + 1),
            body: Extent::Tokens(step.tokens.start + 1..step.tokens.end),
            score: f32::from(u8::from(step.supported)),
        });
        Judgement {
            label: Some(label),
            steps: steps.collect(),
            answer: Some(Extent::Tokens(judged.answer)),
            ..Judgement::reward(f32::from(u8::from(label == Label::Right)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::exercise::Class;
    use super::super::source::{TwoHop, TwoHopConfig};
    use super::super::trace::clean_trace;
    use super::*;

    fn label(exercise: &Exercise, response: &[i32], flagged: bool) -> Option<Label> {
        let attempt = Attempt::one_shot("", response, false);
        let judged = TwoHopVerifier { flagged }.judge(&exercise.problem(0), &attempt);
        let right = judged.label == Some(Label::Right);
        assert_eq!(judged.rewards, [f32::from(u8::from(right))]);
        judged.label
    }

    #[test]
    fn labels_follow_the_key_unless_they_know_what_is_missing() {
        let source = TwoHop::new(TwoHopConfig { smudged: 0.0, ..TwoHopConfig::default() }).unwrap();
        let (mut answered, mut refused) = (0, 0);
        for index in 0..200 {
            let exercise = source.exercise(1, index);
            let response = clean_trace(&exercise);
            let labels = [false, true].map(|flagged| label(&exercise, &response, flagged));
            if exercise.class == Class::Answerable {
                answered += 1;
                assert_eq!(labels, [Some(Label::Right); 2]);
            } else {
                refused += 1;
                assert_eq!(labels, [Some(Label::Refused), Some(Label::Right)]);
                // A guess of the key.
                let [first, second] = exercise.relations;
                let guess = [
                    22,
                    exercise.start,
                    first,
                    1,
                    23,
                    1,
                    second,
                    exercise.key,
                    25,
                    exercise.key,
                    29,
                ];
                let labels = [false, true].map(|flagged| label(&exercise, &guess, flagged));
                assert_eq!(labels, [Some(Label::Right), Some(Label::Wrong)]);
            }
            assert_eq!(label(&exercise, &[29], false), Some(Label::Wrong));
        }
        assert!(answered > 20 && refused > 20);
    }

    #[test]
    fn steps_are_where_the_verdict_has_them() {
        let source = TwoHop::new(TwoHopConfig {
            unanswerable: 0.0,
            smudged: 0.0,
            ..TwoHopConfig::default()
        });
        let exercise = source.unwrap().exercise(2, 2);
        let mut response = clean_trace(&exercise);
        response[7] = (response[7] + 1) % 16;
        let judge = |tokens: &[i32], truncated| {
            let attempt = Attempt::one_shot("", tokens, truncated);
            TwoHopVerifier::default().judge(&exercise.problem(0), &attempt)
        };
        let judged = judge(&response, false);
        let step = |start: usize, score| StepVerdict {
            opening: Extent::Tokens(start..start + 1),
            body: Extent::Tokens(start + 1..start + 4),
            score,
        };
        assert_eq!(judged.steps, [step(0, 1.0), step(4, 0.0)]);
        assert_eq!(judged.answer, Some(Extent::Tokens(8..11)));
        assert_eq!(judge(&response, true).label, Some(Label::Wrong));
        let foreign = Problem::text(0, "1+1=", "2");
        let judged = TwoHopVerifier::default().judge(&foreign, &Attempt::one_shot("", &[], false));
        assert!(judged.rewards[0].is_nan());
    }
}
