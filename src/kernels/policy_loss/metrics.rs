//! What the token pass reports, and the sums it is made from.

/// The loss and what to watch beside it, all from one pass. Means are over live tokens; 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// The loss: `policy + drift.coefficient · drift + kl.coefficient · kl - entropy_coefficient · entropy`, aggregated.
    pub loss: f64,
    /// The surrogate's part of it, aggregated.
    pub policy_loss: f64,
    /// The divergence from the reference, aggregated, before its coefficient.
    pub kl_loss: f64,
    /// The entropy, aggregated, before its coefficient.
    pub entropy_loss: f64,
    /// CPGD's drift, aggregated, before its coefficient.
    pub drift_loss: f64,
    /// Fraction of tokens where a clip bound acts: the sum of the next two, except for CISPO, whose clip acts on the
    /// weights of both signs of the advantage.
    pub clip_fraction: f64,
    /// Fraction with a positive advantage and a ratio above the upper bound. GMPO: outside either bound, as verl counts.
    pub clip_fraction_high: f64,
    /// Fraction with a negative advantage and a ratio below the lower bound. GMPO: outside either bound.
    pub clip_fraction_low: f64,
    /// Fraction with a negative advantage whose ratio the dual clip (or `delta`) stops.
    pub dual_clip_fraction: f64,
    /// Fraction whose surrogate is left out by a selection or by the off-policy mask.
    pub dropped_fraction: f64,
    /// Fraction that the call's selection marks.
    pub selected_fraction: f64,
    /// Mean of `old_logprob - logprob` (clamped as the objective says): the field's `approx_kl`, k1 to the old policy.
    pub approx_kl: f64,
    /// Mean of its magnitude (KL-Cov's `ppo_kl`).
    pub absolute_log_ratio: f64,
    /// Mean divergence from the reference.
    pub kl: f64,
    /// Mean ratio of the tokens that are not replayed, as the surrogate uses it: the sequence's, or reshaped; VESPO: φ.
    pub ratio_mean: f64,
    /// Its variance, divided by the number of tokens less one.
    pub ratio_variance: f64,
    /// The largest; 0 without a live token.
    pub ratio_max: f64,
    /// Mean entropy in nats; 0 when no entropies were given.
    pub entropy: f64,
    /// Mean surrogate of the tokens that are not replayed, weights included, each token counted alike.
    pub fresh_loss: f64,
    /// What concerns replayed tokens.
    pub replay: ReplayMetrics,
    /// Tokens that are not masked.
    pub live_tokens: u64,
    /// Sequences with such a token.
    pub live_sequences: u64,
}

/// What concerns replayed tokens. Zeros without any.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReplayMetrics {
    /// Live tokens that are replayed.
    pub tokens: u64,
    /// Mean of their surrogate.
    pub loss: f64,
    /// Mean of their shaped ratio `f(w)`, clipped.
    pub shaped_mean: f64,
    /// Its variance, divided by the number of tokens less one.
    pub shaped_variance: f64,
    /// Fraction of them above `most`.
    pub clip_fraction_high: f64,
    /// Fraction of them below `least`.
    pub clip_fraction_low: f64,
    /// The largest ratio `w`, before its shaping.
    pub ratio_max: f64,
    /// Mean probability under the policy.
    pub probability: f64,
    /// Mean probability of the *other* tokens under the old policy; 0 when a call marks no tokens.
    pub fresh_probability: f64,
}

fn mean(sum: f64, count: u64) -> f64 {
    if count > 0 { sum / count as f64 } else { 0.0 }
}

/// The unbiased variance of `count` values.
fn variance(sum: f64, squares: f64, count: u64) -> f64 {
    if count < 2 {
        return 0.0;
    }
    let spread = squares - sum * sum / count as f64;
    // Not `max`: a NaN must stay visible.
    if spread < 0.0 { 0.0 } else { spread / (count - 1) as f64 }
}

