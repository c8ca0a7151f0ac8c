//! Masks of block diffusion: each token by itself with one forced in every block, and exact counts between bounds.

use super::operation::operation;
use super::reference::{differs, host, host_bytes, host_ids, places};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::kernels::block_noise::{Draw, Noise, level};
use crate::ops::{self, Noised};
use crate::rng::{self, Stream};
use crate::tensor::Tensor;

const VOCAB: usize = 32_000;
const MASK_ID: i32 = VOCAB as i32 - 1;
const SEED: u64 = 5;

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let [rows, length] = size(device, quick, [[3, 64], [256, 4096], [2048, 8192]]);
    let clipped = Noise::clipped(4, MASK_ID, VOCAB, SEED);
    let counted = Noise {
        draw: Draw::Counted { least: 1, most: 16 },
        ..Noise::clipped(32, MASK_ID, VOCAB, SEED)
    };
    for (part, noise) in [("clipped", clipped), ("counted", counted)] {
        let ids = inputs::ids(rows * length, VOCAB - 1, 1);
        let ids = Tensor::from_i32(ids, &[rows, length])?.to_device(device)?;
        // The noise follows these numbers, wherever a sequence stands.
        let sequences: Vec<u64> = (0..rows as u64).map(|row| 3 * row + 1).collect();
        let (read, numbers) = (ids.clone(), sequences.clone());
        let work = operation(
            move || ops::block_noise(&read, None, &numbers, &noise),
            move |out: &Noised| error(&noise, &ids, &sequences, out),
        );
        // Ids in and out, a mask and a weight; a rate of each block.
        let bytes = 13 * rows * length + 4 * rows * length / noise.block;
        let shape = [rows, length, noise.block];
        give(Case::bytes(part, &shape, DType::I32, bytes, work))?;
    }
    Ok(())
}

/// One block as it came out.
struct Block<'a> {
    keys: &'a [u32],
    mask: &'a [u8],
    rate: f32,
}

impl Block<'_> {
    fn masked(&self) -> usize {
        self.mask.iter().filter(|mask| **mask != 0).count()
    }

    /// A key below `rate` of all keys is masked, and the least where that is none.
    fn is_clipped(&self) -> bool {
        let below = f64::from(self.rate) * 2f64.powi(32);
        let least = self.keys.iter().min();
        let mut masked = self.keys.iter().map(|key| f64::from(*key) < below.floor());
        let none = !masked.clone().any(|masked| masked);
        masked
            .by_ref()
            .zip(self.keys)
            .zip(self.mask)
            .all(|((masked, key), mask)| (masked || (none && Some(key) == least)) == (*mask != 0))
    }

    /// As many as the bounds allow, those with the least keys.
    fn is_counted(&self, bounds: [u32; 2]) -> bool {
        let (masked, free): (Vec<_>, Vec<_>) =
            self.keys.iter().zip(self.mask).partition(|(_, mask)| **mask != 0);
        let last = masked.iter().map(|(key, _)| **key).max().unwrap_or(0);
        let [least, most] = bounds.map(|bound| bound as usize);
        (least..=most).contains(&masked.len()) && free.iter().all(|(key, _)| **key >= last)
    }
}

/// Some sequences, restated from the random numbers; of exact counts their number in all, which must be that of the
/// binomial distribution between the bounds.
fn error(noise: &Noise, ids: &Tensor, sequences: &[u64], out: &Noised) -> Result<f64> {
    let mut largest = 0f64;
    let (mut off, mut variance) = (0f64, 0f64);
    for at in places(sequences.len()) {
        let here = |x: &Tensor| x.rows(at..at + 1);
        let (ids, noised) = (host_ids(&here(ids)?)?, host_ids(&here(&out.ids)?)?);
        let (mask, weight) = (host_bytes(&here(&out.mask)?)?, host(&here(&out.weight)?)?);
        let rates = host(&here(&out.rate)?)?;
        let key =
            |i: usize| rng::bits(noise.seed, Stream::Noise, sequences[at], (i / 4) as u32)[i % 4];
        let keys: Vec<u32> = (0..ids.len()).map(key).collect();
        for (b, rate) in rates.iter().copied().enumerate() {
            let tokens = b * noise.block..(b + 1) * noise.block;
            let drawn = level(noise, sequences[at], b, rates.len());
            let block = Block { keys: &keys[tokens.clone()], mask: &mask[tokens.clone()], rate };
            let right = match noise.draw {
                Draw::Independent { .. } => block.is_clipped(),
                Draw::Counted { least, most } => {
                    let (mean, spread) = truncated(noise.block, rate, [least, most]);
                    off += block.masked() as f64 - mean;
                    variance += spread;
                    block.is_counted([least, most])
                }
            };
            let is_right_rate = rate == drawn.max(1.0 / noise.block as f32);
            let written = tokens.clone().all(|i| match mask[i] {
                0 => noised[i] == ids[i] && weight[i] == 0.0,
                _ => noised[i] == noise.mask_id && weight[i] == 1.0 / rate,
            });
            largest = largest.max(differs(&[right, is_right_rate, written], &[true; 3]));
        }
    }
    // Five standard deviations.
    Ok(if variance > 0.0 { largest.max(off.abs() / (5.0 * variance.sqrt())) } else { largest })
}

/// Mean and variance of a binomial count between bounds.
fn truncated(places: usize, rate: f32, [least, most]: [u32; 2]) -> (f64, f64) {
    let rate = f64::from(rate);
    let mut ways = 1f64;
    let [mut sum, mut first, mut second] = [0f64; 3];
    for count in 0..=places {
        if (least as usize..=most as usize).contains(&count) {
            let p = ways * rate.powi(count as i32) * (1.0 - rate).powi((places - count) as i32);
            let count = count as f64;
            (sum, first, second) = (sum + p, first + count * p, second + count * count * p);
        }
        ways *= (places - count) as f64 / (count + 1) as f64;
    }
    let mean = first / sum;
    (mean, second / sum - mean * mean)
}
