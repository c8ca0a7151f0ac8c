//! The gradient of one token, before the log-probs of the others are known.

use super::objective::Objective;
use super::pass;
use super::steps::Rule;
use super::{Inputs, Weights};
use crate::error::Result;

/// An objective with everything that a call knows before its log-probs.
pub(in crate::kernels) struct TokenGradients<'a> {
    rule: Rule,
    inputs: Inputs<'a>,
    weights: Weights,
}

impl<'a> TokenGradients<'a> {
    /// Checks a call. Its `logprob`, `old_logprob` and `entropy` need only have the right lengths: they are never read.
    /// `None` for an objective that is not [token by token](Objective::is_token_by_token).
    pub fn new(objective: &Objective, inputs: &Inputs<'a>) -> Result<Option<TokenGradients<'a>>> {
        let weights = Weights::new(objective, inputs, None)?;
        let rule = Rule::of(objective);
        let of_tokens = objective.is_token_by_token();
        Ok(of_tokens.then_some(TokenGradients { rule, inputs: *inputs, weights }))
    }

    /// The loss's derivatives by the log-prob and by the entropy of `token`: the bits that
    /// [`forward_backward`](super::forward_backward) writes once it is given all log-probs.
    pub fn of(&self, token: usize, logprob: f32, old_logprob: f32) -> (f32, f32) {
        let sequences = self.weights.sequences(None);
        pass::one_token(&self.rule, &self.inputs, &sequences, token, [logprob, old_logprob])
    }
}
