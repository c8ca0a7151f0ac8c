//! Process rewards: the scores of single steps, as advantages of the tokens that led to them.

use super::span::Span;
use crate::error::{Error, Result};
use crate::kernels::advantage::{self, Estimator, Groups};

/// A scored step: it ends before token `end` of its sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The group of responses to compare with.
    pub group: i32,
    /// Which sequence.
    pub sequence: usize,
    /// One past its last token.
    pub end: usize,
    /// Its score; NaN: not scored, which adds nothing.
    pub reward: f32,
}

/// The advantage of every token before the end of a sequence's last step, as spans for [`paint`](super::paint) and
/// [`StepCredit::Replace`](super::StepCredit::Replace): the sum of the normalised scores of all steps that end after it.
///
/// Scores are normalised by `estimator` over all steps of all responses of a group. The steps of a sequence come in the
/// order in which they end.
///
/// # Errors
/// [`Error::is_index`] when a sequence's steps are out of order or a group is negative, and as [`advantage::forward`].
///
/// # Source
/// Process supervision of GRPO: arXiv 2402.03300, section 4.1.3.
pub fn step_advantages(estimator: &Estimator, steps: &[Step]) -> Result<Vec<Span>> {
    let rewards: Vec<f32> = steps.iter().map(|step| step.reward).collect();
    let groups: Vec<i32> = steps.iter().map(|step| step.group).collect();
    let mut advantage = vec![0f32; steps.len()];
    let outputs =
        advantage::Outputs { advantage: &mut advantage, mean: None, std: None, flags: None };
    advantage::forward(estimator, &rewards, Groups::Ids(&groups), outputs)?;
    let mut spans = Vec::with_capacity(steps.len());
    let mut begins: std::collections::BTreeMap<usize, usize> = Default::default();
    for (i, step) in steps.iter().enumerate() {
        let Step { sequence, end, .. } = *step;
        let start = begins.insert(sequence, end).unwrap_or(0);
        if start > end {
            return Err(Error::index(format!(
                "step_credit: step {i} of sequence {sequence} ends at {end}, before the one before it ({start})"
            )));
        }
        spans.push(Span { sequence, start, end, label: advantage[i] });
    }
    // From the last step to the first: each has its own score and those of all after it.
    let mut later: std::collections::BTreeMap<usize, f32> = Default::default();
    for span in spans.iter_mut().rev() {
        let sum = later.entry(span.sequence).or_default();
        *sum += span.label;
        span.label = *sum;
    }
    Ok(spans)
}
