//! A [`Gpt`] as a policy: completions drawn from it in batches, and their log-probs again for a gradient.
//!
//! What [`super::rollout`] and [`super::scoring`] are to a [`Decoder`](crate::models::Decoder), for the small model of
//! problems made in code, whose tokens look back at the ones before. A draw is a function of (seed, sequence number,
//! place) and the weights, and the log-prob recorded with it is to the bit the one that training computes.

use crate::error::{Error, Result};
use crate::kernels::logprob::Outputs;
use crate::kernels::sample::{self, Sample, Truncation};
use crate::models::{Gpt, Ngrams};
use crate::ops;
use crate::rng::Stream;
use crate::tensor::Tensor;
use crate::tensor::autograd::no_grad;

/// How completions are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Drawing<'a> {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// The longest completion, in tokens.
    pub max_new_tokens: usize,
    /// The id that ends a completion (it is part of it).
    pub stop: i32,
    /// Ids that are never drawn.
    pub banned: &'a [i32],
    /// The seed of every draw.
    pub seed: u64,
    /// The number of the first completion: completion i is sequence `first_sequence + i`.
    pub first_sequence: u64,
}

/// A completion with its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The prompt's tokens, then its own.
    pub tokens: Vec<i32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// The log-prob of each of its own tokens when it was drawn.
    pub logprob: Vec<f32>,
    /// The entropy of the distribution that each of its own tokens was drawn from, nats.
    pub entropy: Vec<f32>,
    /// It ended itself.
    pub ended: bool,
}

impl Completion {
    /// Its own tokens.
    pub fn own(&self) -> &[i32] {
        self.tokens.get(self.prompt..).unwrap_or_default()
    }
}

/// Draws completions: prompt p gets `counts[p]` of them, one prompt after another.
///
/// # Errors
/// [`Error::is_invalid`] for an empty prompt or one that with `max_new_tokens` outgrows the context,
/// [`Error::is_index`] for an id outside the vocabulary, [`Error::is_shape`] unless there is a count for each prompt.
pub fn completions(
    model: &Gpt,
    prompts: &[&[i32]],
    counts: &[usize],
    drawing: &Drawing<'_>,
) -> Result<Vec<Completion>> {
    let context = model.config().context;
    if counts.len() != prompts.len() {
        return Err(Error::shape(format!("{} counts for {} prompts", counts.len(), prompts.len())));
    }
    let longest = context.saturating_sub(drawing.max_new_tokens);
    if let Some(prompt) = prompts.iter().find(|p| p.is_empty() || p.len() > longest) {
        return Err(Error::invalid(format!(
            "a prompt of {} tokens and {} new ones in a context of {context}",
            prompt.len(),
            drawing.max_new_tokens
        )));
    }
    let mut done: Vec<Completion> = Vec::new();
    let mut fork = Vec::new();
    for (at, (prompt, count)) in prompts.iter().zip(counts).enumerate() {
        for _ in 0..*count {
            fork.push(at);
            done.push(Completion {
                tokens: prompt.to_vec(),
                prompt: prompt.len(),
                logprob: Vec::new(),
                entropy: Vec::new(),
                ended: false,
            });
        }
    }
    if done.is_empty() || drawing.max_new_tokens == 0 {
        return Ok(done);
    }
    no_grad(|| {
        let ngram = model.config().ngram;
        let mut cache = model.cache(prompts.len())?;
        let packed = Ngrams::new(ngram, prompts.iter().map(|prompt| (*prompt, 0)));
        let all = model.continued(&packed, &mut cache)?;
        let last: Vec<usize> = fork.iter().map(|p| packed.segments()[p + 1] - 1).collect();
        let mut hidden = ops::gather(&all, &last)?;
        cache.keep(&fork)?;
        let mut live: Vec<usize> = (0..done.len()).collect();
        loop {
            draw(model, &hidden, drawing, &live, &mut done)?;
            let kept: Vec<usize> = (0..live.len())
                .filter(|row| {
                    let one = &done[live[*row]];
                    !one.ended && one.logprob.len() < drawing.max_new_tokens
                })
                .collect();
            if kept.is_empty() {
                return Ok(());
            }
            if kept.len() < live.len() {
                cache.keep(&kept)?;
                live = kept.iter().map(|row| live[*row]).collect();
            }
            let newest = live.iter().map(|i| (&done[*i].tokens[..], done[*i].tokens.len() - 1));
            hidden = model.continued(&Ngrams::new(ngram, newest), &mut cache)?;
        }
    })?;
    Ok(done)
}

