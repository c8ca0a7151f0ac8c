//! Problems, what a policy works on them in, and what judges it.
//!
//! A [`Task`] gives [`Problem`]s: made in code ([`arithmetic`], [`permutation_chain`], [`two_hop`]) or read from a file
//! ([`mod@file`]). An [`Environment`] answers while the policy works ([`calculator`]). A [`Verifier`] judges what the policy
//! wrote, with named rewards, a label of the outcome and verdicts about steps: it is built in ([`final_answer`], [`exact`]), a
//! type of the user's, or a program of the user's ([`command`]). [`settings`] chooses all three for a run.
//!
//! A task deals in text or ids; [`crate::text`] turns text into ids. Held-out problems never occur among the training
//! problems, by construction and whatever the seed. Nothing here knows a model, a batch or an advantage.

pub mod answer;
pub mod arithmetic;
pub mod calculation;
pub mod calculator;
pub mod command;
pub mod environment;
pub mod episode;
pub mod epochs;
pub mod equality;
pub mod exact;
pub mod file;
pub mod final_answer;
mod in_order;
pub mod json;
pub mod judgement;
pub mod permutation_chain;
pub mod problem;
pub mod refusal;
pub mod settings;
pub mod several;
#[cfg(feature = "text")]
pub mod source_text;
pub mod steps;
pub mod task;
pub mod template;
pub mod two_hop;
pub mod verifier;

pub use environment::Environment;
pub use episode::{Author, Example, Turn};
pub use judgement::{Extent, Fault, Faults, Judged, Judgement, Label, StepVerdict};
pub use problem::{Message, Part, Problem};
pub use settings::{OpenTask, TaskSettings};
pub use task::{Ids, Language, Task};
pub use template::{Prompting, Template};
pub use verifier::{Attempt, Gives, RewardFn, Verifier, judged};

/// The example of the page, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../docs/data.md")]
mod page {}
