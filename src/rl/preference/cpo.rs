//! Losses of pairs without a reference policy: CPO, SimPO, AlphaPO.

use super::completion::{Completion, Gradient, MeasuredPairs, Pair, Totals};
use super::logistic::smoothed;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is made of the difference of two rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpoLoss {
    /// The smoothed sigmoid loss of the difference of log-probs (CPO, arXiv 2401.08417, equation 3).
    #[default]
    Sigmoid,
    /// `max(0, 1 - βδ)` (SLiC, arXiv 2305.10425).
    Hinge,
    /// `(δ - 1/(2β))²` with log-probs per token (IPO, arXiv 2310.12036, equation 17).
    Ipo,
    /// The smoothed sigmoid loss with log-probs per token and a margin (SimPO, arXiv 2405.14734, equation 6).
    Simpo,
}

/// Contrastive preference optimization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cpo {
    /// The scale of rewards; > 0. SimPO's paper has 2 and more.
    pub beta: f64,
    /// The loss.
    pub loss_type: CpoLoss,
    /// The share of labels that is taken to be wrong.
    pub label_smoothing: f64,
    /// The weight of the mean negative log-prob of the chosen completions' tokens; 0 for SimPO.
    pub cpo_alpha: f64,
    /// γ, the margin that SimPO asks of the rewards.
    pub simpo_gamma: f64,
    /// AlphaPO (arXiv 2501.03884): rewards are `(1 - p^-α)/α`; 0: log-probs.
    pub alpha: f64,
}

impl Default for Cpo {
    fn default() -> Cpo {
        Cpo {
            beta: 0.1,
            loss_type: CpoLoss::Sigmoid,
            label_smoothing: 0.0,
            cpo_alpha: 1.0,
            simpo_gamma: 0.5,
            alpha: 0.0,
        }
    }
}

impl Cpo {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let finite = [self.cpo_alpha, self.simpo_gamma, self.alpha].iter().all(|x| x.is_finite());
        if !(self.beta > 0.0 && self.beta.is_finite() && finite) {
            return Err(Error::invalid(format!(
                "beta is {}, cpo_alpha {}, simpo_gamma {}, alpha {}; beta must be positive and all finite",
                self.beta, self.cpo_alpha, self.simpo_gamma, self.alpha
            )));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Err(Error::invalid(format!(
                "label_smoothing is {}; it is a share",
                self.label_smoothing
            )));
        }
        Ok(())
    }

    /// The reward of a completion without β, and its derivative by the log-prob.
    fn reward(&self, completion: &Completion) -> (f64, f64) {
        let length = match self.loss_type {
            CpoLoss::Ipo | CpoLoss::Simpo => completion.length(),
            CpoLoss::Sigmoid | CpoLoss::Hinge => 1.0,
        };
        let logprob = completion.logprob / length;
        if self.alpha == 0.0 {
            return (logprob, 1.0 / length);
        }
        let power = (-self.alpha * logprob).exp();
        ((1.0 - power) / self.alpha, power / length)
    }

    /// The loss of some pairs of a batch.
    pub fn measure(&self, pairs: &[Pair], totals: Totals) -> MeasuredPairs {
        let count = totals.count.max(1) as f64;
        let supervised = self.cpo_alpha / totals.chosen_tokens.max(1) as f64;
        let mut done = MeasuredPairs { loss: 0.0, gradients: Vec::new(), rewards: Vec::new() };
        for pair in pairs {
            let (chosen, rejected) = (self.reward(&pair.chosen), self.reward(&pair.rejected));
            let difference = chosen.0 - rejected.0;
            let logit = self.beta * difference;
            let (loss, slope) = match self.loss_type {
                CpoLoss::Sigmoid => scaled(smoothed(logit, self.label_smoothing), self.beta),
                CpoLoss::Simpo => {
                    scaled(smoothed(logit - self.simpo_gamma, self.label_smoothing), self.beta)
                }
                CpoLoss::Hinge => {
                    ((1.0 - logit).max(0.0), if logit < 1.0 { -self.beta } else { 0.0 })
                }
                CpoLoss::Ipo => {
                    let error = difference - 0.5 / self.beta;
                    (error * error, 2.0 * error)
                }
            };
            done.loss += loss / count - pair.chosen.likelihood * supervised;
            done.gradients.push([
                Gradient { logprob: slope * chosen.1 / count, likelihood: -supervised },
                Gradient { logprob: -slope * rejected.1 / count, likelihood: 0.0 },
            ]);
            done.rewards.push([self.beta * chosen.0, self.beta * rejected.0]);
        }
        done
    }
}

fn scaled((loss, slope): (f64, f64), beta: f64) -> (f64, f64) {
    (loss, slope * beta)
}

#[cfg(test)]
mod tests {
    use super::super::completion::differences;
    use super::*;

    #[test]
    fn gradients_are_those_of_the_loss() {
        let pairs = differences::pairs(5, 6);
        for loss_type in [CpoLoss::Sigmoid, CpoLoss::Hinge, CpoLoss::Ipo, CpoLoss::Simpo] {
            for (alpha, cpo_alpha) in [(0.0, 1.0), (0.3, 0.0), (-0.25, 0.5)] {
                let cpo = Cpo { beta: 0.7, loss_type, alpha, cpo_alpha, ..Cpo::default() };
                let cpo = Cpo { label_smoothing: 0.2, ..cpo };
                cpo.check().unwrap();
                differences::check(&pairs, |pairs| cpo.measure(pairs, Totals::of(pairs)));
            }
        }
        assert!(Cpo { beta: -1.0, ..Cpo::default() }.check().unwrap_err().is_invalid());
    }
}
