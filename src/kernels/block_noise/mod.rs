//! The corruption of block diffusion: which tokens of a sequence are masked, and what each of them weighs in the loss.
//!
//! A sequence is cut into blocks of `block` tokens. Each block draws a level `t` in `[0, 1)`, from it a masking rate,
//! and by the rate which of its eligible positions are replaced by the mask id. Here live the description ([`Noise`]),
//! its checks and the walk over a batch; `rate` turns a level into a rate, `draw` a rate into a mask and a weight (`quads`
//! the same for blocks of four),
//! `binomial` is the exact distribution of a bounded count, [`Curve`] the published schedules. The loss, the model and
//! the attention mask are elsewhere.
//!
//! **Same bits everywhere.** The only randomness is Philox, read at `(seed, sequence, position)`: a token's key is a
//! function of where it is in the data and of nothing else. Masks come from comparing those integers; the few
//! floating-point steps are `+ - × ÷` with one rounding each, in a stated order, so that any device that rounds as
//! IEEE 754 says computes the same bits.
//!
//! Sources: the clipped schedule is that of Stable-DiffCoder (§3.3), the range and the bounded counts those of BD3-LM
//! (there by rejection, here exact), the plain schedule that of LLaDA.
//!
#![doc = include_str!("../../../docs/kernels/block_noise.md")]

mod binomial;
mod curve;
mod draw;
mod keys;
pub mod launch;
mod quads;
mod rate;

pub use curve::Curve;
pub use rate::level;

use crate::device::cpu::pool;
use crate::error::{Error, Result};
use keys::Scratch;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

const OP: &str = "block_noise";

/// The longest block: a device keeps one in shared memory.
pub const MAX_BLOCK: usize = 8192;

/// From a level `t`, uniform in `[0, 1)`, to the masking rate of a block of B tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// `max(t, 1/B)`: at least one token expected, with an atom of mass `1/B` at the lowest rate.
    Clip,
    /// `1/B + (1 - 1/B) t`: the same bounds without the atom.
    Affine,
    /// `low + (high - low) t`, `0 < low <= high <= 1`. LLaDA's plain schedule is `low = 1e-3, high = 1`.
    Range {
        /// The lowest rate.
        low: f32,
        /// The highest rate.
        high: f32,
    },
}

/// How a rate becomes a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// Each eligible token by itself with the rate as its probability.
    Independent {
        /// Where none was masked, mask one, each eligible token with equal probability.
        forced: bool,
    },
    /// As [`Draw::Independent`] without force, *conditioned on* `least..=most` masked tokens of the block: the count
    /// from the truncated binomial distribution, then a uniform subset of that size. What BD3-LM draws again and
    /// again until it fits, in one draw. In a block of n eligible tokens both bounds are at most n.
    Counted {
        /// The fewest masked tokens.
        least: u32,
        /// The most masked tokens, at least 1.
        most: u32,
    },
}

/// What a masked token weighs in the loss; others weigh 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// `1 / rate`, as published; with forced masks or counts the estimate is biased (by +11 % at B = 4, clipped).
    Rate,
    /// `1 / P(this token is masked | rate)`: no bias, whatever the draw.
    Unbiased,
    /// 1.
    One,
}

/// What comes first where a warm-up caps the levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// `rate(cap · t)`: the lower bound of the schedule holds, so a warm-up starts with about one token a block.
    CapThenRate,
    /// `cap · rate(t)`: the whole schedule shrinks, so a warm-up starts with almost nothing masked.
    RateThenCap,
}

/// A warm-up: levels are capped, and weights are 1 while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WarmUp {
    /// The largest level, in `(0, 1]`; usually [`WarmUp::linear`].
    pub cap: f32,
    /// What comes first.
    pub order: Order,
}

impl WarmUp {
    /// The cap `initial + (1 - initial) · step / steps` with the schedule's own lower bound; none from `steps` on.
    /// Stable-DiffCoder has `initial = 1e-3`.
    pub fn linear(step: u64, steps: u64, initial: f32) -> Option<WarmUp> {
        let cap = f64::from(initial) + (1.0 - f64::from(initial)) * step as f64 / steps as f64;
        (step < steps).then_some(WarmUp { cap: cap as f32, order: Order::CapThenRate })
    }
}