impl Metrics {
    /// The metrics of two micro-batches together: loss parts add (the totals of the batch make them fit), means weigh
    /// by the tokens that they are of, the largest ratio is the larger one.
    #[must_use]
    pub fn merge(&self, other: &Metrics) -> Metrics {
        let counts = (self.live_tokens, other.live_tokens);
        let fresh = (counts.0 - self.replay.tokens, counts.1 - other.replay.tokens);
        let mean = |x: f64, y: f64| pooled(x, y, counts);
        Metrics {
            loss: self.loss + other.loss,
            policy_loss: self.policy_loss + other.policy_loss,
            kl_loss: self.kl_loss + other.kl_loss,
            entropy_loss: self.entropy_loss + other.entropy_loss,
            drift_loss: self.drift_loss + other.drift_loss,
            clip_fraction: mean(self.clip_fraction, other.clip_fraction),
            clip_fraction_high: mean(self.clip_fraction_high, other.clip_fraction_high),
            clip_fraction_low: mean(self.clip_fraction_low, other.clip_fraction_low),
            dual_clip_fraction: mean(self.dual_clip_fraction, other.dual_clip_fraction),
            dropped_fraction: mean(self.dropped_fraction, other.dropped_fraction),
            selected_fraction: mean(self.selected_fraction, other.selected_fraction),
            approx_kl: mean(self.approx_kl, other.approx_kl),
            absolute_log_ratio: mean(self.absolute_log_ratio, other.absolute_log_ratio),
            kl: mean(self.kl, other.kl),
            ratio_mean: pooled(self.ratio_mean, other.ratio_mean, fresh),
            ratio_variance: pooled_variance(
                (self.ratio_mean, other.ratio_mean),
                (self.ratio_variance, other.ratio_variance),
                fresh,
            ),
            ratio_max: larger(self.ratio_max, other.ratio_max),
            entropy: mean(self.entropy, other.entropy),
            fresh_loss: pooled(self.fresh_loss, other.fresh_loss, fresh),
            replay: self.replay.merge(&other.replay, fresh),
            live_tokens: self.live_tokens + other.live_tokens,
            live_sequences: self.live_sequences + other.live_sequences,
        }
    }
}

impl ReplayMetrics {
    fn merge(&self, other: &ReplayMetrics, fresh: (u64, u64)) -> ReplayMetrics {
        let counts = (self.tokens, other.tokens);
        let mean = |x: f64, y: f64| pooled(x, y, counts);
        ReplayMetrics {
            tokens: self.tokens + other.tokens,
            loss: mean(self.loss, other.loss),
            shaped_mean: mean(self.shaped_mean, other.shaped_mean),
            shaped_variance: pooled_variance(
                (self.shaped_mean, other.shaped_mean),
                (self.shaped_variance, other.shaped_variance),
                counts,
            ),
            clip_fraction_high: mean(self.clip_fraction_high, other.clip_fraction_high),
            clip_fraction_low: mean(self.clip_fraction_low, other.clip_fraction_low),
            ratio_max: larger(self.ratio_max, other.ratio_max),
            probability: mean(self.probability, other.probability),
            fresh_probability: pooled(self.fresh_probability, other.fresh_probability, fresh),
        }
    }
}

/// The mean of two lots of tokens together.
fn pooled(x: f64, y: f64, counts: (u64, u64)) -> f64 {
    let (a, b) = (counts.0 as f64, counts.1 as f64);
    if a + b > 0.0 { (x * a + y * b) / (a + b) } else { 0.0 }
}

/// The unbiased variance of two lots of tokens together.
fn pooled_variance(means: (f64, f64), variances: (f64, f64), counts: (u64, u64)) -> f64 {
    let (a, b) = (counts.0 as f64, counts.1 as f64);
    if a + b < 2.0 {
        return 0.0;
    }
    let within =
        |variance: f64, count: f64| if count > 0.0 { variance * (count - 1.0) } else { 0.0 };
    let between = (means.0 - means.1).powi(2) * a * b / (a + b);
    (within(variances.0, a) + within(variances.1, b) + between) / (a + b - 1.0)
}

/// Sums over the live tokens of one block, in f64. Blocks are added in the order of the tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Weighed by the coefficients of their sequences.
    pub policy_loss: f64,
    pub kl_loss: f64,
    pub entropy_loss: f64,
    pub drift_loss: f64,
    /// Plain sums and counts.
    pub clipped: u64,
    pub clipped_high: u64,
    pub clipped_low: u64,
    pub clipped_dual: u64,
    pub dropped: u64,
    pub selected: u64,
    pub log_ratio: f64,
    pub absolute_log_ratio: f64,
    pub kl: f64,
    /// Of fresh tokens.
    pub ratio: f64,
    pub ratio_squared: f64,
    pub ratio_max: f64,
    pub entropy: f64,
    /// Of all live tokens.
    pub surrogate: f64,
    /// Of replayed tokens.
    pub replayed: u64,
    pub replay_high: u64,
    pub replay_low: u64,
    pub replay_surrogate: f64,
    pub shaped: f64,
    pub shaped_squared: f64,
    pub replay_ratio_max: f64,
    pub replay_probability: f64,
    /// Of fresh tokens.
    pub fresh_probability: f64,
}

