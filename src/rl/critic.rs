//! A critic: a value per token, from a head on the policy or from a model of its own, trained on the returns.
//!
//! The value of a token is read from the hidden state that predicts it: what is to be expected before the token is written.

use super::batch::{Batch, Column, host};
use super::episode::micro_batches;
use super::policy::Policy;
use super::stage::{Stage, Step};
use super::value_head::ValueHead;
use crate::error::{Error, Result};
use crate::kernels::policy_loss::{Totals, ValueLoss};
use crate::optim::{AdamW, AdamWSettings};
use crate::tensor::Gradients;
use crate::tensor::autograd::{self, no_grad};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Where values come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CriticKind {
    /// A linear head on the policy's hidden states, trained in the policy's own backward pass.
    #[default]
    Head,
    /// A copy of the policy as it is when reinforcement begins, with a head, trained by itself.
    Model,
}

/// A critic and how it learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriticSettings {
    /// Where values come from.
    pub kind: CriticKind,
    /// The loss of values.
    pub loss: ValueLoss,
    /// The weight of the loss of a head beside that of the policy. A model of its own does not need one.
    pub coefficient: f32,
    /// The optimizer of the head, or of the model.
    pub optimizer: AdamWSettings,
    /// Passes of a model over each batch.
    pub epochs: usize,
    /// Steps at the beginning in which only the critic learns (VAPO's value warm-up).
    pub warmup: u64,
}

impl Default for CriticSettings {
    fn default() -> CriticSettings {
        CriticSettings {
            kind: CriticKind::Head,
            loss: ValueLoss::default(),
            coefficient: 0.5,
            optimizer: AdamWSettings { learning_rate: 1e-3, ..AdamWSettings::default() },
            epochs: 1,
            warmup: 0,
        }
    }
}

impl CriticSettings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        if !(self.coefficient.is_finite() && self.coefficient >= 0.0) {
            return Err(Error::invalid(format!("critic.coefficient is {}", self.coefficient)));
        }
        if self.epochs == 0 {
            return Err(Error::invalid("critic.epochs is 0; it must be at least 1"));
        }
        self.optimizer.check().map_err(|e| e.at("critic.optimizer"))
    }
}

/// The stage that gives values, and learns them.
pub struct Critic {
    settings: CriticSettings,
    trained: Option<Trained>,
}

struct Trained {
    head: ValueHead,
    optimizer: AdamW,
    /// The model under the head and its optimizer, where it is not the policy.
    model: Option<(Box<dyn Policy>, AdamW)>,
}

const FOLDER: &str = "critic";
const HEAD: &str = "value_head.safetensors";
const HEAD_OPTIMIZER: &str = "value_head_optimizer.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

impl Critic {
    /// A critic that begins with the phase of reinforcement.
    pub fn new(settings: CriticSettings) -> Critic {
        Critic { settings, trained: None }
    }

    fn head(&self, policy: &dyn Policy) -> Result<ValueHead> {
        let coefficient = match self.settings.kind {
            CriticKind::Head => self.settings.coefficient,
            CriticKind::Model => 1.0,
        };
        ValueHead::new(policy.width(), self.settings.loss.clone(), coefficient, &policy.device())
    }

    fn trained(&self) -> Result<&Trained> {
        self.trained.as_ref().ok_or_else(|| Error::state("there is no critic yet"))
    }
}

impl Stage for Critic {
    fn name(&self) -> String {
        "critic".into()
    }

