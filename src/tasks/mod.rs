//! Problems with verifiable answers: made in code ([`arithmetic`]) or read from a file ([`jsonl`]), and the
//! [`verifier`]s that turn a completion into a reward ([`answer`] finds an answer in text, [`equality`] compares two).
//!
//! A task deals in text; [`crate::text`] turns text into ids. Held-out problems never occur among the training
//! problems, by construction and whatever the seed.

pub mod answer;
pub mod arithmetic;
pub mod equality;
pub mod jsonl;
pub mod permutation_chain;
mod quantity;
pub mod source_text;
pub mod two_hop;
pub mod verifier;

pub use verifier::Verifier;

/// A prompt and the answer that a verifier compares with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What the model is given.
    pub prompt: String,
    /// The right answer (or, in a worked example, the text to imitate).
    pub answer: String,
    /// How hard the task thinks it is; 0 when it does not know. Larger is harder.
    pub level: u32,
}

/// A source of problems. Every method is a pure function of its arguments: a seed and an index are all the state.
pub trait Task: Send + Sync {
    /// What it is called in messages and reports.
    fn name(&self) -> &str;

    /// Training problem `index` of `seed`. Any index is valid; a finite task starts again in a new order.
    fn problem(&self, seed: u64, index: u64) -> Problem;

    /// At most `count` distinct problems that [`Task::problem`] never returns, for any seed. Fewer when there are fewer.
    fn held_out(&self, seed: u64, count: usize) -> Vec<Problem>;

    /// Supervised example `index` of `seed`: a training problem whose `answer` is the text to imitate (it may be wrong
    /// on purpose). `None` for a task that has no worked examples.
    fn worked_example(&self, seed: u64, index: u64) -> Option<Problem>;

    /// The verifier its answers are meant for.
    fn verifier(&self) -> Box<dyn Verifier>;

    /// Every character that can occur in a prompt or an answer, for a character tokenizer; `None` for free text.
    fn alphabet(&self) -> Option<&str>;
}
