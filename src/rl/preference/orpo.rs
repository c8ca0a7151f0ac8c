//! Odds ratio preference optimization: supervised learning with a penalty, without a reference policy.

use super::completion::{Completion, Gradient, MeasuredPairs, Pair, Totals};
use super::logistic::smoothed;
use super::odds::log_odds;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// `NLL(chosen) - β log σ(log odds(chosen) - log odds(rejected))`, where a completion's probability is the geometric mean of
/// its tokens' (ORPO, arXiv 2403.07691, equations 4 to 7; β is its λ).
///
/// The negative log-likelihood is the mean over the tokens of the chosen completions, as in the paper's equation; TRL counts the
/// tokens of the prompts too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orpo {
    /// The weight of the odds ratio; > 0.
    pub beta: f64,
}

impl Default for Orpo {
    fn default() -> Orpo {
        Orpo { beta: 0.1 }
    }
}

impl Orpo {
    /// Checks the weight.
    ///
    /// # Errors
    /// [`Error::is_invalid`].
    pub fn check(&self) -> Result<()> {
        match self.beta > 0.0 && self.beta.is_finite() {
            true => Ok(()),
            false => Err(Error::invalid(format!("beta is {}; it must be positive", self.beta))),
        }
    }

    /// The loss of some pairs of a batch. A reward is β times the mean log-prob of a completion's tokens.
    pub fn measure(&self, pairs: &[Pair], totals: Totals) -> MeasuredPairs {
        let scale = self.beta / totals.count.max(1) as f64;
        let supervised = 1.0 / totals.chosen_tokens.max(1) as f64;
        let mean = |one: &Completion| one.logprob / one.length();
        let mut done = MeasuredPairs { loss: 0.0, gradients: Vec::new(), rewards: Vec::new() };
        for pair in pairs {
            let (chosen, chosen_slope) = log_odds(mean(&pair.chosen));
            let (rejected, rejected_slope) = log_odds(mean(&pair.rejected));
            let (loss, slope) = smoothed(chosen - rejected, 0.0);
            done.loss += loss * scale - pair.chosen.likelihood * supervised;
            done.gradients.push([
                Gradient {
                    logprob: slope * chosen_slope * scale / pair.chosen.length(),
                    likelihood: -supervised,
                },
                Gradient {
                    logprob: -slope * rejected_slope * scale / pair.rejected.length(),
                    likelihood: 0.0,
                },
            ]);
            done.rewards.push([&pair.chosen, &pair.rejected].map(|one| self.beta * mean(one)));
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
        let pairs = differences::pairs(5, 7);
        let orpo = Orpo { beta: 0.6 };
        orpo.check().unwrap();
        differences::check(&pairs, |pairs| orpo.measure(pairs, Totals::of(pairs)));
        assert!(Orpo { beta: f64::NAN }.check().unwrap_err().is_invalid());
    }

    /// A model in f32 may be certain of every token.
    #[test]
    fn certainty_is_no_infinity() {
        let mut pairs = differences::pairs(1, 8);
        pairs[0].chosen.logprob = 0.0;
        pairs[0].rejected.logprob = 0.0;
        let done = Orpo::default().measure(&pairs, Totals::of(&pairs));
        let finite = |one: &Gradient| one.logprob.is_finite();
        assert!(done.loss.is_finite() && done.gradients[0].iter().all(finite));
    }
}
