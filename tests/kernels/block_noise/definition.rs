//! The definition, token by token, from the random words themselves.

use super::Batch;
use gradstone::kernels::block_noise::{Draw, Order, Rate, Weight};
use gradstone::rng::{self, Stream};

#[derive(Clone, Debug, PartialEq)]
pub struct Noised {
    pub ids: Vec<i32>,
    pub mask: Vec<u8>,
    pub weight: Vec<f32>,
    pub rate: Vec<f32>,
}

/// Word `index` of the counters from `base` on.
fn word(batch: &Batch, sequence: u64, base: u32, index: usize) -> u32 {
    let counter = base + (index / 4) as u32;
    rng::bits(batch.noise.seed, Stream::Noise, sequence, counter)[index % 4]
}

fn rate(batch: &Batch, sequence: u64, block: usize) -> f32 {
    let noise = &batch.noise;
    let mut level = word(batch, sequence, 1 << 30, block);
    let strata = u64::from(noise.strata);
    if strata > 1 {
        let blocks = (batch.length / noise.block) as u64;
        let global = sequence.wrapping_mul(blocks).wrapping_add(block as u64);
        let run = rng::bits(noise.seed, Stream::Noise, global / strata, 3 << 30)[0];
        let stratum = ((global % (1 << 32)) * 0x9E37_79B1 + u64::from(run)) % strata;
        level = ((stratum << 32 | u64::from(level)) / strata) as u32;
    }
    let mut t = (level >> 8) as f32 / 16_777_216.0;
    let cap = |order| noise.warm_up.filter(|w| w.order == order).map_or(1.0, |w| w.cap);
    t *= cap(Order::CapThenRate);
    let one = 1.0 / noise.block as f32;
    let rate = match noise.rate {
        Rate::Clip => t.max(one),
        Rate::Affine => (one + (1.0 - one) * t).min(1.0),
        Rate::Range { low, high } => (low + (high - low) * t).min(high),
    };
    (rate * cap(Order::RateThenCap)).max(2f32.powi(-32))
}

/// Probabilities of 0, 1, …, `places` masked tokens, before any bound.
pub fn binomial(places: usize, rate: f64) -> Vec<f64> {
    let mut probabilities = vec![1.0];
    for _ in 0..places {
        let mut next = vec![0.0; probabilities.len() + 1];
        for (count, p) in probabilities.iter().enumerate() {
            next[count] += p * (1.0 - rate);
            next[count + 1] += p * rate;
        }
        probabilities = next;
    }
    probabilities
}

/// The same given `least..=most` of them. In logarithms: far from the mean the probabilities themselves are 0.
pub fn bounded(places: usize, rate: f64, least: u32, most: u32) -> Vec<f64> {
    let (least, most) = (places.min(least as usize), places.min(most as usize));
    let times = |count: usize, log: f64| if count == 0 { 0.0 } else { count as f64 * log };
    let mut choices = 0.0;
    let mut logs = Vec::new();
    for count in 0..=places {
        let log = choices + times(count, rate.ln()) + times(places - count, (1.0 - rate).ln());
        logs.push(if (least..=most).contains(&count) { log } else { f64::NEG_INFINITY });
        choices += ((places - count) as f64 / (count + 1) as f64).ln();
    }
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        // At rate 1 only `places` is possible: the nearest count has it all.
        return (0..=places).map(|count| if count == most { 1.0 } else { 0.0 }).collect();
    }
    let weights: Vec<f64> = logs.iter().map(|log| (log - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|p| p / sum).collect()
}

/// How many are masked: counts from the likeliest upward, then downward, until the sum passes the random word.
fn count(probabilities: &[f64], rate: f64, [least, most]: [u32; 2], word: u32) -> usize {
    let places = probabilities.len() - 1;
    let (least, most) = (places.min(least as usize), places.min(most as usize));
    let mode = (((places + 1) as f64 * rate) as usize).clamp(least, most);
    let goal = f64::from(word) / 2f64.powi(32);
    let mut sum = 0.0;
    for count in (mode..=most).chain((least..mode).rev()) {
        sum += probabilities[count];
        if sum > goal {
            return count;
        }
    }
    least
}

pub fn noise(batch: &Batch) -> Noised {
    let noise = &batch.noise;
    let mut out = Noised {
        ids: batch.ids.clone(),
        mask: vec![0; batch.ids.len()],
        weight: vec![0.0; batch.ids.len()],
        rate: Vec::new(),
    };
    for (row, sequence) in batch.sequences.iter().enumerate() {
        for block in 0..batch.length / noise.block {
            let first = row * batch.length + block * noise.block;
            let mut places: Vec<usize> = (first..first + noise.block)
                .filter(|place| batch.eligible.as_ref().is_none_or(|e| e[*place] != 0))
                .collect();
            let index = out.rate.len();
            let rate = match &batch.given {
                Some([rates, _]) => rates[index],
                None => rate(batch, *sequence, block),
            };
            out.rate.push(if places.is_empty() { 0.0 } else { rate });
            if places.is_empty() {
                continue;
            }
            let key = |place: &usize| word(batch, *sequence, 0, place - row * batch.length);
            places.sort_by_key(key);
            let (n, u) = (places.len(), f64::from(rate));
            let (masked, probability) = match noise.draw {
                Draw::Independent { forced } => {
                    let bound = u * 2f64.powi(32);
                    let masked = places.iter().filter(|p| f64::from(key(p)) < bound.floor());
                    let masked = masked.count().max(usize::from(forced));
                    let nothing = (1.0 - u).powi(n as i32);
                    (masked, if forced { u + nothing / n as f64 } else { u })
                }
                Draw::Counted { least, most } => {
                    let p = bounded(n, u, least, most);
                    let mean: f64 = p.iter().enumerate().map(|(k, p)| k as f64 * p).sum();
                    let word = word(batch, *sequence, 2 << 30, block);
                    (count(&p, u, [least, most], word), mean / n as f64)
                }
            };
            let weight = match (noise.weight, &batch.given) {
                (_, Some([_, weights])) => weights[index],
                (Weight::One, _) => 1.0,
                _ if noise.warm_up.is_some() => 1.0,
                (Weight::Unbiased, _) => (1.0 / probability) as f32,
                (Weight::Rate, _) => 1.0 / rate,
            };
            for place in &places[..masked] {
                out.ids[*place] = noise.mask_id;
                out.mask[*place] = 1;
                out.weight[*place] = weight;
            }
        }
    }
    out
}
