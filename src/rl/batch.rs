//! One step's episodes with everything that is known about them, column by column: what travels from a reward to a loss.
//!
//! A [`Batch`] holds episodes in groups (a group answers one prompt) and columns. A column of episodes has one number per
//! episode, on the host. A column of tokens has one per token after the prompts, the episodes one behind the other, and
//! lives where the policy lives. A [`Stage`](super::stage::Stage) reads some columns and gives others; the learner cuts the
//! batch into micro-batches.

use super::episode::{Episode, Scored};
use super::sampling::Distribution;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops;
use crate::tasks::Label;
use crate::tensor::autograd::no_grad;
use crate::tensor::{Storage, Tensor};
use std::fmt;

/// The columns that stages give each other, for checking a list of stages before a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Column {
    /// Rewards of several functions, by name, per episode.
    NamedRewards,
    /// One reward per episode.
    Reward,
    /// What became of each episode: right, wrong, refused.
    Label,
    /// Verdicts about the steps of each episode.
    Verdicts,
    /// The reward of a greedy answer to each episode's prompt.
    GreedyReward,
    /// The log-prob of each token under the distribution that it was drawn from.
    SamplerLogprob,
    /// The log-prob of each token under the policy before the step's first update.
    OldLogprob,
    /// The log-prob of each token under the reference policy.
    ReferenceLogprob,
    /// The sum of the squared probabilities of the vocabulary at each token.
    SumSquares,
    /// A reward per token.
    TokenReward,
    /// An implicit process reward per token.
    ProcessReward,
    /// A critic's value of each token.
    Value,
    /// What the critic learns, per token.
    Return,
    /// The advantage, per episode or per token.
    Advantage,
    /// Which tokens another policy wrote and replay brought back.
    OffPolicy,
    /// An importance weight per token.
    Weight,
}

