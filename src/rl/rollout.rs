//! Rollouts: completions sampled from a decoder in batches, each with the log-probs under which it was drawn.
//!
//! A prompt is run once however many completions are drawn from it: its cached keys and values are forked. A sequence
//! that ends leaves the batch and the next one takes its place. The token at position p of sequence s is a function of
//! (seed, s, p) and the weights alone: neither the other sequences of the batch nor the number of threads can change it.

use super::drawing::Drawing;
use crate::device::Device;
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use crate::kernels::attention::KvCache;
use crate::kernels::sample::Truncation;
pub use crate::models::Packed;
use crate::models::{Decoder, Prepared};
use crate::ops;
use crate::rng::Stream;
use crate::tensor::Tensor;
use crate::tensor::autograd::no_grad;
use std::iter::Enumerate;
use std::slice::IterMut;
use std::sync::{Mutex, PoisonError};

/// How completions are drawn.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the most likely tokens are drawn from.
    pub truncation: Truncation,
    /// The longest completion, in tokens.
    pub max_new_tokens: usize,
    /// Ids that end a completion (they are part of it).
    pub stop: Vec<i32>,
    /// Ids that are never drawn.
    pub banned: Vec<i32>,
    /// The seed of every draw.
    pub seed: u64,
    /// What the draws are for.
    pub stream: Stream,
    /// The number of the first completion: completion i is sequence `first_sequence + i`.
    pub first_sequence: u64,
}

/// One completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rollout {
    /// Which prompt it answers.
    pub prompt: usize,
    /// Its tokens, the one that ended it among them.
    pub tokens: Vec<i32>,
    /// The log-prob of each token under the tempered, untruncated distribution (at temperature 0: the untempered one).
    pub logprob: Vec<f32>,
    /// It was cut at the limit instead of ending itself.
    pub truncated: bool,
}

/// Draws `per_prompt` completions of every prompt: prompt 0's first, then prompt 1's.
///
/// # Errors
/// [`Error::is_invalid`] for an empty prompt, or one that leaves no room in the model's context; [`Error::is_index`]
/// for a token outside the vocabulary.
pub fn rollouts(
    model: &Decoder,
    prompts: &[Vec<i32>],
    per_prompt: usize,
    sampling: &Sampling,
) -> Result<Vec<Rollout>> {
    draw_all(model, prompts, per_prompt, sampling, None)
}

/// [`rollouts`] that tells every token as it is drawn: `told(completion, token)`.
///
/// # Errors
/// As [`rollouts`].
pub fn stream(
    model: &Decoder,
    prompts: &[Vec<i32>],
    per_prompt: usize,
    sampling: &Sampling,
    told: &mut dyn FnMut(usize, i32),
) -> Result<Vec<Rollout>> {
    draw_all(model, prompts, per_prompt, sampling, Some(told))
}

/// Sequences that are decoded together by one thread at least; fewer are not worth a thread of their own.
const FEWEST_TOGETHER: usize = 8;

/// Sequences that a thread decodes together at most, where the weights stay in the processor's cache: with more, it is the
/// keys and values of a step that no longer stay until the next step reads them again.
const MOST_TOGETHER: usize = 16;

/// Bytes of weights that stay there. Larger weights are read from memory in every step, for as many sequences as there are.
const CACHED_WEIGHTS: usize = 8 << 20;

fn draw_all(
    model: &Decoder,
    prompts: &[Vec<i32>],
    per_prompt: usize,
    sampling: &Sampling,
    told: Option<&mut dyn FnMut(usize, i32)>,
) -> Result<Vec<Rollout>> {
    if prompts.is_empty() || per_prompt == 0 {
        return Ok(Vec::new());
    }
    let context = model.config().max_position_embeddings;
    for (i, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() || prompt.len() >= context {
            return Err(Error::invalid(format!(
                "prompt {i} has {} tokens; it needs at least 1 and fewer than the context of {context}",
                prompt.len()
            )));
        }
    }
    let new = |prompt| Rollout { prompt, ..Rollout::default() };
    let count = prompts.len().saturating_mul(per_prompt);
    let mut done: Vec<Rollout> =
        (0..prompts.len()).flat_map(|p| std::iter::repeat_n(p, per_prompt)).map(new).collect();
    if sampling.max_new_tokens == 0 {
        done.iter_mut().for_each(|rollout| rollout.truncated = true);
        return Ok(done);
    }
    no_grad(|| {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let capacity = longest.saturating_add(sampling.max_new_tokens).min(context);
        let mut cache = model.cache(prompts.len(), capacity)?;
        let hidden = {
            let packed = Packed::new(prompts.iter().map(|prompt| (0, &**prompt)));
            let all = model.continued(packed.tokens(), &mut cache)?;
            let last: Vec<usize> = packed.segments[1..].iter().map(|end| end - 1).collect();
            ops::gather(&all, &last)?
        };
        let prepared = model.prepared()?;
        let batch =
            Batch { model, prepared: &prepared, prompts, sampling, cache: &cache, hidden: &hidden };
        match told {
            Some(told) => batch.decode(&Waiting::new(&mut done), count, told)?,
            None => batch.decode_in_parallel(&mut done)?,
        }
        Ok(done)
    })
}

