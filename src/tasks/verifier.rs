//! Rewards from what a model wrote and what would be right.
//!
//! A [`Verifier`] judges attempts. It may be a pure function ([`RewardFn`], the built-in ones), or a process of the user's
//! own ([`command`](super::command)). Whoever wants judgements calls [`judged`], which turns a verifier's failures into
//! attempts that are left out and counted.

use super::judgement::{Fault, Faults, Judged, Judgement};
use super::problem::Problem;
use crate::error::Result;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a model wrote for a problem, without the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// All turns as text, an environment's replies among them. Ids, for a task made of ids, are written as numbers.
    pub text: &'a str,
    /// All tokens, in the order of the text.
    pub tokens: &'a [i32],
    /// It was cut off at the length limit.
    pub truncated: bool,
    /// The byte of `text` at which the policy's last turn begins: 0 where no environment replied.
    pub last_turn: usize,
}

impl<'a> Attempt<'a> {
    /// An attempt of a single turn.
    pub fn one_shot(text: &'a str, tokens: &'a [i32], truncated: bool) -> Attempt<'a> {
        Attempt { text, tokens, truncated, last_turn: 0 }
    }

    /// The text of the policy's last turn, where a final answer is looked for.
    pub fn last_text(&self) -> &'a str {
        self.text.get(self.last_turn..).unwrap_or_default()
    }
}

/// What a verifier gives beside rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gives {
    /// Every judgement has a label.
    pub label: bool,
    /// Every judgement has its steps.
    pub steps: bool,
}

/// Judges attempts.
pub trait Verifier: Send + Sync {
    /// What it is called in messages and reports.
    fn name(&self) -> &str;

    /// The names of its rewards, in the order of [`Judgement::rewards`]: at least one, the same ones for the whole run.
    fn rewards(&self) -> Vec<String>;

    /// What it gives beside rewards, so that a run that needs more is refused before it begins.
    fn gives(&self) -> Gives {
        Gives::default()
    }

