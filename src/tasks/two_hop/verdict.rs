//! Judging a response: its form, its answer, and every step against the given facts.

use super::exercise::{Exercise, Fact};
use super::ids::{ANSWER, END, FIRST_STEP, REFUSAL, STEPS, is_entity, is_relation};
use std::ops::Range;

/// What a response comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its answer is the key.
    Correct,
    /// It refuses.
    Refused,
    /// Its answer is something else.
    Wrong,
    /// It is no chain of steps with an answer.
    Malformed,
}

/// A step of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its tokens in the response, the number first.
    pub tokens: Range<usize>,
    /// The claimed fact is given, has the asked relation and goes on from the step before.
    pub supported: bool,
}

/// A judged response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it comes to, by the answer key.
    pub outcome: Outcome,
    /// Its steps, as far as they can be read.
    pub steps: Vec<Step>,
    /// The tokens of the answer, its mark and the end among them, and of a step that a refusal leaves open; empty where
    /// there is none.
    pub answer: Range<usize>,
}

impl Verdict {
    /// Steps that are not supported.
    pub fn unsupported(&self) -> usize {
        self.steps.iter().filter(|step| !step.supported).count()
    }
}

/// Judges a response; `ended`: it was not cut off.
///
/// A refusal may stand at any step boundary, or in a step in place of its tail: a look-up that finds nothing and claims
/// nothing. An answer comes after the second step or the third. Two steps have the asked relations; a third may claim
/// any fact about the end of the second. Anything else is malformed. Never panics.
pub fn verdict(exercise: &Exercise, response: &[i32], ended: bool) -> Verdict {
    let mut steps: Vec<Step> = Vec::new();
    let mut head = exercise.start;
    let mut at = 0;
    while steps.len() < STEPS {
        let Some([number, claim @ ..]) = response.get(at..at + 4) else { break };
        let claim = match *claim {
            [head, relation, tail]
                if *number == FIRST_STEP + steps.len() as i32
                    && is_entity(head)
                    && is_relation(relation)
                    && is_entity(tail) =>
            {
                Fact { head, relation, tail }
            }
            _ => break,
        };
        let asked = exercise.relations.get(steps.len());
        let supported = claim.head == head
            && asked.is_none_or(|relation| *relation == claim.relation)
            && exercise.supports(&claim);
        steps.push(Step { tokens: at..at + 4, supported });
        head = claim.tail;
        at += 4;
    }
    let rest = response.get(at..).unwrap_or_default();
    let next = FIRST_STEP + steps.len() as i32;
    let outcome = match *rest {
        [ANSWER, REFUSAL, END] if ended => Outcome::Refused,
        [number, head, relation, ANSWER, REFUSAL, END]
            if ended
                && steps.len() < STEPS
                && number == next
                && is_entity(head)
                && is_relation(relation) =>
        {
            Outcome::Refused
        }
        [ANSWER, entity, END] if ended && is_entity(entity) && steps.len() >= 2 => {
            if entity == exercise.key { Outcome::Correct } else { Outcome::Wrong }
        }
        _ => Outcome::Malformed,
    };
    let is_answer = rest.first() == Some(&ANSWER) || outcome == Outcome::Refused;
    let answer = if is_answer { at..response.len() } else { at..at };
    Verdict { outcome, steps, answer }
}

#[cfg(test)]
mod tests {
    use super::super::exercise::Class;
    use super::super::ids::SMUDGED;
    use super::*;
    use proptest::prelude::*;

    /// `5 -r16-> 6 -r17-> 0`, and `6 ~ 3` where worn.
    fn exercise(second: Fact) -> Exercise {
        Exercise {
            facts: vec![Fact { head: 5, relation: 16, tail: 6 }, second],
            start: 5,
            relations: [16, 17],
            middle: Some(6),
            key: 0,
            class: Class::Answerable,
        }
    }

    fn judged(response: &[i32]) -> (Outcome, Vec<bool>) {
        let exercise = exercise(Fact { head: 6, relation: 17, tail: 0 });
        let judged = verdict(&exercise, response, true);
        (judged.outcome, judged.steps.iter().map(|step| step.supported).collect())
    }

    #[test]
    fn every_step_is_checked() {
        use Outcome::{Correct, Malformed, Refused, Wrong};
        for (response, outcome, steps) in [
            (&[22, 5, 16, 6, 23, 6, 17, 0, 25, 0, 29][..], Correct, vec![true, true]),
            (&[22, 5, 16, 6, 23, 6, 17, 0, 25, 1, 29], Wrong, vec![true, true]),
            (&[22, 5, 16, 7, 23, 7, 17, 0, 25, 0, 29], Correct, vec![false, false]),
            // A given fact that does not go on from the step before.
            (&[22, 5, 16, 7, 23, 6, 17, 0, 25, 0, 29], Correct, vec![false, false]),
            // A given fact of the wrong relation.
            (&[22, 5, 17, 6, 23, 6, 17, 0, 25, 0, 29], Correct, vec![false, true]),
            (
                &[22, 5, 16, 6, 23, 6, 17, 0, 24, 0, 18, 2, 25, 0, 29],
                Correct,
                vec![true, true, false],
            ),
            (&[25, 26, 29], Refused, vec![]),
            (&[22, 5, 16, 6, 25, 26, 29], Refused, vec![true]),
            (&[22, 5, 16, 25, 26, 29], Refused, vec![]),
            (&[22, 5, 16, 6, 23, 6, 17, 25, 26, 29], Refused, vec![true]),
            (&[22, 5, 16, 6, 23, 6, 25, 26, 29], Malformed, vec![true]),
            (&[22, 5, 16, 6, 23, 6, 17, 25, 3, 29], Malformed, vec![true]),
            (&[22, 5, 16, 6, 25, 0, 29], Malformed, vec![true]),
            (&[23, 5, 16, 6, 25, 26, 29], Malformed, vec![]),
            (&[22, 5, 16, 6, 23, 6, 17, 0, 25, 17, 29], Malformed, vec![true, true]),
            (&[22, 5, 16, 6, 23, 6, 17, 0, 25, 0], Malformed, vec![true, true]),
            (&[], Malformed, vec![]),
        ] {
            assert_eq!(judged(response), (outcome, steps), "{response:?}");
        }
        let worn = exercise(Fact { head: 6, relation: SMUDGED, tail: 3 });
        let response = [22, 5, 16, 6, 23, 6, 17, 3, 25, 3, 29];
        let one = verdict(&worn, &response, true);
        assert!(one.steps.iter().all(|s| s.supported) && one.outcome == Outcome::Wrong);
        assert_eq!((one.steps[1].tokens.clone(), one.answer), (4..8, 8..11));
        assert_eq!(verdict(&worn, &response, false).outcome, Outcome::Malformed);
    }

    proptest! {
        #[test]
        fn no_response_panics(response in proptest::collection::vec(-1i32..31, 0..20), ended: bool) {
            let exercise = exercise(Fact { head: 6, relation: 17, tail: 0 });
            let judged = verdict(&exercise, &response, ended);
            prop_assert!(judged.steps.len() <= STEPS);
            prop_assert!(judged.steps.iter().all(|step| step.tokens.end <= response.len()));
        }
    }
}
