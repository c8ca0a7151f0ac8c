//! Which episodes the policy is trained on: without those that could not be scored, without truncated ones where that is
//! wished, and drawn again by their scores (PF-PPO).

use super::{Stage, Step};
use crate::error::Result;
use crate::rl::batch::{Batch, Column};
use crate::rl::resampling::Resampling;
use crate::rng::{Sequence, Stream};

/// Leaves out what teaches nothing, and resamples.
pub struct Choose {
    /// Episodes that were cut at the limit count in their group's statistics and not in the loss.
    pub mask_truncated: bool,
    /// The batch is drawn again from itself.
    pub resampling: Option<Resampling>,
}

/// Draws of this stage follow this number, so that no other shuffle of the seed has the same.
const DRAWS: u64 = 0x5265_7361_6d70_6c65;

impl Stage for Choose {
    fn name(&self) -> String {
        "rollout.resampling".into()
    }

    fn needs(&self) -> Vec<Column> {
        vec![Column::Reward]
    }

    fn gives(&self) -> Vec<Column> {
        Vec::new()
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        // What could not be scored teaches nothing: neither the objective nor a penalty sees it.
        batch.members = (0..batch.episodes.len())
            .filter(|i| !batch.reward[*i].is_nan())
            .filter(|i| !(self.mask_truncated && batch.episodes[*i].truncated))
            .collect();
        if let Some(resampling) = &self.resampling
            && !batch.members.is_empty()
        {
            let scores: Vec<f32> = batch.members.iter().map(|i| batch.shaped_reward[*i]).collect();
            let mut draws = Sequence::new(step.seed, Stream::Shuffle, DRAWS ^ step.number);
            let drawn = resampling.draw(&scores, batch.members.len(), &mut draws)?;
            let mut kept = drawn.clone();
            kept.sort_unstable();
            kept.dedup();
            step.note("resampled_share", kept.len() as f64 / batch.members.len() as f64);
            batch.members = drawn.into_iter().map(|i| batch.members[i]).collect();
        }
        Ok(())
    }
}
