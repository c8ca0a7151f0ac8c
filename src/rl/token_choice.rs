//! From the logits of a masked place to the token that would be set there, and how sure the model is of it.
//!
//! At a temperature T the token is `argmax_v (l_v / T + g_v)` with Gumbel noise `g = -ln(-ln(1 - x))`: a draw from
//! `softmax(l / T)`. In f32 the usual form, `-ln(-ln u)` with a 24-bit u, cannot be above 16.6, so tokens whose logit is
//! further down are never drawn and others too often. Here x is made of 64 bits and rounded *near zero*, where f32 keeps its
//! relative precision, and `ln_1p` keeps it: g reaches 45, each value with its probability to one part in 2²⁴.

use super::unmasking::Confidence;
use crate::error::{Error, Result};
use crate::rng::{self, Stream};

/// What is set at a place and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub token: i32,
    /// Under the distribution that was drawn from, at temperature 0 the untempered one; nats.
    pub logprob: f32,
    pub confidence: f32,
    pub entropy: f32,
}

/// The noise of a place in one step: a function of these numbers and of a token's id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    seed: u64,
    stream: Stream,
    step: u64,
}

impl Draw {
    pub fn new(seed: u64, stream: Stream, sequence: u64, place: u32, step: u64) -> Draw {
        // A seed of the place's own: counters have no room for id and step beside sequence and place.
        let [low, high, ..] = rng::bits(seed, stream, sequence, place);
        Draw { seed: u64::from(high) << 32 | u64::from(low), stream, step }
    }

    /// Gumbel noise of two neighbouring ids, the first even.
    fn pair(&self, id: usize) -> [f32; 2] {
        let [a, b, c, d] = rng::bits(self.seed, self.stream, self.step, (id / 2) as u32);
        [gumbel(a, b), gumbel(c, d)]
    }

    /// A number in `[0, 1)`.
    fn unit(&self) -> f32 {
        // Beyond the counters of any vocabulary.
        let [word, ..] = rng::bits(self.seed, self.stream, self.step, u32::MAX);
        rng::unit(word)
    }
}

/// Standard Gumbel noise of 64 random bits.
fn gumbel(high: u32, low: u32) -> f32 {
    let bits = u64::from(high) << 32 | u64::from(low);
    // (0, 1): above 0 by the half, below 1 by the largest f32 there.
    let x = ((bits as f32 + 0.5) * (-64f32).exp2()).min(1.0 - f32::EPSILON / 2.0);
    -(-(-x).ln_1p()).ln()
}

/// Chooses among the logits of a place; `-inf` is never chosen.
///
/// # Errors
/// [`Error::is_numeric`] for a NaN or `+inf`, and when nothing can be chosen.
pub(super) fn choose(
    logits: &[f32],
    temperature: f32,
    confidence: Confidence,
    draw: Draw,
) -> Result<Choice> {
    let (mut first, mut second, mut likeliest) = (f32::NEG_INFINITY, f32::NEG_INFINITY, None);
    for (id, logit) in logits.iter().enumerate() {
        if logit.is_nan() || *logit == f32::INFINITY {
            return Err(Error::numeric(format!("decoding: the logit of id {id} is {logit}")));
        }
        if *logit > first {
            (second, first, likeliest) = (first, *logit, Some(id));
        } else if *logit > second {
            second = *logit;
        }
    }
    let Some(likeliest) = likeliest else {
        return Err(Error::numeric("decoding: no id has a probability"));
    };
    let spread = |scale: f64| {
        let (mut sum, mut moment) = (0f64, 0f64);
        for logit in logits.iter().filter(|logit| **logit > f32::NEG_INFINITY) {
            let below = f64::from(*logit - first) * scale;
            let weight = below.exp();
            sum += weight;
            moment += weight * below;
        }
        (sum, moment)
    };
    let (sum, moment) = spread(1.0);
    let (token, logprob) = if temperature > 0.0 {
        let token = perturbed(logits, temperature, draw).unwrap_or(likeliest);
        let scale = 1.0 / f64::from(temperature);
        let (tempered, _) = spread(scale);
        (token, f64::from(logits[token] - first) * scale - tempered.ln())
    } else {
        (likeliest, -sum.ln())
    };
    let entropy = (sum.ln() - moment / sum).max(0.0) as f32;
    let probability = |logit: f32| f64::from(logit - first).exp() / sum;
    let confidence = match confidence {
        Confidence::Probability => probability(logits[token]) as f32,
        Confidence::Margin => (probability(first) - probability(second)) as f32,
        Confidence::NegativeEntropy => -entropy,
        Confidence::Random => draw.unit(),
    };
    Ok(Choice { token: token as i32, logprob: logprob as f32, confidence, entropy })
}

