//! Judging a response: every state against the one before it, and the whole chain.

use super::question::{Question, apply};
use super::vocabulary::Vocabulary;
use crate::tasks::judgement::{Extent, Judgement, Label, StepVerdict};
use crate::tasks::problem::Problem;
use crate::tasks::verifier::{Attempt, Gives, Verifier};

/// 1 for a response that is the chain of states, in any spelling, and ends there; else 0.
///
/// Each state is a step. It is supported when it follows from the state written before it, right or wrong as that one is.
#[derive(Clone, Copy, Debug)]
pub struct ChainVerifier {
    /// The ids of the task.
    pub vocabulary: Vocabulary,
}

impl ChainVerifier {
    /// True when a response is the chain of states, in any spelling, and ends there.
    pub fn is_right(&self, question: &Question, response: &[i32]) -> bool {
        let Some((end, states)) = response.split_last() else { return false };
        *end == self.vocabulary.end()
            && states.len() == question.operations.len()
            && states
                .iter()
                .zip(question.states())
                .all(|(id, state)| self.vocabulary.state(*id) == Some(state))
    }

    fn steps(&self, question: &Question, response: &[i32]) -> Vec<StepVerdict> {
        let mut before = question.start;
        let step = |(at, (id, operation)): (usize, (&i32, &usize))| {
            let state = self.vocabulary.state(*id)?;
            let supported = state == apply(before, *operation);
            before = state;
            Some(StepVerdict {
                opening: Extent::Tokens(at..at),
                body: Extent::Tokens(at..at + 1),
                score: f32::from(u8::from(supported)),
            })
        };
        response.iter().zip(&question.operations).enumerate().map_while(step).collect()
    }
}

impl Verifier for ChainVerifier {
    fn name(&self) -> &str {
        "permutation_chain"
    }

    fn rewards(&self) -> Vec<String> {
        vec!["right".to_owned()]
    }

    fn gives(&self) -> Gives {
        Gives { label: true, steps: true }
    }

    fn judge(&self, problem: &Problem, attempt: &Attempt<'_>) -> Judgement {
        let question = problem.tokens().and_then(|prompt| self.vocabulary.question(prompt));
        let Some(question) = question else { return Judgement::reward(f32::NAN) };
        let right = self.is_right(&question, attempt.tokens);
        Judgement {
            label: Some(if right { Label::Right } else { Label::Wrong }),
            steps: self.steps(&question, attempt.tokens),
            ..Judgement::reward(f32::from(u8::from(right)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::problem::Part;

    #[test]
    fn the_whole_chain_is_checked_in_any_spelling() {
        let vocabulary = Vocabulary { spellings: 2 };
        let verifier = ChainVerifier { vocabulary };
        let question = Question { start: 0, operations: vec![0, 0] };
        let problem = Problem::new(0, Part::Tokens(vocabulary.prompt(&question)), "");
        let states = question.states();
        assert_eq!(states[1], 0);
        let (a, end) = (states[0] as i32, vocabulary.end());
        let judged = |response: &[i32]| {
            let judged = verifier.judge(&problem, &Attempt::one_shot("", response, false));
            let scores: Vec<f32> = judged.steps.iter().map(|step| step.score).collect();
            let right = judged.label == Some(Label::Right);
            assert_eq!(judged.rewards, [f32::from(u8::from(right))]);
            (right, scores)
        };
        assert_eq!(judged(&[a, 0, end]), (true, vec![1.0, 1.0]));
        assert_eq!(judged(&[a + 24, 24, end]), (true, vec![1.0, 1.0]));
        for (wrong, scores) in [
            (&[a, 0][..], &[1.0, 1.0][..]),
            (&[a, 1, end], &[1.0, 0.0]),
            (&[a + 1, 0, end], &[0.0, 0.0]),
            (&[a, 0, 0, end], &[1.0, 1.0]),
            (&[end], &[]),
            (&[], &[]),
            (&[-a, 0, end], &[]),
        ] {
            assert_eq!(judged(wrong), (false, scores.to_vec()), "{wrong:?}");
        }
        // The second state follows from the wrong first one.
        let other = apply(0, 1) as i32;
        assert_eq!(judged(&[other, apply(other as usize, 0) as i32, end]), (false, vec![0.0, 1.0]));
    }

    #[test]
    fn a_problem_of_another_task_gets_no_verdict() {
        let verifier = ChainVerifier { vocabulary: Vocabulary { spellings: 1 } };
        for problem in
            [Problem::text(0, "1+1=", "2"), Problem::new(0, Part::Tokens(vec![1, 2]), "")]
        {
            let judged = verifier.judge(&problem, &Attempt::one_shot("", &[1], false));
            assert!(judged.rewards[0].is_nan());
        }
    }
}
