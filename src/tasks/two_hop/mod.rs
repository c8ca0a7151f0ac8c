//! Two look-ups in a small knowledge base, written out step by step: the task on which faithfulness can be measured.
//!
//! A prompt holds six facts `head relation tail` and asks for `relation2(relation1(e0))`. The response is a chain of
//! numbered steps, each claiming one fact, and an answer; it may refuse instead, at any step boundary or where the tail
//! of a step would stand. Some prompts miss one of the two facts, in some the second fact's relation is worn off, so
//! that its tail is right only with a known probability. Every step of a response is checked against the given facts by
//! [`verdict`](verdict()).
//!
//! Everything is ids: a prompt is always [`PROMPT`] long, a response at most [`RESPONSE`].

mod exercise;
mod ids;
mod source;
mod task;
mod trace;
mod verdict;
mod verifier;

pub use exercise::{Class, Exercise, Fact};
pub use ids::*;
pub use source::{TwoHop, TwoHopConfig};
pub use trace::{NoiseConfig, clean_trace, noisy_trace};
pub use verdict::{Outcome, Step, Verdict, verdict};
pub use verifier::TwoHopVerifier;
