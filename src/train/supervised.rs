//! Supervised learning on worked examples: the warm-up before reinforcement, and next-token prediction on running text.

use crate::error::Result;
use crate::ops;
use crate::optim::{AdamW, AdamWSettings};
use crate::rl::episode::{Scored, micro_batches};
use crate::rl::policy::Policy;
use crate::rl::sampling::Distribution;
use crate::tensor::{Gradients, Tensor, autograd};

/// What one supervised batch gave.
#[derive(Clone, Copy, Debug)]
pub struct Supervised {
    /// Mean negative log-prob of the answers' tokens, nats.
    pub loss: f32,
    /// Mean entropy at these tokens, nats.
    pub entropy: f32,
    /// Tokens run through the model.
    pub tokens: usize,
}

/// Adds the gradient of the mean negative log-prob of all completion tokens that are scored, `micro_batch_tokens` at a time.
///
/// # Errors
/// As [`Policy::score`].
pub fn gradients(
    policy: &dyn Policy,
    examples: &[Scored<'_>],
    micro_batch_tokens: usize,
    gradients: &mut Gradients,
) -> Result<Supervised> {
    let scored = |one: &Scored<'_>| match one.mask {
        None => one.completion.len(),
        Some(mask) => mask.iter().filter(|mask| **mask != 0).count(),
    };
    let total: usize = examples.iter().map(scored).sum();
    let each = -1.0 / total.max(1) as f32;
    let mut done = Supervised { loss: 0.0, entropy: 0.0, tokens: 0 };
    let mut sums = Vec::new();
    for batch in micro_batches(examples, micro_batch_tokens) {
        let scores = policy.score(batch, &Distribution::default())?;
        let (logprob, entropy) = (scores.logprob, scores.entropy);
        sums.push((ops::sum(&logprob.detach())?, ops::sum(&entropy.detach())?));
        done.tokens += batch.iter().map(Scored::tokens).sum::<usize>();
        if logprob.is_tracked() {
            // A token that is not scored has no row: its gradient goes nowhere.
            let upstream = Tensor::from_f32(vec![each; logprob.len()], logprob.shape())?
                .to_device(&logprob.device())?;
            autograd::backward_from(vec![(logprob, upstream)], gradients)?;
        }
    }
    // Read when everything has been started: a device is waited for once.
    for (logprob, entropy) in sums {
        done.loss += logprob.item()? * each;
        done.entropy -= entropy.item()? * each;
    }
    Ok(done)
}

/// Supervised learning with an optimizer of its own, whose rate rises over the first updates.
pub struct Imitation {
    optimizer: AdamW,
    warmup: u64,
    updates: u64,
}

impl Imitation {
    /// A beginning.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) for settings out of range.
    pub fn new(policy: &dyn Policy, settings: AdamWSettings, warmup: u64) -> Result<Imitation> {
        Ok(Imitation { optimizer: AdamW::new(settings, policy.parameters())?, warmup, updates: 0 })
    }

    /// One update towards the mean log-prob of all completion tokens, the rate multiplied by `factor`. Returns the loss.
    ///
    /// # Errors
    /// As [`gradients`].
    pub fn step(
        &mut self,
        policy: &mut dyn Policy,
        examples: &[Scored<'_>],
        factor: f64,
    ) -> Result<f32> {
        let mut store = Gradients::new();
        let done = gradients(policy, examples, usize::MAX, &mut store)?;
        self.updates += 1;
        let rise = (self.updates as f64 / self.warmup.max(1) as f64).min(1.0);
        self.optimizer.step(policy.parameters_mut(), &store, factor * rise)?;
        Ok(done.loss)
    }
}
