//! The bound of held-out text: one measure for every way of training, without clipping and without sampling a rate.
//!
//! With rate t uniform and weight 1/t, each size k of the set of masked tokens of a block of B counts the same:
//! `E_t[1/t · Σ_masked] = B · mean_k mean_{|S| = k} 1/k Σ_{i ∈ S} -log p(x_i | rest)`. So the bound is a mean over
//! k = 1..B, each k for every block: nothing of its variance is left but that of which k tokens are masked.

use super::batch::Batch;
use super::noising::Noised;
use super::step;
use crate::error::{Error, Result};
use crate::kernels::block_noise::{self as kernel, Draw, Forward, Noise, Rate, Weight};
use crate::models::Decoder;

/// An upper bound of the negative log-likelihood per token, nats: `rounds` draws of a set of each size for every block.
///
/// # Errors
/// [`Error::is_unsupported`] for a batch of which not everything is eligible or a model without a mask token, and as
/// [`Decoder::masked_logprob`].
pub fn per_token(
    model: &Decoder,
    batch: &Batch,
    rounds: u64,
    seed: u64,
    micro_batch_tokens: usize,
) -> Result<f64> {
    let diffusion = model.diffusion()?;
    batch.check()?;
    if batch.eligible.is_some() {
        return Err(Error::unsupported(
            "the bound is of whole documents: everything must be eligible",
        ));
    }
    let mut total = 0f64;
    for round in 0..rounds {
        for k in 1..=diffusion.block as u32 {
            let noise = Noise {
                // Whatever the rate is, exactly k are masked.
                rate: Rate::Range { low: 0.5, high: 0.5 },
                draw: Draw::Counted { least: k, most: k },
                weight: Weight::One,
                ..Noise::clipped(
                    diffusion.block,
                    diffusion.mask_id,
                    model.config().vocab_size,
                    seed ^ (round << 16 | u64::from(k)),
                )
            };
            let noised = noised(&noise, batch)?;
            let sum: f64 = step::losses(model, batch, &noised, micro_batch_tokens)?
                .iter()
                .map(|loss| f64::from(*loss))
                .sum();
            total += sum / f64::from(k);
        }
    }
    Ok(total / (batch.ids.len().max(1) as f64 * rounds.max(1) as f64))
}

/// The batch under a noise that every block draws for itself.
pub(super) fn noised(noise: &Noise, batch: &Batch) -> Result<Noised> {
    let tokens = batch.ids.len();
    let mut out = Noised {
        ids: vec![0; tokens],
        places: Vec::new(),
        weights: Vec::new(),
        blocks: tokens / noise.block.max(1),
        wasted: 0,
        warming_up: false,
    };
    let (mut mask, mut weight) = (vec![0u8; tokens], vec![0f32; tokens]);
    let mut rate = vec![0f32; out.blocks];
    for (bounds, number) in batch.documents.windows(2).zip(&batch.numbers) {
        let here = bounds[0]..bounds[1];
        let blocks = bounds[0] / noise.block..bounds[1] / noise.block;
        kernel::forward(
            noise,
            Forward {
                ids: &batch.ids[here.clone()],
                eligible: None,
                sequences: &[*number],
                length: here.len(),
                given: None,
                noised: &mut out.ids[here.clone()],
                mask: &mut mask[here.clone()],
                weight: &mut weight[here],
                rate: &mut rate[blocks],
            },
        )?;
    }
    let masked = mask.iter().zip(&weight).enumerate().filter(|(_, (mask, _))| **mask != 0);
    (out.places, out.weights) = masked.map(|(place, (_, weight))| (place, *weight)).unzip();
    Ok(out)
}
