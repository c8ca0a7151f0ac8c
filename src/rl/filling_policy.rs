//! A decoder that fills masked blocks as a policy: any objective that is made of log-probs trains it.

use super::block_decoding::fill;
use super::episode::{Episode, Scored};
use super::filling::Decoding;
use super::masked_policy::{self, Likelihood};
use super::policy::{Policy, Replies, Rows, Scores};
use super::sampling::{Distribution, Sampling};
use super::unmasking::{Confidence, Selection};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::{Causal, Decoder};
use crate::nn::Parameters;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How a model that fills masked blocks writes and is scored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filling {
    /// Which positions are filled in a pass.
    pub selection: Selection,
    /// What positions are ranked by.
    pub confidence: Confidence,
    /// Positions are filled this many at a time from left to right; `None`: a block at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_block: Option<usize>,
    /// What stands for the log-prob of a token.
    pub likelihood: Likelihood,
}

impl Default for Filling {
    fn default() -> Filling {
        Filling {
            selection: Selection::Static { steps: 1 << 20 },
            confidence: Confidence::Probability,
            sub_block: None,
            likelihood: Likelihood::Trajectory,
        }
    }
}

/// A decoder with a mask token, and how it is used.
pub struct FillingPolicy {
    model: Decoder,
    filling: Filling,
    /// The seed of the masks of a score; the old, the current and the reference policy see the same ones.
    seed: u64,
}

impl FillingPolicy {
    /// A policy of a model with a mask token.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] for a model without one, [`Error::is_invalid`] for a selection that does not go with the
    /// confidence.
    pub fn new(model: Decoder, filling: Filling, seed: u64) -> Result<FillingPolicy> {
        model.diffusion()?;
        filling.selection.check(filling.confidence)?;
        Ok(FillingPolicy { model, filling, seed })
    }

    /// The decoder.
    pub fn model(&self) -> &Decoder {
        &self.model
    }

    fn of(&self, model: Decoder) -> Box<dyn Policy> {
        Box::new(FillingPolicy { model, filling: self.filling, seed: self.seed })
    }
}

impl Policy for FillingPolicy {
    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        self.model.parameters_mut()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn vocab(&self) -> usize {
        self.model.config().vocab_size
    }

    fn context(&self) -> usize {
        self.model.config().max_position_embeddings
    }

    fn width(&self) -> usize {
        self.model.head().last_dim()
    }

    fn records_scores(&self) -> bool {
        self.filling.likelihood == Likelihood::Trajectory
    }

    fn generate(
        &self,
        prompts: &[Vec<i32>],
        counts: &[usize],
        sampling: &Sampling,
        replies: Option<&dyn Replies>,
    ) -> Result<Vec<Episode>> {
        if replies.is_some() {
            return Err(Error::unsupported(
                "an environment that replies needs a policy that writes from left to right, and this model fills blocks",
            ));
        }
        if sampling.truncation != Default::default() {
            return Err(Error::unsupported(
                "rollout.top_k and rollout.top_p need a policy that writes from left to right, and this model fills blocks",
            ));
        }
        let decoding = Decoding {
            selection: self.filling.selection,
            confidence: self.filling.confidence,
            sub_block: self.filling.sub_block,
            temperature: sampling.temperature,
            banned: sampling.banned.clone(),
            seed: sampling.seed,
            stream: sampling.stream,
            first_sequence: sampling.first_sequence,
            ..Decoding::greedy(sampling.max_new_tokens, sampling.stop.clone())
        };
        let each = |(p, count): (usize, &usize)| std::iter::repeat_n(p, *count);
        let asked: Vec<usize> = counts.iter().enumerate().flat_map(each).collect();
        let repeated: Vec<Vec<i32>> = asked.iter().map(|p| prompts[*p].clone()).collect();
        let filled = fill(&self.model, &repeated, 1, &decoding)?;
        sampling.activity.advance(filled.len());
        let episode = |((number, one), prompt): ((u64, super::filling::Filled), usize)| Episode {
            prompt,
            number,
            mask: vec![1; one.tokens.len()],
            tokens: one.tokens,
            logprob: one.logprob,
            drawn_logprob: None,
            truncated: one.truncated,
            order: Some(one.order),
        };
        Ok((sampling.first_sequence..).zip(filled).zip(asked).map(episode).collect())
    }

    fn score(&self, batch: &[Scored<'_>], drawn: &Distribution) -> Result<Scores> {
        let Filling { likelihood, .. } = self.filling;
        let (logprob, entropy) =
            masked_policy::logprobs(&self.model, batch, likelihood, drawn.temperature, self.seed)?;
        Ok(Scores { logprob, entropy })
    }

    fn rows(&self, _: &[Scored<'_>]) -> Result<Option<Rows>> {
        Ok(None)
    }

    fn copy(&self) -> Result<Box<dyn Policy>> {
        Ok(self.of(Causal::copy(&self.model)?))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.model.save(folder)
    }

    fn loaded(&self, folder: &Path) -> Result<Box<dyn Policy>> {
        let model = Decoder::load_on(folder, Some(self.model.dtype()), &self.model.device())?;
        Ok(self.of(model))
    }
}
