//! Log-probs and entropies of given completions under a decoder: what sampling saw, computed again for a gradient.

use crate::error::{Error, Result};
use crate::models::Decoder;
use crate::ops;
use crate::rl::rollout::Packed;
use crate::tensor::Tensor;

/// A prompt and the completion to score.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// Token ids, at least one.
    pub prompt: &'a [i32],
    /// Token ids; each is predicted from what stands before it.
    pub completion: &'a [i32],
}

impl Scored<'_> {
    /// Tokens that the model reads: all but the last, which predicts nothing here.
    pub fn tokens(&self) -> usize {
        (self.prompt.len() + self.completion.len()).saturating_sub(1)
    }
}

/// The log-prob and the entropy of every completion token, one completion after another.
///
/// Computed with the temperature and the untruncated distribution, as [`rollouts`](super::rollout::rollouts) records
/// them, and to the same bits.
///
/// # Shapes
/// Two f32 tensors `[Σ completion lengths]`, tracked where the model's parameters are.
///
/// # Errors
/// [`Error::is_invalid`] for an empty prompt, [`Error::is_index`] for a token outside the vocabulary.
pub fn logprobs(
    model: &Decoder,
    batch: &[Scored<'_>],
    temperature: f32,
) -> Result<(Tensor, Tensor)> {
    if let Some(i) = batch.iter().position(|s| s.prompt.is_empty()) {
        return Err(Error::invalid(format!("scoring: prompt {i} is empty")));
    }
    let inputs: Vec<Vec<i32>> = batch
        .iter()
        .map(|s| s.prompt.iter().chain(s.completion).copied().take(s.tokens()).collect())
        .collect();
    let packed = Packed::new(inputs.iter().map(|tokens| (0, &**tokens)));
    let mut predicting = Vec::new();
    let mut targets = Vec::new();
    for (scored, start) in batch.iter().zip(&packed.segments) {
        let first = start + scored.prompt.len() - 1;
        predicting.extend(first..first + scored.completion.len());
        targets.extend_from_slice(scored.completion);
    }
    let hidden = ops::gather(&model.hidden(packed.tokens())?, &predicting)?;
    let softmax = ops::SoftmaxOptions {
        temperature,
        softcap: model.config().final_softcap,
        ..ops::SoftmaxOptions::default()
    };
    ops::linear_logprob(&hidden, &model.head(), None, &targets, &softmax)
}