/// The id of the largest perturbed logit; of equal ones the lower.
fn perturbed(logits: &[f32], temperature: f32, draw: Draw) -> Option<usize> {
    let (mut best, mut found) = (f32::NEG_INFINITY, None);
    for (at, pair) in logits.chunks(2).enumerate() {
        if pair.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            continue;
        }
        for (i, (logit, noise)) in pair.iter().zip(draw.pair(2 * at)).enumerate() {
            let score = *logit / temperature + noise;
            if score > best {
                (best, found) = (score, Some(2 * at + i));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_distribution_of_the_logits() {
        let logits = [0.3f32, -1.0, f32::NEG_INFINITY, 2.0, 0.3, -2.5, 1.1];
        for temperature in [0.5f32, 1.0, 1.7] {
            let weights: Vec<f64> =
                logits.iter().map(|l| (f64::from(*l) / f64::from(temperature)).exp()).collect();
            let whole: f64 = weights.iter().sum();
            let draws = 60_000;
            let mut counts = [0u32; 7];
            for i in 0..draws {
                let draw = Draw::new(5, Stream::Generate, i / 100, (i % 10) as u32, i / 10 % 10);
                let choice = choose(&logits, temperature, Confidence::Probability, draw).unwrap();
                counts[choice.token as usize] += 1;
                let want = (weights[choice.token as usize] / whole).ln();
                assert!((f64::from(choice.logprob) - want).abs() < 1e-6);
            }
            assert_eq!(counts[2], 0);
            let chi: f64 = (0..7)
                .filter(|i| *i != 2)
                .map(|i| {
                    let expected = weights[i] / whole * draws as f64;
                    (f64::from(counts[i]) - expected).powi(2) / expected
                })
                .sum();
            // 99.9 % of χ² with five degrees of freedom.
            assert!(chi < 20.5, "T = {temperature}: χ² {chi} of {counts:?}");
        }
    }

    #[test]
    fn the_tail_is_not_cut() {
        assert!(gumbel(0, 0) > 45.0 && gumbel(0, 0).is_finite());
        assert!(gumbel(u32::MAX, u32::MAX).is_finite() && gumbel(u32::MAX, u32::MAX) < -2.8);
        // P(g > 16.6) is 6e-8, which a 24-bit uniform cannot express.
        assert!((gumbel(1, 0) - 32.0 * std::f32::consts::LN_2).abs() < 1e-5);
        let median = gumbel(1 << 31, 0);
        assert!((median - (-(0.5f32).ln().abs().ln())).abs() < 1e-6, "{median}");
    }

    #[test]
    fn confidences() {
        let logits = [(0.1f32).ln(), (0.6f32).ln(), f32::NEG_INFINITY, (0.3f32).ln()];
        let draw = Draw::new(1, Stream::Generate, 0, 0, 0);
        let of = |confidence| choose(&logits, 0.0, confidence, draw).unwrap();
        let probability = of(Confidence::Probability);
        assert_eq!(probability.token, 1);
        assert!((probability.confidence - 0.6).abs() < 1e-6);
        assert!((probability.logprob - 0.6f32.ln()).abs() < 1e-6);
        assert!((of(Confidence::Margin).confidence - 0.3).abs() < 1e-6);
        let entropy = -(0.1 * 0.1f32.ln() + 0.6 * 0.6f32.ln() + 0.3 * 0.3f32.ln());
        assert!((of(Confidence::NegativeEntropy).confidence + entropy).abs() < 1e-6);
        assert!((0.0..1.0).contains(&of(Confidence::Random).confidence));
        let broken = choose(&[0.0, f32::NAN], 0.0, Confidence::Probability, draw).unwrap_err();
        assert!(broken.is_numeric());
        let nothing = choose(&[f32::NEG_INFINITY; 3], 1.0, Confidence::Probability, draw);
        assert!(nothing.unwrap_err().is_numeric());
    }
}