/// One more token for every live completion.
fn draw(
    model: &Gpt,
    hidden: &Tensor,
    drawing: &Drawing<'_>,
    live: &[usize],
    done: &mut [Completion],
) -> Result<()> {
    let logits = model.logits(hidden)?;
    let rows = live.len();
    let sequences: Vec<u64> = live.iter().map(|i| drawing.first_sequence + *i as u64).collect();
    let positions: Vec<u32> = live.iter().map(|i| done[*i].logprob.len() as u32).collect();
    let mut ids = vec![0i32; rows];
    let (mut logprob, mut entropy) = (vec![0f32; rows], vec![0f32; rows]);
    let mut logsumexp = vec![0f32; rows];
    let args = Sample {
        logits: logits.floats()?,
        rows,
        vocab: model.config().vocab,
        temperature: drawing.temperature,
        softcap: None,
        truncation: Truncation::default(),
        banned: drawing.banned,
        seed: drawing.seed,
        stream: Stream::Sample,
        sequences: &sequences,
        positions: &positions,
    };
    let outputs = Outputs {
        logprob: &mut logprob,
        entropy: Some(&mut entropy),
        logsumexp: &mut logsumexp,
        argmax: None,
    };
    sample::tokens(&args, &mut ids, Some(outputs))?;
    for (row, i) in live.iter().enumerate() {
        let one = &mut done[*i];
        one.tokens.push(ids[row]);
        one.logprob.push(logprob[row]);
        one.entropy.push(entropy[row]);
        one.ended = ids[row] == drawing.stop;
    }
    Ok(())
}

/// A sequence of which the tokens after the prompt are scored.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// The prompt's tokens and the completion's.
    pub tokens: &'a [i32],
    /// Tokens of the prompt, at least 1.
    pub prompt: usize,
}

/// The log-prob and the entropy of every completion token, one sequence after another.
///
/// # Shapes
/// Two f32 tensors `[Σ completion lengths]`.
///
/// # Errors
/// [`Error::is_invalid`] for a prompt that is empty or longer than its sequence, [`Error::is_index`] for an id outside
/// the vocabulary.
pub fn logprobs(model: &Gpt, batch: &[Sequence<'_>]) -> Result<(Tensor, Tensor)> {
    if let Some(bad) = batch.iter().find(|s| s.prompt == 0 || s.prompt > s.tokens.len()) {
        return Err(Error::invalid(format!(
            "scoring: a prompt of {} of {} tokens",
            bad.prompt,
            bad.tokens.len()
        )));
    }
    // The last token predicts nothing here.
    let read = batch.iter().map(|s| (&s.tokens[..s.tokens.len() - 1], 0));
    let packed = Ngrams::new(model.config().ngram, read);
    let (mut predicting, mut targets) = (Vec::new(), Vec::new());
    for (sequence, start) in batch.iter().zip(packed.segments()) {
        let own = sequence.tokens.len() - sequence.prompt;
        let first = start + sequence.prompt - 1;
        predicting.extend(first..first + own);
        targets.extend_from_slice(&sequence.tokens[sequence.prompt..]);
    }
    let hidden = model.hidden(&packed, &predicting)?;
    ops::linear_logprob(&hidden, &model.head(), None, &targets, &ops::SoftmaxOptions::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::GptConfig;

    #[test]
    fn training_sees_the_bits_that_sampling_saw() {
        let config = GptConfig { vocab: 11, width: 16, layers: 2, heads: 2, context: 12, ngram: 3 };
        let model = Gpt::random(config, 3).unwrap();
        let drawing = Drawing {
            temperature: 1.0,
            max_new_tokens: 6,
            stop: 10,
            banned: &[0],
            seed: 7,
            first_sequence: 40,
        };
        let prompts: [&[i32]; 3] = [&[1, 2, 3], &[4, 5, 6, 7], &[8]];
        let drawn = completions(&model, &prompts, &[3, 0, 2], &drawing).unwrap();
        assert_eq!(drawn.len(), 5);
        assert!(drawn.iter().all(|c| !c.own().contains(&0) && !c.own().is_empty()));
        let again: Vec<Sequence<'_>> =
            drawn.iter().map(|c| Sequence { tokens: &c.tokens, prompt: c.prompt }).collect();
        let (logprob, entropy) = logprobs(&model, &again).unwrap();
        let recorded: Vec<f32> = drawn.iter().flat_map(|c| c.logprob.clone()).collect();
        assert_eq!(logprob.f32s().unwrap(), recorded);
        let recorded: Vec<f32> = drawn.iter().flat_map(|c| c.entropy.clone()).collect();
        assert_eq!(entropy.f32s().unwrap(), recorded);
        // Alone or in a batch, a completion is the same.
        let alone = Drawing { first_sequence: 43, ..drawing };
        let alone = completions(&model, &prompts[2..], &[2], &alone).unwrap();
        assert_eq!(alone, drawn[3..]);
        let long = Drawing { max_new_tokens: 9, ..drawing };
        assert!(completions(&model, &prompts, &[1, 1, 1], &long).unwrap_err().is_invalid());
    }
}
