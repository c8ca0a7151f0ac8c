//! The list of stages that the settings of a run mean. The check of the settings and every step execute this one list.

use super::settings::Settings;
use crate::error::{Error, Result};
use crate::kernels::advantage::{Combination, Estimator, Need};
use crate::kernels::policy_loss::Objective;
use crate::kernels::step_credit::Labelling;
use crate::rl::batch::Column;
use crate::rl::critic::Critic;
use crate::rl::faithful::Baseline;
use crate::rl::process_reward::ProcessRewards;
use crate::rl::stage::advantage::Advantages;
use crate::rl::stage::correction::Correction;
use crate::rl::stage::credit::StepCredits;
use crate::rl::stage::logprobs::{OldLogprobs, Reference, SumSquares};
use crate::rl::stage::resample::Choose;
use crate::rl::stage::reward::{Combine, Outcomes, Price, Shape};
use crate::rl::stage::token_reward::TokenRewards;
use crate::rl::stage::{self, Stage};
use crate::tasks::Verifier;

/// What the plan has to know of what the run works on.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub verifier: &'a dyn Verifier,
    /// Sampling records the log-probs that scoring computes.
    pub records_scores: bool,
}

/// True where the estimator compares with a greedy answer.
pub(super) fn wants_greedy(estimator: &Estimator) -> bool {
    estimator.needs().contains(&Need::GreedyRewards)
}

/// The stages of a run, checked. `baseline` is what was measured for a geometric reward that names none.
///
/// # Errors
/// [`Error::is_invalid`] naming a stage and the column that it lacks, or two settings that do not go together.
pub(super) fn stages(
    settings: &Settings,
    known: Known<'_>,
    baseline: Option<Baseline>,
) -> Result<Vec<Box<dyn Stage>>> {
    let functions = known.verifier.rewards();
    let weights = settings.reward.weights_of(&functions)?;
    let mut list: Vec<Box<dyn Stage>> = vec![Box::new(Combine { weights: weights.clone() })];
    if let Some(mut price) = settings.reward.outcome {
        if let Price::Geometric { baseline: rates @ None, .. } = &mut price.reward {
            *rates = baseline;
        }
        list.push(Box::new(Outcomes { price }));
    }
    if settings.reward.cost.is_some() || settings.rollout.overlong.is_some() {
        let (cost, overlong) = (settings.reward.cost, settings.rollout.overlong);
        list.push(Box::new(Shape { cost, overlong }));
    }
    if settings.reward.combination == Combination::NormalizeThenSum
        && settings.rollout.overlong.is_some()
    {
        return Err(Error::invalid(
            "reward.combination = \"normalize-then-sum\" normalises each named reward by itself: it does not go with \
             rollout.overlong, which changes their sum",
        ));
    }
    if settings.replay.as_ref().is_some_and(|replay| replay.enabled)
        && settings.objective.replay.is_none()
    {
        return Err(Error::invalid(
            "replay brings back what an older policy wrote, and the objective has no term for it: take objective = \
             \"exgrpo\", \"exgrpo_balanced\" or \"luffy\", or give objective.replay",
        ));
    }
    let recomputes = settings.update.recompute_old || !known.records_scores;
    if recomputes {
        list.push(Box::new(OldLogprobs));
    }
    let of_loss = settings.objective.kl.is_some()
        || settings
            .replay
            .as_ref()
            .and_then(|replay| replay.objective_before.as_ref())
            .is_some_and(|before| before.kl.is_some());
    if of_loss || settings.reward.kl.is_some() {
        list.push(Box::new(Reference::new(settings.reference)));
    } else if settings.reference.refresh > 0 {
        return Err(Error::invalid(
            "reference.refresh needs something that reads the reference: objective.kl or reward.kl",
        ));
    }
    let token_rewards = Advantages::reads_token_rewards(&settings.advantage)
        || (matches!(settings.advantage, Estimator::ReinforcePlusPlus { .. })
            && (settings.reward.kl.is_some() || settings.reward.shaping.is_some()));
    if token_rewards {
        let labelling = settings.credit.map_or(Labelling::default(), |credit| credit.labelling);
        let stage = TokenRewards::new(settings.reward.kl, settings.reward.shaping, labelling);
        list.push(Box::new(stage));
    } else if settings.reward.kl.is_some() || settings.reward.shaping.is_some() {
        return Err(Error::invalid(format!(
            "reward.kl and reward.shaping are rewards of tokens, which advantage `{}` does not read (gae, \
             reinforce_plus_plus and the optimal token baselines do)",
            settings.advantage.kind()
        )));
    }
    if let Some(critic) = &settings.critic {
        if !matches!(settings.advantage, Estimator::Gae(_)) {
            return Err(Error::invalid(format!(
                "critic gives values, which advantage `{}` does not read (gae does)",
                settings.advantage.kind()
            )));
        }
        list.push(Box::new(Critic::new(critic.clone())));
    }
    if let Some(process) = &settings.process_reward {
        if !matches!(settings.advantage, Estimator::Prime { .. }) {
            return Err(Error::invalid(format!(
                "process_reward gives process rewards, which advantage `{}` does not read (prime does)",
                settings.advantage.kind()
            )));
        }
        list.push(Box::new(ProcessRewards::new(process.clone())));
    }
    if settings.advantage.needs().contains(&Need::Probabilities) {
        list.push(Box::new(SumSquares));
    }
    list.push(Box::new(Advantages::new(settings.advantage, &settings.reward, weights)?));
    let of_tokens = if Advantages::are_of_tokens(&settings.advantage, token_rewards) {
        Some(format!("advantage `{}`", settings.advantage.kind()))
    } else {
        settings.credit.map(|_| "credit".to_owned())
    };
    if let (Some(of_tokens), Some(part)) =
        (of_tokens, settings.objective.one_advantage_a_sequence())
    {
        return Err(Error::invalid(format!(
            "{of_tokens} gives every token an advantage of its own, and the objective's {part} takes one a sequence \
             (importance_level `sequence-token` takes one a token)"
        )));
    }
    if let Some(settings) = settings.credit {
        list.push(Box::new(StepCredits { settings }));
    }
    if let Some(correction) = &settings.correction {
        list.push(Box::new(Correction { correction: correction.named()? }));
    }
    list.push(Box::new(Choose {
        mask_truncated: settings.rollout.mask_truncated,
        resampling: settings.rollout.resampling,
    }));
    stage::check(&list, &given(settings, known), &of_objective(&settings.objective))?;
    Ok(list)
}

/// The columns that are there before the first stage.
fn given(settings: &Settings, known: Known<'_>) -> Vec<Column> {
    let mut given = vec![Column::NamedRewards, Column::SamplerLogprob];
    if known.records_scores {
        given.push(Column::OldLogprob);
    }
    let gives = known.verifier.gives();
    if gives.label {
        given.push(Column::Label);
    }
    if gives.steps {
        given.push(Column::Verdicts);
    }
    if wants_greedy(&settings.advantage) {
        given.push(Column::GreedyReward);
    }
    if settings.replay.as_ref().is_some_and(|replay| replay.enabled) {
        given.push(Column::OffPolicy);
    }
    given
}

/// The columns that an objective reads.
fn of_objective(objective: &Objective) -> Vec<Column> {
    let mut needs = vec![Column::OldLogprob, Column::Advantage];
    if objective.kl.is_some() {
        needs.push(Column::ReferenceLogprob);
    }
    if objective.replay.is_some() {
        needs.push(Column::OffPolicy);
    }
    needs
}
