//! Rewards from a completion and a known answer.
//!
//! A verifier is a pure function: no model, no clock, no state. Finding the answer in free text is [`super::answer`]'s
//! work, comparing two answers [`super::equality`]'s.

use crate::tasks::{Problem, answer, equality};

/// Turns a completion into a reward.
pub trait Verifier: Send + Sync {
    /// What it is called in messages and reports.
    fn name(&self) -> &str;

    /// The reward of a completion (without the prompt). `truncated`: it was cut off at the length limit.
    ///
    /// Never panics, whatever the text.
    fn reward(&self, problem: &Problem, completion: &str, truncated: bool) -> f32;
}

/// The reward of a verifier that may be broken: NaN, which excludes the sample, when it panics or when what it returns
/// is not finite.
///
/// A run survives a verifier of somebody else's; the trainer counts such samples and shows the count.
pub fn guarded(
    verifier: &dyn Verifier,
    problem: &Problem,
    completion: &str,
    truncated: bool,
) -> f32 {
    let reward = || verifier.reward(problem, completion, truncated);
    // The verifier has no state that a panic could leave half-changed: its method takes `&self`.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(reward)) {
        Ok(reward) if reward.is_finite() => reward,
        _ => f32::NAN,
    }
}

/// 1 when the completion is the answer and nothing else but surrounding blanks, else 0. A truncated one earns 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExactMatch;

impl Verifier for ExactMatch {
    fn name(&self) -> &str {
        "exact"
    }

    fn reward(&self, problem: &Problem, completion: &str, truncated: bool) -> f32 {
        f32::from(u8::from(!truncated && completion.trim() == problem.answer.trim()))
    }
}

/// 1 when the final answer in the text equals the known one as a number (or as normalised text), else 0.
///
/// A truncated completion earns its reward only by a closed `\boxed{…}`: the last number of a sentence that was cut
/// off is nobody's answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct FinalAnswer;

impl Verifier for FinalAnswer {
    fn name(&self) -> &str {
        "final-answer"
    }

    fn reward(&self, problem: &Problem, completion: &str, truncated: bool) -> f32 {
        let known = answer::known(&problem.answer);
        let given = match answer::boxed(completion) {
            Some(inside) => Some(inside),
            None if truncated => None,
            None => answer::stated(completion),
        };
        f32::from(u8::from(given.is_some_and(|given| equality::same(given, known))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn problem(answer: &str) -> Problem {
        Problem { prompt: "q".into(), answer: answer.into(), level: 0 }
    }

    #[test]
    fn a_broken_verifier_gives_nan() {
        struct Broken;
        impl Verifier for Broken {
            fn name(&self) -> &str {
                "broken"
            }
            fn reward(&self, _: &Problem, completion: &str, _: bool) -> f32 {
                match completion {
                    "infinite" => f32::INFINITY,
                    "fine" => 0.5,
                    text => panic!("cannot read {text}"),
                }
            }
        }
        let of = |text| guarded(&Broken, &problem("1"), text, false);
        assert!(of("infinite").is_nan() && of("else").is_nan());
        assert_eq!(of("fine"), 0.5);
    }

    #[test]
    fn exact_match() {
        let reward = |text, cut| ExactMatch.reward(&problem("46"), text, cut);
        assert_eq!(reward("46", false), 1.0);
        assert_eq!(reward(" 46\n", false), 1.0);
        for wrong in ["046", "46.0", "4 6", "460", "", "46=46"] {
            assert_eq!(reward(wrong, false), 0.0, "{wrong}");
        }
        assert_eq!(reward("46", true), 0.0);
    }

    #[test]
    fn final_answer() {
        for (answer, completion, truncated, reward) in [
            ("42", "We get \\boxed{42}.", false, 1.0),
            ("42", "We get \\boxed{41}. No: \\boxed{42}", false, 1.0),
            ("42", "We get \\boxed{42}. No: \\boxed{41}", false, 0.0),
            ("42", "\\boxed{41} so the answer is 42", false, 0.0),
            ("42", "40 + 2 = 42", false, 1.0),
            ("42", "#### 42", false, 1.0),
            ("1/2", "The answer is $\\frac{1}{2}$.", false, 1.0),
            ("42", "the answer is 42", true, 0.0),
            ("42", "\\boxed{42} and then on and", true, 1.0),
            ("42", "\\boxed{4", true, 0.0),
            ("She has 9+9 #### 18", "So 18 dollars.", false, 1.0),
            ("text \\boxed{x+1}", "\\boxed{x + 1}", false, 1.0),
            ("42", "", false, 0.0),
            ("", "", false, 0.0),
            ("", "\\boxed{}", false, 0.0),
            ("(1, 2)", "\\boxed{(1,2)}", false, 1.0),
            ("1234", "The total is $1,234.", false, 1.0),
        ] {
            let given = FinalAnswer.reward(&problem(answer), completion, truncated);
            assert_eq!(given, reward, "{answer} / {completion} / {truncated}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(answer in "\\PC{0,30}", text in "\\PC{0,60}", cut: bool) {
            FinalAnswer.reward(&problem(&answer), &text, cut);
            ExactMatch.reward(&problem(&answer), &text, cut);
        }

        #[test]
        fn no_likely_text_panics(
            pieces in proptest::collection::vec(proptest::sample::select(&[
                "\\boxed", "{", "}", "\\frac", "\\text{", "#### ", "answer is ", "1", "-", ",", "/", ".", "e", "999999999999",
                "000", "%", "$", " ", "(", ")", "[", "]", "=", "x", "−", "é", "\\", "^", "*10^", "°", "\n", "million",
            ][..]), 0..24),
            cut: bool,
        ) {
            let text = pieces.concat();
            FinalAnswer.reward(&problem("-1/2"), &text, cut);
            FinalAnswer.reward(&problem(&text), &text, cut);
            // What is the same as something is the same as itself.
            if equality::same(&text, "5") {
                prop_assert!(equality::same("5", &text));
            }
        }

        #[test]
        fn a_number_equals_itself_however_written(whole in -1_000_000i64..1_000_000, decimals in 0u32..1000) {
            let plain = format!("{whole}.{decimals:03}");
            prop_assert!(equality::same(&plain, &format!("${plain}00$")), "{}", plain);
            let numerator = whole.signum().max(-1) * (whole.abs() * 1000 + i64::from(decimals));
            if whole != 0 {
                prop_assert!(equality::same(&plain, &format!("{numerator}/1000")), "{} {}", plain, numerator);
            }
            prop_assert_eq!(FinalAnswer.reward(&problem(&plain), &format!("so it is {plain}."), false), 1.0);
        }
    }
}
