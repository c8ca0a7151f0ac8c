//! How far apart sampler and policy are, and what the correction did about it.

/// Sums over live tokens and sequences, of which [`Diagnostics`] is made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) divergence: f64,
    pub(super) k3: f64,
    pub(super) ratio: f64,
    pub(super) ratio_squared: f64,
    pub(super) weight: f64,
    pub(super) weight_squared: f64,
    pub(super) weight_max: f64,
    pub(super) sequence_weight: f64,
    pub(super) perplexity: f64,
    pub(super) chi_squared: f64,
    pub(super) tokens: u64,
    pub(super) sequences: u64,
    pub(super) dropped: u64,
    pub(super) high: u64,
    pub(super) low: u64,
    pub(super) rejected: u64,
    pub(super) rejected_sequences: u64,
}

/// What to watch. Means are over live tokens, or over sequences with one; all are 0 where there is none. Weights are
/// those before normalisation, and of rejected tokens too.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Diagnostics {
    /// Estimate k1 of the divergence of the sampler from the policy, mean of `log sampler - log policy`, nats.
    pub kl: f64,
    /// Estimate k3 of the same: never negative.
    pub k3: f64,
    /// Perplexity under the policy over perplexity under the sampler, mean over sequences.
    pub perplexity_ratio: f64,
    /// `mean ratio² - 1` over tokens.
    pub chi_squared_token: f64,
    /// The same of the ratios of whole sequences.
    pub chi_squared_sequence: f64,
    /// Effective share of the sample, `mean(ratio)² / mean(ratio²)` over tokens: 1 when all ratios are equal.
    pub effective_share: f64,
    /// The same of the bounded weights.
    pub weight_effective_share: f64,
    /// Mean of the bounded weights.
    pub weight_mean: f64,
    /// Largest bounded weight.
    pub weight_max: f64,
    /// Share of tokens whose weight was above the upper bound.
    pub fraction_high: f64,
    /// Share of tokens whose weight was below the lower bound.
    pub fraction_low: f64,
    /// Share of tokens that a rejection took.
    pub fraction_rejected: f64,
    /// Live tokens whose log-probs could be compared.
    pub tokens: u64,
    /// Sequences with such a token.
    pub sequences: u64,
    /// Live tokens dropped because a log-prob is NaN, or both are infinite.
    pub dropped: u64,
    /// Sequences that lost every token to a rejection.
    pub rejected_sequences: u64,
}

impl Sums {
    pub(super) fn diagnostics(&self) -> Diagnostics {
        let share = |part: f64, of: u64| if of > 0 { part / of as f64 } else { 0.0 };
        let of_tokens = |sum: f64| share(sum, self.tokens);
        let effective = |sum: f64, squares: f64| {
            if squares > 0.0 { sum * sum / (self.tokens as f64 * squares) } else { 0.0 }
        };
        let any = |value: f64, of: u64| if of > 0 { value } else { 0.0 };
        Diagnostics {
            kl: of_tokens(self.divergence),
            k3: of_tokens(self.k3),
            perplexity_ratio: share(self.perplexity, self.sequences),
            chi_squared_token: any(of_tokens(self.ratio_squared) - 1.0, self.tokens),
            chi_squared_sequence: any(
                share(self.chi_squared, self.sequences) - 1.0,
                self.sequences,
            ),
            effective_share: effective(self.ratio, self.ratio_squared),
            weight_effective_share: effective(self.weight, self.weight_squared),
            weight_mean: of_tokens(self.weight),
            weight_max: self.weight_max,
            fraction_high: of_tokens(self.high as f64),
            fraction_low: of_tokens(self.low as f64),
            fraction_rejected: of_tokens(self.rejected as f64),
            tokens: self.tokens,
            sequences: self.sequences,
            dropped: self.dropped,
            rejected_sequences: self.rejected_sequences,
        }
    }
}
