//! Rollout correction: importance weights and rejections between what sampled and what is trained.

use super::{Stage, Step};
use crate::error::Result;
use crate::kernels::rollout_correction::{self, Inputs, Outputs, RolloutCorrection};
use crate::rl::batch::{Batch, Column, host};
use serde::{Deserialize, Serialize};

/// A correction by its name, or by its options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CorrectionSettings {
    /// One of `gradstone list corrections`.
    Name(String),
    /// Its options.
    Options(RolloutCorrection),
}

impl CorrectionSettings {
    /// The correction.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) for a name that there is not, or an option out of range.
    pub fn named(&self) -> Result<RolloutCorrection> {
        let correction = match self {
            CorrectionSettings::Name(name) => RolloutCorrection::preset(name),
            CorrectionSettings::Options(options) => Ok(options.clone()),
        };
        let correction = correction.map_err(|e| e.at("correction"))?;
        correction.check().map_err(|e| e.at("correction"))?;
        Ok(correction)
    }
}

/// Gives an importance weight per token and takes rejected tokens out of the mask.
pub struct Correction {
    /// How.
    pub correction: RolloutCorrection,
}

impl Stage for Correction {
    fn name(&self) -> String {
        "correction".into()
    }

    fn needs(&self) -> Vec<Column> {
        vec![Column::OldLogprob, Column::SamplerLogprob]
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::Weight]
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let policy = host(&batch.old_logprob)?;
        let sampler = batch.sampler_logprob.as_ref().map(host).transpose()?;
        let mask = batch.host_mask()?;
        let (mut weight, mut kept) = (vec![0f32; mask.len()], vec![0u8; mask.len()]);
        let inputs = Inputs {
            policy_logprob: &policy,
            sampler_logprob: sampler.as_deref(),
            mask: &mask,
            offsets: batch.offsets(),
        };
        let outputs = Outputs { weight: &mut weight, mask: &mut kept };
        let seen = rollout_correction::forward(&self.correction, &inputs, outputs)?;
        batch.weight = Some(batch.column(weight)?);
        batch.set_mask(kept)?;
        for (name, value) in [
            ("correction_kl", seen.kl),
            ("correction_k3", seen.k3),
            ("correction_weight_mean", seen.weight_mean),
            ("correction_weight_max", seen.weight_max),
            ("correction_effective_share", seen.effective_share),
            ("correction_rejected", seen.fraction_rejected),
            ("correction_rejected_sequences", seen.rejected_sequences as f64),
            ("correction_dropped", seen.dropped as f64),
        ] {
            step.note(name, value);
        }
        Ok(())
    }
}
