//! One batch of rollouts into gradients: log-probs again, the objective, the backward pass, in micro-batches.

use super::policy_gradient::{
    Batch, Completion, Minimised, Pending, Selected, clip_of, joined, uploaded,
};
use super::supervised::micro_batches;
use crate::DType;
use crate::device::Device;
use crate::device::gpu::DeviceBuffer;
use crate::error::{Error, Result};
use crate::kernels::policy_loss::{Metrics, Objective, Totals};
use crate::kernels::token_selection::{self, Selection};
use crate::models::Decoder;
use crate::rl::scoring::{Scored, logprobs};
use crate::tensor::autograd::no_grad;
use crate::tensor::{Gradients, Tensor};
use std::ops::Range;

/// A completion with everything its gradient needs.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The tokens.
    pub scored: Scored<'a>,
    /// The log-prob of each completion token when it was sampled.
    pub old_logprob: &'a [f32],
    /// The same under the reference policy, f32 `[tokens]`, anywhere; needed when the objective has a KL term.
    pub reference_logprob: Option<&'a Tensor>,
    /// The advantage of the completion.
    pub advantage: f32,
}

/// What one update's forward and backward gave.
#[derive(Clone, Debug)]
pub struct Updated {
    /// The objective's metrics over all tokens.
    pub metrics: Metrics,
    /// Largest |log-prob now − log-prob when sampled|: 0 exactly while the weights are those that sampled.
    pub mismatch: f32,
    /// Tokens run through the model.
    pub tokens: usize,
}

/// What the random choices of a step's tokens depend on: a seed, and a number that no other update of it has.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// The seed.
    pub seed: u64,
    /// The number.
    pub number: u64,
}

/// Adds the gradient of the objective over `samples`, `micro_batch_tokens` at a time. How the samples are cut into
/// micro-batches changes the order of additions, nothing else.
///
/// An objective with a selection of tokens (Clip-Cov, KL-Cov, the top of the entropies) looks at the whole batch before
/// its first token: that is one more forward pass.
///
/// # Errors
/// As [`logprobs`] and [`forward_backward`](crate::kernels::policy_loss::forward_backward).
pub fn gradients(
    model: &Decoder,
    samples: &[Sample<'_>],
    objective: &Objective,
    temperature: f32,
    micro_batch_tokens: usize,
    draw: Draw,
    gradients: &mut Gradients,
) -> Result<Updated> {
    let live: usize = samples.iter().map(|s| s.scored.completion.len()).sum();
    let totals = Totals {
        tokens: Some(live as f64),
        sequences: Some(samples.iter().filter(|s| !s.scored.completion.is_empty()).count() as f64),
        scale: 1.0,
    };
    let scored: Vec<Scored<'_>> = samples.iter().map(|s| s.scored).collect();
    let selected = match &objective.selection {
        Some(selection) => {
            let parts = micro_batches(&scored, micro_batch_tokens);
            let clip = clip_of(objective);
            Some(select(model, samples, parts, selection, clip, temperature, draw)?)
        }
        None => None,
    };
    let mut pending = Vec::new();
    let (mut first, mut token) = (0, 0);
    for part in micro_batches(&scored, micro_batch_tokens) {
        let members = &samples[first..first + part.len()];
        first += part.len();
        let tokens = token..token + part.iter().map(|one| one.completion.len()).sum::<usize>();
        token = tokens.end;
        let selected = selected.as_ref().map(|all| all.part(tokens)).transpose()?;
        let what = Minimised { objective, totals, selected };
        let run = part.iter().map(Scored::tokens).sum::<usize>();
        pending.push((micro_batch(model, members, part, what, temperature, gradients)?, run));
    }
    // Read when everything has been started: a device is waited for once.
    let mut result: Option<Updated> = None;
    for (one, tokens) in pending {
        let one = Updated { metrics: one.metrics()?, mismatch: one.mismatch()?, tokens };
        result = Some(match result {
            None => one,
            Some(sum) => Updated {
                metrics: sum.metrics.merge(&one.metrics),
                mismatch: sum.mismatch.max(one.mismatch),
                tokens: sum.tokens + one.tokens,
            },
        });
    }
    result.ok_or_else(|| Error::invalid("update: no samples"))
}

/// The picked tokens of a whole batch, where its log-probs were computed.
enum Picked {
    Host(Vec<u8>),
    Device(DeviceBuffer),
}

impl Picked {
    fn part(&self, tokens: Range<usize>) -> Result<Selected<'_>> {
        match self {
            Picked::Host(all) => Ok(Selected::Host(&all[tokens])),
            Picked::Device(all) => all.slice(tokens).map(Selected::Device),
        }
    }
}

