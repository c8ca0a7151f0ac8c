//! What noise a training step draws: the published schedules by name, the tailored warm-up, the weight of the loss.
//!
//! It is drawn on the host, wherever the model is: the bits are the same, and the host must know the masked places to
//! gather their rows.

use super::batch::Batch;
use crate::error::{Error, Result};
use crate::kernels::block_noise::{
    self as kernel, Curve, Draw, Forward, Given, Noise, Order, Rate, WarmUp, Weight,
};
use crate::models::Diffusion;
use serde::{Deserialize, Serialize};

/// From where rates come and how they become masks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// A rate for each block, uniform in `low..1`; blocks may stay without a mask: a share of `1/(B+1)` of them.
    Linear {
        /// The lowest rate; 1e-3 in BD3-LM and LLaDA.
        low: f32,
    },
    /// `max(t, 1/B)` for each block, and one mask forced where none is (Stable-DiffCoder §3.3).
    Clipped {
        /// Without, blocks may stay without a mask.
        forced: bool,
    },
    /// `1/B + (1 - 1/B) t` for each block.
    Affine {
        /// One mask where none is.
        forced: bool,
    },
    /// Uniform in `low..high` for each block (BD3-LM). See [`range_search`](super::range_search).
    Range {
        /// The lowest rate.
        low: f32,
        /// The highest.
        high: f32,
        /// Only masks whose share of the block is in the range too, which BD3-LM draws again for.
        counted: bool,
    },
    /// One of BD3-LM's curves, its own weight with it, levels uniform in `low..high`.
    Curve {
        /// Which.
        curve: Curve,
        /// The lowest level.
        low: f32,
        /// The highest.
        high: f32,
    },
    /// One rate for the whole document, `(1 - eps) t + eps` (LLaDA).
    Llada {
        /// The lowest rate; 1e-3.
        eps: f32,
    },
    /// As LLaDA, given that at least one token of the document is masked (SDAR, which draws again, up to ten times).
    Sdar {
        /// The lowest rate; 1e-3.
        eps: f32,
    },
}

/// The noise of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noising {
    /// Rates and masks.
    pub schedule: Schedule,
    /// The weight of a masked token. `rate` is the published one and biased where masks are forced or counted (by +11.3 %
    /// at B = 4, clipped); `unbiased` divides by the probability that the token is masked. A curve brings its own.
    pub weight: Weight,
    /// Levels fall evenly into as many parts of their range as a power of two finds blocks in the batch.
    pub stratified: bool,
    /// Steps in which the cap on the levels rises from `cap_from` to 1, weights being 1; 0: no warm-up.
    pub warm_up_steps: u64,
    /// The first cap; Stable-DiffCoder's is 1e-3.
    pub cap_from: f32,
    /// Whether the schedule's lower bound holds under the cap.
    pub order: Order,
}

impl Default for Noising {
    /// Stable-DiffCoder's, without warm-up.
    fn default() -> Noising {
        Noising {
            schedule: Schedule::Clipped { forced: true },
            weight: Weight::Rate,
            stratified: true,
            warm_up_steps: 0,
            cap_from: 1e-3,
            order: Order::CapThenRate,
        }
    }
}

/// A batch with its noise.
#[derive(Clone, Debug, PartialEq)]
pub struct Noised {
    /// `[T]`: the ids, masked ones replaced.
    pub ids: Vec<i32>,
    /// Where a token is masked, in order.
    pub places: Vec<usize>,
    /// What each of them weighs in the loss.
    pub weights: Vec<f32>,
    /// Blocks that had an eligible token.
    pub blocks: usize,
    /// Those of them without a mask: work for nothing.
    pub wasted: usize,
    /// Weights are 1 because the warm-up lasts.
    pub warming_up: bool,
}