/// What is drawn: everything but the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Tokens of a block, `1..=`[`MAX_BLOCK`].
    pub block: usize,
    /// From levels to rates.
    pub rate: Rate,
    /// From rates to masks.
    pub draw: Draw,
    /// What a masked token weighs.
    pub weight: Weight,
    /// The warm-up, while it lasts.
    pub warm_up: Option<WarmUp>,
    /// Levels of `strata` consecutive blocks fall into `strata` equal parts of `[0, 1)`, one into each, in an order
    /// that changes from one such run to the next; each level by itself is uniform. A power of two up to 65536; 1 is
    /// independent levels. Blocks are counted over all sequences, by the sequences' numbers.
    pub strata: u32,
    /// What a masked token becomes.
    pub mask_id: i32,
    /// Ids of the vocabulary: `mask_id` must be one of them.
    pub vocab: usize,
    /// The seed of every draw.
    pub seed: u64,
}

impl Noise {
    /// The published default of block diffusion for code models: clipped rates, forced masks, weights `1 / rate`.
    pub fn clipped(block: usize, mask_id: i32, vocab: usize, seed: u64) -> Noise {
        Noise {
            block,
            rate: Rate::Clip,
            draw: Draw::Independent { forced: true },
            weight: Weight::Rate,
            warm_up: None,
            strata: 1,
            mask_id,
            vocab,
            seed,
        }
    }

    fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(format!("{OP}: {what}")));
        if self.block == 0 || self.block > MAX_BLOCK {
            return bad(format!("blocks of {} tokens; 1 to {MAX_BLOCK} are possible", self.block));
        }
        if let Rate::Range { low, high } = self.rate
            && !(low > 0.0 && low <= high && high <= 1.0)
        {
            return bad(format!("rates from {low} to {high} are not 0 < low <= high <= 1"));
        }
        if let Draw::Counted { least, most } = self.draw
            && (most == 0 || least > most)
        {
            return bad(format!("{least} to {most} masked tokens a block"));
        }
        if let Some(WarmUp { cap, .. }) = self.warm_up
            && !(cap > 0.0 && cap <= 1.0)
        {
            return bad(format!("warm-up cap {cap} is not above 0 and at most 1"));
        }
        if !self.strata.is_power_of_two() || self.strata > 1 << 16 {
            return bad(format!("{} strata are no power of two up to 65536", self.strata));
        }
        match usize::try_from(self.mask_id) {
            Ok(id) if id < self.vocab => Ok(()),
            _ => Err(Error::index(format!(
                "{OP}: mask id {} is outside the vocabulary of {}",
                self.mask_id, self.vocab
            ))),
        }
    }
}

/// Rates and weights that the caller has drawn, for a schedule that [`Rate`] does not have (see [`Curve`]).
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// `[sequences, length / block]`, above 0 and at most 1.
    pub rate: &'a [f32],
    /// `[sequences, length / block]`, what a masked token of the block weighs.
    pub weight: &'a [f32],
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `[sequences, length]` token ids; any value, none is looked up.
    pub ids: &'a [i32],
    /// `[sequences, length]`; a 0 is never masked and does not count as a place of its block (a prompt, padding). None:
    /// every token is eligible.
    pub eligible: Option<&'a [u8]>,
    /// `[sequences]`: a number of each sequence that is its own wherever and whenever it is noised: its noise follows
    /// it. To draw anew in another epoch take another number, or another seed.
    pub sequences: &'a [u64],
    /// Tokens of a sequence, a multiple of the block, below 2³¹.
    pub length: usize,
    /// In place of drawn levels; the weight rule, the warm-up and the strata then do nothing.
    pub given: Option<Given<'a>>,
    /// `[sequences, length]`: the ids, masked ones replaced; overwritten.
    pub noised: &'a mut [i32],
    /// `[sequences, length]`: 1 where masked; overwritten.
    pub mask: &'a mut [u8],
    /// `[sequences, length]`: weight of a masked token, 0 of others; overwritten.
    pub weight: &'a mut [f32],
    /// `[sequences, length / block]`: the rate of each block, 0 where no token is eligible; overwritten.
    pub rate: &'a mut [f32],
}

/// The lengths of what [`forward`] is given, on the CPU or on a device.
struct Lengths {
    rows: usize,
    length: usize,
    ids: usize,
    eligible: Option<usize>,
    given: Option<[usize; 2]>,
    noised: usize,
    mask: usize,
    weight: usize,
    rate: usize,
}

