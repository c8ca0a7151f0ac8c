//! What a schedule draws, counted, against what it must be.
//!
//! S is the sum of the weights of a block. For a rate u and a block of B: `E[S | u] = B` and `Var[S | u] = B (1 - u) / u`
//! without forced masks; with them, a block that would have none has one more with probability `(1 - u)^B`.

use crate::error::Result;
use crate::kernels::block_noise::{self as kernel, Draw, Forward, Noise, Rate, Weight};

/// Moments of a block's weights, and of its masks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statistics {
    /// E\[S\] / B.
    pub mean: f64,
    /// Var\[S\].
    pub variance: f64,
    /// P(no mask).
    pub none: f64,
    /// Share of masked tokens.
    pub masked: f64,
}

impl Statistics {
    /// The largest relative difference; probabilities of exactly 0 must be met exactly.
    pub fn error(&self, want: &Statistics) -> f64 {
        let pairs = [
            (self.mean, want.mean),
            (self.variance, want.variance),
            (self.none, want.none),
            (self.masked, want.masked),
        ];
        let relative = |(got, want): (f64, f64)| match (got - want).abs() {
            0.0 => 0.0,
            difference => difference / want.abs(),
        };
        pairs.into_iter().map(relative).fold(0.0, f64::max)
    }
}

/// The closed forms, the two integrals without one by the midpoint rule.
pub(super) fn expected(rate: Rate, forced: bool, weight: Weight, block: usize) -> Statistics {
    let b = block as f64;
    let (low, high, atom) = match rate {
        Rate::Clip => (1.0 / b, 1.0, 1.0 / b),
        Rate::Affine => (1.0 / b, 1.0, 0.0),
        Rate::Range { low, high } => (f64::from(low), f64::from(high), 0.0),
    };
    // Even in the logarithm of the rate: the integrands are steep at the low end.
    let average = |of: &dyn Fn(f64) -> f64| {
        const STEPS: usize = 200_000;
        let width = (high / low).ln() / STEPS as f64;
        let at = |i: usize| low * ((i as f64 + 0.5) * width).exp();
        let integral: f64 = (0..STEPS).map(|i| of(at(i)) * at(i) * width).sum();
        atom * of(low) + (1.0 - atom) * integral / (high - low)
    };
    let empty = |u: f64| (1.0 - u).powi(block as i32);
    let extra = |u: f64| if forced { empty(u) } else { 0.0 };
    let worth = |u: f64| match weight {
        Weight::Rate => 1.0 / u,
        Weight::Unbiased => 1.0 / (u + extra(u) / b),
        Weight::One => 1.0,
    };
    let count = |u: f64| b * u + extra(u);
    let square = |u: f64| b * u * (1.0 - u) + b * b * u * u + extra(u);
    let first = average(&|u| worth(u) * count(u));
    Statistics {
        mean: first / b,
        variance: average(&|u| worth(u) * worth(u) * square(u)) - first * first,
        none: if forced { 0.0 } else { average(&empty) },
        masked: average(&count) / b,
    }
}

/// The same of `sequences` sequences of 16384 blocks of the kernel.
pub(super) fn measured(noise: &Noise, sequences: u64) -> Result<Statistics> {
    let blocks = 1 << 14;
    let tokens = blocks * noise.block;
    let ids = vec![0i32; tokens];
    let (mut noised, mut mask) = (vec![0i32; tokens], vec![0u8; tokens]);
    let (mut weight, mut rate) = (vec![0f32; tokens], vec![0f32; blocks]);
    let (mut first, mut second, mut none, mut masked) = (0f64, 0f64, 0usize, 0usize);
    for sequence in 0..sequences {
        kernel::forward(
            noise,
            Forward {
                ids: &ids,
                eligible: None,
                sequences: &[sequence],
                length: tokens,
                given: None,
                noised: &mut noised,
                mask: &mut mask,
                weight: &mut weight,
                rate: &mut rate,
            },
        )?;
        for (weights, mask) in weight.chunks(noise.block).zip(mask.chunks(noise.block)) {
            let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            let count = mask.iter().filter(|m| **m != 0).count();
            first += sum;
            second += sum * sum;
            none += usize::from(count == 0);
            masked += count;
        }
    }
    let total = (sequences as usize * blocks).max(1) as f64;
    let mean = first / total;
    Ok(Statistics {
        mean: mean / noise.block as f64,
        variance: second / total - mean * mean,
        none: none as f64 / total,
        masked: masked as f64 / (total * noise.block as f64),
    })
}

/// True where no block of a draw can be without a mask.
pub(super) fn forces(draw: Draw) -> bool {
    draw == Draw::Independent { forced: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_integrals_are_the_closed_forms() {
        for block in [2usize, 4, 8, 16] {
            let b = block as f64;
            let near =
                |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-4, "{got} {want}");
            let clip = expected(Rate::Clip, false, Weight::Rate, block);
            near(clip.mean, 1.0);
            near(clip.variance, b * b.ln());
            let power = (1.0 - 1.0 / b).powi(block as i32);
            near(clip.none, power / b + power * (1.0 - 1.0 / b) / (b + 1.0));
            let eps = 1e-3f32;
            let plain = Rate::Range { low: eps, high: 1.0 };
            let linear = expected(plain, false, Weight::Rate, block);
            let eps = f64::from(eps);
            near(linear.variance, b * (-eps.ln() - 1.0 + eps) / (1.0 - eps));
            near(linear.none, (1.0 - eps).powi(block as i32) / (b + 1.0));
            near(expected(Rate::Clip, true, Weight::Unbiased, block).mean, 1.0);
        }
        let forced = expected(Rate::Clip, true, Weight::Rate, 4);
        assert!((forced.mean - 1.113).abs() < 1e-3 && (forced.variance - 3.41).abs() < 0.02);
        let affine = expected(Rate::Affine, false, Weight::Rate, 4);
        assert!((affine.variance - 3.40).abs() < 0.01 && (affine.none - 0.0636).abs() < 1e-3);
    }

    #[test]
    fn the_kernel_draws_them() {
        for (rate, forced, weight) in [
            (Rate::Clip, true, Weight::Rate),
            (Rate::Clip, true, Weight::Unbiased),
            (Rate::Affine, false, Weight::Rate),
        ] {
            let noise = Noise {
                rate,
                draw: Draw::Independent { forced },
                weight,
                ..Noise::clipped(4, 9, 10, 3)
            };
            let got = measured(&noise, 20).unwrap();
            let error = got.error(&expected(rate, forced, weight, 4));
            assert!(error < 0.02, "{rate:?}: {error} {got:?}");
        }
    }
}
