//! The verifier `answer`: the final answer of a text is the known one.
//!
//! Finding the answer in free text is [`super::answer`]'s work, comparing two answers [`super::equality`]'s, telling a
//! refusal [`super::refusal`]'s.

use super::equality::Percent;
use super::judgement::{Judgement, Label};
use super::problem::Problem;
use super::verifier::{Attempt, Gives, Verifier};
use super::{answer, equality, refusal};

/// 1 when the final answer in the policy's last turn equals the known one as a value (or as normalised text), else 0.
///
/// What a model thinks is no answer: with `</think>` in the text, only what follows the last one is looked at. A truncated
/// attempt earns its reward only by a closed `\boxed{…}`: the last number of a sentence that was cut off is
/// nobody's answer. The label tells a wrong answer from a refusal; a refusal is right, and earns 1, where the known answer
/// is one too.
#[derive(Clone, Debug)]
pub struct FinalAnswer {
    refusals: Vec<String>,
    percent: Percent,
}

impl Default for FinalAnswer {
    fn default() -> FinalAnswer {
        FinalAnswer::new(refusal::PHRASES.map(str::to_owned).to_vec(), Percent::default())
    }
}

impl FinalAnswer {
    /// A verifier that takes these phrases for a refusal, and a percent sign for this.
    pub fn new(refusals: Vec<String>, percent: Percent) -> FinalAnswer {
        FinalAnswer { refusals, percent }
    }

    fn label(&self, problem: &Problem, attempt: &Attempt<'_>) -> Label {
        let Some(text) = answer::region(attempt.last_text()) else { return Label::Wrong };
        let known = answer::known(&problem.answer);
        let given = match answer::boxed(text) {
            Some(found) if found.closed || !attempt.truncated => vec![found.inside],
            _ if attempt.truncated => return Label::Wrong,
            _ => answer::stated(text),
        };
        if given.iter().any(|given| equality::same(given, known, self.percent)) {
            Label::Right
        } else if !refusal::refuses(text, &self.refusals) {
            Label::Wrong
        } else if refusal::refuses(known, &self.refusals) {
            Label::Right
        } else {
            Label::Refused
        }
    }
}

/// The end of a reference, where its answer stands.
fn shown(reference: &str) -> &str {
    const MOST: usize = 60;
    let start = reference.char_indices().rev().nth(MOST - 1).map_or(0, |(at, _)| at);
    &reference[start..]
}

impl Verifier for FinalAnswer {
    fn name(&self) -> &str {
        "answer"
    }

    fn rewards(&self) -> Vec<String> {
        vec!["answer".to_owned()]
    }

    fn gives(&self) -> Gives {
        Gives { label: true, steps: false }
    }

    fn unanswerable(&self, problem: &Problem) -> Option<String> {
        let known = answer::known(&problem.answer);
        // Whatever equals an answer equals it when it is stated as it is.
        (!equality::same(known, known, self.percent)).then(|| {
            if problem.answer.trim().is_empty() {
                "the answer is empty".to_owned()
            } else {
                format!(
                    "nothing equals the answer {known:?} of the reference {:?}",
                    shown(&problem.answer)
                )
            }
        })
    }

