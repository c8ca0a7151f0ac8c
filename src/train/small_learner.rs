//! Training steps of a [`Gpt`]: imitation of worked examples, and policy gradients with an advantage for every token.

use crate::error::{Error, Result};
use crate::kernels::policy_loss::{self, Advantages, Inputs, Metrics, Objective, Totals};
use crate::models::Gpt;
use crate::optim::{AdamW, AdamWSettings};
use crate::rl::small_policy::{Sequence, logprobs};
use crate::tensor::{Gradients, Tensor, autograd};

/// A completion with everything that its gradient needs.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The tokens.
    pub sequence: Sequence<'a>,
    /// The log-prob of each completion token when it was drawn.
    pub old_logprob: &'a [f32],
    /// The advantage of each completion token.
    pub advantage: &'a [f32],
    /// It was drawn by an older policy and comes from a replay pool.
    pub replayed: bool,
}

/// A model in training.
pub struct SmallLearner {
    /// The model.
    pub model: Gpt,
    optimizer: AdamW,
    warmup: u64,
    updates: u64,
    /// Updates that a NaN or infinity in a gradient stopped.
    pub skipped: u64,
}

impl SmallLearner {
    /// A learner whose rate rises over the first `warmup` updates.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for settings out of range.
    pub fn new(model: Gpt, settings: AdamWSettings, warmup: u64) -> Result<SmallLearner> {
        let optimizer = AdamW::new(settings, model.parameters())?;
        Ok(SmallLearner { model, optimizer, warmup, updates: 0, skipped: 0 })
    }

    /// One update towards the mean log-prob of all completion tokens, the rate multiplied by `factor`. Returns the loss.
    ///
    /// # Errors
    /// As [`logprobs`].
    pub fn imitate(&mut self, examples: &[Sequence<'_>], factor: f64) -> Result<f32> {
        let (logprob, _) = logprobs(&self.model, examples)?;
        let each = -1.0 / logprob.len().max(1) as f32;
        let loss = logprob.f32s()?.iter().sum::<f32>() * each;
        let upstream = Tensor::from_f32(vec![each; logprob.len()], logprob.shape())?;
        let mut gradients = Gradients::new();
        autograd::backward_from(vec![(logprob, upstream)], &mut gradients)?;
        self.apply(&gradients, factor)?;
        Ok(loss)
    }

    /// One update by an objective, the rate multiplied by `factor`. No sample: no update.
    ///
    /// # Errors
    /// [`Error::is_shape`] when a sample's lengths differ; as [`logprobs`] and [`policy_loss::forward_backward`].
    pub fn improve(
        &mut self,
        samples: &[Sample<'_>],
        objective: &Objective,
        factor: f64,
    ) -> Result<Metrics> {
        if samples.is_empty() {
            return Ok(Metrics::default());
        }
        let sequences: Vec<Sequence<'_>> = samples.iter().map(|s| s.sequence).collect();
        let (logprob, entropy) = logprobs(&self.model, &sequences)?;
        let mut offsets = vec![0i64];
        let (mut old_logprob, mut advantage) = (Vec::new(), Vec::new());
        let mut off_policy = Vec::new();
        for sample in samples {
            let own = sample.sequence.tokens.len() - sample.sequence.prompt;
            if [sample.old_logprob.len(), sample.advantage.len()] != [own, own] {
                return Err(Error::shape(format!(
                    "a completion of {own} tokens with {} log-probs and {} advantages",
                    sample.old_logprob.len(),
                    sample.advantage.len()
                )));
            }
            old_logprob.extend_from_slice(sample.old_logprob);
            advantage.extend_from_slice(sample.advantage);
            off_policy.resize(old_logprob.len(), u8::from(sample.replayed));
            offsets.push(old_logprob.len() as i64);
        }
        let mask = vec![1u8; logprob.len()];
        let mut dlogprob = vec![0f32; logprob.len()];
        let mut dentropy = vec![0f32; logprob.len()];
        let metrics = policy_loss::forward_backward(
            objective,
            &Inputs {
                logprob: logprob.f32s()?,
                old_logprob: &old_logprob,
                advantage: Advantages::PerToken(&advantage),
                mask: &mask,
                offsets: &offsets,
                reference_logprob: None,
                entropy: Some(entropy.f32s()?),
                weight: None,
                sampler_logprob: None,
                off_policy: objective.replay.is_some().then_some(&off_policy[..]),
                selected: None,
                totals: Totals::default(),
            },
            policy_loss::Gradients { logprob: &mut dlogprob, entropy: Some(&mut dentropy) },
        )?;
        let shape = logprob.shape().to_vec();
        let mut roots = vec![(logprob, Tensor::from_f32(dlogprob, &shape)?)];
        if objective.entropy_coefficient != 0.0 {
            roots.push((entropy, Tensor::from_f32(dentropy, &shape)?));
        }
        let mut gradients = Gradients::new();
        autograd::backward_from(roots, &mut gradients)?;
        self.apply(&gradients, factor)?;
        Ok(metrics)
    }

    fn apply(&mut self, gradients: &Gradients, factor: f64) -> Result<()> {
        self.updates += 1;
        let rise = (self.updates as f64 / self.warmup.max(1) as f64).min(1.0);
        let done = self.optimizer.step(self.model.parameters_mut(), gradients, factor * rise)?;
        self.skipped += u64::from(done.skipped.is_some());
        Ok(())
    }
}