impl Lengths {
    fn check(&self, noise: &Noise) -> Result<()> {
        noise.check()?;
        let (rows, length, block) = (self.rows, self.length, noise.block);
        if !length.is_multiple_of(block) || length > i32::MAX as usize {
            return Err(Error::shape(format!(
                "{OP}: sequences of {length} tokens are not whole blocks of {block} below 2^31 tokens (pad them, \
                 with `eligible` 0)"
            )));
        }
        let tokens = rows.saturating_mul(length);
        let blocks = tokens / block;
        let given = self.given.unwrap_or([blocks; 2]);
        for (name, got, want) in [
            ("ids", self.ids, tokens),
            ("eligible", self.eligible.unwrap_or(tokens), tokens),
            ("noised", self.noised, tokens),
            ("mask", self.mask, tokens),
            ("weight", self.weight, tokens),
            ("rate", self.rate, blocks),
            ("given rate", given[0], blocks),
            ("given weight", given[1], blocks),
        ] {
            if got != want {
                return Err(Error::shape(format!(
                    "{OP}: {name} has {got} elements for {rows} sequences of {length} tokens in blocks of {block}"
                )));
            }
        }
        Ok(())
    }
}

impl Forward<'_> {
    fn check(&self, noise: &Noise) -> Result<()> {
        Lengths {
            rows: self.sequences.len(),
            length: self.length,
            ids: self.ids.len(),
            eligible: self.eligible.map(<[u8]>::len),
            given: self.given.map(|given| [given.rate.len(), given.weight.len()]),
            noised: self.noised.len(),
            mask: self.mask.len(),
            weight: self.weight.len(),
            rate: self.rate.len(),
        }
        .check(noise)?;
        let outside = |rate: &f32| !(*rate > 0.0 && *rate <= 1.0);
        match self.given.and_then(|given| given.rate.iter().copied().find(outside)) {
            Some(rate) => Err(Error::invalid(format!(
                "{OP}: a given rate is {rate}, not above 0 and at most 1"
            ))),
            None => Ok(()),
        }
    }
}

/// Noises a batch.
///
/// The noise of a sequence depends on `(seed, its number, its length)` and on what is eligible in it, not on the other
/// sequences of the batch, on the number of threads or on the device. A block without an eligible token is skipped. If
/// nothing is eligible anywhere, nothing is masked: the loss of such a batch is 0.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit or the length is no multiple of the block, [`Error::is_index`] for a
/// mask id outside the vocabulary, [`Error::is_invalid`] for a description that makes no sense.
pub fn forward(noise: &Noise, args: Forward<'_>) -> Result<()> {
    args.check(noise)?;
    let Forward { ids, eligible, sequences, length, given, noised, mask, weight, rate } = args;
    if ids.is_empty() {
        return Ok(());
    }
    let blocks = length / noise.block;
    let rows: Vec<Row<'_>> = noised
        .chunks_mut(length)
        .zip(mask.chunks_mut(length))
        .zip(weight.chunks_mut(length).zip(rate.chunks_mut(blocks)))
        .enumerate()
        .map(|(row, ((noised, mask), (weight, rate)))| Row {
            number: sequences[row],
            ids: &ids[row * length..][..length],
            eligible: eligible.map(|all| &all[row * length..][..length]),
            given: given.map(|all| Given {
                rate: &all.rate[row * blocks..][..blocks],
                weight: &all.weight[row * blocks..][..blocks],
            }),
            noised,
            mask,
            weight,
            rate,
        })
        .collect();
    // About 10 bytes a token are read and written.
    if ids.len() * 10 <= pool::GRAIN {
        let mut scratch = Scratch::default();
        rows.into_iter().for_each(|row| row.run(noise, &mut scratch));
        return Ok(());
    }
    let least = pool::rows_per_task(length * 10);
    pool::install(|| {
        rows.into_par_iter()
            .with_min_len(least)
            .for_each_init(Scratch::default, |scratch, row| row.run(noise, scratch));
    });
    Ok(())
}

/// One sequence of a batch.
struct Row<'a> {
    number: u64,
    ids: &'a [i32],
    eligible: Option<&'a [u8]>,
    given: Option<Given<'a>>,
    noised: &'a mut [i32],
    mask: &'a mut [u8],
    weight: &'a mut [f32],
    rate: &'a mut [f32],
}
