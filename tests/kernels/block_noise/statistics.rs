//! What is drawn has the distribution that the formulas say.

use super::Batch;
use super::definition::{binomial, bounded};
use gradstone::kernels::block_noise::{Draw, Noise, Rate, Weight};

const FORCED: Draw = Draw::Independent { forced: true };
const FREE: Draw = Draw::Independent { forced: false };

/// Of the weighted count S of a block: E[S]/B, Var[S], P(S = 0), and the fraction of masked tokens.
type Moments = [f64; 4];

/// By integration over the level and the exact distribution of the count at each.
fn expected(noise: &Noise) -> Moments {
    const STEPS: usize = 20_000;
    let b = noise.block;
    let (mut first, mut second, mut none, mut fraction) = (0.0, 0.0, 0.0, 0.0);
    for step in 0..STEPS {
        let t = (step as f64 + 0.5) / STEPS as f64;
        let one = 1.0 / b as f64;
        let u = match noise.rate {
            Rate::Clip => t.max(one),
            Rate::Affine => one + (1.0 - one) * t,
            Rate::Range { low, high } => f64::from(low) + f64::from(high - low) * t,
        };
        let mut p = match noise.draw {
            Draw::Counted { least, most } => bounded(b, u, least, most),
            Draw::Independent { .. } => binomial(b, u),
        };
        if noise.draw == FORCED {
            p[1] += p[0];
            p[0] = 0.0;
        }
        let mean: f64 = p.iter().enumerate().map(|(k, p)| k as f64 * p).sum();
        let weight = match noise.weight {
            Weight::Unbiased => b as f64 / mean,
            _ => 1.0 / u,
        };
        for (count, p) in p.iter().enumerate() {
            let sum = weight * count as f64;
            first += p * sum;
            second += p * sum * sum;
        }
        none += p[0];
        fraction += mean / b as f64;
    }
    let [first, second, none, fraction] = [first, second, none, fraction].map(|x| x / STEPS as f64);
    [first / b as f64, second - first * first, none, fraction]
}

fn measured(noise: &Noise, blocks: usize) -> Moments {
    let out = Batch::new(*noise, 1, blocks * noise.block).run();
    let sums: Vec<f64> =
        out.weight.chunks(noise.block).map(|w| w.iter().map(|w| f64::from(*w)).sum()).collect();
    let n = blocks as f64;
    let mean = sums.iter().sum::<f64>() / n;
    let variance = sums.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / n;
    let none = sums.iter().filter(|s| **s == 0.0).count() as f64 / n;
    let fraction = out.mask.iter().map(|m| f64::from(*m)).sum::<f64>() / out.mask.len() as f64;
    [mean / noise.block as f64, variance, none, fraction]
}

fn near(what: &str, got: Moments, want: Moments, tolerance: Moments) {
    for ((name, tolerance), (got, want)) in
        ["E[S]/B", "Var[S]", "P(S=0)", "masked"].iter().zip(tolerance).zip(got.iter().zip(&want))
    {
        assert!((got - want).abs() <= tolerance, "{what}: {name} is {got}, wanted {want}");
    }
}

fn noise(block: usize, rate: Rate, draw: Draw, weight: Weight) -> Noise {
    Noise { rate, draw, weight, ..Noise::clipped(block, 96, 97, 20_241_123) }
}

#[test]
fn the_integrals_are_the_published_figures() {
    let clip = |b, draw| expected(&noise(b, Rate::Clip, draw, Weight::Rate));
    for b in [2usize, 4, 8, 16] {
        let of = b as f64;
        let none =
            (1.0 - 1.0 / of).powi(b as i32 + 1) / (of + 1.0) + (1.0 - 1.0 / of).powi(b as i32) / of;
        let want = [1.0, of * of.ln(), none, (1.0 + 1.0 / (of * of)) / 2.0];
        near(&format!("clip {b}"), clip(b, FREE), want, [1e-3, 0.02, 1e-4, 1e-4]);
    }
    // Of 2 million draws of the published form.
    near("B=2", clip(2, FORCED), [1.159, 0.627, 0.0, 0.708], [2e-3, 0.02, 0.0, 1e-3]);
    near("B=4", clip(4, FORCED), [1.113, 3.41, 0.0, 0.563], [2e-3, 0.03, 0.0, 1e-3]);
    near("B=8", clip(8, FORCED), [1.065, 11.81, 0.0, 0.517], [2e-3, 0.1, 0.0, 1e-3]);
    let affine = expected(&noise(4, Rate::Affine, FREE, Weight::Rate));
    near("affine", affine, [1.0, 3.40, 0.0636, 0.625], [1e-3, 0.03, 1e-3, 1e-3]);
    let range = Rate::Range { low: 0.45, high: 0.95 };
    let range = expected(&noise(4, range, FREE, Weight::Rate));
    near("range", range, [1.0, 1.98, 0.0202, 0.7], [1e-3, 0.02, 1e-3, 1e-3]);
}

