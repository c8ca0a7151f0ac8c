//! From rates to masks and weights: one sequence after another, some blocks at a time that stay in the nearest cache.

use super::binomial::Binomial;
use super::keys::{Scratch, bounds, fill_words, forced_weight, rates};
use super::quads::{self, GROUP};
use super::rate::{COUNTS, Curve, LEVELS, stratified};
use super::{Draw, Noise, Row, Weight};
use crate::device::cpu::simd::simd_fn;
use std::ops::Range;

/// Tokens, about, whose keys are held at once.
const PIECE: usize = 2048;

/// Lengths of blocks that the compiler knows become vectors; a table of them keeps the loops in one place.
macro_rules! with_block {
    ($block:expr, $known:ident, $any:ident, ($($arg:expr),*)) => {
        match $block {
            2 => $known::<2>($($arg),*),
            4 => $known::<4>($($arg),*),
            8 => $known::<8>($($arg),*),
            16 => $known::<16>($($arg),*),
            block => $any(block, $($arg),*),
        }
    };
}

simd_fn! {
    /// Raises each block's bound to its least key: where nothing would be masked, the token with the least key is,
    /// each with equal probability.
    fn force(block: usize, keys: &[u32], last: &mut [u32]) {
        with_block!(block, force_known, force_any, (keys, last));
    }
}

#[inline(always)]
fn force_known<const B: usize>(keys: &[u32], last: &mut [u32]) {
    for (last, keys) in last.iter_mut().zip(keys.as_chunks::<B>().0) {
        let mut least = u32::MAX;
        for i in 0..B {
            least = least.min(keys[i]);
        }
        *last = (*last).max(least);
    }
}

#[inline(always)]
fn force_any(block: usize, keys: &[u32], last: &mut [u32]) {
    for (last, keys) in last.iter_mut().zip(keys.chunks_exact(block)) {
        *last = (*last).max(keys.iter().fold(u32::MAX, |least, key| least.min(*key)));
    }
}

simd_fn! {
    /// Each block's value for each of its tokens.
    fn expand(block: usize, by_block: &[u32], by_token: &mut [u32]) {
        with_block!(block, expand_known, expand_any, (by_block, by_token));
    }
}

#[inline(always)]
fn expand_known<const B: usize>(by_block: &[u32], by_token: &mut [u32]) {
    for (value, tokens) in by_block.iter().zip(by_token.as_chunks_mut::<B>().0) {
        *tokens = [*value; B];
    }
}

#[inline(always)]
fn expand_any(block: usize, by_block: &[u32], by_token: &mut [u32]) {
    for (value, tokens) in by_block.iter().zip(by_token.chunks_exact_mut(block)) {
        tokens.fill(*value);
    }
}

/// Some blocks of a sequence, their keys drawn.
struct Piece<'a> {
    keys: &'a [u32],
    /// By token: the largest key that is masked.
    last: &'a [u32],
    ids: &'a [i32],
    mask_id: i32,
    noised: &'a mut [i32],
    mask: &'a mut [u8],
    /// By token: before, what a masked token weighs.
    weight: &'a mut [f32],
}

simd_fn! {
    /// Writes what the keys of a piece decide.
    fn apply(piece: Piece<'_>) {
        let tokens = piece.keys.len();
        let (keys, last) = (&piece.keys[..tokens], &piece.last[..tokens]);
        let (ids, mask_id) = (&piece.ids[..tokens], piece.mask_id);
        let (noised, mask) = (&mut piece.noised[..tokens], &mut piece.mask[..tokens]);
        let weight = &mut piece.weight[..tokens];
        for i in 0..tokens {
            let masked = u32::from(keys[i] <= last[i]);
            // Selecting by bits: a choice of two values becomes a masked store, which is many times slower.
            let bits = masked.wrapping_neg();
            noised[i] = (mask_id as u32 & bits | ids[i] as u32 & !bits) as i32;
            mask[i] = masked as u8;
            weight[i] = f32::from_bits(weight[i].to_bits() & bits);
        }
    }
}

