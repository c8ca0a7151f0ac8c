//! Several verifiers as one: the rewards of all of them.

use super::judgement::{Faults, Judged, Judgement};
use super::problem::Problem;
use super::verifier::{Attempt, Gives, Verifier, judged};
use crate::error::{Error, Result};
use std::collections::HashSet;

/// The rewards of several verifiers one after another, with the label of the first that gives one and the steps of the first
/// that gives them. An attempt that one of them leaves out is left out.
pub struct Several {
    verifiers: Vec<Box<dyn Verifier>>,
}

impl Several {
    /// Joins verifiers.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for none, or for a name of a reward that two of them have.
    pub fn new(verifiers: Vec<Box<dyn Verifier>>) -> Result<Several> {
        let mut names = HashSet::new();
        for name in verifiers.iter().flat_map(|one| one.rewards()) {
            if names.contains(&name) {
                return Err(Error::invalid(format!("two verifiers have a reward `{name}`")));
            }
            names.insert(name);
        }
        if names.is_empty() {
            return Err(Error::invalid("no verifier"));
        }
        Ok(Several { verifiers })
    }

    fn joined(&self, all: impl Iterator<Item = Judgement>) -> Judgement {
        let mut joined = Judgement::default();
        let (mut labelled, mut stepped) = (false, false);
        for (verifier, one) in self.verifiers.iter().zip(all) {
            joined.rewards.extend(one.rewards);
            let gives = verifier.gives();
            if gives.label && !labelled {
                (joined.label, labelled) = (one.label, true);
            }
            if gives.steps && !stepped {
                (joined.steps, joined.markup, joined.answer) = (one.steps, one.markup, one.answer);
                stepped = true;
            }
        }
        joined
    }
}

impl Verifier for Several {
    fn name(&self) -> &str {
        "several"
    }

    fn rewards(&self) -> Vec<String> {
        self.verifiers.iter().flat_map(|one| one.rewards()).collect()
    }

    fn gives(&self) -> Gives {
        let any = |what: fn(Gives) -> bool| self.verifiers.iter().any(|one| what(one.gives()));
        Gives { label: any(|gives| gives.label), steps: any(|gives| gives.steps) }
    }

    fn judge(&self, problem: &Problem, attempt: &Attempt<'_>) -> Judgement {
        self.joined(self.verifiers.iter().map(|one| one.judge(problem, attempt)))
    }

    fn judge_all(&self, attempts: &[(&Problem, Attempt<'_>)]) -> Result<Judged> {
        let all = self.verifiers.iter().map(|one| judged(&**one, attempts));
        let mut all = all.collect::<Result<Vec<Judged>>>()?;
        let faults = all.iter().fold(Faults::default(), |sum, one| sum.plus(&one.faults));
        let of = |at: usize, all: &mut Vec<Judged>| -> Option<Judgement> {
            let take = |one: &mut Judged| one.judgements.get_mut(at).and_then(Option::take);
            let ones = all.iter_mut().map(take).collect::<Option<Vec<Judgement>>>()?;
            Some(self.joined(ones.into_iter()))
        };
        let judgements = (0..attempts.len()).map(|at| of(at, &mut all)).collect();
        Ok(Judged { judgements, faults })
    }

    fn unanswerable(&self, problem: &Problem) -> Option<String> {
        self.verifiers.iter().find_map(|one| one.unanswerable(problem))
    }

    fn try_out(&self, problem: &Problem) -> Result<()> {
        self.verifiers.iter().try_for_each(|one| one.try_out(problem))
    }

    fn notices(&self) -> Vec<String> {
        self.verifiers.iter().flat_map(|one| one.notices()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::exact::ExactMatch;
    use super::super::final_answer::FinalAnswer;
    use super::super::judgement::{Fault, Label};
    use super::super::verifier::RewardFn;
    use super::*;

    fn length() -> Box<dyn Verifier> {
        Box::new(RewardFn::new(
            "length",
            |_: &Problem, text: &str, cut| {
                if cut { f32::NAN } else { text.len() as f32 }
            },
        ))
    }

    #[test]
    fn rewards_are_joined_and_one_failure_costs_the_attempt() {
        let all = vec![length(), Box::new(ExactMatch), Box::new(FinalAnswer::default())];
        let several = Several::new(all).unwrap();
        assert_eq!(several.rewards(), ["length", "exact", "answer"]);
        assert_eq!(several.gives(), Gives { label: true, steps: false });
        let problem = Problem::text(0, "q", "42");
        let of = |text, cut| (&problem, Attempt::one_shot(text, &[], cut));
        let judged =
            judged(&several, &[of("42.0", false), of("42", true), of("42", false)]).unwrap();
        let first = judged.judgements[0].as_ref().unwrap();
        // The label is the first verifier's that gives one: the exact one's.
        assert_eq!((&first.rewards[..], first.label), (&[4.0, 0.0, 1.0][..], Some(Label::Wrong)));
        assert!(judged.judgements[1].is_none());
        assert_eq!(judged.judgements[2].as_ref().unwrap().rewards, [2.0, 1.0, 1.0]);
        assert_eq!(judged.faults.count(Fault::NotFinite), 1);
        assert_eq!(several.judge(&problem, &of("42", false).1).rewards, [2.0, 1.0, 1.0]);
    }

    #[test]
    fn names_must_differ() {
        assert!(Several::new(vec![length(), length()]).err().is_some_and(|e| e.is_invalid()));
        assert!(Several::new(Vec::new()).err().is_some_and(|e| e.is_invalid()));
    }
}
