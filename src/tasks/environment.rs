//! What answers a policy while it works on a problem: a tool, a simulator, another player.
//!
//! A problem that is answered at once is the environment that never replies, [`OneShot`].

use super::episode::{Example, Turn};
use super::problem::{Part, Problem};

/// What a policy works in. Every method is a pure function of its arguments, so an episode can be continued after a
/// restart from what has been said alone.
pub trait Environment: Send + Sync {
    /// What it is called in messages and reports.
    fn name(&self) -> &str;

    /// What the policy reads first.
    fn begin(&self, problem: &Problem) -> Vec<Part> {
        problem.parts.clone()
    }

    /// The policy's turn is over as soon as its text contains one of these, or when it ends itself. Empty: only then.
    fn stops(&self) -> &[String] {
        &[]
    }

    /// The reply to an episode so far, whose last turn is the policy's; `None` ends the episode.
    ///
    /// Never panics, whatever was written.
    fn reply(&self, problem: &Problem, turns: &[Turn]) -> Option<Part>;

    /// Characters beyond those of the task that its turns, or the policy's calls, are written in.
    fn alphabet(&self) -> &str {
        ""
    }

    /// An example of a task as it looks in this environment.
    fn shown(&self, example: Example) -> Example {
        example
    }
}

/// The environment that never replies.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneShot;

impl Environment for OneShot {
    fn name(&self) -> &str {
        "one_shot"
    }

    fn reply(&self, _problem: &Problem, _turns: &[Turn]) -> Option<Part> {
        None
    }
}
