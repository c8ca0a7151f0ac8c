//! A policy that takes the way of log-probs first, beside the decoder in it that goes straight from hidden states.
#![allow(missing_docs)]

use gradstone::Result;
use gradstone::device::Device;
use gradstone::models::Decoder;
use gradstone::nn::Parameters;
use gradstone::rl::episode::{Episode, Scored};
use gradstone::rl::policy::{Policy, Replies, Rows, Scores};
use gradstone::rl::sampling::{Distribution, Sampling};
use std::path::Path;

/// A decoder that tells log-probs and no hidden states.
pub struct Closed(pub Decoder);

impl Policy for Closed {
    fn parameters(&self) -> &Parameters {
        self.0.parameters()
    }
    fn parameters_mut(&mut self) -> &mut Parameters {
        self.0.parameters_mut()
    }
    fn device(&self) -> Device {
        Policy::device(&self.0)
    }
    fn vocab(&self) -> usize {
        Policy::vocab(&self.0)
    }
    fn context(&self) -> usize {
        Policy::context(&self.0)
    }
    fn generate(
        &self,
        prompts: &[Vec<i32>],
        counts: &[usize],
        sampling: &Sampling,
        replies: Option<&dyn Replies>,
    ) -> Result<Vec<Episode>> {
        self.0.generate(prompts, counts, sampling, replies)
    }
    fn score(&self, batch: &[Scored<'_>], drawn: &Distribution) -> Result<Scores> {
        self.0.score(batch, drawn)
    }
    fn rows(&self, _: &[Scored<'_>]) -> Result<Option<Rows>> {
        Ok(None)
    }
    fn width(&self) -> usize {
        self.0.width()
    }
    fn copy(&self) -> Result<Box<dyn Policy>> {
        Policy::copy(&self.0)
    }
    fn save(&self, folder: &Path) -> Result<()> {
        Policy::save(&self.0, folder)
    }
    fn loaded(&self, folder: &Path) -> Result<Box<dyn Policy>> {
        self.0.loaded(folder)
    }
}
