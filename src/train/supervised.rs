//! Supervised learning on worked examples: the warm-up before reinforcement.

use crate::error::Result;
use crate::models::Decoder;
use crate::ops;
use crate::rl::scoring::{Scored, logprobs};
use crate::tensor::{Gradients, Tensor, autograd};

/// What one supervised batch gave.
#[derive(Clone, Copy, Debug)]
pub struct Supervised {
    /// Mean negative log-prob of the answers' tokens, nats.
    pub loss: f32,
    /// Mean entropy at these tokens, nats.
    pub entropy: f32,
    /// Tokens run through the model.
    pub tokens: usize,
}

/// Adds the gradient of the mean negative log-prob of all completion tokens, `micro_batch_tokens` at a time.
///
/// # Errors
/// As [`logprobs`].
pub fn gradients(
    model: &Decoder,
    examples: &[Scored<'_>],
    micro_batch_tokens: usize,
    gradients: &mut Gradients,
) -> Result<Supervised> {
    let total: usize = examples.iter().map(|e| e.completion.len()).sum();
    let each = -1.0 / total.max(1) as f32;
    let mut done = Supervised { loss: 0.0, entropy: 0.0, tokens: 0 };
    let mut sums = Vec::new();
    for batch in micro_batches(examples, micro_batch_tokens) {
        let (logprob, entropy) = logprobs(model, batch, 1.0)?;
        sums.push((ops::sum(&logprob.detach())?, ops::sum(&entropy.detach())?));
        done.tokens += batch.iter().map(Scored::tokens).sum::<usize>();
        if logprob.is_tracked() {
            let upstream = Tensor::from_f32(vec![each; logprob.len()], logprob.shape())?
                .to_device(&logprob.device())?;
            autograd::backward_from(vec![(logprob, upstream)], gradients)?;
        }
    }
    // Read when everything has been started: a device is waited for once.
    for (logprob, entropy) in sums {
        done.loss += logprob.item()? * each;
        done.entropy -= entropy.item()? * each;
    }
    Ok(done)
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
        let scored = |n: usize| Scored { prompt: &tokens[..1], completion: &tokens[..n] };
        let batch = [scored(5), scored(5), scored(20), scored(1), scored(9)];
        let sizes: Vec<usize> = micro_batches(&batch, 10).iter().map(|part| part.len()).collect();
        assert_eq!(sizes, [2, 1, 2]);
        assert!(micro_batches(&[], 10).is_empty());
    }
}
