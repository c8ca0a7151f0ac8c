//! BD3-LM's search for the range of rates whose loss has the least variance.
//!
//! For each range of the grid, the variance over blocks of the weighted loss of a block under rates uniform in that range;
//! the range with the smallest is trained with until the next search. The bound that is reported is never clipped.
//! Source: BD3-LM (`_clipped_schedule_search`): widths 0.5 to 0.9, lower ends 0.05 apart.

use super::batch::Batch;
use super::noising::{Noising, Schedule};
use super::step;
use crate::error::{Error, Result};
use crate::kernels::block_noise::Weight;
use crate::models::Decoder;

/// A range of rates and the variance of a block's loss under it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The lowest rate.
    pub low: f32,
    /// The highest.
    pub high: f32,
    /// Variance over blocks of the mean weighted loss of a block's tokens, nats².
    pub variance: f64,
}

/// The published grid: widths 0.5 to 0.9, lower ends 0.05 apart, none below `least`.
pub fn grid(least: f32) -> Vec<(f32, f32)> {
    let mut ranges = Vec::new();
    for width in 10..=18u32 {
        if width % 2 == 1 {
            continue;
        }
        // In twentieths.
        for low in 0..=20 - width {
            ranges.push(((low as f32 / 20.0).max(least), (low + width) as f32 / 20.0));
        }
    }
    ranges
}

/// Measures every range on the same text, and returns them with the best first. Rates above one half weigh 1, as in BD3-LM.
///
/// # Errors
/// [`Error::is_invalid`] for no ranges or ranges that are none, and as [`Decoder::masked_logprob`].
pub fn search(
    model: &Decoder,
    batch: &Batch,
    ranges: &[(f32, f32)],
    seed: u64,
    micro_batch_tokens: usize,
) -> Result<Vec<Measured>> {
    if ranges.is_empty() {
        return Err(Error::invalid("range search: no ranges"));
    }
    let diffusion = model.diffusion()?;
    let mut measured = Vec::with_capacity(ranges.len());
    for (low, high) in ranges.iter().copied() {
        let noising = bd3lm(low, high);
        let noised = noising.apply(batch, diffusion, model.config().vocab_size, seed, 0)?;
        let losses = step::losses(model, batch, &noised, micro_batch_tokens)?;
        let mut by_block = vec![0f64; batch.ids.len().div_ceil(diffusion.block)];
        for ((place, weight), loss) in noised.places.iter().zip(&noised.weights).zip(&losses) {
            by_block[place / diffusion.block] += f64::from(*weight) * f64::from(*loss);
        }
        let count = by_block.len().max(1) as f64;
        let scale = 1.0 / diffusion.block as f64;
        let mean = by_block.iter().sum::<f64>() * scale / count;
        let variance =
            by_block.iter().map(|loss| (loss * scale - mean).powi(2)).sum::<f64>() / count;
        measured.push(Measured { low, high, variance });
    }
    measured.sort_by(|a, b| a.variance.total_cmp(&b.variance));
    Ok(measured)
}

/// The noise of BD3-LM in a range: weight 1/rate, or 1 where all rates are above one half, as published.
pub fn bd3lm(low: f32, high: f32) -> Noising {
    Noising {
        schedule: Schedule::Range { low, high, counted: false },
        weight: if low > 0.5 { Weight::One } else { Weight::Rate },
        ..Noising::default()
    }
}
