//! The loss of a noised batch and its gradient: only masked rows reach the head, each with its weight.
//!
//! `loss = Σ_masked w_i · -log p(token_i | noised block, clean blocks before) / eligible tokens`. With the weights of an
//! unforced schedule its expectation bounds the negative log-likelihood; in a warm-up all weights are 1.

use super::batch::Batch;
use super::noising::Noised;
use crate::device::Device;
use crate::error::Result;
use crate::models::{Copies, Decoder};
use crate::tensor::{Gradients, Tensor, autograd};

/// What one batch gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Denoised {
    /// The weighted loss over all eligible tokens, nats.
    pub loss: f32,
    /// The mean negative log-prob of the masked tokens, nats, unweighted.
    pub masked_loss: f32,
    /// Share of the eligible tokens that was masked.
    pub masked: f32,
    /// Share of the blocks with eligible tokens that had no mask.
    pub wasted: f32,
    /// Tokens run through the model, both copies.
    pub tokens: usize,
}

/// Adds the gradient of the loss, about `micro_batch_tokens` of both copies at a time, whole documents. With nothing
/// masked the loss is 0 and no gradient is added.
///
/// # Errors
/// As [`Decoder::masked_logprob`].
pub fn gradients(
    model: &Decoder,
    batch: &Batch,
    noised: &Noised,
    micro_batch_tokens: usize,
    gradients: &mut Gradients,
) -> Result<Denoised> {
    let eligible = batch.eligible_tokens().max(1) as f32;
    let mut done = Denoised {
        masked: noised.places.len() as f32 / eligible,
        wasted: noised.wasted as f32 / noised.blocks.max(1) as f32,
        ..Denoised::default()
    };
    let mut pending = Vec::new();
    for part in parts(batch, micro_batch_tokens) {
        let (copies, range) = part.copies(model, batch, noised)?;
        if range.is_empty() {
            continue;
        }
        let places: Vec<usize> =
            noised.places[range.clone()].iter().map(|place| place - part.first).collect();
        done.tokens += copies.tokens().ids.len();
        let (logprob, _) = model.masked_logprob(&copies, &places, 1.0)?;
        let weights = &noised.weights[range];
        pending.push((logprob.detach(), weights));
        if logprob.is_tracked() {
            let upstream = weights.iter().map(|weight| -weight / eligible).collect();
            let upstream =
                Tensor::from_f32(upstream, logprob.shape())?.to_device(&logprob.device())?;
            autograd::backward_from(vec![(logprob, upstream)], gradients)?;
        }
    }
    // Read when everything has been started: a device is waited for once.
    let (mut loss, mut plain) = (0f64, 0f64);
    for (logprob, weights) in pending {
        let logprob = logprob.to_device(&Device::Cpu)?;
        for (logprob, weight) in logprob.f32s()?.iter().zip(weights) {
            loss -= f64::from(*logprob) * f64::from(*weight);
            plain -= f64::from(*logprob);
        }
    }
    done.loss = (loss / f64::from(eligible)) as f32;
    done.masked_loss = (plain / noised.places.len().max(1) as f64) as f32;
    Ok(done)
}

/// The negative log-prob of every masked token, in the order of `noised.places`. No gradients.
///
/// # Errors
/// As [`Decoder::masked_logprob`].
pub fn losses(
    model: &Decoder,
    batch: &Batch,
    noised: &Noised,
    micro_batch_tokens: usize,
) -> Result<Vec<f32>> {
    autograd::no_grad(|| {
        let mut all = Vec::with_capacity(noised.places.len());
        for part in parts(batch, micro_batch_tokens) {
            let (copies, range) = part.copies(model, batch, noised)?;
            if range.is_empty() {
                continue;
            }
            let places: Vec<usize> =
                noised.places[range].iter().map(|place| place - part.first).collect();
            let (logprob, _) = model.masked_logprob(&copies, &places, 1.0)?;
            all.extend(logprob.to_device(&Device::Cpu)?.f32s()?.iter().map(|logprob| -logprob));
        }
        Ok(all)
    })
}

/// Documents that run at once.
struct Part {
    documents: std::ops::Range<usize>,
    /// Their first token in the batch.
    first: usize,
}

impl Part {
    /// Their copies, and which of the masked places are theirs.
    fn copies(
        &self,
        model: &Decoder,
        batch: &Batch,
        noised: &Noised,
    ) -> Result<(Copies, std::ops::Range<usize>)> {
        let tokens = self.first..batch.documents[self.documents.end];
        let offsets: Vec<usize> = batch.documents[self.documents.start..=self.documents.end]
            .iter()
            .map(|offset| offset - self.first)
            .collect();
        let copies = Copies::new(
            model.diffusion()?,
            &noised.ids[tokens.clone()],
            &batch.ids[tokens.clone()],
            &offsets,
        )?;
        let at = |token: usize| noised.places.partition_point(|place| *place < token);
        Ok((copies, at(tokens.start)..at(tokens.end)))
    }
}

/// Runs of documents of at most `tokens` tokens in both copies together; a longer one stands alone.
fn parts(batch: &Batch, tokens: usize) -> Vec<Part> {
    let count = batch.numbers.len();
    let mut parts = Vec::new();
    let mut start = 0;
    while start < count {
        let first = batch.documents[start];
        let fits = |end: &usize| 2 * (batch.documents[*end] - first) <= tokens;
        let end = (start + 1..=count).take_while(fits).last().unwrap_or(start + 1);
        parts.push(Part { documents: start..end, first });
        start = end;
    }
    parts
}
