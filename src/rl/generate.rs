//! Episodes sampled in batches from a model that writes from left to right, each with the log-probs under which it was
//! drawn.
//!
//! A prompt is run once however many episodes are drawn from it: its cached keys and values are forked. A sequence
//! that ends leaves the batch and the next one takes its place. The token at position p of episode s is a function of
//! (seed, s, p) and the weights alone: neither the other sequences of the batch nor the number of threads can change it.
//! Where an environment replies, its tokens join the sequence, and the policy goes on from the cache it has.

use super::drawing::Drawing;
use super::episode::Episode;
use super::live::Live;
use super::policy::Replies;
use super::sampling::Sampling;
use crate::device::Device;
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use crate::kernels::attention::KvCache;
use crate::models::{Causal, Prepared};
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::autograd::no_grad;
use std::sync::{Mutex, PoisonError};

/// Draws `per_prompt` episodes of every prompt: prompt 0's first, then prompt 1's.
///
/// # Errors
/// [`Error::is_invalid`] for an empty prompt, or one that leaves no room in the model's context; [`Error::is_index`]
/// for a token outside the vocabulary.
pub fn rollouts(
    model: &impl Causal,
    prompts: &[Vec<i32>],
    per_prompt: usize,
    sampling: &Sampling,
) -> Result<Vec<Episode>> {
    episodes(model, prompts, &vec![per_prompt; prompts.len()], sampling, None)
}

/// Draws `counts[p]` episodes of prompt p, with an environment that may reply.
///
/// # Errors
/// As [`rollouts`], [`Error::is_shape`] unless there is a count per prompt, and what the environment reports.
pub fn episodes(
    model: &impl Causal,
    prompts: &[Vec<i32>],
    counts: &[usize],
    sampling: &Sampling,
    replies: Option<&dyn Replies>,
) -> Result<Vec<Episode>> {
    draw_all(model, prompts, counts, sampling, replies, None)
}

/// [`rollouts`] that tells every token as it is drawn: `told(episode, token)`.
///
/// # Errors
/// As [`rollouts`].
pub fn stream(
    model: &impl Causal,
    prompts: &[Vec<i32>],
    per_prompt: usize,
    sampling: &Sampling,
    told: &mut dyn FnMut(usize, i32),
) -> Result<Vec<Episode>> {
    draw_all(model, prompts, &vec![per_prompt; prompts.len()], sampling, None, Some(told))
}

/// Sequences that are decoded together by one thread at least; fewer are not worth a thread of their own.
const FEWEST_TOGETHER: usize = 8;

/// Sequences that a thread decodes together at most, where the weights stay in the processor's cache: with more, it is the
/// keys and values of a step that no longer stay until the next step reads them again.
const MOST_TOGETHER: usize = 16;

/// Bytes of weights that stay there. Larger weights are read from memory in every step, for as many sequences as there are.
const CACHED_WEIGHTS: usize = 8 << 20;

fn draw_all<M: Causal>(
    model: &M,
    prompts: &[Vec<i32>],
    counts: &[usize],
    sampling: &Sampling,
    replies: Option<&dyn Replies>,
    told: Option<&mut dyn FnMut(usize, i32)>,
) -> Result<Vec<Episode>> {
    if counts.len() != prompts.len() {
        return Err(Error::shape(format!("{} counts for {} prompts", counts.len(), prompts.len())));
    }
    let context = model.context();
    for (i, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() || prompt.len() >= context {
            return Err(Error::invalid(format!(
                "prompt {i} has {} tokens; it needs at least 1 and fewer than the context of {context}",
                prompt.len()
            )));
        }
    }
    let each = counts.iter().enumerate().flat_map(|(p, count)| std::iter::repeat_n(p, *count));
    let mut done: Vec<Episode> = (sampling.first_sequence..)
        .zip(each)
        .map(|(number, prompt)| {
            let drawn_logprob = sampling.cuts().then(Vec::new);
            Episode { prompt, number, drawn_logprob, ..Episode::default() }
        })
        .collect();
    if done.is_empty() {
        return Ok(done);
    }
    if sampling.max_new_tokens == 0 {
        done.iter_mut().for_each(|episode| episode.truncated = true);
        return Ok(done);
    }
    no_grad(|| {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let capacity = longest.saturating_add(sampling.max_new_tokens).min(context);
        let mut cache = model.cache(prompts.len(), capacity)?;
        let hidden = {
            let whole: Vec<(&[i32], usize)> =
                prompts.iter().map(|prompt| (&prompt[..], 0)).collect();
            last_rows(&model.continued(None, &whole, &mut cache)?, &whole)?
        };
        let prepared = model.prepared()?;
        let count = done.len();
        let batch = Batch {
            model,
            prepared: &prepared,
            prompts,
            sampling,
            replies,
            cache: &cache,
            hidden: &hidden,
        };
        match told {
            Some(told) => batch.decode(&Waiting::new(&mut done), count, told)?,
            None => batch.decode_in_parallel(&mut done)?,
        }
        Ok(done)
    })
}

