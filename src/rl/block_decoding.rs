//! Completions by block diffusion: block after block, each filled over several passes, against a cache of the clean blocks
//! before it.
//!
//! A pass runs what is not cached yet and the block with its masks; then the cache forgets the block again, because its
//! keys are those of masked tokens. When the block is full, its clean tokens run with the first pass of the next block. So
//! a block of B tokens takes at most B passes and no extra one. The prompt's last tokens that do not fill a block are the
//! beginning of the first one. Under a block as long as the context (LLaDA) nothing is ever cached.
//!
//! A completion is a function of (seed, its number, the prompt, the weights): neither the other sequences of the batch nor
//! the number of threads change it. The host chooses from logits that it reads each pass.

use super::filling::{Decoding, Filled, Pass};

use super::token_choice::{self, Choice, Draw};
use super::unmasking::Candidate;
use crate::device::Device;
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use crate::kernels::attention::KvCache;
use crate::models::{Decoder, Diffusion, Packed};
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::autograd::no_grad;
use rayon::prelude::*;
use std::ops::Range;

/// Draws `per_prompt` completions of every prompt: prompt 0's first, then prompt 1's. An empty prompt is allowed.
///
/// # Errors
/// [`Error::is_unsupported`] for a model without a mask token, [`Error::is_invalid`] for settings that make no sense and
/// a prompt that leaves no room in the context, [`Error::is_index`] for a token outside the vocabulary,
/// [`Error::is_numeric`] for logits that hold a NaN.
pub fn fill(
    model: &Decoder,
    prompts: &[Vec<i32>],
    per_prompt: usize,
    decoding: &Decoding,
) -> Result<Vec<Filled>> {
    let work = Work::new(model, prompts, decoding)?;
    let mut done = work.empty(per_prompt);
    let shares = pool::threads().min(done.len() / FEWEST_TOGETHER).max(1);
    let share = done.len().div_ceil(shares).max(1);
    if shares == 1 || model.device() != Device::Cpu {
        work.run(0, &mut done, &mut |_| {})?;
        return Ok(done);
    }
    pool::install(|| {
        done.par_chunks_mut(share)
            .enumerate()
            .try_for_each(|(i, part)| work.run(i * share, part, &mut |_| {}))
    })?;
    Ok(done)
}

/// [`fill`] that tells of every pass.
///
/// # Errors
/// As [`fill`].
pub fn fill_watched(
    model: &Decoder,
    prompts: &[Vec<i32>],
    per_prompt: usize,
    decoding: &Decoding,
    told: &mut dyn FnMut(Pass<'_>),
) -> Result<Vec<Filled>> {
    let work = Work::new(model, prompts, decoding)?;
    let mut done = work.empty(per_prompt);
    work.run(0, &mut done, told)?;
    Ok(done)
}

/// Sequences that are decoded together by one thread at least; fewer are not worth a thread of their own.
const FEWEST_TOGETHER: usize = 8;

struct Work<'a> {
    model: &'a Decoder,
    diffusion: Diffusion,
    prompts: &'a [Vec<i32>],
    decoding: &'a Decoding,
    context: usize,
}

/// A sequence that is being completed.
struct Live {
    /// Its place among the completions of this share.
    index: usize,
    /// Prompt and completion to the end of the block, masks among them.
    tokens: Vec<i32>,
    /// The same with the prompt masked, under guidance.
    unprompted: Vec<i32>,
    logprob: Vec<f32>,
    step: Vec<u32>,
    prompt: usize,
    block: Range<usize>,
    /// Positions in the cache.
    cached: usize,
    /// Passes over the block, or over the part of it that is being filled, and places it had to fill.
    passes: usize,
    part_passes: usize,
    part_masked: usize,
}

