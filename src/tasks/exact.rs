//! The verifier `exact`: the completion is the answer and nothing else.

use super::judgement::{Judgement, Label};
use super::problem::Problem;
use super::verifier::{Attempt, Gives, Verifier};

/// 1 when the policy's last turn is the answer and nothing else but surrounding blanks, else 0. A truncated one earns 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExactMatch;

impl Verifier for ExactMatch {
    fn name(&self) -> &str {
        "exact"
    }

    fn rewards(&self) -> Vec<String> {
        vec!["exact".to_owned()]
    }

    fn gives(&self) -> Gives {
        Gives { label: true, steps: false }
    }

    fn unanswerable(&self, problem: &Problem) -> Option<String> {
        problem.answer.trim().is_empty().then(|| "the answer is empty".to_owned())
    }

    fn judge(&self, problem: &Problem, attempt: &Attempt<'_>) -> Judgement {
        let right = !attempt.truncated && attempt.last_text().trim() == problem.answer.trim();
        let label = if right { Label::Right } else { Label::Wrong };
        Judgement { label: Some(label), ..Judgement::reward(f32::from(u8::from(right))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_match() {
        let problem = Problem::text(0, "q", "46");
        let judged = |text, cut| ExactMatch.judge(&problem, &Attempt::one_shot(text, &[], cut));
        let right = Judgement { label: Some(Label::Right), ..Judgement::reward(1.0) };
        let wrong = Judgement { label: Some(Label::Wrong), ..Judgement::reward(0.0) };
        assert_eq!(judged("46", false), right);
        assert_eq!(judged(" 46\n", false), right);
        for text in ["046", "46.0", "4 6", "460", "", "46=46"] {
            assert_eq!(judged(text, false), wrong, "{text}");
        }
        assert_eq!(judged("46", true), wrong);
    }

    #[test]
    fn only_the_last_turn_counts() {
        let problem = Problem::text(0, "q", "46");
        let attempt =
            |last_turn| Attempt { text: "4+2: 46", tokens: &[], truncated: false, last_turn };
        assert_eq!(ExactMatch.judge(&problem, &attempt(4)).rewards, [1.0]);
        assert_eq!(ExactMatch.judge(&problem, &attempt(0)).rewards, [0.0]);
        assert_eq!(ExactMatch.judge(&problem, &attempt(99)).rewards, [0.0]);
    }
}