/// Completions that no thread has begun, with their numbers, in order.
struct Waiting<'a>(Mutex<Enumerate<IterMut<'a, Rollout>>>);

impl<'a> Waiting<'a> {
    fn new(all: &'a mut [Rollout]) -> Waiting<'a> {
        Waiting(Mutex::new(all.iter_mut().enumerate()))
    }

    fn next(&self, most: usize) -> Vec<(usize, &'a mut Rollout)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_ref().take(most).collect()
    }
}

/// Prompts that have been run, and how to go on from them.
#[derive(Clone, Copy)]
struct Batch<'a> {
    model: &'a Decoder,
    prepared: &'a Prepared,
    prompts: &'a [Vec<i32>],
    sampling: &'a Sampling,
    /// One sequence a prompt.
    cache: &'a KvCache,
    /// The hidden state of the last token of each prompt.
    hidden: &'a Tensor,
}

impl Batch<'_> {
    /// Decodes on every thread of the pool. A sequence's tokens do not depend on what is beside it, so which thread takes
    /// it is free, and a thread that goes through a whole step alone waits for nobody, where sharing every small
    /// operation costs a hand-over each.
    fn decode_in_parallel(self, done: &mut [Rollout]) -> Result<()> {
        let count = done.len();
        let threads = pool::threads().min(count / FEWEST_TOGETHER).max(1);
        let waiting = Waiting::new(done);
        if self.model.device() != Device::Cpu {
            return self.decode(&waiting, count, &mut |_, _| {});
        }
        let most = match self.prepared.bytes() {
            1..=CACHED_WEIGHTS => MOST_TOGETHER,
            _ => usize::MAX,
        };
        let together = count.div_ceil(threads).min(most);
        pool::try_each((0..threads).map(|_| ()), 1, |_, ()| {
            let work = || no_grad(|| self.decode(&waiting, together, &mut |_, _| {}));
            if threads == 1 { work() } else { pool::on_this_thread(work) }
        })
    }

    /// Decodes what waits, `together` sequences at a time: one that ends makes room for the next.
    fn decode(
        self,
        waiting: &Waiting<'_>,
        together: usize,
        told: &mut dyn FnMut(usize, i32),
    ) -> Result<()> {
        let Batch { model, prepared, prompts, sampling, .. } = self;
        let mut drawing = Drawing::new(model, sampling)?;
        let context = model.config().max_position_embeddings;
        let mut live = waiting.next(together);
        let mut done = Vec::new();
        // Fork: every completion gets its prompt's cache and last hidden state.
        let fork = |new: &[(usize, &mut Rollout)]| -> Vec<usize> {
            new.iter().map(|(_, rollout)| rollout.prompt).collect()
        };
        let mut cache = self.cache.clone();
        cache.keep(&fork(&live))?;
        let mut hidden = ops::gather(self.hidden, &fork(&live))?;
        while !live.is_empty() {
            let ids = drawing.draw(&model.raw_logits_with(prepared, &hidden)?, &mut live)?;
            let mut kept = Vec::new();
            for (row, id) in ids.into_iter().enumerate() {
                let (number, rollout) = &mut live[row];
                rollout.tokens.push(id);
                told(*number, id);
                let length = prompts[rollout.prompt].len() + rollout.tokens.len();
                if sampling.stop.contains(&id) {
                    continue;
                }
                if rollout.tokens.len() >= sampling.max_new_tokens || length >= context {
                    rollout.truncated = true;
                    continue;
                }
                kept.push(row);
            }
            let ended = live.len() - kept.len();
            if ended > 0 {
                cache.keep(&kept)?;
                let mut row = 0;
                done.extend(live.extract_if(.., |_| {
                    row += 1;
                    kept.binary_search(&(row - 1)).is_err()
                }));
            }
            if !live.is_empty() {
                let packed = Packed::new(live.iter().map(|(_, rollout)| {
                    let newest = &rollout.tokens[rollout.tokens.len() - 1..];
                    (prompts[rollout.prompt].len() + rollout.tokens.len() - 1, newest)
                }));
                hidden = model.continued_with(prepared, packed.tokens(), &mut cache)?;
            }
            let new = if ended > 0 { waiting.next(ended) } else { Vec::new() };
            if !new.is_empty() {
                let begun = ops::gather(self.hidden, &fork(&new))?;
                cache.take_up(self.cache, &fork(&new))?;
                hidden = if live.is_empty() { begun } else { ops::concat(&[&hidden, &begun])? };
                live.extend(new);
            }
        }
        drawing.finish(done)
    }
}
