//! How masked blocks are filled, and what comes of it: the settings of [`fill`](super::block_decoding::fill), its completions
//! and what it tells of its passes.

use super::episode::{Order, Scored};
use super::unmasking::{Confidence, Selection};
use crate::error::{Error, Result};
use crate::rng::Stream;

/// How blocks are filled.
#[derive(Clone, Debug)]
pub struct Decoding {
    /// Which places are filled in a pass.
    pub selection: Selection,
    /// What they are ranked by.
    pub confidence: Confidence,
    /// Logits are divided by it before a token is drawn; 0 takes the likeliest.
    pub temperature: f32,
    /// Classifier-free guidance s: logits become `u + (s + 1)(l - u)`, u those with the prompt masked. 0: none, and half
    /// the work.
    pub guidance: f32,
    /// Places are filled this many at a time from left to right, where the model's own block is longer (LLaDA).
    pub sub_block: Option<usize>,
    /// The longest completion, tokens.
    pub max_new_tokens: usize,
    /// Ids that end a completion: what comes after the first of them is dropped.
    pub stop: Vec<i32>,
    /// Ids that are never set, beside the mask.
    pub banned: Vec<i32>,
    /// The seed of every draw.
    pub seed: u64,
    /// What the draws are for.
    pub stream: Stream,
    /// The number of the first completion: completion i is sequence `first_sequence + i`.
    pub first_sequence: u64,
    /// Keep keys and values of clean blocks; without, every pass runs everything: the same tokens, more work.
    pub cached: bool,
}

impl Decoding {
    /// Greedy, the surest place of a block in each pass.
    pub fn greedy(max_new_tokens: usize, stop: Vec<i32>) -> Decoding {
        Decoding {
            selection: Selection::Static { steps: usize::MAX },
            confidence: Confidence::Probability,
            temperature: 0.0,
            guidance: 0.0,
            sub_block: None,
            max_new_tokens,
            stop,
            banned: Vec::new(),
            seed: 0,
            stream: Stream::Generate,
            first_sequence: 0,
            cached: true,
        }
    }

    pub(super) fn check(&self, vocab: usize) -> Result<()> {
        self.selection.check(self.confidence)?;
        let bad = |what: String| Err(Error::invalid(format!("decoding: {what}")));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad(format!("a temperature of {}", self.temperature));
        }
        if !(self.guidance >= 0.0 && self.guidance.is_finite()) {
            return bad(format!("guidance of {}", self.guidance));
        }
        if self.sub_block == Some(0) {
            return bad("0 places at a time".into());
        }
        let outside = |id: &&i32| usize::try_from(**id).map_or(true, |id| id >= vocab);
        match self.banned.iter().find(outside) {
            Some(id) => Err(Error::index(format!("decoding: banned id {id} of {vocab}"))),
            None => Ok(()),
        }
    }
}

/// One completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filled {
    /// Which prompt it answers.
    pub prompt: usize,
    /// Its tokens, the one that ended it among them.
    pub tokens: Vec<i32>,
    /// The log-prob of each token when it was set (tempered as drawn; at temperature 0: untempered).
    pub logprob: Vec<f32>,
    /// In which order its tokens were set.
    pub order: Order,
    /// Passes of the model, all blocks together.
    pub passes: usize,
    /// It was cut at the limit instead of ending itself.
    pub truncated: bool,
}

impl Filled {
    /// As a policy scores it. `number` is the completion's own, which the masks of a score follow.
    pub fn scored<'a>(&'a self, prompt: &'a [i32], number: u64) -> Scored<'a> {
        Scored { order: Some(&self.order), number, ..Scored::new(prompt, &self.tokens) }
    }

    /// Tokens set a pass, on average: 1 for a token at a time.
    pub fn tokens_per_pass(&self) -> f32 {
        (self.tokens.len() + self.order.dropped.len()) as f32 / self.passes.max(1) as f32
    }
}

/// What a pass did, for those who watch.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Which completion.
    pub completion: usize,
    /// Its tokens, the mask id where there is none yet, to the end of the block.
    pub tokens: &'a [i32],
    /// Where in `tokens` the block begins.
    pub block: usize,
    /// Nothing in the block is masked any more.
    pub full: bool,
}