impl Column {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Column::NamedRewards => "named rewards",
            Column::Reward => "reward",
            Column::Label => "outcome label",
            Column::Verdicts => "step verdicts",
            Column::GreedyReward => "reward of greedy responses",
            Column::SamplerLogprob => "sampler log-prob",
            Column::OldLogprob => "old log-prob",
            Column::ReferenceLogprob => "reference log-prob",
            Column::SumSquares => "sum of squared probabilities",
            Column::TokenReward => "token reward",
            Column::ProcessReward => "process reward",
            Column::Value => "value",
            Column::Return => "return",
            Column::Advantage => "advantage",
            Column::OffPolicy => "off-policy mark",
            Column::Weight => "importance weight",
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Advantages: one per episode, or one per token.
#[derive(Clone)]
pub enum Advantage {
    /// `[episodes]`, the same for each token of an episode.
    PerEpisode(Vec<f32>),
    /// f32 `[tokens]`.
    PerToken(Tensor),
}

/// Verdicts about the parts of one episode, as ranges of its tokens.
pub type Verdicts = Vec<(std::ops::Range<usize>, crate::kernels::step_credit::Part)>;

/// One step's episodes and their columns.
pub struct Batch {
    /// `[groups]` token ids of each prompt.
    pub prompts: Vec<Vec<i32>>,
    /// The episodes, group by group. [`Episode::prompt`] is the group.
    pub episodes: Vec<Episode>,
    /// `[groups + 1]`: group g is the episodes `groups[g]..groups[g + 1]`.
    pub groups: Vec<i64>,
    /// What the log-probs are of.
    pub drawn: Distribution,
    /// `[episodes + 1]`: the tokens of episode i are `offsets[i]..offsets[i + 1]` of a column.
    offsets: Vec<i64>,
    device: Device,
    /// `[functions]` names of the reward functions.
    pub reward_names: Vec<String>,
    /// `[episodes, functions]`; NaN: not scored by that function.
    pub named_rewards: Vec<f32>,
    /// `[episodes]` the reward as the logs have it; NaN: not scored.
    pub reward: Vec<f32>,
    /// `[episodes]` the reward that the estimator sees: less what length and cost take off.
    pub shaped_reward: Vec<f32>,
    /// `[episodes]`; `None`: not judged.
    pub label: Option<Vec<Option<Label>>>,
    /// `[episodes]`; `None`: nobody judged the steps of that episode.
    pub verdicts: Option<Vec<Option<Verdicts>>>,
    /// `[episodes]` the reward of a greedy answer to the same prompt; NaN: not scored.
    pub greedy_reward: Option<Vec<f32>>,
    /// `[episodes]`: the episode comes from the replay pool.
    pub replayed: Vec<bool>,
    /// u8 `[tokens]`: 1 where the token counts.
    mask: Tensor,
    /// `[episodes]` tokens that count.
    live: Vec<i64>,
    /// f32 `[tokens]`.
    pub old_logprob: Tensor,
    /// f32 `[tokens]`; `None`: the sampler's log-probs are the old ones.
    pub sampler_logprob: Option<Tensor>,
    /// f32 `[tokens]`.
    pub reference_logprob: Option<Tensor>,
    /// f32 `[tokens]`.
    pub sum_squares: Option<Tensor>,
    /// f32 `[tokens]`.
    pub token_reward: Option<Tensor>,
    /// f32 `[tokens]`.
    pub process_reward: Option<Tensor>,
    /// f32 `[tokens]`.
    pub value: Option<Tensor>,
    /// f32 `[tokens]`.
    pub returns: Option<Tensor>,
    /// The advantages.
    pub advantage: Option<Advantage>,
    /// Which episodes the policy is trained on, in which order. An episode may occur more than once.
    pub members: Vec<usize>,
    /// f32 `[tokens]`.
    pub weight: Option<Tensor>,
}

impl Batch {
    /// A batch of episodes in groups, with the columns that sampling gives: mask, old and sampler log-probs.
    ///
    /// # Errors
    /// [`Error::is_shape`] when groups do not cover the episodes, or an episode has not a mask and a log-prob per token, and
    /// what the device reports.
    pub fn new(
        prompts: Vec<Vec<i32>>,
        mut episodes: Vec<Episode>,
        groups: Vec<i64>,
        drawn: Distribution,
        device: &Device,
    ) -> Result<Batch> {
        let covered = groups.first() == Some(&0)
            && groups.last() == Some(&(episodes.len() as i64))
            && groups.windows(2).all(|pair| pair[0] <= pair[1])
            && groups.len() == prompts.len() + 1;
        if !covered {
            return Err(Error::shape(format!(
                "batch: group offsets {groups:?} for {} prompts and {} episodes",
                prompts.len(),
                episodes.len()
            )));
        }
        for (group, bounds) in groups.windows(2).enumerate() {
            for episode in &mut episodes[bounds[0] as usize..bounds[1] as usize] {
                episode.prompt = group;
            }
        }
        let mut offsets = vec![0i64];
        let (mut mask, mut logprob, mut sampler) = (Vec::new(), Vec::new(), Vec::new());
        let mut cut = false;
        for (i, episode) in episodes.iter().enumerate() {
            let tokens = episode.tokens.len();
            let drawn = episode.drawn_logprob.as_ref().unwrap_or(&episode.logprob);
            if [episode.mask.len(), episode.logprob.len(), drawn.len()] != [tokens; 3] {
                return Err(Error::shape(format!(
                    "batch: episode {i} of {tokens} tokens has {} mask bytes, {} log-probs and {} of the sampler",
                    episode.mask.len(),
                    episode.logprob.len(),
                    drawn.len()
                )));
            }
            mask.extend_from_slice(&episode.mask);
            logprob.extend_from_slice(&episode.logprob);
            sampler.extend_from_slice(drawn);
            cut |= episode.drawn_logprob.is_some();
            offsets.push(mask.len() as i64);
        }
        let count = episodes.len();
        let live = live_tokens(&mask, &offsets);
        let sampler_logprob = if cut { Some(floats(sampler, device)?) } else { None };
        Ok(Batch {
            replayed: vec![false; count],
            prompts,
            episodes,
            groups,
            drawn,
            mask: bytes(mask, device)?,
            live,
            old_logprob: floats(logprob, device)?,
            sampler_logprob,
            offsets,
            device: device.clone(),
            reward_names: Vec::new(),
            named_rewards: Vec::new(),
            reward: Vec::new(),
            shaped_reward: Vec::new(),
            label: None,
            verdicts: None,
            greedy_reward: None,
            reference_logprob: None,
            sum_squares: None,
            token_reward: None,
            process_reward: None,
            value: None,
            returns: None,
            advantage: None,
            members: (0..count).collect(),
            weight: None,
        })
    }

    /// Where the columns of tokens are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `[episodes + 1]`: the tokens of episode i are `offsets()[i]..offsets()[i + 1]` of a column.
    pub fn offsets(&self) -> &[i64] {
        &self.offsets
    }

    /// Tokens of all episodes.
    pub fn tokens(&self) -> usize {
        self.offsets.last().map_or(0, |last| *last as usize)
    }

    /// `[episodes]` tokens that the policy wrote.
    pub fn lengths(&self) -> Vec<i64> {
        self.episodes.iter().map(|episode| episode.written() as i64).collect()
    }

