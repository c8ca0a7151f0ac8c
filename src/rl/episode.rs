//! An episode: what was written after a prompt, token by token, by the policy and by its environment.

/// In which order the tokens of a completion were set by a policy that fills masked blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Order {
    /// In which pass over its block each token was set, from 0.
    pub step: Vec<u32>,
    /// What was set in the last block after the end, and when: it was there when the others were chosen.
    pub dropped: Vec<(i32, u32)>,
}

/// What was written after a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Episode {
    /// Which prompt it goes on from.
    pub prompt: usize,
    /// A number of its own in the run. Random draws depend on it, so an episode is drawn alike in any batch.
    pub number: u64,
    /// Every token after the prompt, those of the environment among them.
    pub tokens: Vec<i32>,
    /// `[tokens]`: 1 where the policy wrote the token, 0 where the environment did.
    pub mask: Vec<u8>,
    /// `[tokens]`: the log-prob of each token under the tempered distribution of the policy that drew it, over the whole
    /// vocabulary; 0 for the environment's.
    pub logprob: Vec<f32>,
    /// `[tokens]`: the log-prob under the truncated distribution that the token was drawn from, where top-k, top-p or min-p cut it;
    /// `None`: nothing was cut off, and it is `logprob`.
    pub drawn_logprob: Option<Vec<f32>>,
    /// It was cut at a limit instead of ending itself.
    pub truncated: bool,
    /// In which order its tokens were set, where it was not left to right.
    pub order: Option<Order>,
}

impl Episode {
    /// Tokens that the policy wrote.
    pub fn written(&self) -> usize {
        self.mask.iter().filter(|mask| **mask != 0).count()
    }

    /// As a policy scores it.
    pub fn scored<'a>(&'a self, prompt: &'a [i32]) -> Scored<'a> {
        Scored {
            prompt,
            completion: &self.tokens,
            mask: Some(&self.mask),
            order: self.order.as_ref(),
            number: self.number,
        }
    }
}

/// A prompt and the completion to score.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// Token ids, at least one.
    pub prompt: &'a [i32],
    /// Token ids; each is predicted from what stands before it.
    pub completion: &'a [i32],
    /// `[completion]`, 0: the token is read and not scored; `None`: all are scored.
    pub mask: Option<&'a [u8]>,
    /// In which order the tokens were set, where it was not left to right.
    pub order: Option<&'a Order>,
    /// The number of the episode: masks that a score draws follow it.
    pub number: u64,
}

impl<'a> Scored<'a> {
    /// A completion of which every token is scored from left to right.
    pub fn new(prompt: &'a [i32], completion: &'a [i32]) -> Scored<'a> {
        Scored { prompt, completion, mask: None, order: None, number: 0 }
    }

    /// Tokens that a causal model reads: all but the last, which predicts nothing here.
    pub fn tokens(&self) -> usize {
        (self.prompt.len() + self.completion.len()).saturating_sub(1)
    }
}

/// Splits a batch, in order, into runs of at most `tokens` tokens; a longer sequence stands alone.
pub fn micro_batches<'a, 'b>(batch: &'b [Scored<'a>], tokens: usize) -> Vec<&'b [Scored<'a>]> {
    let mut parts = Vec::new();
    let (mut start, mut held) = (0, 0);
    for (i, scored) in batch.iter().enumerate() {
        if i > start && held + scored.tokens() > tokens {
            parts.push(&batch[start..i]);
            (start, held) = (i, 0);
        }
        held += scored.tokens();
    }
    if start < batch.len() {
        parts.push(&batch[start..]);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_cover_in_order() {
        let tokens = [0i32; 20];
        let scored = |n: usize| Scored::new(&tokens[..1], &tokens[..n]);
        let batch = [scored(5), scored(5), scored(20), scored(1), scored(9)];
        let sizes: Vec<usize> = micro_batches(&batch, 10).iter().map(|part| part.len()).collect();
        assert_eq!(sizes, [2, 1, 2]);
        assert!(micro_batches(&[], 10).is_empty());
    }
}
