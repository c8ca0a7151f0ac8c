//! Advantages by any estimator, from the columns that it needs.

use super::reward::RewardSettings;
use super::{Stage, Step};
use crate::error::{Error, Result};
use crate::kernels::advantage::{
    self, Combination, Counts, Estimator, Groups, Holes, Masked, Need, Outputs, Prime, Responses,
    SeveralRewards, TokenBaseline, TokenOutputs, Tokens,
};
use crate::rl::batch::{Advantage, Batch, Column, host, missing};
use crate::tensor::Tensor;

/// Gives the advantages.
pub struct Advantages {
    estimator: Estimator,
    combination: Combination,
    /// `[functions]` weights, for rewards that are normalised one by one.
    weights: Vec<f64>,
}

impl Advantages {
    /// Advantages by `estimator`; `weights` are those of the reward functions.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for an option out of range, or an estimator that does not go with the combination.
    pub fn new(
        estimator: Estimator,
        reward: &RewardSettings,
        weights: Vec<f64>,
    ) -> Result<Advantages> {
        estimator.check()?;
        if reward.combination == Combination::NormalizeThenSum {
            if !matches!(estimator, Estimator::Grpo { .. }) {
                return Err(Error::invalid(format!(
                    "reward.combination = \"normalize-then-sum\" and advantage `{}` do not go together: it is made of \
                     z-scores (`grpo`)",
                    estimator.kind()
                )));
            }
            if reward.outcome.is_some() || reward.cost.is_some() {
                return Err(Error::invalid(
                    "reward.combination = \"normalize-then-sum\" normalises each named reward by itself: it does not go \
                     with reward.outcome or reward.cost, which change their sum",
                ));
            }
        }
        Ok(Advantages { estimator, combination: reward.combination, weights })
    }

    /// True when the estimator reads a reward per token.
    pub fn reads_token_rewards(estimator: &Estimator) -> bool {
        estimator.needs().contains(&Need::TokenRewards)
    }
}

/// The column behind what an estimator says that it needs.
fn column(need: Need) -> Option<Column> {
    match need {
        Need::Lengths => None,
        Need::GreedyRewards => Some(Column::GreedyReward),
        Need::TokenRewards => Some(Column::TokenReward),
        Need::Values => Some(Column::Value),
        Need::Probabilities => Some(Column::SumSquares),
        Need::ProcessRewards => Some(Column::ProcessReward),
    }
}

impl Stage for Advantages {
    fn name(&self) -> String {
        format!("advantage (`{}`)", self.estimator.kind())
    }

    fn needs(&self) -> Vec<Column> {
        let mut needs = vec![match self.combination {
            Combination::SumThenNormalize => Column::Reward,
            Combination::NormalizeThenSum => Column::NamedRewards,
        }];
        needs.extend(self.estimator.needs().iter().filter_map(|need| column(*need)));
        needs
    }

    fn gives(&self) -> Vec<Column> {
        let mut gives = vec![Column::Advantage];
        if matches!(self.estimator, Estimator::Gae(_)) {
            gives.push(Column::Return);
        }
        gives
    }

    fn run(&mut self, batch: &mut Batch, step: &mut Step<'_>) -> Result<()> {
        let counts = if Self::are_of_tokens(&self.estimator, batch.token_reward.is_some()) {
            self.of_tokens(batch)?;
            counted(batch)
        } else {
            self.of_episodes(batch)?
        };
        let groups = counts.groups.max(1) as f64;
        step.note("zero_advantage_groups", counts.degenerate as f64 / groups);
        step.note("unscored", counts.unscored as f64);
        Ok(())
    }
}

impl Advantages {
    /// The estimator gives an advantage per token. `rewarded`: tokens have rewards of their own.
    pub fn are_of_tokens(estimator: &Estimator, rewarded: bool) -> bool {
        match estimator {
            Estimator::Gae(_)
            | Estimator::OptimalTokenBaseline { .. }
            | Estimator::Prime { .. } => true,
            Estimator::ReinforcePlusPlus { gamma, .. } => *gamma != 1.0 || rewarded,
            _ => false,
        }
    }

