//! What is said after the prompt: turns of the policy and of its environment, and episodes to imitate.

use super::problem::{Part, Problem};

/// Who wrote a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The model that is trained: its tokens have a gradient.
    Policy,
    /// The environment: its tokens are read and never trained on.
    Environment,
}

/// One turn of an episode, after the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Who wrote it.
    pub by: Author,
    /// What was written: text, or ids for a task that is made of ids.
    pub part: Part,
}

impl Turn {
    /// A turn of the policy.
    pub fn policy(part: Part) -> Turn {
        Turn { by: Author::Policy, part }
    }

    /// A turn of the environment.
    pub fn environment(part: Part) -> Turn {
        Turn { by: Author::Environment, part }
    }
}

/// A problem and an episode to imitate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The problem, with its right answer.
    pub problem: Problem,
    /// The turns of the response: the policy's are imitated, those of an environment are only read.
    pub turns: Vec<Turn>,
}

impl Example {
    /// A response of a single turn.
    pub fn one_shot(problem: Problem, response: Part) -> Example {
        Example { problem, turns: vec![Turn::policy(response)] }
    }
}
