//! Blocks of four tokens without a prompt: the commonest case, in the layout in which Philox leaves its words.
//!
//! Four words are a counter's, so a counter is a block, and eight counters side by side are eight blocks: word j of all
//! of them is one vector. The least key of a block, its bound and its comparisons then need no shuffle; only the weights
//! are turned round into the order of the tokens, and the mask is where they are not 0. The same bits as
//! [`draw`](super::draw), which does all other cases.

use super::keys::{LANES, Scratch, Words, bounds, fill_words, forced_weight, rates};
use super::rate::{Curve, LEVELS, stratified};
use super::{Draw, Noise, Row, Weight};
use crate::device::cpu::simd::simd_fn;
use crate::rng::{Stream, philox_vectors};
use std::ops::Range;

/// Tokens of eight blocks: what comes after the last whole such group is for the general way.
pub(super) const GROUP: usize = 4 * LANES;

/// True where this way computes what is asked.
pub(super) fn fits(noise: &Noise, row: &Row<'_>) -> bool {
    let independent = matches!(noise.draw, Draw::Independent { .. });
    noise.block == 4 && independent && row.eligible.is_none() && row.given.is_none()
}

simd_fn! {
    /// The words of the counters `from..` of a sequence, eight counters at a time.
    fn fill(seed: u64, sequence: u64, from: u32, words: &mut [Words]) {
        let key = [seed as u32, (seed >> 32) as u32];
        let [low, high] = [sequence as u32, (sequence >> 32) as u32];
        for (i, words) in words.iter_mut().enumerate() {
            let mut counter = [[0; LANES], [low; LANES], [high; LANES], [Stream::Noise as u32; LANES]];
            for lane in 0..LANES {
                counter[0][lane] = from.wrapping_add((LANES * i + lane) as u32);
            }
            let drawn = philox_vectors::<LANES>(counter, key);
            for word in 0..4 {
                for lane in 0..LANES {
                    words[word][lane] = drawn[word][lane] as u32;
                }
            }
        }
    }
}

simd_fn! {
    /// By token the weight where it is masked, else 0.
    fn decide(forced: bool, keys: &[Words], last: &[u32], worth: &[f32], weight: &mut [f32]) {
        let blocks = last.as_chunks::<LANES>().0.iter().zip(worth.as_chunks::<LANES>().0);
        let groups = keys.iter().zip(blocks).zip(weight.as_chunks_mut::<GROUP>().0);
        for ((keys, (last, worth)), weight) in groups {
            let mut last = *last;
            if forced {
                for lane in 0..LANES {
                    let [a, b, c, d] = [keys[0][lane], keys[1][lane], keys[2][lane], keys[3][lane]];
                    last[lane] = last[lane].max(a.min(b).min(c.min(d)));
                }
            }
            let mut by_word = [[0u32; LANES]; 4];
            for word in 0..4 {
                for lane in 0..LANES {
                    let bits = u32::from(keys[word][lane] <= last[lane]).wrapping_neg();
                    by_word[word][lane] = worth[lane].to_bits() & bits;
                }
            }
            for lane in 0..LANES {
                for word in 0..4 {
                    weight[4 * lane + word] = f32::from_bits(by_word[word][lane]);
                }
            }
        }
    }
}

simd_fn! {
    /// The mask and the ids that follow from the weights; none of a masked token is 0.
    fn apply(ids: &[i32], mask_id: i32, weight: &[f32], noised: &mut [i32], mask: &mut [u8]) {
        let tokens = ids.len();
        let (weight, noised, mask) = (&weight[..tokens], &mut noised[..tokens], &mut mask[..tokens]);
        for i in 0..tokens {
            let masked = u32::from(weight[i].to_bits() != 0);
            let bits = masked.wrapping_neg();
            noised[i] = (mask_id as u32 & bits | ids[i] as u32 & !bits) as i32;
            mask[i] = masked as u8;
        }
    }
}

impl Row<'_> {
    /// Noises whole groups of eight blocks.
    pub(super) fn draw_quads(
        &mut self,
        noise: &Noise,
        curve: &Curve,
        tokens: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let blocks = tokens.start / 4..tokens.end / 4;
        let Scratch { words, last, worth, quads, .. } = scratch;
        words.resize(blocks.len(), 0);
        last.resize(blocks.len(), 0);
        worth.resize(blocks.len(), 0.0);
        quads.resize(tokens.len() / GROUP, [[0; LANES]; 4]);
        let per_sequence = self.rate.len() as u64;
        let rate = &mut self.rate[blocks.clone()];
        fill_words(noise.seed, self.number, LEVELS, blocks.start, words);
        if noise.strata > 1 {
            let first = self.number.wrapping_mul(per_sequence);
            for (block, word) in blocks.clone().zip(words.iter_mut()) {
                *word = stratified(noise, first.wrapping_add(block as u64), *word);
            }
        }
        rates(curve, words, rate);
        bounds(rate, last, worth);
        let forced = noise.draw == Draw::Independent { forced: true };
        if noise.warm_up.is_some() || noise.weight == Weight::One {
            worth.fill(1.0);
        } else if forced && noise.weight == Weight::Unbiased {
            let pairs = worth.iter_mut().zip(&*rate);
            pairs.for_each(|(worth, rate)| *worth = forced_weight(*rate, 4));
        }
        fill(noise.seed, self.number, blocks.start as u32, quads);
        let weight = &mut self.weight[tokens.clone()];
        decide(forced, quads, last, worth, weight);
        let (noised, mask) = (&mut self.noised[tokens.clone()], &mut self.mask[tokens.clone()]);
        apply(&self.ids[tokens], noise.mask_id, weight, noised, mask);
    }
}