    fn judge(&self, problem: &Problem, attempt: &Attempt<'_>) -> Judgement {
        let label = self.label(problem, attempt);
        let reward = f32::from(u8::from(label == Label::Right));
        Judgement { label: Some(label), ..Judgement::reward(reward) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn label(known: &str, completion: &str, truncated: bool) -> Label {
        let problem = Problem::text(0, "q", known);
        let attempt = Attempt::one_shot(completion, &[], truncated);
        let judged = FinalAnswer::default().judge(&problem, &attempt);
        let label = judged.label.unwrap();
        assert_eq!(judged.rewards, [f32::from(u8::from(label == Label::Right))]);
        label
    }

    #[test]
    fn final_answer() {
        use Label::{Refused, Right, Wrong};
        for (known, completion, truncated, expected) in [
            ("42", "We get \\boxed{42}.", false, Right),
            ("42", "We get \\boxed{41}. No: \\boxed{42}", false, Right),
            ("42", "We get \\boxed{42}. No: \\boxed{41}", false, Wrong),
            ("42", "\\boxed{41} so the answer is 42", false, Wrong),
            ("42", "40 + 2 = 42", false, Right),
            ("42", "#### 42", false, Right),
            ("1/2", "The answer is $\\frac{1}{2}$.", false, Right),
            ("42", "the answer is 42", true, Wrong),
            ("42", "\\boxed{42} and then on and", true, Right),
            ("42", "\\boxed{4", true, Wrong),
            ("She has 9+9 #### 18", "So 18 dollars.", false, Right),
            ("text \\boxed{x+1}", "\\boxed{x + 1}", false, Right),
            ("42", "", false, Wrong),
            ("", "", false, Wrong),
            ("", "\\boxed{}", false, Wrong),
            ("(1, 2)", "\\boxed{(1,2)}", false, Right),
            ("1234", "The total is $1,234.", false, Right),
            ("42", "I don't know.", false, Refused),
            ("42", "I don't know.", true, Wrong),
            ("42", "\\boxed{I don't know} and", true, Refused),
            ("42", "I don't know, perhaps 41", false, Wrong),
            ("I don't know", "It cannot be determined.", false, Right),
            ("I don't know", "The answer is 7", false, Wrong),
        ] {
            let given = label(known, completion, truncated);
            assert_eq!(given, expected, "{known} / {completion} / {truncated}");
        }
    }

    #[test]
    fn a_reference_that_nothing_equals_is_told() {
        let why = |known: &str| FinalAnswer::default().unanswerable(&Problem::text(0, "q", known));
        for known in ["42", "x+1", "so #### 7", "\\boxed{(1,2)}", "I don't know", "(", "1/0", "{"] {
            assert_eq!(why(known), None, "{known}");
        }
        for (known, says) in [
            ("", "the answer is empty"),
            (" \n", "the answer is empty"),
            ("so it is ####", "nothing equals the answer \"\" of the reference \"so it is ####\""),
            ("\\boxed{}", "nothing equals the answer \"\""),
            ("$.$", "nothing equals the answer \"$.$\""),
        ] {
            assert!(why(known).unwrap().starts_with(says), "{known}: {:?}", why(known));
        }
    }

    #[test]
    fn only_the_last_turn_counts() {
        let problem = Problem::text(0, "q", "42");
        let text = "\\boxed{41}<result>42</result>";
        let attempt = |last_turn| Attempt { text, tokens: &[], truncated: false, last_turn };
        let judged = |last_turn| FinalAnswer::default().judge(&problem, &attempt(last_turn)).label;
        assert_eq!(judged(0), Some(Label::Wrong));
        assert_eq!(judged(text.len()), Some(Label::Wrong));
        assert_eq!(judged(18), Some(Label::Right));
    }

    proptest! {
        #[test]
        fn no_text_panics(answer in "\\PC{0,30}", text in "\\PC{0,60}", cut: bool) {
            label(&answer, &text, cut);
        }

        #[test]
        fn no_likely_text_panics(
            pieces in proptest::collection::vec(proptest::sample::select(&[
                "\\boxed", "{", "}", "\\frac", "\\text{", "#### ", "answer is ", "1", "-", ",", "/", ".", "e", "999999999999",
                "000", "%", "$", " ", "(", ")", "[", "]", "=", "x", "−", "é", "\\", "^", "*10^", "°", "\n", "million",
                "i don't know",
            ][..]), 0..24),
            cut: bool,
        ) {
            let text = pieces.concat();
            label("-1/2", &text, cut);
            label(&text, &text, cut);
            // What is the same as something is the same as itself.
            if equality::same(&text, "5", Percent::Number) {
                prop_assert!(equality::same("5", &text, Percent::Number));
            }
        }

        #[test]
        fn a_number_equals_itself_however_written(whole in -1_000_000i64..1_000_000, decimals in 0u32..1000) {
            let plain = format!("{whole}.{decimals:03}");
            prop_assert!(equality::same(&plain, &format!("${plain}00$"), Percent::Number), "{}", plain);
            let numerator = whole.signum().max(-1) * (whole.abs() * 1000 + i64::from(decimals));
            if whole != 0 {
                prop_assert!(equality::same(&plain, &format!("{numerator}/1000"), Percent::Number), "{} {}", plain, numerator);
            }
            prop_assert_eq!(label(&plain, &format!("so it is {plain}."), false), Label::Right);
        }
    }
}
