//! Step credit: what a judge says about the steps of an episode changes the advantages of their tokens.

use super::{Stage, Step};
use crate::error::Result;
use crate::kernels::advantage::Estimator;
use crate::kernels::policy_loss::Advantages;
use crate::kernels::step_credit::{self, Inputs, Labelling, Outputs, Part, Segment, StepCredit};
use crate::rl::batch::{Advantage, Batch, Column, host, missing};
use serde::{Deserialize, Serialize};

/// How verdicts about steps become credit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreditSettings {
    /// What a token's label does to its advantage.
    pub rule: Credit,
    /// How the token that opens a step is labelled.
    #[serde(default)]
    pub labelling: Labelling,
}

/// A rule of step credit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Credit {
    /// By the labels of tokens.
    Labels(StepCredit),
    /// By the normalised scores of all steps that end after a token (process supervision of GRPO).
    Process(Process),
}

/// Process supervision: the scores of steps are normalised over a group, and a token has the sum of those that end after it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Process {
    /// In place of the advantage, or added to it.
    Process {
        /// How scores are normalised.
        #[serde(default)]
        estimator: Estimator,
        /// What the sum is multiplied by.
        #[serde(default = "one")]
        weight: f32,
        /// Add to the advantage of the outcome instead of replacing it.
        #[serde(default)]
        add: bool,
    },
}

fn one() -> f32 {
    1.0
}

impl CreditSettings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) naming the parameter.
    pub fn check(&self) -> Result<()> {
        match &self.rule {
            Credit::Labels(rule) => rule.check(),
            Credit::Process(Process::Process { estimator, weight, .. }) => {
                StepCredit::Add { weight: *weight }.check()?;
                estimator.check_available(&[], "step credit")
            }
        }
    }
}

/// A label per token, `background` where no part of the episode was judged.
///
/// # Errors
/// [`Error::is_index`](crate::Error::is_index) for a part outside its episode.
pub(super) fn labels(batch: &Batch, labelling: Labelling, background: f32) -> Result<Vec<f32>> {
    let verdicts = batch.verdicts.as_ref().ok_or_else(|| missing(Column::Verdicts))?;
    let mut segments = Vec::new();
    for (sequence, judged) in verdicts.iter().enumerate() {
        for (tokens, part) in judged.iter().flatten() {
            let (start, end, part) = (tokens.start, tokens.end, *part);
            segments.push(Segment { sequence, start, end, part });
        }
    }
    let mut labels = vec![0f32; batch.tokens()];
    step_credit::paint(&labelling.spans(&segments), batch.offsets(), background, &mut labels)?;
    Ok(labels)
}

/// Changes advantages by verdicts about steps.
pub struct StepCredits {
    /// How.
    pub settings: CreditSettings,
}

impl Stage for StepCredits {
    fn name(&self) -> String {
        "credit".into()
    }

    fn needs(&self) -> Vec<Column> {
        vec![Column::Verdicts, Column::Advantage]
    }

    fn gives(&self) -> Vec<Column> {
        vec![Column::Advantage]
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let (rule, labels) = match &self.settings.rule {
            Credit::Labels(rule) => {
                (*rule, labels(batch, self.settings.labelling, step_credit::UNSUPPORTED)?)
            }
            Credit::Process(Process::Process { estimator, weight, add }) => {
                let labels = process(batch, estimator, *weight)?;
                (
                    if *add { StepCredit::Add { weight: 1.0 } } else { StepCredit::Replace {} },
                    labels,
                )
            }
        };
        let mask = batch.host_mask()?;
        let mut credited = vec![0f32; batch.tokens()];
        let mut kept = vec![0u8; batch.tokens()];
        let drops = matches!(rule, StepCredit::Mask { .. });
        let per_token = match &batch.advantage {
            Some(Advantage::PerToken(all)) => Some(host(all)?),
            _ => None,
        };
        let advantage = match (&per_token, &batch.advantage) {
            (Some(all), _) => Advantages::PerToken(all),
            (None, Some(Advantage::PerEpisode(all))) => Advantages::PerSequence(all),
            _ => return Err(missing(Column::Advantage)),
        };
        let of = |t: usize, sequence: usize| match advantage {
            Advantages::PerToken(all) => all[t],
            Advantages::PerSequence(all) => all[sequence],
        };
        let bounds = batch.offsets().windows(2).enumerate();
        let heard = bounds.flat_map(|(sequence, bounds)| {
            (bounds[0] as usize..bounds[1] as usize).filter(move |t| of(*t, sequence) != 0.0)
        });
        let heard = heard.filter(|t| mask[*t] != 0).count();
        let inputs = Inputs { advantage, labels: &labels, mask: &mask, offsets: batch.offsets() };
        let kept_out = drops.then_some(&mut kept[..]);
        let outputs = Outputs { advantage: &mut credited, kept: kept_out };
        let counts = step_credit::forward(&rule, &inputs, outputs)?;
        batch.advantage = Some(Advantage::PerToken(batch.column(credited)?));
        if drops {
            batch.set_mask(kept)?;
        }
        step.note("credit_zero_share", counts.zero_share());
        step.note("credit_taken_tokens", counts.zeroed as f64);
        step.note("credit_tokens", heard as f64);
        let (good, bad) = (
            counts.positive_valid + counts.negative_valid,
            counts.positive_invalid + counts.negative_invalid,
        );
        step.note("unsupported_tokens", bad as f64 / (good + bad).max(1) as f64);
        Ok(())
    }
}

/// The sum of the normalised scores of all steps that end after a token.
fn process(batch: &Batch, estimator: &Estimator, weight: f32) -> Result<Vec<f32>> {
    let verdicts = batch.verdicts.as_ref().ok_or_else(|| missing(Column::Verdicts))?;
    let mut steps = Vec::new();
    for (sequence, judged) in verdicts.iter().enumerate() {
        for (tokens, part) in judged.iter().flatten() {
            let reward = match *part {
                Part::Step { supported } | Part::Forced { supported } => {
                    f32::from(u8::from(supported))
                }
                Part::Value(value) => value,
                Part::StepNumber { .. } | Part::Tag | Part::Answer => continue,
            };
            let group = batch.episodes[sequence].prompt as i32;
            steps.push(step_credit::Step { group, sequence, end: tokens.end, reward });
        }
    }
    let mut spans = step_credit::step_advantages(estimator, &steps)?;
    spans.iter_mut().for_each(|span| span.label *= weight);
    let mut labels = vec![0f32; batch.tokens()];
    step_credit::paint(&spans, batch.offsets(), 0.0, &mut labels)?;
    Ok(labels)
}