    /// Judges one attempt.
    fn judge(&self, problem: &Problem, attempt: &Attempt<'_>) -> Judgement;

    /// Judges several attempts: by default one after another, each guarded against a panic.
    ///
    /// # Errors
    /// Where no later attempt could be judged either and the run has to end.
    fn judge_all(&self, attempts: &[(&Problem, Attempt<'_>)]) -> Result<Judged> {
        let mut judged = Judged::default();
        for (problem, attempt) in attempts {
            let one = catch_unwind(AssertUnwindSafe(|| self.judge(problem, attempt))).ok();
            if one.is_none() {
                judged.faults.add(Fault::Panicked);
            }
            judged.judgements.push(one);
        }
        Ok(judged)
    }

    /// Why no attempt at a problem can be right; `None` where one may be.
    fn unanswerable(&self, problem: &Problem) -> Option<String> {
        let _ = problem;
        None
    }

    /// Makes sure that it works, before a run directory exists, by judging an attempt at `problem`.
    ///
    /// # Errors
    /// Where it does not.
    fn try_out(&self, problem: &Problem) -> Result<()> {
        let _ = problem;
        Ok(())
    }

    /// What it has to say since it was asked last, a line each: the standard error of a program, what it did wrong. A trainer
    /// shows these; they are bounded in number and length.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The judgements of a verifier, as a trainer may use them: a panic, a reward that is not finite, and a judgement that
/// has not one reward per name each cost their attempt, and are counted.
///
/// # Errors
/// Those of [`Verifier::judge_all`].
pub fn judged(verifier: &dyn Verifier, attempts: &[(&Problem, Attempt<'_>)]) -> Result<Judged> {
    let none_of = |fault| {
        let mut faults = Faults::default();
        faults.add(fault);
        Judged { judgements: vec![None; attempts.len()], faults }
    };
    let all = catch_unwind(AssertUnwindSafe(|| -> Result<(usize, Judged)> {
        Ok((verifier.rewards().len(), verifier.judge_all(attempts)?))
    }));
    let (names, mut judged) = match all {
        Ok(all) => all?,
        Err(_) => return Ok(none_of(Fault::Panicked)),
    };
    if judged.judgements.len() != attempts.len() {
        return Ok(none_of(Fault::Malformed));
    }
    let gives = verifier.gives();
    for one in &mut judged.judgements {
        let Some(judgement) = one else { continue };
        let scores = judgement.steps.iter().map(|step| step.score);
        let fault =
            if judgement.rewards.len() != names || (gives.label && judgement.label.is_none()) {
                Some(Fault::Malformed)
            } else if !judgement.rewards.iter().copied().chain(scores).all(f32::is_finite) {
                Some(Fault::NotFinite)
            } else {
                None
            };
        if let Some(fault) = fault {
            judged.faults.add(fault);
            *one = None;
        }
    }
    Ok(judged)
}

/// A verifier that is a function: `(problem, text, truncated) -> reward`.
///
/// ```
/// use gradstone::tasks::verifier::{Attempt, RewardFn, Verifier};
/// use gradstone::tasks::Problem;
///
/// let short = RewardFn::new("short", |_: &Problem, text: &str, _truncated| 1.0 / (1.0 + text.len() as f32));
/// let problem = Problem::text(0, "Say nothing.", "");
/// assert_eq!(short.rewards(), ["short"]);
/// assert_eq!(short.judge(&problem, &Attempt::one_shot("", &[], false)).rewards, [1.0]);
/// ```
pub struct RewardFn<F> {
    name: String,
    reward: F,
}

impl<F: Fn(&Problem, &str, bool) -> f32 + Send + Sync> RewardFn<F> {
    /// A verifier with one reward; both are called `name`.
    pub fn new(name: impl Into<String>, reward: F) -> RewardFn<F> {
        RewardFn { name: name.into(), reward }
    }
}

impl<F: Fn(&Problem, &str, bool) -> f32 + Send + Sync> Verifier for RewardFn<F> {
    fn name(&self) -> &str {
        &self.name
    }

    fn rewards(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn judge(&self, problem: &Problem, attempt: &Attempt<'_>) -> Judgement {
        Judgement::reward((self.reward)(problem, attempt.text, attempt.truncated))
    }
}

#[cfg(test)]
mod tests {
    use super::super::judgement::{Extent, Label, StepVerdict};
    use super::*;
    use crate::error::Error;

    /// Judges by what the text says it should do.
    struct Obedient {
        gives: Gives,
    }

    impl Verifier for Obedient {
        fn name(&self) -> &str {
            "obedient"
        }

        fn rewards(&self) -> Vec<String> {
            vec!["one".to_owned(), "two".to_owned()]
        }

        fn gives(&self) -> Gives {
            self.gives
        }

        fn judge(&self, _problem: &Problem, attempt: &Attempt<'_>) -> Judgement {
            let step = |score| StepVerdict {
                opening: Extent::Tokens(0..0),
                body: Extent::Tokens(0..1),
                score,
            };
            let rewards = vec![1.0, 0.5];
            match attempt.text {
                "panic" => std::panic::panic_any("as it was told"),
                "few" => Judgement::reward(1.0),
                "nan" => Judgement { rewards: vec![1.0, f32::NAN], ..Judgement::default() },
                "step" => {
                    Judgement { rewards, steps: vec![step(f32::NAN)], ..Judgement::default() }
                }
                "label" => {
                    Judgement { rewards, label: Some(Label::Refused), ..Judgement::default() }
                }
                _ => Judgement { rewards, ..Judgement::default() },
            }
        }
    }

    fn judge(verifier: &dyn Verifier, texts: &[&str]) -> Result<Judged> {
        let problem = Problem::text(0, "q", "a");
        let attempts: Vec<_> =
            texts.iter().map(|text| (&problem, Attempt::one_shot(text, &[], false))).collect();
        judged(verifier, &attempts)
    }

    #[test]
    fn a_failing_verifier_costs_its_attempt() {
        let gives = Gives::default();
        let texts = ["fine", "panic", "few", "nan", "step", "label"];
        let all = judge(&Obedient { gives }, &texts).unwrap();
        let kept: Vec<bool> = all.judgements.iter().map(Option::is_some).collect();
        assert_eq!(kept, [true, false, false, false, false, true]);
        assert_eq!(all.judgements[0].as_ref().unwrap().rewards, [1.0, 0.5]);
        let counts: Vec<_> = all.faults.iter().collect();
        assert_eq!(counts, [(Fault::Panicked, 1), (Fault::NotFinite, 2), (Fault::Malformed, 1)]);
        let gives = Gives { label: true, steps: false };
        let labelled = judge(&Obedient { gives }, &["fine", "label"]).unwrap();
        assert!(labelled.judgements[0].is_none() && labelled.judgements[1].is_some());
    }

    #[test]
    fn a_batch_that_fails_whole_costs_all_or_ends_the_run() {
        struct Batch(fn() -> Result<Judged>);
        impl Verifier for Batch {
            fn name(&self) -> &str {
                "batch"
            }
            fn rewards(&self) -> Vec<String> {
                vec!["r".to_owned()]
            }
            fn judge(&self, _: &Problem, _: &Attempt<'_>) -> Judgement {
                Judgement::reward(0.0)
            }
            fn judge_all(&self, _: &[(&Problem, Attempt<'_>)]) -> Result<Judged> {
                (self.0)()
            }
        }
        let panics = judge(&Batch(|| std::panic::panic_any("all")), &["a", "b"]).unwrap();
        assert_eq!((panics.judgements.len(), panics.faults.count(Fault::Panicked)), (2, 1));
        assert!(panics.judgements.iter().all(Option::is_none));
        let few = judge(&Batch(|| Ok(Judged::default())), &["a", "b"]).unwrap();
        assert_eq!((few.judgements.len(), few.faults.count(Fault::Malformed)), (2, 1));
        let ends = judge(&Batch(|| Err(Error::state("gone"))), &["a"]);
        assert!(ends.unwrap_err().is_state());
    }

    #[test]
    fn a_function_is_a_verifier() {
        let verifier = RewardFn::new("length", |problem: &Problem, text: &str, cut| {
            if cut { f32::INFINITY } else { (problem.answer.len() + text.len()) as f32 }
        });
        let problem = Problem::text(0, "q", "abc");
        let of = |text, cut| (&problem, Attempt::one_shot(text, &[], cut));
        let all = judged(&verifier, &[of("de", false), of("de", true)]).unwrap();
        assert_eq!(all.judgements, [Some(Judgement::reward(5.0)), None]);
    }
}