    fn needs(&self) -> Vec<Column> {
        Vec::new()
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::Value]
    }

    fn begin(&mut self, policy: &dyn Policy) -> Result<()> {
        let head = self.head(policy)?;
        let optimizer = AdamW::new(self.settings.optimizer.clone(), head.parameters())?;
        let model = match self.settings.kind {
            CriticKind::Head => None,
            CriticKind::Model => {
                let model = policy.copy()?;
                let optimizer = AdamW::new(self.settings.optimizer.clone(), model.parameters())?;
                Some((model, optimizer))
            }
        };
        self.trained = Some(Trained { head, optimizer, model });
        Ok(())
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let trained = self.trained()?;
        let model = trained.model.as_ref().map_or(step.policy, |(model, _)| &**model);
        let scored: Vec<_> = (0..batch.episodes.len()).map(|i| batch.scored(i)).collect();
        let mut values = Vec::new();
        for part in micro_batches(&scored, step.micro_batch_tokens) {
            values.push(no_grad(|| {
                let rows = model.rows(part)?.ok_or_else(no_rows)?;
                trained.head.values(&rows.hidden)
            })?);
        }
        let values = super::score::joined(&values, &model.device())?;
        let all = host(&values)?;
        let mean = all.iter().map(|v| f64::from(*v)).sum::<f64>() / all.len().max(1) as f64;
        step.note("value_mean", mean);
        batch.value = Some(values);
        Ok(())
    }

    fn joined_head(&self) -> Option<&ValueHead> {
        match (&self.trained, self.settings.kind) {
            (Some(trained), CriticKind::Head) => Some(&trained.head),
            _ => None,
        }
    }

    fn joined_step(&mut self, gradients: &Gradients) -> Result<()> {
        if let (Some(trained), CriticKind::Head) = (&mut self.trained, self.settings.kind) {
            trained.optimizer.step(trained.head.parameters_mut(), gradients, 1.0)?;
        }
        Ok(())
    }

    fn withholds_policy(&self, reinforced: u64) -> bool {
        reinforced <= self.settings.warmup
    }

    fn learn(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<()> {
        let epochs = self.settings.epochs;
        let Some(Trained { head, optimizer, model: Some((model, own)) }) = &mut self.trained else {
            return Ok(());
        };
        let members = &batch.members;
        let live: i64 = members.iter().map(|i| batch.live()[*i]).sum();
        let answered = members.iter().filter(|i| batch.live()[**i] > 0).count();
        let totals =
            Totals { tokens: Some(live as f64), sequences: Some(answered as f64), scale: 1.0 };
        let scored: Vec<_> = members.iter().map(|i| batch.scored(*i)).collect();
        let mut total = 0.0;
        for _ in 0..epochs {
            let mut gradients = Gradients::new();
            let (mut first, mut sum) = (0, 0.0);
            for part in micro_batches(&scored, step.micro_batch_tokens) {
                let these = &members[first..first + part.len()];
                first += part.len();
                let rows = model.rows(part)?.ok_or_else(no_rows)?;
                let (loss, root) = head.loss(&rows.hidden, batch, these, totals)?;
                sum += loss;
                autograd::backward_from(vec![root], &mut gradients)?;
            }
            own.step(model.parameters_mut(), &gradients, 1.0)?;
            optimizer.step(head.parameters_mut(), &gradients, 1.0)?;
            total += sum;
        }
        step.note("value_loss", total / epochs as f64);
        Ok(())
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let Some(trained) = &self.trained else { return Ok(()) };
        let folder = folder.join(FOLDER);
        std::fs::create_dir(&folder)
            .map_err(|e| Error::io(format_args!("making {}", folder.display()), e))?;
        let parameters = trained.head.parameters();
        trained.head.save(&folder.join(HEAD))?;
        trained.optimizer.save(parameters, &folder.join(HEAD_OPTIMIZER))?;
        if let Some((model, optimizer)) = &trained.model {
            model.save(&folder)?;
            optimizer.save(model.parameters(), &folder.join(OPTIMIZER))?;
        }
        Ok(())
    }

    fn load(&mut self, folder: &Path, policy: &dyn Policy) -> Result<()> {
        let folder = folder.join(FOLDER);
        let settings = || self.settings.optimizer.clone();
        let mut head = self.head(policy)?;
        head.load(&folder.join(HEAD))?;
        let optimizer = AdamW::load(settings(), head.parameters(), &folder.join(HEAD_OPTIMIZER))?;
        let model = match self.settings.kind {
            CriticKind::Head => None,
            CriticKind::Model => {
                let model = policy.loaded(&folder)?;
                let own = AdamW::load(settings(), model.parameters(), &folder.join(OPTIMIZER))?;
                Some((model, own))
            }
        };
        self.trained = Some(Trained { head, optimizer, model });
        Ok(())
    }
}

fn no_rows() -> Error {
    Error::unsupported(
        "a critic needs one hidden state per token, which a policy that fills blocks has not",
    )
}
