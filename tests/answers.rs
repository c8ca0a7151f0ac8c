//! The answer reader on its cases: what must be rewarded is, and nothing else.
//!
//! `tests/answers/cases.jsonl` has, a line each, a known answer, a completion, and whether it is right.
//! `benches/peers/answers.py` runs another reader on the same cases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::tasks::equality::{LONGEST, Percent, same};
use gradstone::tasks::final_answer::FinalAnswer;
use gradstone::tasks::{Attempt, Label, Problem, Verifier};
use proptest::prelude::*;
use serde::Deserialize;
use std::time::Instant;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    kind: String,
    answer: String,
    completion: String,
    right: bool,
    truncated: bool,
}

fn rewarded(verifier: &FinalAnswer, answer: &str, completion: &str, truncated: bool) -> bool {
    let problem = Problem::text(0, "q", answer);
    let judged = verifier.judge(&problem, &Attempt::one_shot(completion, &[], truncated));
    assert_eq!(judged.rewards, [f32::from(u8::from(judged.label == Some(Label::Right)))]);
    judged.rewards == [1.0]
}

#[test]
fn every_case_is_judged_as_it_should_be() {
    let cases: Vec<Case> = include_str!("answers/cases.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let right = cases.iter().filter(|case| case.right).count();
    assert!(right > 400 && cases.len() - right > 300, "{right} of {}", cases.len());
    let verifier = FinalAnswer::default();
    let wrong: Vec<String> = cases
        .iter()
        .filter(|case| {
            rewarded(&verifier, &case.answer, &case.completion, case.truncated) != case.right
        })
        .map(|case| {
            let what = if case.right { "missed" } else { "falsely rewarded" };
            format!("{}: {what}: {:?} for {:?}", case.kind, case.completion, case.answer)
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn a_percent_sign_means_what_is_chosen() {
    for (a, b, as_number, as_hundredths) in [
        ("50%", "0.5", false, true),
        ("50%", "50", true, false),
        (r"12.5\%", "1/8", false, true),
        ("8 percent", "0.08", false, true),
        ("50%", "50%", true, true),
        ("50%", "5%", false, false),
        ("50%", "0.05", false, false),
        ("7", "7", true, true),
    ] {
        let all = [Percent::Number, Percent::Hundredths, Percent::Either];
        let expected = [as_number, as_hundredths, as_number || as_hundredths];
        assert_eq!(all.map(|percent| same(a, b, percent)), expected, "{a} and {b}");
        assert_eq!(all.map(|percent| same(b, a, percent)), expected, "{b} and {a}");
        let judged = |percent| {
            rewarded(&FinalAnswer::new(vec![], percent), b, &format!("\\boxed{{{a}}}"), false)
        };
        assert_eq!(all.map(judged), expected, "{a} for {b}");
    }
}

/// Pieces that are costly where work or depth has no bound.
const HOSTILE: [&str; 28] = [
    "answer",
    "<answer>",
    "answer is ",
    "<<",
    "(",
    "{",
    "((x+1)^2+",
    "\\frac{1}{",
    "x^{",
    "2^{",
    "\\sqrt{",
    "9!",
    "(x+1)^{32}",
    "(x+y+z+1)^{9}*",
    "\\pm ",
    "1,",
    "x=",
    "\\text{",
    "\\binom{999}{500}",
    "1/(x+1)+",
    "97^{1/64}*",
    "1e-999+",
    "(A) ",
    "((1,2),",
    "9^{99}*",
    "|x",
    "\\sin ",
    "1 ",
];

#[test]
fn hostile_answers_are_judged_within_bounds() {
    let started = Instant::now();
    for piece in HOSTILE {
        for length in [60, LONGEST - 10, 200_000] {
            let text = piece.repeat(length / piece.len());
            let other = format!("{text}+1");
            let _ = (same(&text, &other, Percent::Either), same(&text, "5", Percent::Number));
            let verifier = FinalAnswer::default();
            for completion in [format!("\\boxed{{{text}}}"), format!("#### {text}")] {
                rewarded(&verifier, "5", &completion, false);
            }
        }
    }
    assert!(started.elapsed().as_secs() < 300, "{:?}", started.elapsed());
}

/// An expression, and the same one written in another way.
fn expressions() -> impl Strategy<Value = (String, String)> {
    let leaf = prop_oneof![
        (1i64..60).prop_map(|n| (n.to_string(), format!("{}/2", 2 * n))),
        (1i64..60).prop_map(|n| (format!("\\sqrt{{{n}}}"), format!("{n}^{{1/2}}"))),
        Just(("x".to_owned(), "{x}".to_owned())),
        Just(("y".to_owned(), "y^{1}".to_owned())),
        Just(("\\pi".to_owned(), "π".to_owned())),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| (format!("({}+{})", a.0, b.0), format!("({}+{})", b.1, a.1))),
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| (format!("({}-{})", a.0, b.0), format!("(-{}+{})", b.1, a.1))),
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| (format!("{}*{}", a.0, b.0), format!("({})({})", b.1, a.1))),
            inner.prop_map(|a| (format!("({})^2", a.0), format!("({0})*({0})", a.1))),
        ]
    })
}

proptest! {
    #[test]
    fn an_expression_equals_itself_however_written((a, b) in expressions()) {
        prop_assert!(same(&a, &b, Percent::Number), "{} and {}", a, b);
        prop_assert!(same(&b, &a, Percent::Number), "{} and {}", b, a);
        let one_more = format!("{b}+1");
        prop_assert!(!same(&a, &one_more, Percent::Number), "{} and {}", a, one_more);
        let twice = format!("2*({b})");
        let zero = format!("0*({b})");
        prop_assert!(!same(&a, &twice, Percent::Number) || same(&a, &zero, Percent::Number), "{} and {}", a, twice);
    }

    #[test]
    fn a_number_in_groups_is_the_number(n in 1_000u64..1_000_000_000_000) {
        let digits = n.to_string();
        for separator in [",", "\\,", "{,}", ",\\!", ",\\! ", "\u{2009}", " ", "\\;"] {
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 {
                    grouped.push_str(separator);
                }
                grouped.push(digit);
            }
            prop_assert!(same(&grouped, &digits, Percent::Number), "{}", grouped);
            let next = (n + 1).to_string();
            prop_assert!(!same(&grouped, &next, Percent::Number), "{}", grouped);
        }
    }

    #[test]
    fn comparing_has_no_order(a in "[-+*/^_(){}\\[\\]|!=<>,;:.% 0-9a-dx$\\\\√²½π°≤±∪]{0,24}", b in "[-+*/^(){},. 0-9x]{0,16}") {
        for percent in [Percent::Number, Percent::Either] {
            prop_assert_eq!(same(&a, &b, percent), same(&b, &a, percent), "{} and {}", a, b);
        }
    }
}