    /// Episode `i` as a policy scores it.
    pub fn scored(&self, i: usize) -> Scored<'_> {
        let episode = &self.episodes[i];
        episode.scored(&self.prompts[episode.prompt])
    }

    /// A column of tokens from host memory, where the batch is.
    ///
    /// # Errors
    /// [`Error::is_shape`] unless there is a number per token, and what the device reports.
    pub fn column(&self, values: Vec<f32>) -> Result<Tensor> {
        if values.len() != self.tokens() {
            let (got, want) = (values.len(), self.tokens());
            return Err(Error::shape(format!(
                "batch: a column of {got} numbers for {want} tokens"
            )));
        }
        floats(values, &self.device)
    }

    /// u8 `[tokens]`: 1 where the token counts, where the batch is.
    pub fn mask(&self) -> &Tensor {
        &self.mask
    }

    /// `[episodes]` tokens that count.
    pub fn live(&self) -> &[i64] {
        &self.live
    }

    /// The mask on the host.
    ///
    /// # Errors
    /// What the device reports.
    pub fn host_mask(&self) -> Result<Vec<u8>> {
        Ok(self.mask.to_device(&Device::Cpu)?.bytes()?.to_vec())
    }

    /// Replaces the mask; a stage that rejects tokens takes them out here.
    ///
    /// # Errors
    /// [`Error::is_shape`] unless there is a byte per token, and what the device reports.
    pub fn set_mask(&mut self, mask: Vec<u8>) -> Result<()> {
        if mask.len() != self.tokens() {
            let (got, want) = (mask.len(), self.tokens());
            return Err(Error::shape(format!("batch: a mask of {got} bytes for {want} tokens")));
        }
        self.live = live_tokens(&mask, &self.offsets);
        self.mask = bytes(mask, &self.device)?;
        Ok(())
    }

    /// Advantages of tokens on the host; those of episodes are repeated for each of their tokens.
    ///
    /// # Errors
    /// [`Error::is_state`] before the advantages are known, and what the device reports.
    pub fn advantage_of_tokens(&self) -> Result<Vec<f32>> {
        match &self.advantage {
            None => Err(missing(Column::Advantage)),
            Some(Advantage::PerToken(all)) => host(all),
            Some(Advantage::PerEpisode(all)) => {
                let each = |(advantage, bounds): (&f32, &[i64])| {
                    std::iter::repeat_n(*advantage, (bounds[1] - bounds[0]) as usize)
                };
                Ok(all.iter().zip(self.offsets.windows(2)).flat_map(each).collect())
            }
        }
    }

    /// The tokens of some episodes, in their order, out of a column.
    ///
    /// # Errors
    /// What the device reports.
    pub fn part(&self, column: &Tensor, members: &[usize]) -> Result<Tensor> {
        let range = |i: usize| self.offsets[i] as usize..self.offsets[i + 1] as usize;
        let following = members.windows(2).all(|pair| pair[1] == pair[0] + 1);
        match (members.first(), members.last()) {
            (Some(first), Some(last)) if following => {
                column.rows(range(*first).start..range(*last).end)
            }
            (Some(_), Some(_)) => {
                let parts: Vec<Tensor> =
                    members.iter().map(|i| column.rows(range(*i))).collect::<Result<_>>()?;
                no_grad(|| ops::concat(&parts.iter().collect::<Vec<_>>()))
            }
            _ => column.rows(0..0),
        }
    }
}

/// The error of a stage that reads a column which nothing has given.
pub(crate) fn missing(column: Column) -> Error {
    Error::state(format!("the batch has no {column}: no stage before this one gives it"))
}

/// A column on the host.
///
/// # Errors
/// What the device reports.
pub fn host(column: &Tensor) -> Result<Vec<f32>> {
    Ok(column.to_device(&Device::Cpu)?.f32s()?.to_vec())
}

fn live_tokens(mask: &[u8], offsets: &[i64]) -> Vec<i64> {
    let live = |bounds: &[i64]| {
        mask[bounds[0] as usize..bounds[1] as usize].iter().filter(|m| **m != 0).count() as i64
    };
    offsets.windows(2).map(live).collect()
}

fn floats(values: Vec<f32>, device: &Device) -> Result<Tensor> {
    let shape = [values.len()];
    Tensor::from_f32(values, &shape)?.to_device(device)
}

fn bytes(values: Vec<u8>, device: &Device) -> Result<Tensor> {
    let shape = [values.len()];
    Tensor::new(Storage::U8(values.into()), &shape)?.to_device(device)
}