    fn of_episodes(&self, batch: &mut Batch) -> Result<Counts> {
        let mut all = vec![0f32; batch.episodes.len()];
        let outputs = Outputs { advantage: &mut all, mean: None, std: None, flags: None };
        let groups = Groups::Offsets(&batch.groups);
        let counts = if self.combination == Combination::NormalizeThenSum {
            let of =
                SeveralRewards { rewards: &batch.named_rewards, weights: &self.weights, groups };
            advantage::several_rewards(&self.estimator, self.combination, &of, outputs)?.counts
        } else {
            let lengths = batch.lengths();
            let responses = Responses {
                lengths: Some(&lengths),
                greedy: batch.greedy_reward.as_deref(),
                ..Responses::new(&batch.shaped_reward, groups)
            };
            advantage::of_responses(&self.estimator, &responses, outputs)?
        };
        batch.advantage = Some(Advantage::PerEpisode(all));
        Ok(counts)
    }

    fn of_tokens(&self, batch: &mut Batch) -> Result<()> {
        let mask = batch.host_mask()?;
        let tokens = Tokens { mask: &mask, offsets: batch.offsets() };
        let groups = Groups::Offsets(&batch.groups);
        let read = |column: &Option<Tensor>, name: Column| -> Result<Vec<f32>> {
            host(column.as_ref().ok_or_else(|| missing(name))?)
        };
        let mut advantages = vec![0f32; batch.tokens()];
        let mut returns = None;
        match &self.estimator {
            Estimator::Gae(gae) => {
                let rewards = read(&batch.token_reward, Column::TokenReward)?;
                let values = read(&batch.value, Column::Value)?;
                let mut learned = vec![0f32; rewards.len()];
                let out = TokenOutputs { advantage: &mut advantages, returns: Some(&mut learned) };
                advantage::gae(gae, &rewards, &values, tokens, out)?;
                returns = Some(batch.column(learned)?);
            }
            Estimator::ReinforcePlusPlus { .. } => {
                let rewards = read(&batch.token_reward, Column::TokenReward)?;
                let out = TokenOutputs { advantage: &mut advantages, returns: None };
                let of = &self.estimator;
                advantage::reinforce_plus_plus(of, Holes::Pass, &rewards, tokens, out)?;
            }
            Estimator::OptimalTokenBaseline { .. } => {
                let rewards = read(&batch.token_reward, Column::TokenReward)?;
                let logprob = host(&batch.old_logprob)?;
                let sum_squares = read(&batch.sum_squares, Column::SumSquares)?;
                let weight = batch.weight.as_ref().map(host).transpose()?;
                let of = TokenBaseline {
                    rewards: &rewards,
                    logprob: &logprob,
                    sum_squares: &sum_squares,
                    weight: weight.as_deref(),
                };
                let out = TokenOutputs { advantage: &mut advantages, returns: None };
                let estimator = &self.estimator;
                advantage::token_baseline(estimator, &of, tokens, groups, Masked::Zero, out)?;
            }
            Estimator::Prime { gamma } => {
                let process = read(&batch.process_reward, Column::ProcessReward)?;
                let of = Prime { outcome: &batch.shaped_reward, process: &process, gamma: *gamma };
                advantage::prime(&of, tokens, groups, &mut advantages)?;
            }
            other => {
                return Err(Error::state(format!("`{}` has no advantage per token", other.kind())));
            }
        }
        batch.returns = returns;
        batch.advantage = Some(Advantage::PerToken(batch.column(advantages)?));
        Ok(())
    }
}

/// Groups, those without two different rewards, and episodes without a reward.
pub fn counted(batch: &Batch) -> Counts {
    let mut counts = Counts::default();
    for bounds in batch.groups.windows(2).filter(|bounds| bounds[0] < bounds[1]) {
        let own = &batch.shaped_reward[bounds[0] as usize..bounds[1] as usize];
        let mut scored = own.iter().filter(|reward| !reward.is_nan());
        let equal = scored.next().is_none_or(|first| scored.all(|reward| reward == first));
        counts.groups += 1;
        counts.degenerate += usize::from(equal);
        counts.unscored += own.iter().filter(|reward| reward.is_nan()).count();
    }
    counts
}
