//! What a loss of preferences reads of a completion, and what it gives back.

/// A completion as a loss sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Completion {
    /// Σ of the log-probs of its tokens, nats; those past the length of the shorter completion of a pair count
    /// `ld_alpha` times (LD-DPO, arXiv 2409.06411).
    pub logprob: f64,
    /// The same under the reference policy; 0 where there is none.
    pub reference_logprob: f64,
    /// Σ of the log-probs of its tokens, nats, each counted once: what a supervised term reads.
    pub likelihood: f64,
    /// Its tokens that are scored.
    pub tokens: usize,
    /// Its weight by how likely the policy is to write it (WPO, arXiv 2406.11827, equation 2); 1 where nothing is weighted. No
    /// gradient flows through it.
    pub weight: f64,
}

impl Completion {
    /// The completion of these log-probs of tokens under the policy and under the reference (none: no reference), of which
    /// those from `shared` on count `ld_alpha` times.
    pub fn new(logprobs: &[f64], reference: &[f64], shared: usize, ld_alpha: f64) -> Completion {
        let weighted = |all: &[f64]| -> f64 {
            let (head, tail) = all.split_at(shared.min(all.len()));
            head.iter().sum::<f64>() + ld_alpha * tail.iter().sum::<f64>()
        };
        Completion {
            logprob: weighted(logprobs),
            reference_logprob: weighted(reference),
            likelihood: logprobs.iter().sum(),
            tokens: logprobs.len(),
            weight: 1.0,
        }
    }

    /// The log-ratio to the reference policy, nats.
    pub fn log_ratio(&self) -> f64 {
        self.logprob - self.reference_logprob
    }

    /// Its tokens, at least one.
    pub(super) fn length(&self) -> f64 {
        self.tokens.max(1) as f64
    }
}

/// A completion that was chosen, and one that was rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pair {
    /// The better one.
    pub chosen: Completion,
    /// The worse one.
    pub rejected: Completion,
}

/// The whole batch that some completions are a part of, so that parts add up to its mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Totals {
    /// Pairs, or completions where there are no pairs.
    pub count: usize,
    /// Scored tokens of the chosen completions.
    pub chosen_tokens: usize,
}

impl Totals {
    /// Of pairs that are a whole batch.
    pub fn of(pairs: &[Pair]) -> Totals {
        Totals {
            count: pairs.len(),
            chosen_tokens: pairs.iter().map(|pair| pair.chosen.tokens).sum(),
        }
    }
}

/// Derivatives of the loss by what it read of a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gradient {
    /// By [`Completion::logprob`].
    pub logprob: f64,
    /// By [`Completion::likelihood`].
    pub likelihood: f64,
}

impl Gradient {
    /// By the log-prob of each of `tokens` tokens, where those from `shared` on count `ld_alpha` times.
    pub fn by_token(
        self,
        tokens: usize,
        shared: usize,
        ld_alpha: f64,
    ) -> impl Iterator<Item = f64> {
        (0..tokens).map(move |at| {
            let weight = if at < shared { 1.0 } else { ld_alpha };
            self.logprob * weight + self.likelihood
        })
    }
}

/// A loss over pairs (`[Gradient; 2]` and `[f64; 2]`: chosen, rejected) or over single completions.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured<G, R> {
    /// This part's share of the batch's mean loss.
    pub loss: f64,
    /// Derivatives of [`Measured::loss`].
    pub gradients: Vec<G>,
    /// The rewards that the loss implies.
    pub rewards: Vec<R>,
}

/// Of pairs.
pub type MeasuredPairs = Measured<[Gradient; 2], [f64; 2]>;

#[cfg(test)]
pub(super) mod differences {
    //! Gradients against differences of the loss.

    use super::*;
    use crate::rng::{Sequence, Stream};

    /// Pairs of no special structure.
    pub(in super::super) fn pairs(count: usize, seed: u64) -> Vec<Pair> {
        let mut draws = Sequence::new(seed, Stream::Free, 0);
        let mut completion = || {
            let mut draw = || f64::from(draws.next_unit());
            Completion {
                logprob: -0.1 - 5.0 * draw(),
                reference_logprob: -0.1 - 5.0 * draw(),
                likelihood: -0.1 - 6.0 * draw(),
                tokens: 1 + (6.0 * draw()) as usize,
                weight: 0.1 + draw(),
            }
        };
        (0..count).map(|_| Pair { chosen: completion(), rejected: completion() }).collect()
    }

    /// Every derivative against the central difference of the loss.
    pub(in super::super) fn check(pairs: &[Pair], loss: impl Fn(&[Pair]) -> MeasuredPairs) {
        const STEP: f64 = 1e-6;
        let exact = loss(pairs);
        for (i, gradients) in exact.gradients.iter().enumerate() {
            for (side, gradient) in gradients.iter().enumerate() {
                let moved = |logprob: f64, likelihood: f64| {
                    let mut other = pairs.to_vec();
                    let one = if side == 0 { &mut other[i].chosen } else { &mut other[i].rejected };
                    one.logprob += logprob;
                    one.likelihood += likelihood;
                    loss(&other).loss
                };
                let by = |logprob: f64, likelihood: f64| {
                    (moved(logprob, likelihood) - moved(-logprob, -likelihood)) / (2.0 * STEP)
                };
                for (given, measured) in
                    [(gradient.logprob, by(STEP, 0.0)), (gradient.likelihood, by(0.0, STEP))]
                {
                    let near = (given - measured).abs() <= 1e-6 * given.abs().max(1.0);
                    assert!(near, "pair {i}, side {side}: {given}, by differences {measured}");
                }
            }
        }
    }
}
