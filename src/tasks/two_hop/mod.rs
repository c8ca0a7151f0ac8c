//! Two look-ups in a small knowledge base, written out step by step: the task on which faithfulness can be measured.
//!
//! A prompt holds six facts `head relation tail` and asks for `relation2(relation1(e0))`. The response is a chain of
//! numbered steps, each claiming one fact, and an answer; it may refuse instead, at any step boundary or where the tail
//! of a step would stand. Some prompts miss one of the two facts, in some the second fact's relation is worn off, so
//! that its tail is right only with a known probability. Every step of a response is checked against the given facts by
//! [`verdict`](verdict()).
//!
//! Everything is tokens: a prompt is always [`PROMPT`] long, a response at most [`RESPONSE`].

mod problem;
mod trace;
mod verdict;

pub use problem::{Class, Fact, Problem, TwoHop, TwoHopConfig};
pub use trace::{NoiseConfig, clean_trace, noisy_trace};
pub use verdict::{Outcome, Step, Verdict, verdict};

/// Entities are the ids `0..ENTITIES`; the first [`POPULAR`] of them are tails more often.
pub const ENTITIES: i32 = 16;
/// Entities that half of all tails are.
pub const POPULAR: i32 = 2;
/// Relations are the ids `ENTITIES..ENTITIES + RELATIONS`.
pub const RELATIONS: i32 = 4;
/// In place of a relation: worn off, and the fact is less likely than not the one that is asked for.
pub const FAINT: i32 = 20;
/// In place of a relation: worn off, but the fact is probably the one that is asked for.
pub const SMUDGED: i32 = 21;
/// The number of the first step; the others follow.
pub const FIRST_STEP: i32 = 22;
/// Most steps of a response.
pub const STEPS: usize = 3;
/// Begins the answer.
pub const ANSWER: i32 = 25;
/// The answer "I do not know".
pub const REFUSAL: i32 = 26;
/// Begins the question.
pub const QUESTION: i32 = 27;
/// Begins the prompt.
pub const BEGIN: i32 = 28;
/// Ends the response.
pub const END: i32 = 29;
/// Token ids.
pub const VOCAB: usize = 30;
/// Facts of a prompt.
pub const FACTS: usize = 6;
/// Tokens of a prompt.
pub const PROMPT: usize = 1 + 3 * FACTS + 4;
/// Tokens of the longest response.
pub const RESPONSE: usize = 4 * STEPS + 3;

/// A tail by the law that facts follow: one of the popular half of the time.
fn tail(draws: &mut crate::rng::Sequence) -> i32 {
    if draws.next_unit() < 0.5 {
        draws.below(POPULAR as u32) as i32
    } else {
        POPULAR + draws.below((ENTITIES - POPULAR) as u32) as i32
    }
}
