//! Rewards of tokens: the episode's reward at its last token, a KL penalty at each, and potential-based shaping by the
//! labels of steps.

use super::credit::labels;
use super::{Stage, Step};
use crate::error::{Error, Result};
use crate::kernels::policy_loss::KlEstimator;
use crate::kernels::step_credit::{self, Labelling, Shaping};
use crate::rl::batch::{Batch, Column, host, missing};
use serde::{Deserialize, Serialize};

/// A KL penalty in the reward, in place of one in the loss (PPO, REINFORCE++).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KlPenalty {
    /// How much a nat costs.
    pub coefficient: f64,
    /// How the divergence of a token is estimated.
    #[serde(default = "k1")]
    pub estimator: KlEstimator,
    /// Where the coefficient goes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveKl>,
}

fn k1() -> KlEstimator {
    KlEstimator::K1
}

impl KlPenalty {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        let adaptive = self.adaptive.map_or([1.0, 1.0], |one| [one.target, one.horizon]);
        if !(self.coefficient.is_finite() && self.coefficient >= 0.0) {
            return Err(Error::invalid(format!("reward.kl.coefficient is {}", self.coefficient)));
        }
        match adaptive.iter().all(|value| value.is_finite() && *value > 0.0) {
            true => Ok(()),
            false => Err(Error::invalid("reward.kl.adaptive: target and horizon must be positive")),
        }
    }
}

/// A coefficient that keeps the divergence near a target.
///
/// After each step it is multiplied by `1 + clip(kl / target - 1, -0.2, 0.2) episodes / horizon` (Ziegler et al. 2019, as verl's
/// `AdaptiveKLController` has it).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveKl {
    /// Nats per token.
    pub target: f64,
    /// Episodes.
    pub horizon: f64,
}

/// The estimate of a token's divergence from `d = log policy - log reference`, kept finite as verl keeps it.
fn estimate(estimator: KlEstimator, d: f32) -> f32 {
    match estimator {
        KlEstimator::K1 => d,
        KlEstimator::K2 => 0.5 * d * d,
        KlEstimator::K3 => {
            let minus = (-d).clamp(-20.0, 20.0);
            (minus.exp() - minus - 1.0).clamp(-10.0, 10.0)
        }
        KlEstimator::Abs => d.abs(),
    }
}

/// Gives a reward to every token.
pub struct TokenRewards {
    kl: Option<KlPenalty>,
    shaping: Option<Shaping>,
    labelling: Labelling,
    coefficient: f64,
    last_kl: f64,
}

const STATE: &str = "kl_penalty.json";

impl TokenRewards {
    /// The reward at the last token of an episode, with a penalty and a shaping.
    pub fn new(kl: Option<KlPenalty>, shaping: Option<Shaping>, labelling: Labelling) -> Self {
        let coefficient = kl.map_or(0.0, |kl| kl.coefficient);
        TokenRewards { kl, shaping, labelling, coefficient, last_kl: 0.0 }
    }
}

impl Stage for TokenRewards {
    fn name(&self) -> String {
        "reward.kl".into()
    }

    fn needs(&self) -> Vec<Column> {
        let mut needs = vec![Column::Reward];
        if self.kl.is_some() {
            needs.extend([Column::OldLogprob, Column::ReferenceLogprob]);
        }
        if self.shaping.is_some() {
            needs.push(Column::Verdicts);
        }
        needs
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::TokenReward]
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let mask = batch.host_mask()?;
        let mut rewards = vec![0f32; batch.tokens()];
        if let Some(shaping) = &self.shaping {
            let labels = labels(batch, self.labelling, step_credit::NEUTRAL)?;
            step_credit::shape(shaping, &labels, &mask, batch.offsets(), &mut rewards)?;
        }
        if let Some(kl) = &self.kl {
            let reference = batch.reference_logprob.as_ref();
            let reference = host(reference.ok_or_else(|| missing(Column::ReferenceLogprob))?)?;
            let old = host(&batch.old_logprob)?;
            let (mut sum, mut live) = (0f64, 0f64);
            for t in (0..rewards.len()).filter(|t| mask[*t] != 0) {
                let divergence = estimate(kl.estimator, old[t] - reference[t]);
                rewards[t] -= (self.coefficient * f64::from(divergence)) as f32;
                sum += f64::from(divergence);
                live += 1.0;
            }
            self.last_kl = sum / live.max(1.0);
            step.note("kl_penalty", self.last_kl);
            step.note("kl_coefficient", self.coefficient);
        }
        for (reward, bounds) in batch.shaped_reward.iter().zip(batch.offsets().windows(2)) {
            let tokens = bounds[0] as usize..bounds[1] as usize;
            let last = tokens.rev().find(|t| mask[*t] != 0);
            if let Some(last) = last.filter(|_| !reward.is_nan()) {
                rewards[last] += reward;
            }
        }
        batch.token_reward = Some(batch.column(rewards)?);
        Ok(())
    }

    fn learn(&mut self, batch: &Batch, _: &mut Step<'_>) -> Result<()> {
        if let Some(AdaptiveKl { target, horizon }) = self.kl.and_then(|kl| kl.adaptive) {
            let error = (self.last_kl / target - 1.0).clamp(-0.2, 0.2);
            self.coefficient *= 1.0 + error * batch.episodes.len() as f64 / horizon;
        }
        Ok(())
    }

    fn save(&self, folder: &std::path::Path) -> Result<()> {
        match self.kl.and_then(|kl| kl.adaptive) {
            None => Ok(()),
            Some(_) => super::write_state(&folder.join(STATE), &self.coefficient),
        }
    }

    fn load(&mut self, folder: &std::path::Path, _: &dyn crate::rl::policy::Policy) -> Result<()> {
        if self.kl.and_then(|kl| kl.adaptive).is_some() {
            self.coefficient = super::read_state(&folder.join(STATE))?;
        }
        Ok(())
    }
}