impl Row<'_> {
    pub(super) fn run(mut self, noise: &Noise, scratch: &mut Scratch) {
        let curve = Curve::new(noise);
        let piece = (PIECE / noise.block).max(1) * noise.block;
        for from in (0..self.ids.len()).step_by(piece) {
            let end = (from + piece).min(self.ids.len());
            let quads = if quads::fits(noise, &self) { (end - from) / GROUP * GROUP } else { 0 };
            if quads > 0 {
                self.draw_quads(noise, &curve, from..from + quads, scratch);
            }
            if from + quads < end {
                self.draw(noise, &curve, from + quads..end, scratch);
            }
        }
    }

    /// Noises some whole blocks.
    fn draw(&mut self, noise: &Noise, curve: &Curve, tokens: Range<usize>, scratch: &mut Scratch) {
        let block = noise.block;
        let blocks = tokens.start / block..tokens.end / block;
        let Scratch { keys, words, last, last_by_token, worth, ranked, .. } = scratch;
        keys.resize(tokens.len(), 0);
        words.resize(blocks.len(), 0);
        last.resize(blocks.len(), 0);
        worth.resize(blocks.len(), 0.0);
        let fill = |base, from, words: &mut [u32]| {
            fill_words(noise.seed, self.number, base, from, words);
        };
        fill(0, tokens.start, keys);
        let per_sequence = self.rate.len() as u64;
        let rate = &mut self.rate[blocks.clone()];
        match self.given {
            Some(given) => rate.copy_from_slice(&given.rate[blocks.clone()]),
            None => {
                fill(LEVELS, blocks.start, words);
                if noise.strata > 1 {
                    let first = self.number.wrapping_mul(per_sequence);
                    for (block, word) in blocks.clone().zip(words.iter_mut()) {
                        *word = stratified(noise, first.wrapping_add(block as u64), *word);
                    }
                }
                rates(curve, words, rate);
            }
        }
        bounds(rate, last, worth);
        let eligible = self.eligible.map(|all| &all[tokens.clone()]);
        if let Some(eligible) = eligible {
            // The key that is masked last; where it is masked all the same, `restore` undoes it.
            let pairs = keys.iter_mut().zip(eligible);
            pairs.for_each(|(key, eligible)| *key = if *eligible == 0 { u32::MAX } else { *key });
        }
        let counted = match noise.draw {
            Draw::Independent { .. } => None,
            Draw::Counted { least, most } => {
                fill(COUNTS, blocks.start, words);
                Some([least, most])
            }
        };
        let unbiased = noise.weight == Weight::Unbiased && noise.warm_up.is_none();
        let forced = noise.draw == Draw::Independent { forced: true };
        if eligible.is_some() || counted.is_some() || (unbiased && forced) {
            for (b, keys) in keys.chunks_exact_mut(block).enumerate() {
                let eligible = eligible.map(|all| &all[b * block..(b + 1) * block]);
                let places = eligible.map_or(block as u32, |eligible| {
                    eligible.iter().map(|eligible| u32::from(*eligible != 0)).sum()
                });
                if places == 0 {
                    rate[b] = 0.0;
                } else if let Some([least, most]) = counted {
                    let binomial = Binomial::new(places, rate[b], least, most);
                    last[b] = mark_least(keys, eligible, binomial.count(words[b]), ranked);
                    if unbiased {
                        worth[b] = (f64::from(places) / binomial.mean()) as f32;
                    }
                } else if unbiased && forced {
                    worth[b] = forced_weight(rate[b], places);
                }
            }
        }
        match self.given {
            Some(given) => worth.copy_from_slice(&given.weight[blocks]),
            None if noise.warm_up.is_some() || noise.weight == Weight::One => worth.fill(1.0),
            None => {}
        }
        let ids = &self.ids[tokens.clone()];
        let noised = &mut self.noised[tokens.clone()];
        let mask = &mut self.mask[tokens.clone()];
        let weight = &mut self.weight[tokens.clone()];
        let mask_id = noise.mask_id;
        if forced {
            force(block, keys, last);
        }
        last_by_token.resize(keys.len(), 0);
        expand(block, last, last_by_token);
        expand(block, bytemuck::cast_slice(worth), bytemuck::cast_slice_mut(weight));
        apply(Piece { keys, last: last_by_token, ids, mask_id, noised, mask, weight });
        if let Some(eligible) = eligible {
            let noised = &mut self.noised[tokens.clone()];
            let mask = &mut self.mask[tokens.clone()];
            restore(eligible, ids, noised, mask, &mut self.weight[tokens]);
        }
    }
}

simd_fn! {
    /// Undoes what happened to tokens that are not eligible.
    fn restore(
        eligible: &[u8],
        ids: &[i32],
        noised: &mut [i32],
        mask: &mut [u8],
        weight: &mut [f32],
    ) {
        let tokens = eligible.len();
        let (ids, noised) = (&ids[..tokens], &mut noised[..tokens]);
        let (mask, weight) = (&mut mask[..tokens], &mut weight[..tokens]);
        for i in 0..tokens {
            let masked = u32::from(mask[i] != 0) & u32::from(eligible[i] != 0);
            let bits = masked.wrapping_neg();
            noised[i] = (noised[i] as u32 & bits | ids[i] as u32 & !bits) as i32;
            mask[i] = masked as u8;
            weight[i] = f32::from_bits(weight[i].to_bits() & bits);
        }
    }
}

/// Sets the `count` least eligible keys to 0 and the others to 2, of equal keys the earlier being the lesser, and
/// returns the bound between them.
fn mark_least(keys: &mut [u32], eligible: Option<&[u8]>, count: u32, ranked: &mut Vec<u64>) -> u32 {
    ranked.clear();
    for (place, key) in keys.iter_mut().enumerate() {
        if eligible.is_none_or(|eligible| eligible[place] != 0) {
            ranked.push(u64::from(*key) << 32 | place as u64);
        }
        *key = 2;
    }
    let count = count as usize;
    if count > 0 && count < ranked.len() {
        if ranked.len() <= 16 {
            ranked.sort_unstable();
        } else {
            ranked.select_nth_unstable(count - 1);
        }
    }
    for entry in &ranked[..count] {
        keys[*entry as u32 as usize] = 0;
    }
    1
}
