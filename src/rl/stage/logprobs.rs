//! Stages that score a batch before its first update: the old policy where sampling did not record it, the reference
//! policy, and what the optimal token baseline reads.

use super::{Stage, Step};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops;
use crate::rl::batch::{Batch, Column};
use crate::rl::policy::Policy;
use crate::rl::score;
use crate::tensor::Tensor;
use crate::tensor::autograd::no_grad;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Computes the old log-probs again and keeps the recorded ones as the sampler's: for a policy whose recorded log-probs are
/// not those that it scores, and for a correction between the two.
pub struct OldLogprobs;

impl Stage for OldLogprobs {
    fn name(&self) -> String {
        "update.recompute_old".into()
    }

    fn needs(&self) -> Vec<Column> {
        vec![Column::SamplerLogprob]
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::OldLogprob]
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let all: Vec<usize> = (0..batch.episodes.len()).collect();
        let scores = score::scores(step.policy, batch, &all, step.micro_batch_tokens)?;
        let fresh = score::with_recorded(batch, scores.logprob)?;
        let recorded = std::mem::replace(&mut batch.old_logprob, fresh);
        batch.sampler_logprob.get_or_insert(recorded);
        Ok(())
    }
}

/// The policy that a KL term measures from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReferenceSettings {
    /// Every so many steps the reference becomes the policy of then; 0: it stays what the policy was when reinforcement
    /// began.
    pub refresh: u64,
}

/// Log-probs under a frozen copy of the policy.
pub struct Reference {
    settings: ReferenceSettings,
    policy: Option<Box<dyn Policy>>,
}

impl Reference {
    /// A reference that is taken when reinforcement begins.
    pub fn new(settings: ReferenceSettings) -> Reference {
        Reference { settings, policy: None }
    }
}

const FOLDER: &str = "reference";

impl Stage for Reference {
    fn name(&self) -> String {
        "reference".into()
    }

    fn needs(&self) -> Vec<Column> {
        Vec::new()
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::ReferenceLogprob]
    }

    fn begin(&mut self, policy: &dyn Policy) -> Result<()> {
        self.policy = Some(policy.copy()?);
        Ok(())
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let Some(policy) = &self.policy else {
            return Err(Error::state("there is no reference policy yet"));
        };
        let all: Vec<usize> = (0..batch.episodes.len()).collect();
        let scores = score::scores(&**policy, batch, &all, step.micro_batch_tokens)?;
        batch.reference_logprob = Some(scores.logprob);
        Ok(())
    }

    fn learn(&mut self, _batch: &Batch, step: &mut Step<'_>) -> Result<()> {
        let every = self.settings.refresh;
        if every > 0 && step.number.is_multiple_of(every) {
            self.policy = Some(step.policy.copy()?);
            step.note("reference_refreshed", 1.0);
        }
        Ok(())
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let Some(policy) = &self.policy else { return Ok(()) };
        let folder = folder.join(FOLDER);
        std::fs::create_dir(&folder)
            .map_err(|e| Error::io(format_args!("making {}", folder.display()), e))?;
        policy.save(&folder)
    }

    fn load(&mut self, folder: &Path, policy: &dyn Policy) -> Result<()> {
        self.policy = Some(policy.loaded(&folder.join(FOLDER))?);
        Ok(())
    }
}

/// The sum of the squared probabilities of the vocabulary at each token, for the optimal token baseline.
pub struct SumSquares;

/// Rows of logits that are held at once.
const ROWS: usize = 256;

impl Stage for SumSquares {
    fn name(&self) -> String {
        "advantage".into()
    }

    fn needs(&self) -> Vec<Column> {
        Vec::new()
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::SumSquares]
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let mut sums = Vec::with_capacity(batch.tokens());
        let scored: Vec<_> = (0..batch.episodes.len()).map(|i| batch.scored(i)).collect();
        for part in crate::rl::episode::micro_batches(&scored, step.micro_batch_tokens) {
            let rows = no_grad(|| step.policy.rows(part))?.ok_or_else(|| {
                Error::unsupported("the optimal token baseline needs one hidden state per token")
            })?;
            no_grad(|| -> Result<()> {
                let mut first = 0;
                while first < rows.targets.len() {
                    let end = (first + ROWS).min(rows.targets.len());
                    let hidden = rows.hidden.rows(first..end)?;
                    let mut logits = ops::matmul(&hidden, &rows.head, false, true)?;
                    logits = ops::cast(&logits, crate::DType::F32)?;
                    if let Some(cap) = rows.softcap {
                        logits = ops::softcap(&logits, cap)?;
                    }
                    let logits = ops::scale(&logits, 1.0 / batch.drawn.temperature)?;
                    let p = ops::softmax(&logits)?;
                    let squares: Tensor = ops::sum_last(&ops::mul(&p, &p)?)?;
                    sums.extend_from_slice(squares.to_device(&Device::Cpu)?.f32s()?);
                    first = end;
                }
                Ok(())
            })?;
        }
        batch.sum_squares = Some(batch.column(sums)?);
        Ok(())
    }
}