impl Noising {
    /// # Errors
    /// [`Error::is_invalid`] for numbers that make no sense.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(format!("noising: {what}")));
        let bounds = match self.schedule {
            Schedule::Linear { low }
            | Schedule::Llada { eps: low }
            | Schedule::Sdar { eps: low } => Some((low, 1.0)),
            Schedule::Range { low, high, .. } | Schedule::Curve { low, high, .. } => {
                Some((low, high))
            }
            Schedule::Clipped { .. } | Schedule::Affine { .. } => None,
        };
        if let Some((low, high)) = bounds
            && !(low > 0.0 && low <= high && high <= 1.0)
        {
            return bad(format!("levels from {low} to {high} are not 0 < low <= high <= 1"));
        }
        if !(self.cap_from > 0.0 && self.cap_from <= 1.0) {
            return bad(format!("cap_from is {}, not above 0 and at most 1", self.cap_from));
        }
        let curve = matches!(self.schedule, Schedule::Curve { .. });
        if curve && self.weight == Weight::Unbiased {
            return bad("a curve has a weight of its own: `unbiased` is for drawn rates".into());
        }
        if curve && self.warm_up_steps > 0 {
            return bad("a warm-up caps drawn levels, not those of a curve".into());
        }
        Ok(())
    }

    /// What is drawn for blocks of `block` tokens in step `step`, but for the strata.
    fn noise(&self, diffusion: Diffusion, vocab: usize, seed: u64, step: u64) -> Noise {
        let block = diffusion.block;
        let part = |fraction: f32| fraction * block as f32;
        let (rate, draw) = match self.schedule {
            Schedule::Linear { low } => {
                (Rate::Range { low, high: 1.0 }, Draw::Independent { forced: false })
            }
            Schedule::Clipped { forced } => (Rate::Clip, Draw::Independent { forced }),
            Schedule::Affine { forced } => (Rate::Affine, Draw::Independent { forced }),
            Schedule::Range { low, high, counted: false } => {
                (Rate::Range { low, high }, Draw::Independent { forced: false })
            }
            Schedule::Range { low, high, counted: true } => {
                let most = (part(high).floor() as u32).max(1);
                let least = (part(low).ceil() as u32).min(most);
                (Rate::Range { low, high }, Draw::Counted { least, most })
            }
            Schedule::Curve { .. } => (Rate::Clip, Draw::Independent { forced: false }),
            Schedule::Llada { eps } => {
                (Rate::Range { low: eps, high: 1.0 }, Draw::Independent { forced: false })
            }
            Schedule::Sdar { eps } => {
                (Rate::Range { low: eps, high: 1.0 }, Draw::Counted { least: 1, most: u32::MAX })
            }
        };
        let warm_up = WarmUp::linear(step, self.warm_up_steps, self.cap_from)
            .map(|warm_up| WarmUp { order: self.order, ..warm_up });
        Noise {
            block,
            rate,
            draw,
            weight: self.weight,
            warm_up,
            strata: 1,
            mask_id: diffusion.mask_id,
            vocab,
            seed,
        }
    }

    /// Noises a batch for step `step`. A document's noise depends on its number, its length and what is eligible in it, and
    /// with [`Noising::stratified`] on how many blocks the batch has.
    ///
    /// # Errors
    /// [`Error::is_shape`] for a document that is no whole number of blocks, [`Error::is_index`] for a mask id outside the
    /// vocabulary, [`Error::is_invalid`] for settings that make no sense, or under LLaDA's and SDAR's schedules for a
    /// document of more than 8192 tokens.
    pub fn apply(
        &self,
        batch: &Batch,
        diffusion: Diffusion,
        vocab: usize,
        seed: u64,
        step: u64,
    ) -> Result<Noised> {
        self.check()?;
        batch.check()?;
        let mut noise = self.noise(diffusion, vocab, seed, step);
        let by_document = matches!(self.schedule, Schedule::Llada { .. } | Schedule::Sdar { .. });
        let mut out = Noised {
            ids: vec![0; batch.ids.len()],
            places: Vec::new(),
            weights: Vec::new(),
            blocks: 0,
            wasted: 0,
            warming_up: noise.warm_up.is_some(),
        };
        let mut from = 0;
        while from < batch.numbers.len() {
            // Neighbours of one length are one call.
            let length =
                |document: usize| batch.documents[document + 1] - batch.documents[document];
            let same = (from..batch.numbers.len()).take_while(|d| length(*d) == length(from));
            let to = from + same.count();
            if length(from) > 0 {
                // A block as long as the context is the document.
                let whole = by_document || diffusion.block > length(from);
                noise.block = if whole { length(from) } else { diffusion.block };
                self.rows(&mut noise, batch, from..to, &mut out)?;
            }
            from = to;
        }
        Ok(out)
    }

    /// Documents of one length.
    fn rows(
        &self,
        noise: &mut Noise,
        batch: &Batch,
        documents: std::ops::Range<usize>,
        out: &mut Noised,
    ) -> Result<()> {
        let tokens = batch.documents[documents.start]..batch.documents[documents.end];
        let length = tokens.len() / documents.len();
        let blocks = tokens.len() / noise.block.max(1);
        if self.stratified {
            let most = blocks.clamp(1, 1 << 16);
            noise.strata = 1 << most.ilog2();
        }
        let numbers = &batch.numbers[documents];
        let given = self.given(noise, numbers, length / noise.block.max(1));
        let mut mask = vec![0u8; tokens.len()];
        let mut weight = vec![0f32; tokens.len()];
        let mut rate = vec![0f32; blocks];
        kernel::forward(
            noise,
            Forward {
                ids: &batch.ids[tokens.clone()],
                eligible: batch.eligible.as_ref().map(|all| &all[tokens.clone()]),
                sequences: numbers,
                length,
                given: given.as_ref().map(|(rate, weight)| Given { rate, weight }),
                noised: &mut out.ids[tokens.clone()],
                mask: &mut mask,
                weight: &mut weight,
                rate: &mut rate,
            },
        )?;
        for (place, (mask, weight)) in mask.iter().zip(&weight).enumerate() {
            if *mask != 0 {
                out.places.push(tokens.start + place);
                out.weights.push(*weight);
            }
        }
        for (mask, rate) in mask.chunks(noise.block).zip(&rate) {
            out.blocks += usize::from(*rate > 0.0);
            out.wasted += usize::from(*rate > 0.0 && mask.iter().all(|m| *m == 0));
        }
        Ok(())
    }

    /// Rates and weights of a curve.
    fn given(&self, noise: &Noise, numbers: &[u64], blocks: usize) -> Option<(Vec<f32>, Vec<f32>)> {
        let Schedule::Curve { curve, low, high } = self.schedule else { return None };
        let levels = numbers.iter().flat_map(|number| {
            (0..blocks)
                .map(move |block| low + (high - low) * kernel::level(noise, *number, block, blocks))
        });
        let of = |level: f32| {
            let level = f64::from(level);
            let weight = if self.weight == Weight::One { 1.0 } else { curve.weight(level) };
            (curve.rate(level).clamp(f64::from(f32::MIN_POSITIVE), 1.0) as f32, weight as f32)
        };
        Some(levels.map(of).unzip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFFUSION: Diffusion = Diffusion { mask_id: 9, block: 4, shift: false };

    fn rows(count: usize) -> Batch {
        Batch::rows((0..count as i32 * 32).map(|i| i % 9).collect(), 32, 4, 100).unwrap()
    }

    fn drawn(schedule: Schedule, weight: Weight, count: usize) -> Noised {
        let noising = Noising { schedule, weight, ..Noising::default() };
        noising.apply(&rows(count), DIFFUSION, 10, 3, 0).unwrap()
    }

    #[test]
    fn the_published_forms() {
        let clipped = drawn(Schedule::Clipped { forced: true }, Weight::Rate, 2000);
        assert_eq!((clipped.blocks, clipped.wasted), (16_000, 0));
        let linear = drawn(Schedule::Linear { low: 1e-3 }, Weight::Rate, 2000);
        let wasted = linear.wasted as f64 / linear.blocks as f64;
        assert!((wasted - 0.2).abs() < 0.01, "{wasted}");
        let sum = |noised: &Noised| noised.weights.iter().map(|w| f64::from(*w)).sum::<f64>();
        let mean = |noised: &Noised| sum(noised) / (2000.0 * 32.0);
        assert!((mean(&clipped) - 1.113).abs() < 0.02, "{}", mean(&clipped));
        let unbiased = drawn(Schedule::Clipped { forced: true }, Weight::Unbiased, 2000);
        assert!((mean(&unbiased) - 1.0).abs() < 0.02, "{}", mean(&unbiased));
        let counted = Schedule::Range { low: 0.3, high: 0.8, counted: true };
        let counted = drawn(counted, Weight::One, 500);
        let by_block = |noised: &Noised| {
            let mut counts = vec![0; 4000];
            noised.places.iter().for_each(|place| counts[place / 4] += 1);
            counts
        };
        assert!(by_block(&counted).iter().all(|count| (2..=3).contains(count)));
        let curve = Schedule::Curve { curve: Curve::Loglinear, low: 1e-3, high: 1.0 };
        assert!((mean(&drawn(curve, Weight::Rate, 2000)) - 1.0).abs() < 0.1);
    }

    #[test]
    fn one_rate_a_document() {
        let llada = drawn(Schedule::Llada { eps: 1e-3 }, Weight::Rate, 300);
        // All masked tokens of a row weigh the same.
        let mut by_row = vec![None; 300];
        for (place, weight) in llada.places.iter().zip(&llada.weights) {
            let row = &mut by_row[place / 32];
            assert_eq!(*row.get_or_insert(*weight), *weight);
        }
        assert!(llada.blocks == 300 && llada.wasted > 0);
        let sdar = drawn(Schedule::Sdar { eps: 1e-3 }, Weight::Rate, 300);
        assert_eq!((sdar.blocks, sdar.wasted), (300, 0));
    }

    #[test]
    fn the_warm_up_drops_the_weight_and_ends() {
        let noising = Noising { warm_up_steps: 10, ..Noising::default() };
        let batch = rows(200);
        let share = |step| {
            let noised = noising.apply(&batch, DIFFUSION, 10, 3, step).unwrap();
            assert_eq!(noised.warming_up, step < 10);
            assert_eq!(noised.weights.iter().all(|w| *w == 1.0), step < 10);
            noised.places.len() as f64 / batch.ids.len() as f64
        };
        // One token a block is about 0.25 + what is forced.
        assert!(share(0) < 0.36 && share(9) > share(0) && share(10) > 0.5);
    }

    #[test]
    fn documents_of_all_lengths_and_nothing_eligible() {
        let batch = Batch {
            ids: (0..28).map(|i| i % 9).collect(),
            eligible: Some(vec![0; 28]),
            documents: vec![0, 8, 8, 12, 20, 28],
            numbers: vec![3, 4, 5, 6, 7],
        };
        let none = Noising::default().apply(&batch, DIFFUSION, 10, 3, 0).unwrap();
        assert!(none.places.is_empty() && none.blocks == 0 && none.ids == batch.ids);
        let all = Batch { eligible: None, ..batch.clone() };
        let plain = Noising { stratified: false, ..Noising::default() };
        let noised = plain.apply(&all, DIFFUSION, 10, 3, 0).unwrap();
        assert_eq!((noised.blocks, noised.wasted), (7, 0));
        // The third document alone.
        let alone = Batch {
            ids: all.ids[8..12].to_vec(),
            eligible: None,
            documents: vec![0, 4],
            numbers: vec![5],
        };
        let alone = plain.apply(&alone, DIFFUSION, 10, 3, 0).unwrap();
        assert_eq!(alone.ids, noised.ids[8..12]);
        let ragged = Batch { documents: vec![0, 7, 7, 12, 20, 28], ..all.clone() };
        assert!(plain.apply(&ragged, DIFFUSION, 10, 3, 0).unwrap_err().is_shape());
        let short = Batch { numbers: vec![1], ..all };
        assert!(plain.apply(&short, DIFFUSION, 10, 3, 0).unwrap_err().is_shape());
    }

    #[test]
    fn nonsense_is_refused() {
        for schedule in [
            Schedule::Linear { low: 0.0 },
            Schedule::Range { low: 0.6, high: 0.5, counted: false },
            Schedule::Llada { eps: f32::NAN },
        ] {
            let noising = Noising { schedule, ..Noising::default() };
            assert!(noising.check().unwrap_err().is_invalid());
        }
        let curve = Schedule::Curve { curve: Curve::Cosine, low: 1e-3, high: 1.0 };
        let noising = Noising { schedule: curve, weight: Weight::Unbiased, ..Noising::default() };
        assert!(noising.check().unwrap_err().is_invalid());
    }
}
