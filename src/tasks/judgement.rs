//! What a verifier says about one attempt: named rewards, a label of the outcome, verdicts about steps.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// The right answer; a refusal where the question has none.
    Right,
    /// A wrong answer, or any answer to a question that has none.
    Wrong,
    /// No answer, in words that say so.
    Refused,
}

impl Label {
    /// All of them.
    pub const ALL: [Label; 3] = [Label::Right, Label::Wrong, Label::Refused];

    /// `right`, `wrong` or `refused`.
    pub fn name(self) -> &'static str {
        match self {
            Label::Right => "right",
            Label::Wrong => "wrong",
            Label::Refused => "refused",
        }
    }

    /// 1 for right, 0 for refused, -1 for wrong.
    pub fn score(self) -> f64 {
        match self {
            Label::Right => 1.0,
            Label::Refused => 0.0,
            Label::Wrong => -1.0,
        }
    }
}

/// A stretch of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Tokens of [`Attempt::tokens`](super::verifier::Attempt::tokens).
    Tokens(Range<usize>),
    /// Bytes of [`Attempt::text`](super::verifier::Attempt::text).
    Text(Range<usize>),
}

impl Extent {
    /// The tokens of the stretch. `ends[i]` is the byte of the attempt's text at which token `i` ends, so there is one
    /// number per token and they never fall.
    ///
    /// A token belongs to the stretch in which its first byte lies, so stretches that do not overlap share no token. A
    /// token without bytes (an end mark) belongs where the token before it does.
    pub fn tokens(&self, ends: &[usize]) -> Range<usize> {
        let range = match self {
            Extent::Tokens(range) => {
                let end = range.end.min(ends.len());
                return range.start.min(end)..end;
            }
            Extent::Text(range) => range,
        };
        let (mut first, mut past) = (0, 0);
        let (mut before, mut anchor) = (0, 0);
        for end in ends {
            if *end > before {
                anchor = before;
                before = *end;
            }
            first += usize::from(anchor < range.start);
            past += usize::from(anchor < range.end);
        }
        first..past.max(first)
    }
}

/// A step of an attempt and what is thought of it.
#[derive(Clone, Debug, PartialEq)]
pub struct StepVerdict {
    /// What opens the step (its number, its tag); may be empty.
    pub opening: Extent,
    /// The words of the step.
    pub body: Extent,
    /// 1 for a step that is supported, 0 for one that is not, or any finite value of its own.
    pub score: f32,
}

/// What a verifier says about one attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// One for each name in [`Verifier::rewards`](super::verifier::Verifier::rewards), in that order. A reward that is not
    /// finite is no verdict: the attempt is left out.
    pub rewards: Vec<f32>,
    /// What became of the question, where the verifier says so.
    pub label: Option<Label>,
    /// Steps, in the order of the attempt.
    pub steps: Vec<StepVerdict>,
    /// Markup such as `<think>`, which belongs to no step.
    pub markup: Vec<Extent>,
    /// Where the final answer stands, for a verifier that looks at steps.
    pub answer: Option<Extent>,
}

impl Judgement {
    /// One reward and nothing else.
    pub fn reward(reward: f32) -> Judgement {
        Judgement { rewards: vec![reward], ..Judgement::default() }
    }
}

/// What can go wrong with a verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It panicked.
    Panicked,
    /// A reward or a score that is NaN, infinite or `null`.
    NotFinite,
    /// A judgement that lacks something or has something that nobody asked for.
    Malformed,
    /// A line of a command that is not JSON.
    NotJson,
    /// An answer of a command to an id that it was never given.
    UnknownId,
    /// A second answer of a command to one id.
    AnsweredTwice,
    /// A command that did not answer in time.
    TimedOut,
    /// A command that ended.
    Crashed,
    /// A command that writes without end.
    Flooded,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 9] = [
        Fault::Panicked,
        Fault::NotFinite,
        Fault::Malformed,
        Fault::NotJson,
        Fault::UnknownId,
        Fault::AnsweredTwice,
        Fault::TimedOut,
        Fault::Crashed,
        Fault::Flooded,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Panicked => "panicked",
            Fault::NotFinite => "not_finite",
            Fault::Malformed => "malformed",
            Fault::NotJson => "not_json",
            Fault::UnknownId => "unknown_id",
            Fault::AnsweredTwice => "answered_twice",
            Fault::TimedOut => "timed_out",
            Fault::Crashed => "crashed",
            Fault::Flooded => "flooded",
        }
    }
}

/// How often each fault happened. These are events: a command that crashes while four attempts wait is one crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults([u64; Fault::ALL.len()]);

impl Faults {
    /// Counts one more.
    pub fn add(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// How often one happened.
    pub fn count(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Every fault that happened, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Fault, u64)> + '_ {
        Fault::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }

    /// The sum of both, fault by fault.
    #[must_use]
    pub fn plus(&self, other: &Faults) -> Faults {
        Faults(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
}

/// Several judged attempts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// One per attempt, in their order; `None` for an attempt that is left out because its judgement failed.
    pub judgements: Vec<Option<Judgement>>,
    /// What went wrong on the way.
    pub faults: Faults,
}

impl Judged {
    /// The sum of each attempt's rewards; NaN for an attempt that is left out.
    pub fn totals(&self) -> Vec<f32> {
        let total = |one: &Judgement| one.rewards.iter().sum();
        self.judgements.iter().map(|one| one.as_ref().map_or(f32::NAN, total)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_tokens_by_their_first_byte() {
        // "ab", "", "cde", "f", "" (an end mark)
        let ends = [2, 2, 5, 6, 6];
        let tokens = |range| Extent::Text(range).tokens(&ends);
        assert_eq!(tokens(0..2), 0..2, "a token without bytes goes with the one before it");
        assert_eq!(tokens(2..5), 2..3);
        assert_eq!((tokens(0..3), tokens(3..6)), (0..3, 3..5), "`cde` begins in the first");
        assert_eq!(tokens(5..6), 3..5);
        assert_eq!(tokens(0..6), 0..5);
        assert_eq!(tokens(6..6).len(), 0);
        assert_eq!(tokens(3..4).len(), 0);
        assert_eq!(Extent::Text(0..9).tokens(&[]), 0..0);
        assert_eq!(Extent::Text(0..1).tokens(&[0, 1]), 0..2);
        assert_eq!(Extent::Tokens(1..9).tokens(&ends), 1..5);
        assert_eq!(Extent::Tokens(7..9).tokens(&ends), 5..5);
    }

    #[test]
    fn neighbouring_stretches_share_no_token() {
        let ends = [1, 1, 4, 4, 9, 11, 11];
        for cut in 0..=11 {
            let (one, other) = (Extent::Text(0..cut), Extent::Text(cut..12));
            let (one, other) = (one.tokens(&ends), other.tokens(&ends));
            assert_eq!(one.len() + other.len(), ends.len(), "{cut}");
            assert!(one.is_empty() || other.is_empty() || one.end == other.start);
        }
    }

    #[test]
    fn faults_are_counted_by_kind() {
        let mut faults = Faults::default();
        for fault in Fault::ALL {
            faults.add(fault);
        }
        faults.add(Fault::Crashed);
        assert_eq!((faults.count(Fault::Crashed), faults.count(Fault::TimedOut)), (2, 1));
        assert_eq!(faults.plus(&faults).count(Fault::Crashed), 4);
        let mut names: Vec<&str> = faults.iter().map(|(fault, _)| fault.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Fault::ALL.len());
        assert_eq!(Faults::default().iter().count(), 0);
    }
}
