//! What the token pass reports, and the sums it is made from.

/// The loss and what to watch beside it, all from one pass. Means are over live tokens; 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// The loss: `policy + kl_coefficient · kl - entropy_coefficient · entropy`, aggregated.
    pub loss: f64,
    /// The surrogate's part of it, aggregated.
    pub policy_loss: f64,
    /// The divergence from the reference, aggregated, before its coefficient.
    pub kl_loss: f64,
    /// The entropy, aggregated, before its coefficient.
    pub entropy_loss: f64,
    /// Fraction of tokens where a clip bound acts: the sum of the next two.
    pub clip_fraction: f64,
    /// Fraction with a positive advantage and a ratio above `1 + clip_high`.
    pub clip_fraction_high: f64,
    /// Fraction with a negative advantage and a ratio below `1 - clip_low`.
    pub clip_fraction_low: f64,
    /// Fraction with a negative advantage whose ratio the dual clip (or `delta`) stops.
    pub dual_clip_fraction: f64,
    /// Mean of `old_logprob - logprob` (clamped as the objective says): the field's `approx_kl`, k1 to the old policy.
    pub approx_kl: f64,
    /// Mean divergence from the reference.
    pub kl: f64,
    /// Mean ratio.
    pub ratio_mean: f64,
    /// Largest ratio; 0 without a live token.
    pub ratio_max: f64,
    /// Mean entropy in nats; 0 when no entropies were given.
    pub entropy: f64,
    /// Tokens that are not masked.
    pub live_tokens: u64,
    /// Sequences with such a token.
    pub live_sequences: u64,
}

impl Metrics {
    /// The metrics of two micro-batches together: loss parts add (the totals of the batch make them fit), means weigh
    /// by live tokens, the largest ratio is the larger one.
    #[must_use]
    pub fn merge(&self, other: &Metrics) -> Metrics {
        let (a, b) = (self.live_tokens as f64, other.live_tokens as f64);
        let mean = |x: f64, y: f64| if a + b > 0.0 { (x * a + y * b) / (a + b) } else { 0.0 };
        Metrics {
            loss: self.loss + other.loss,
            policy_loss: self.policy_loss + other.policy_loss,
            kl_loss: self.kl_loss + other.kl_loss,
            entropy_loss: self.entropy_loss + other.entropy_loss,
            clip_fraction: mean(self.clip_fraction, other.clip_fraction),
            clip_fraction_high: mean(self.clip_fraction_high, other.clip_fraction_high),
            clip_fraction_low: mean(self.clip_fraction_low, other.clip_fraction_low),
            dual_clip_fraction: mean(self.dual_clip_fraction, other.dual_clip_fraction),
            approx_kl: mean(self.approx_kl, other.approx_kl),
            kl: mean(self.kl, other.kl),
            ratio_mean: mean(self.ratio_mean, other.ratio_mean),
            ratio_max: larger(self.ratio_max, other.ratio_max),
            entropy: mean(self.entropy, other.entropy),
            live_tokens: self.live_tokens + other.live_tokens,
            live_sequences: self.live_sequences + other.live_sequences,
        }
    }
}

/// Sums over the live tokens of one block, in f64. Blocks are added in the order of the tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Weighed by the coefficients of their sequences.
    pub policy_loss: f64,
    pub kl_loss: f64,
    pub entropy_loss: f64,
    /// Plain sums and counts.
    pub clipped_high: u64,
    pub clipped_low: u64,
    pub clipped_dual: u64,
    pub log_ratio: f64,
    pub kl: f64,
    pub ratio: f64,
    pub ratio_max: f64,
    pub entropy: f64,
}

impl Sums {
    pub(super) fn add(&mut self, other: &Sums) {
        self.policy_loss += other.policy_loss;
        self.kl_loss += other.kl_loss;
        self.entropy_loss += other.entropy_loss;
        self.clipped_high += other.clipped_high;
        self.clipped_low += other.clipped_low;
        self.clipped_dual += other.clipped_dual;
        self.log_ratio += other.log_ratio;
        self.kl += other.kl;
        self.ratio += other.ratio;
        self.ratio_max = larger(self.ratio_max, other.ratio_max);
        self.entropy += other.entropy;
    }

    /// `kl_coefficient` and `entropy_coefficient` are the objective's.
    pub(super) fn report(
        &self,
        live: &[u32],
        kl_coefficient: f32,
        entropy_coefficient: f32,
    ) -> Metrics {
        let live_tokens: u64 = live.iter().map(|n| u64::from(*n)).sum();
        let mean = |sum: f64| if live_tokens > 0 { sum / live_tokens as f64 } else { 0.0 };
        let part = |coefficient: f32, value: f64| {
            if coefficient == 0.0 { 0.0 } else { f64::from(coefficient) * value }
        };
        Metrics {
            loss: self.policy_loss + part(kl_coefficient, self.kl_loss)
                - part(entropy_coefficient, self.entropy_loss),
            policy_loss: self.policy_loss,
            kl_loss: self.kl_loss,
            entropy_loss: self.entropy_loss,
            clip_fraction: mean((self.clipped_high + self.clipped_low) as f64),
            clip_fraction_high: mean(self.clipped_high as f64),
            clip_fraction_low: mean(self.clipped_low as f64),
            dual_clip_fraction: mean(self.clipped_dual as f64),
            approx_kl: mean(-self.log_ratio) + 0.0,
            kl: mean(self.kl),
            ratio_mean: mean(self.ratio),
            ratio_max: self.ratio_max,
            entropy: mean(self.entropy),
            live_tokens,
            live_sequences: live.iter().filter(|n| **n > 0).count() as u64,
        }
    }
}

/// The larger one; NaN when either is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}
