//! Kahneman-Tversky optimization: completions that are desirable or not, without pairs.

use super::completion::{Completion, Gradient, Measured};
use super::logistic::sigmoid;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A loss of single completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KtoLoss {
    /// `1 - σ(β(log-ratio - KL))` of a desirable completion, `1 - σ(β(KL - log-ratio))` of another (KTO, arXiv 2402.01306,
    /// equation 7).
    #[default]
    Kto,
    /// `1 - σ(β log-ratio)` and `σ(β log-ratio)` (APO-zero, arXiv 2408.06266, equation 7, without pairs).
    ApoZeroUnpaired,
}

/// The loss of desirable and undesirable completions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kto {
    /// How strongly the policy is held to the reference; > 0.
    pub beta: f64,
    /// The loss.
    pub loss_type: KtoLoss,
    /// The weight of desirable completions. The paper asks for a ratio of both weights that makes up for their numbers.
    pub desirable_weight: f64,
    /// The weight of undesirable completions.
    pub undesirable_weight: f64,
}

impl Default for Kto {
    fn default() -> Kto {
        Kto { beta: 0.1, loss_type: KtoLoss::Kto, desirable_weight: 1.0, undesirable_weight: 1.0 }
    }
}

/// A completion and whether it is a good one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Labelled {
    /// The completion.
    pub completion: Completion,
    /// It is desirable.
    pub label: bool,
}

impl Kto {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let weights = [self.desirable_weight, self.undesirable_weight];
        let weighable = weights.iter().all(|weight| *weight >= 0.0 && weight.is_finite());
        if !(self.beta > 0.0 && self.beta.is_finite() && weighable) {
            return Err(Error::invalid(format!(
                "beta is {}, desirable_weight {}, undesirable_weight {}; beta must be positive and no weight negative",
                self.beta, self.desirable_weight, self.undesirable_weight
            )));
        }
        Ok(())
    }

    /// True where the loss measures from an estimate of the KL divergence.
    pub fn estimates_kl(&self) -> bool {
        self.loss_type == KtoLoss::Kto
    }

    /// The estimate of the KL divergence from completions after prompts that are not theirs: the mean of their log-ratios, not
    /// negative. Nothing flows through it. Within a batch, prompt `i` gets the completion before its own.
    pub fn kl(mismatched: &[f64]) -> f64 {
        (mismatched.iter().sum::<f64>() / mismatched.len().max(1) as f64).max(0.0)
    }

    /// The loss of some of the `count` completions of a batch. `kl` is 0 where the loss does without.
    pub fn measure(&self, all: &[Labelled], kl: f64, count: usize) -> Measured<Gradient, f64> {
        let kl = if self.estimates_kl() { kl } else { 0.0 };
        let mut done = Measured { loss: 0.0, gradients: Vec::new(), rewards: Vec::new() };
        for one in all {
            let ratio = one.completion.log_ratio();
            let (weight, sign) = match one.label {
                true => (self.desirable_weight, 1.0),
                false => (self.undesirable_weight, -1.0),
            };
            let value = sign * self.beta * (ratio - kl);
            let scale = weight / count.max(1) as f64;
            done.loss += sigmoid(-value) * scale;
            let logprob = -sign * self.beta * sigmoid(value) * sigmoid(-value) * scale;
            done.gradients.push(Gradient { logprob, likelihood: 0.0 });
            done.rewards.push(self.beta * ratio);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::super::completion::differences;
    use super::*;

    #[test]
    fn gradients_are_those_of_the_loss() {
        const STEP: f64 = 1e-6;
        let all: Vec<Labelled> = differences::pairs(3, 9)
            .iter()
            .flat_map(|pair| [(pair.chosen, true), (pair.rejected, false)])
            .map(|(completion, label)| Labelled { completion, label })
            .collect();
        for loss_type in [KtoLoss::Kto, KtoLoss::ApoZeroUnpaired] {
            let kto = Kto { beta: 0.5, loss_type, desirable_weight: 1.5, undesirable_weight: 0.5 };
            kto.check().unwrap();
            let exact = kto.measure(&all, 0.3, all.len());
            for (i, gradient) in exact.gradients.iter().enumerate() {
                let moved = |by: f64| {
                    let mut other = all.clone();
                    other[i].completion.logprob += by;
                    kto.measure(&other, 0.3, all.len()).loss
                };
                let measured = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                assert!((gradient.logprob - measured).abs() < 1e-8, "{gradient:?} {measured}");
            }
        }
        assert!(Kto { undesirable_weight: -1.0, ..Kto::default() }.check().is_err());
    }

    #[test]
    fn the_estimate_is_not_negative() {
        assert_eq!(Kto::kl(&[1.0, 3.0]), 2.0);
        assert_eq!(Kto::kl(&[1.0, -3.0]), 0.0);
        assert_eq!(Kto::kl(&[]), 0.0);
    }
}