impl<'a> Work<'a> {
    fn new(
        model: &'a Decoder,
        prompts: &'a [Vec<i32>],
        decoding: &'a Decoding,
    ) -> Result<Work<'a>> {
        let diffusion = model.diffusion()?;
        let (context, vocab) = (model.config().max_position_embeddings, model.config().vocab_size);
        decoding.check(vocab)?;
        if let Some((i, prompt)) = prompts.iter().enumerate().find(|(_, p)| p.len() >= context) {
            return Err(Error::invalid(format!(
                "prompt {i} has {} tokens; it needs fewer than the context of {context}",
                prompt.len()
            )));
        }
        Ok(Work { model, diffusion, prompts, decoding, context })
    }

    fn empty(&self, per_prompt: usize) -> Vec<Filled> {
        let new = |prompt| Filled { prompt, ..Filled::default() };
        (0..self.prompts.len()).flat_map(|p| std::iter::repeat_n(p, per_prompt)).map(new).collect()
    }

    /// Fills `done`, the completions from number `first` on.
    fn run(&self, first: usize, done: &mut [Filled], told: &mut dyn FnMut(Pass<'_>)) -> Result<()> {
        if self.decoding.max_new_tokens == 0 {
            done.iter_mut().for_each(|filled| filled.truncated = true);
            return Ok(());
        }
        no_grad(|| {
            let guided = self.decoding.guidance > 0.0;
            let mut live: Vec<Live> =
                done.iter().enumerate().map(|(i, filled)| self.begin(i, filled)).collect();
            let mut caches = Vec::new();
            for unprompted in [false, true].into_iter().take(1 + usize::from(guided)) {
                caches.push(self.prefilled(&mut live, unprompted)?);
            }
            while !live.is_empty() {
                self.pass(first, &mut live, &mut caches, done, told)?;
                let kept: Vec<usize> =
                    (0..live.len()).filter(|row| !live[*row].block.is_empty()).collect();
                if kept.len() < live.len() {
                    caches.iter_mut().try_for_each(|cache| cache.keep(&kept))?;
                    live.retain(|sequence| !sequence.block.is_empty());
                }
            }
            Ok(())
        })
    }

    fn begin(&self, index: usize, filled: &Filled) -> Live {
        let prompt = &self.prompts[filled.prompt];
        let mut live = Live {
            index,
            tokens: prompt.clone(),
            unprompted: vec![self.diffusion.mask_id; prompt.len()],
            logprob: Vec::new(),
            step: Vec::new(),
            prompt: prompt.len(),
            block: 0..0,
            cached: 0,
            passes: 0,
            part_passes: 0,
            part_masked: 0,
        };
        self.next_block(&mut live);
        live
    }

    /// Masks to the end of the block that the next token belongs to; no further than is asked where a block is longer.
    fn next_block(&self, live: &mut Live) {
        let from = live.tokens.len();
        let size = self.diffusion.block;
        let start = from / size * size;
        let wanted = live.prompt.saturating_add(self.decoding.max_new_tokens).min(self.context);
        let whole = start.saturating_add(size).min(self.context);
        // A block that the model was trained on is filled whole; a canvas as long as the context has only what is asked.
        let end = if size >= self.context { wanted } else { whole };
        for tokens in [&mut live.tokens, &mut live.unprompted] {
            tokens.resize(end, self.diffusion.mask_id);
        }
        live.logprob.resize(end - live.prompt, 0.0);
        live.step.resize(end - live.prompt, 0);
        live.block = start..end;
        (live.passes, live.part_passes, live.part_masked) = (0, 0, 0);
    }

    /// A cache in which every sequence has the clean blocks of its prompt; each prompt runs once.
    fn prefilled(&self, live: &mut [Live], unprompted: bool) -> Result<KvCache> {
        // The prompts of this share, in order; the sequences of a prompt are neighbours.
        let mut firsts: Vec<usize> = Vec::new();
        let mut fork = Vec::with_capacity(live.len());
        for (i, sequence) in live.iter().enumerate() {
            let known = firsts.last().is_some_and(|first| {
                let other = &live[*first];
                other.tokens[..other.prompt] == sequence.tokens[..sequence.prompt]
            });
            if !known {
                firsts.push(i);
            }
            fork.push(firsts.len() - 1);
        }
        let mut cache = self.model.cache(firsts.len(), self.context)?;
        let clean = |sequence: &Live| sequence.block.start;
        if self.decoding.cached && live.iter().any(|sequence| clean(sequence) > 0) {
            let packed = Packed::new(firsts.iter().map(|i| {
                let sequence = &live[*i];
                (0, &sequence.read(unprompted)[..clean(sequence)])
            }));
            self.model.continued_under(packed.tokens(), &mut cache, self.diffusion.mask())?;
        }
        cache.keep(&fork)?;
        let kept: Vec<usize> = live.iter().map(|sequence| self.kept(sequence)).collect();
        cache.truncate(&kept)?;
        live.iter_mut().zip(kept).for_each(|(sequence, kept)| sequence.cached = kept);
        Ok(cache)
    }

    /// Positions that stay in the cache while a block is filled: those before it, and under a shift one less, whose
    /// state predicts the block's first token.
    fn kept(&self, live: &Live) -> usize {
        match self.decoding.cached {
            true => live.block.start.saturating_sub(usize::from(self.diffusion.shift)),
            false => 0,
        }
    }

    /// Logits of the masked places of every sequence, one row after another.
    fn logits(&self, live: &[Live], cache: &mut KvCache, unprompted: bool) -> Result<Vec<f32>> {
        let packed = Packed::new(live.iter().map(|sequence| {
            (sequence.cached, &sequence.read(unprompted)[sequence.cached..sequence.block.end])
        }));
        let mask = self.diffusion.mask();
        let hidden = if self.decoding.cached {
            let hidden = self.model.continued_under(packed.tokens(), cache, mask)?;
            let kept: Vec<usize> = live.iter().map(|sequence| self.kept(sequence)).collect();
            cache.truncate(&kept)?;
            hidden
        } else {
            self.model.hidden_under(packed.tokens(), mask)?
        };
        let mut rows = Vec::new();
        for (sequence, start) in live.iter().zip(&packed.segments) {
            let predicting = |place: usize| match self.diffusion.shift && place > 0 {
                true => start + place - 1 - sequence.cached,
                false => start + place - sequence.cached,
            };
            rows.extend(self.masked(sequence).map(predicting));
        }
        let logits: Tensor = self.model.logits(&ops::gather(&hidden, &rows)?)?;
        Ok(logits.to_device(&Device::Cpu)?.f32s()?.to_vec())
    }

    /// The masked places that may be filled now.
    fn masked<'b>(&self, live: &'b Live) -> impl Iterator<Item = usize> + 'b {
        let mask_id = self.diffusion.mask_id;
        let all = move || {
            live.block
                .clone()
                .filter(move |place| *place >= live.prompt && live.tokens[*place] == mask_id)
        };
        let first = all().next().unwrap_or(live.block.end);
        let end = match self.decoding.sub_block {
            // Parts are counted from the beginning of the completion.
            Some(size) => live.prompt + ((first - live.prompt) / size + 1).saturating_mul(size),
            None => live.block.end,
        };
        all().take_while(move |place| *place < end)
    }

    /// One pass of every sequence.
    fn pass(
        &self,
        first: usize,
        live: &mut [Live],
        caches: &mut [KvCache],
        done: &mut [Filled],
        told: &mut dyn FnMut(Pass<'_>),
    ) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        let mut logits = Vec::new();
        for (unprompted, cache) in [false, true].into_iter().zip(caches.iter_mut()) {
            logits.push(self.logits(live, cache, unprompted)?);
        }
        live.iter_mut().for_each(|sequence| sequence.cached = self.kept(sequence));
        let mut rows = match <[Vec<f32>; 2]>::try_from(logits) {
            Ok([with, without]) => guided(with, &without, self.decoding.guidance),
            Err(mut one) => one.pop().unwrap_or_default(),
        };
        let mut rows = rows.chunks_mut(vocab);
        for sequence in live {
            let places: Vec<usize> = self.masked(sequence).collect();
            let number = self.decoding.first_sequence + (first + sequence.index) as u64;
            let mut choices: Vec<Choice> = Vec::with_capacity(places.len());
            for (place, row) in places.iter().zip(&mut rows) {
                for id in self.decoding.banned.iter().chain([&self.diffusion.mask_id]) {
                    row[*id as usize] = f32::NEG_INFINITY;
                }
                let position = (place - sequence.prompt) as u32;
                let Decoding { seed, stream, temperature, confidence, .. } = *self.decoding;
                let draw = Draw::new(seed, stream, number, position, sequence.passes as u64);
                let choice = token_choice::choose(row, temperature, confidence, draw)
                    .map_err(|e| e.at(format!("completion {}", first + sequence.index)))?;
                choices.push(choice);
            }
            self.set(sequence, &places, &choices);
            let filled = &mut done[sequence.index];
            filled.passes += 1;
            let full = !sequence.tokens[sequence.block.clone()][..]
                .iter()
                .zip(sequence.block.clone())
                .any(|(id, place)| place >= sequence.prompt && *id == self.diffusion.mask_id);
            told(Pass {
                completion: first + sequence.index,
                tokens: &sequence.tokens[sequence.prompt..],
                block: sequence.block.start.saturating_sub(sequence.prompt),
                full,
            });
            if full {
                self.block_done(sequence, filled);
            }
        }
        Ok(())
    }

    /// Sets the tokens of the places that are chosen.
    fn set(&self, live: &mut Live, places: &[usize], choices: &[Choice]) {
        if live.part_passes == 0 {
            live.part_masked = places.len();
        }
        let candidates: Vec<Candidate> = places
            .iter()
            .zip(choices)
            .enumerate()
            .map(|(i, (_, choice))| Candidate {
                place: i,
                confidence: choice.confidence,
                entropy: choice.entropy,
            })
            .collect();
        let chosen =
            self.decoding.selection.choose(&candidates, live.part_passes, live.part_masked);
        for i in &chosen {
            let (place, choice) = (places[*i], &choices[*i]);
            live.tokens[place] = choice.token;
            live.unprompted[place] = choice.token;
            live.logprob[place - live.prompt] = choice.logprob;
            live.step[place - live.prompt] = live.passes as u32;
        }
        live.passes += 1;
        live.part_passes = if chosen.len() == places.len() { 0 } else { live.part_passes + 1 };
    }

    /// After the last place of a block: ends the sequence, or goes on to the next block.
    fn block_done(&self, live: &mut Live, filled: &mut Filled) {
        let completion = &live.tokens[live.prompt..];
        let most = self.decoding.max_new_tokens;
        let end = completion.iter().position(|id| self.decoding.stop.contains(id));
        let length = match end {
            Some(at) if at < most => at + 1,
            _ if completion.len() >= most || live.block.end >= self.context => {
                filled.truncated = true;
                completion.len().min(most)
            }
            _ => return self.next_block(live),
        };
        filled.tokens = completion[..length].to_vec();
        filled.logprob = live.logprob[..length].to_vec();
        filled.order.step = live.step[..length].to_vec();
        let rest = completion[length..].iter().zip(&live.step[length..]);
        filled.order.dropped = rest.map(|(id, step)| (*id, *step)).collect();
        live.block = 0..0;
    }
}

impl Live {
    fn read(&self, unprompted: bool) -> &[i32] {
        if unprompted { &self.unprompted } else { &self.tokens }
    }
}

/// `without + (scale + 1)(with - without)`.
fn guided(mut with: Vec<f32>, without: &[f32], scale: f32) -> Vec<f32> {
    for (with, without) in with.iter_mut().zip(without) {
        *with = without + (scale + 1.0) * (*with - without);
    }
    with
}