/// The hidden state of the last new token of each sequence.
fn last_rows(hidden: &Tensor, sequences: &[(&[i32], usize)]) -> Result<Tensor> {
    if sequences.iter().all(|(tokens, first)| tokens.len() - first == 1) {
        return Ok(hidden.detach());
    }
    let mut end = 0;
    let mut rows = Vec::with_capacity(sequences.len());
    for (tokens, first) in sequences {
        end += tokens.len() - first;
        rows.push(end - 1);
    }
    ops::gather(hidden, &rows)
}

/// Episodes that no thread has begun, with their indices, in order.
struct Waiting<'a>(Mutex<std::iter::Enumerate<std::slice::IterMut<'a, Episode>>>);

impl<'a> Waiting<'a> {
    fn new(all: &'a mut [Episode]) -> Waiting<'a> {
        Waiting(Mutex::new(all.iter_mut().enumerate()))
    }

    fn next(&self, prompts: &[Vec<i32>], most: usize) -> Vec<Live<'a>> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live = |(index, episode): (usize, &'a mut Episode)| {
            let prompt = &prompts[episode.prompt];
            Live::new(index, episode, prompt)
        };
        left.by_ref().take(most).map(live).collect()
    }
}

/// Prompts that have been run, and how to go on from them.
struct Batch<'a, M> {
    model: &'a M,
    prepared: &'a Prepared,
    prompts: &'a [Vec<i32>],
    sampling: &'a Sampling,
    replies: Option<&'a dyn Replies>,
    /// One sequence per prompt.
    cache: &'a KvCache,
    /// The hidden state of the last token of each prompt.
    hidden: &'a Tensor,
}

impl<M: Causal> Batch<'_, M> {
    /// Decodes on every thread of the pool. A sequence's tokens do not depend on what is beside it, so which thread takes
    /// it is free, and a thread that goes through a whole step alone waits for nobody, where sharing every small
    /// operation costs a hand-over each.
    fn decode_in_parallel(&self, done: &mut [Episode]) -> Result<()> {
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
        &self,
        waiting: &Waiting<'_>,
        together: usize,
        told: &mut dyn FnMut(usize, i32),
    ) -> Result<()> {
        let Batch { model, prepared, prompts, sampling, .. } = *self;
        let mut drawing = Drawing::new(model, sampling)?;
        let mut live = waiting.next(prompts, together);
        let mut done = Vec::new();
        // Fork: every episode gets its prompt's cache and last hidden state.
        let fork =
            |new: &[Live<'_>]| -> Vec<usize> { new.iter().map(|one| one.episode.prompt).collect() };
        let mut cache = self.cache.clone();
        cache.keep(&fork(&live))?;
        let mut hidden = ops::gather(self.hidden, &fork(&live))?;
        while !live.is_empty() {
            let logits = model.raw_logits(Some(prepared), &hidden)?;
            let ids = drawing.draw(&logits, &mut live)?;
            let mut kept = Vec::new();
            for (row, id) in ids.into_iter().enumerate() {
                let one = &mut live[row];
                one.write(id);
                told(one.index, id);
                if self.goes_on(one, id)? {
                    kept.push(row);
                }
            }
            let ended = live.len() - kept.len();
            if ended > 0 {
                sampling.activity.advance(ended);
                cache.keep(&kept)?;
                let mut row = 0;
                done.extend(live.extract_if(.., |_| {
                    row += 1;
                    kept.binary_search(&(row - 1)).is_err()
                }));
            }
            if !live.is_empty() {
                let newest: Vec<(&[i32], usize)> = live.iter().map(Live::newest).collect();
                hidden = model.continued(Some(prepared), &newest, &mut cache)?;
                hidden = last_rows(&hidden, &newest)?;
                live.iter_mut().for_each(Live::read);
            }
            let new = if ended > 0 { waiting.next(prompts, ended) } else { Vec::new() };
            if !new.is_empty() {
                let begun = ops::gather(self.hidden, &fork(&new))?;
                cache.take_up(self.cache, &fork(&new))?;
                hidden = if live.is_empty() { begun } else { ops::concat(&[&hidden, &begun])? };
                live.extend(new);
            }
        }
        drawing.finish(done)
    }

    /// After token `id`: whether the sequence goes on, perhaps behind the tokens of an environment.
    fn goes_on(&self, one: &mut Live<'_>, id: i32) -> Result<bool> {
        let room = self
            .sampling
            .max_new_tokens
            .min(self.model.context() - self.prompts[one.episode.prompt].len());
        let stopped = self.sampling.stop.contains(&id);
        let Some(replies) = self.replies else {
            one.episode.truncated = !stopped && one.episode.tokens.len() >= room;
            return Ok(!stopped && !one.episode.truncated);
        };
        if stopped || replies.ends_turn(one.episode)? {
            let Some(reply) = replies.reply(one.episode)? else { return Ok(false) };
            if one.episode.tokens.len() + reply.len() >= room {
                one.episode.truncated = true;
                return Ok(false);
            }
            one.hear(&reply);
            return Ok(true);
        }
        one.episode.truncated = one.episode.tokens.len() >= room;
        Ok(!one.episode.truncated)
    }
}