#[test]
fn draws_have_the_moments_of_the_integrals() {
    let range = Rate::Range { low: 0.2, high: 0.9 };
    let counted = Draw::Counted { least: 1, most: 3 };
    for (b, rate, draw, weight) in [
        (2, Rate::Clip, FREE, Weight::Rate),
        (2, Rate::Clip, FORCED, Weight::Rate),
        (4, Rate::Clip, FREE, Weight::Rate),
        (4, Rate::Clip, FORCED, Weight::Rate),
        (4, Rate::Clip, FORCED, Weight::Unbiased),
        (4, Rate::Affine, FREE, Weight::Rate),
        (4, range, FREE, Weight::Rate),
        (4, range, counted, Weight::Rate),
        (4, range, counted, Weight::Unbiased),
        (8, Rate::Clip, FORCED, Weight::Rate),
        (8, Rate::Clip, FORCED, Weight::Unbiased),
    ] {
        for strata in [1, 1024] {
            let noise = Noise { strata, ..noise(b, rate, draw, weight) };
            let blocks = 300_000;
            let (got, want) = (measured(&noise, blocks), expected(&noise));
            let n = (blocks as f64).sqrt();
            let tolerance =
                [4.5 * want[1].sqrt() / n / b as f64, 0.03 * want[1], 4.5 * 0.5 / n, 4.5 * 0.5 / n];
            near(&format!("{noise:?}"), got, want, tolerance);
            if weight == Weight::Unbiased {
                assert!((want[0] - 1.0).abs() < 1e-9, "{noise:?} is biased: {}", want[0]);
            }
        }
    }
}

#[test]
fn strata_are_all_taken_and_spread_the_levels() {
    let noise =
        Noise { strata: 64, ..noise(4, Rate::Range { low: 1e-6, high: 1.0 }, FREE, Weight::Rate) };
    let rates = Batch::new(noise, 1, 4 * 64 * 50).run().rate;
    let mut orders = Vec::new();
    for run in rates.chunks(64) {
        let order: Vec<usize> = run.iter().map(|rate| (f64::from(*rate) * 64.0) as usize).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..64).collect::<Vec<_>>());
        orders.push(order);
    }
    assert!(orders.windows(2).any(|pair| pair[0] != pair[1]), "runs differ");
}

/// The 99.9 % point of χ² with `freedom` degrees of freedom (Wilson and Hilferty's approximation).
fn limit(freedom: usize) -> f64 {
    let k = freedom as f64;
    k * (1.0 - 2.0 / (9.0 * k) + 3.09 * (2.0 / (9.0 * k)).sqrt()).powi(3)
}

fn masks(block: usize, rate: f32, draw: Draw, blocks: usize) -> Vec<u8> {
    let mut batch = Batch::new(noise(block, Rate::Clip, draw, Weight::One), 1, blocks * block);
    batch.given = Some([vec![rate; blocks], vec![1.0; blocks]]);
    batch.run().mask
}

#[test]
fn bounded_counts_have_their_distribution() {
    for (b, least, most, rate) in [
        (1, 0, 1, 0.3),
        (2, 1, 2, 0.5),
        (4, 1, 3, 0.25),
        (4, 1, 4, 0.9),
        (4, 0, 4, 0.5),
        (5, 2, 3, 0.1),
        (8, 1, 8, 0.125),
        (8, 3, 6, 0.95),
        (16, 5, 12, 0.3),
        (32, 1, 32, 1.0 / 32.0),
        (32, 10, 25, 0.5),
        (64, 0, 3, 0.2),
        (128, 60, 128, 0.4),
        (4, 1, 3, 1.0),
    ] {
        let blocks = 100_000;
        let draw = Draw::Counted { least, most };
        let mut counts = vec![0f64; b + 1];
        for mask in masks(b, rate, draw, blocks).chunks(b) {
            counts[mask.iter().map(|m| usize::from(*m)).sum::<usize>()] += 1.0;
        }
        let p = bounded(b, f64::from(rate), least, most);
        let (mut chi, mut cells, mut rare) = (0.0, 0, [0.0, 0.0]);
        for (count, p) in counts.iter().zip(&p) {
            let want = p * blocks as f64;
            assert!(*p > 0.0 || *count == 0.0, "a count out of bounds");
            if want < 8.0 {
                rare = [rare[0] + count, rare[1] + want];
            } else {
                chi += (count - want) * (count - want) / want;
                cells += 1;
            }
        }
        if rare[1] >= 8.0 {
            chi += (rare[0] - rare[1]) * (rare[0] - rare[1]) / rare[1];
            cells += 1;
        }
        let limit = if cells > 1 { limit(cells - 1) } else { 0.0 };
        assert!(chi <= limit, "B {b}, {least}..={most} at {rate}: χ² {chi} above {limit}");
    }
}

#[test]
fn each_pair_is_masked_together_equally_often() {
    let (b, blocks) = (7, 200_000);
    for (draw, one, both) in [
        (Draw::Counted { least: 3, most: 3 }, 3.0 / 7.0, 3.0 * 2.0 / (7.0 * 6.0)),
        (FREE, 0.3, 0.09),
    ] {
        let mut singles = vec![0f64; b];
        let mut pairs = vec![0f64; b * b];
        for mask in masks(b, 0.3, draw, blocks).chunks(b) {
            for i in 0..b {
                singles[i] += f64::from(mask[i]);
                for j in 0..i {
                    pairs[i * b + j] += f64::from(mask[i] & mask[j]);
                }
            }
        }
        let n = blocks as f64;
        let check = |count: f64, p: f64| {
            let z = (count - n * p) / (n * p * (1.0 - p)).sqrt();
            assert!(z.abs() < 4.5, "{draw:?}: {count} of {n} where {p} was wanted");
        };
        singles.iter().for_each(|count| check(*count, one));
        (0..b).for_each(|i| (0..i).for_each(|j| check(pairs[i * b + j], both)));
    }
}