impl Sums {
    pub(super) fn add(&mut self, other: &Sums) {
        self.policy_loss += other.policy_loss;
        self.kl_loss += other.kl_loss;
        self.entropy_loss += other.entropy_loss;
        self.drift_loss += other.drift_loss;
        self.clipped += other.clipped;
        self.clipped_high += other.clipped_high;
        self.clipped_low += other.clipped_low;
        self.clipped_dual += other.clipped_dual;
        self.dropped += other.dropped;
        self.selected += other.selected;
        self.log_ratio += other.log_ratio;
        self.absolute_log_ratio += other.absolute_log_ratio;
        self.kl += other.kl;
        self.ratio += other.ratio;
        self.ratio_squared += other.ratio_squared;
        self.ratio_max = larger(self.ratio_max, other.ratio_max);
        self.entropy += other.entropy;
        self.surrogate += other.surrogate;
        self.replayed += other.replayed;
        self.replay_high += other.replay_high;
        self.replay_low += other.replay_low;
        self.replay_surrogate += other.replay_surrogate;
        self.shaped += other.shaped;
        self.shaped_squared += other.shaped_squared;
        self.replay_ratio_max = larger(self.replay_ratio_max, other.replay_ratio_max);
        self.replay_probability += other.replay_probability;
        self.fresh_probability += other.fresh_probability;
    }

    /// The coefficients are the objective's, of the divergence, the entropy and the drift.
    pub(super) fn report(&self, live: &[u32], coefficients: [f32; 3]) -> Metrics {
        let tokens: u64 = live.iter().map(|n| u64::from(*n)).sum();
        let fresh = tokens - self.replayed;
        let over = |sum: f64| mean(sum, tokens);
        let part = |coefficient: f32, value: f64| {
            if coefficient == 0.0 { 0.0 } else { f64::from(coefficient) * value }
        };
        let [of_kl, of_entropy, of_drift] = coefficients;
        Metrics {
            loss: self.policy_loss + part(of_drift, self.drift_loss) + part(of_kl, self.kl_loss)
                - part(of_entropy, self.entropy_loss),
            policy_loss: self.policy_loss,
            kl_loss: self.kl_loss,
            entropy_loss: self.entropy_loss,
            drift_loss: self.drift_loss,
            clip_fraction: over(self.clipped as f64),
            clip_fraction_high: over(self.clipped_high as f64),
            clip_fraction_low: over(self.clipped_low as f64),
            dual_clip_fraction: over(self.clipped_dual as f64),
            dropped_fraction: over(self.dropped as f64),
            selected_fraction: over(self.selected as f64),
            approx_kl: over(-self.log_ratio) + 0.0,
            absolute_log_ratio: over(self.absolute_log_ratio),
            kl: over(self.kl),
            ratio_mean: mean(self.ratio, fresh),
            ratio_variance: variance(self.ratio, self.ratio_squared, fresh),
            ratio_max: self.ratio_max,
            entropy: over(self.entropy),
            fresh_loss: mean(self.surrogate - self.replay_surrogate, fresh),
            replay: self.replay(fresh),
            live_tokens: tokens,
            live_sequences: live.iter().filter(|n| **n > 0).count() as u64,
        }
    }

    fn replay(&self, fresh: u64) -> ReplayMetrics {
        let over = |sum: f64| mean(sum, self.replayed);
        ReplayMetrics {
            tokens: self.replayed,
            loss: over(self.replay_surrogate),
            shaped_mean: over(self.shaped),
            shaped_variance: variance(self.shaped, self.shaped_squared, self.replayed),
            clip_fraction_high: over(self.replay_high as f64),
            clip_fraction_low: over(self.replay_low as f64),
            ratio_max: self.replay_ratio_max,
            probability: over(self.replay_probability),
            fresh_probability: mean(self.fresh_probability, fresh),
        }
    }
}

/// The larger one; NaN when either is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variances_of_parts_make_the_variance_of_the_whole() {
        let values = [0.5, 1.5, 4.0, 2.0, 7.0];
        let of = |values: &[f64]| {
            let sum: f64 = values.iter().sum();
            let squares = values.iter().map(|x| x * x).sum();
            let count = values.len() as u64;
            (mean(sum, count), variance(sum, squares, count), count)
        };
        for cut in 0..=values.len() {
            let (a, b) = (of(&values[..cut]), of(&values[cut..]));
            let whole = of(&values);
            let got = pooled_variance((a.0, b.0), (a.1, b.1), (a.2, b.2));
            assert!((got - whole.1).abs() < 1e-12, "{cut}: {got} {}", whole.1);
        }
        assert_eq!(variance(3.0, 9.0, 1), 0.0);
    }
}
