//! Spans of tokens with a label, and what a verifier says about the parts of a response.

use serde::{Deserialize, Serialize};

/// The label of a token that speaks for its response: a step that holds, markup.
pub const SUPPORTED: f32 = 1.0;
/// The label of a token that speaks against it: a step that does not hold, text outside every step.
pub const UNSUPPORTED: f32 = 0.0;
/// The label of a token that counts as unsupported whatever a verifier says: a repeated step, a refusal of a question
/// that has an answer.
pub const FORCED: f32 = -1.0;
/// The label of the answer's tokens: 1 where the advantage is positive and 0 elsewhere, so that they keep it whole.
pub const ANSWER: f32 = 2.0;
/// A label that takes no side.
pub const NEUTRAL: f32 = 0.5;

/// Tokens `start..end` of a sequence and their label; positions count from the first token of the sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Which sequence.
    pub sequence: usize,
    /// The first token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
    /// A verdict ([`SUPPORTED`], [`UNSUPPORTED`], …) or a value of its own.
    pub label: f32,
}

/// What a part of a response is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    /// The token that opens a step, its number.
    StepNumber {
        /// The verdict about the step that it opens.
        supported: bool,
    },
    /// The words of a step.
    Step {
        /// The verdict.
        supported: bool,
    },
    /// A step whose verdict is set by a rule and not by looking at evidence (a repetition; a refusal).
    Forced {
        /// The verdict that the rule gives.
        supported: bool,
    },
    /// Markup such as `<think>`.
    Tag,
    /// The final answer.
    Answer,
    /// A part with a value of its own: a step reward or a step advantage.
    Value(f32),
}

/// A part of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// Which sequence.
    pub sequence: usize,
    /// The first token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
    /// What it is.
    pub part: Part,
}

/// How the token that opens a step is labelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labelling {
    /// With the verdict of its step: to begin a step is part of it.
    #[default]
    Verdict,
    /// As supported, always: the released code of FaithRL. With `alpha` 0 the decision to begin a step is then credited
    /// in good responses and never blamed in bad ones, so that steps are written for their own sake; kept to show that.
    Literal,
}

impl Labelling {
    /// The label of a part.
    pub fn label(self, part: Part) -> f32 {
        let verdict = |supported| if supported { SUPPORTED } else { UNSUPPORTED };
        match part {
            Part::StepNumber { .. } if self == Labelling::Literal => SUPPORTED,
            Part::StepNumber { supported } | Part::Step { supported } => verdict(supported),
            Part::Forced { supported: true } | Part::Tag => SUPPORTED,
            Part::Forced { supported: false } => FORCED,
            Part::Answer => ANSWER,
            Part::Value(value) => value,
        }
    }

    /// The spans to paint for the segments of some responses, in their order.
    pub fn spans(self, segments: &[Segment]) -> Vec<Span> {
        let span = |segment: &Segment| {
            let Segment { sequence, start, end, part } = *segment;
            Span { sequence, start, end, label: self.label(part) }
        };
        segments.iter().map(span).collect()
    }
}
