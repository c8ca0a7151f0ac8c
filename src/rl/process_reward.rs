//! PRIME's implicit process rewards: a model that learns from outcomes alone, and whose log-probs against the reference are
//! rewards of tokens.
//!
//! `r_t = beta (log phi(y_t) - log ref(y_t))`, and phi is trained so that `sigmoid(Σ r_t)` is the probability of a right outcome.
//! Source: PRIME (arXiv 2502.01456), equations 3 to 5.

use super::batch::{Batch, Column, host};
use super::episode::micro_batches;
use super::policy::Policy;
use super::score;
use super::stage::{Stage, Step};
use crate::error::{Error, Result};
use crate::optim::{AdamW, AdamWSettings};
use crate::tensor::autograd;
use crate::tensor::{Gradients, Tensor};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The reward model and how it learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessRewardSettings {
    /// What a nat is worth.
    pub beta: f64,
    /// An episode with a larger reward is right.
    pub correct_above: f32,
    /// The optimizer of the reward model.
    pub optimizer: AdamWSettings,
}

impl Default for ProcessRewardSettings {
    fn default() -> ProcessRewardSettings {
        ProcessRewardSettings {
            beta: 0.05,
            correct_above: 0.5,
            optimizer: AdamWSettings { learning_rate: 1e-6, ..AdamWSettings::default() },
        }
    }
}

impl ProcessRewardSettings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return Err(Error::invalid(format!("process_reward.beta is {}", self.beta)));
        }
        self.optimizer.check().map_err(|e| e.at("process_reward.optimizer"))
    }
}

/// The stage that gives process rewards, and learns from outcomes.
pub struct ProcessRewards {
    settings: ProcessRewardSettings,
    trained: Option<Trained>,
}

struct Trained {
    model: Box<dyn Policy>,
    optimizer: AdamW,
    reference: Box<dyn Policy>,
}

const FOLDER: &str = "process_reward";
const REFERENCE: &str = "reference";
const OPTIMIZER: &str = "optimizer.safetensors";

impl ProcessRewards {
    /// A reward model that begins as the policy.
    pub fn new(settings: ProcessRewardSettings) -> ProcessRewards {
        ProcessRewards { settings, trained: None }
    }
}

impl Stage for ProcessRewards {
    fn name(&self) -> String {
        "process_reward".into()
    }

    fn needs(&self) -> Vec<Column> {
        vec![Column::Reward]
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::ProcessReward]
    }

    fn begin(&mut self, policy: &dyn Policy) -> Result<()> {
        let model = policy.copy()?;
        let optimizer = AdamW::new(self.settings.optimizer.clone(), model.parameters())?;
        self.trained = Some(Trained { model, optimizer, reference: policy.copy()? });
        Ok(())
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let Some(trained) = &self.trained else {
            return Err(Error::state("there is no reward model yet"));
        };
        let all: Vec<usize> = (0..batch.episodes.len()).collect();
        let of = |policy: &dyn Policy| -> Result<Vec<f32>> {
            host(&score::scores(policy, batch, &all, step.micro_batch_tokens)?.logprob)
        };
        let (now, reference) = (of(&*trained.model)?, of(&*trained.reference)?);
        let beta = self.settings.beta;
        let reward = |(a, b): (&f32, &f32)| (beta * f64::from(a - b)) as f32;
        let rewards: Vec<f32> = now.iter().zip(&reference).map(reward).collect();
        let mean = rewards.iter().map(|r| f64::from(*r)).sum::<f64>();
        step.note("process_reward_mean", mean / rewards.len().max(1) as f64);
        batch.process_reward = Some(batch.column(rewards)?);
        Ok(())
    }

    /// One step of cross entropy between `sigmoid(Σ r_t)` and whether the outcome was right.
    fn learn(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<()> {
        let Some(Trained { model, optimizer, reference }) = &mut self.trained else {
            return Ok(());
        };
        let scored: Vec<usize> =
            (0..batch.episodes.len()).filter(|i| !batch.reward[*i].is_nan()).collect();
        if scored.is_empty() {
            return Ok(());
        }
        let of_reference =
            host(&score::scores(&**reference, batch, &scored, step.micro_batch_tokens)?.logprob)?;
        let mask = batch.host_mask()?;
        let episodes: Vec<_> = scored.iter().map(|i| batch.scored(*i)).collect();
        let mut gradients = Gradients::new();
        let (mut first, mut token) = (0, 0);
        let (mut loss, mut right) = (0f64, 0usize);
        for part in micro_batches(&episodes, step.micro_batch_tokens) {
            let logprob = model.score(part, &batch.drawn)?.logprob;
            let now = host(&logprob)?;
            let mut upstream = vec![0f32; now.len()];
            let mut at = 0;
            for i in &scored[first..first + part.len()] {
                let count = batch.episodes[*i].tokens.len();
                let live = |t: &usize| mask[batch.offsets()[*i] as usize + t] != 0;
                let sum: f64 = (0..count)
                    .filter(live)
                    .map(|t| f64::from(now[at + t] - of_reference[token + t]))
                    .sum();
                let score = self.settings.beta * sum;
                let correct = batch.reward[*i] > self.settings.correct_above;
                let label = f64::from(u8::from(correct));
                let probability = 1.0 / (1.0 + (-score).exp());
                // log(1 + e^x) without overflow.
                let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
                loss += softplus(score) - label * score;
                right += usize::from((score > 0.0) == correct);
                let each = self.settings.beta * (probability - label) / scored.len() as f64;
                (0..count).filter(live).for_each(|t| upstream[at + t] = each as f32);
                (at, token) = (at + count, token + count);
            }
            first += part.len();
            let upstream =
                Tensor::from_f32(upstream, logprob.shape())?.to_device(&logprob.device())?;
            if logprob.is_tracked() {
                autograd::backward_from(vec![(logprob, upstream)], &mut gradients)?;
            }
        }
        optimizer.step(model.parameters_mut(), &gradients, 1.0)?;
        step.note("process_reward_loss", loss / scored.len() as f64);
        step.note("process_reward_accuracy", right as f64 / scored.len() as f64);
        Ok(())
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let Some(trained) = &self.trained else { return Ok(()) };
        let folder = folder.join(FOLDER);
        let reference = folder.join(REFERENCE);
        std::fs::create_dir_all(&reference)
            .map_err(|e| Error::io(format_args!("making {}", reference.display()), e))?;
        trained.model.save(&folder)?;
        trained.optimizer.save(trained.model.parameters(), &folder.join(OPTIMIZER))?;
        trained.reference.save(&reference)
    }

    fn load(&mut self, folder: &Path, policy: &dyn Policy) -> Result<()> {
        let folder = folder.join(FOLDER);
        let model = policy.loaded(&folder)?;
        let settings = self.settings.optimizer.clone();
        let optimizer = AdamW::load(settings, model.parameters(), &folder.join(OPTIMIZER))?;
        let reference = policy.loaded(&folder.join(REFERENCE))?;
        self.trained = Some(Trained { model, optimizer, reference });
        Ok(())
    }
}