/// The tokens that a selection picks of the whole batch, from the log-probs and entropies of now.
fn select(
    model: &Decoder,
    samples: &[Sample<'_>],
    parts: Vec<&[Scored<'_>]>,
    selection: &Selection,
    clip: (f32, f32),
    temperature: f32,
    draw: Draw,
) -> Result<Picked> {
    let (mut logprobs_now, mut entropies) = (Vec::new(), Vec::new());
    for part in parts {
        let (logprob, entropy) = no_grad(|| logprobs(model, part, temperature))?;
        logprobs_now.push(logprob);
        entropies.push(entropy);
    }
    let device = model.device();
    let logprob = joined(&logprobs_now.iter().collect::<Vec<_>>(), &device)?;
    let entropy = joined(&entropies.iter().collect::<Vec<_>>(), &device)?;
    let old: Vec<f32> = samples.iter().flat_map(|s| s.old_logprob).copied().collect();
    let each = |s: &Sample<'_>| std::iter::repeat_n(s.advantage, s.scored.completion.len());
    let advantage: Vec<f32> = samples.iter().flat_map(each).collect();
    let mask = vec![1u8; logprob.len()];
    let draw = (draw.seed, draw.number);
    if let Device::Gpu(gpu) = &device {
        let (old, advantage) = (uploaded(gpu, &old)?, uploaded(gpu, &advantage)?);
        let mask = DeviceBuffer::upload(gpu, DType::U8, &mask)?;
        let mut selected = DeviceBuffer::recycled(gpu, DType::U8, logprob.len())?;
        let inputs = token_selection::launch::Inputs {
            logprob: Some(logprob.device_slice()?),
            old_logprob: Some(old.whole()),
            advantage: Some(advantage.whole()),
            entropy: Some(entropy.device_slice()?),
            mask: mask.whole(),
            clip,
            draw,
        };
        token_selection::launch::select(selection, &inputs, selected.whole_mut())?;
        return Ok(Picked::Device(selected));
    }
    let mut selected = vec![0u8; logprob.len()];
    let inputs = token_selection::Inputs {
        logprob: logprob.f32s()?,
        old_logprob: &old,
        advantage: &advantage,
        entropy: entropy.f32s()?,
        mask: &mask,
        clip,
        draw,
    };
    token_selection::select(selection, &inputs, &mut selected)?;
    Ok(Picked::Host(selected))
}

fn micro_batch(
    model: &Decoder,
    members: &[Sample<'_>],
    scored: &[Scored<'_>],
    what: Minimised<'_>,
    temperature: f32,
    gradients: &mut Gradients,
) -> Result<Pending> {
    let (logprob, entropy) = logprobs(model, scored, temperature)?;
    let completions: Vec<Completion<'_>> = members
        .iter()
        .map(|sample| Completion {
            tokens: sample.scored.completion.len(),
            old_logprob: sample.old_logprob,
            reference_logprob: sample.reference_logprob,
            advantage: sample.advantage,
        })
        .collect();
    Batch::new(&completions, &logprob.device())?.backward(what, logprob, entropy, gradients)
}
