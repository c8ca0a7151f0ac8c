//! What a step of reinforcement leaves behind: its line of `metrics.jsonl`, some of its completions, and what it showed of a run
//! that learns nothing.

use super::advice::Seen;
use super::collect::Collected;
use super::metrics::{Phase, Rollout, StepMetrics};
use super::questions::Questions;
use super::run_dir::Logs;
use super::settings::Settings;
use crate::error::Result;
use crate::kernels::policy_loss::{Metrics, Objective, Surrogate};
use crate::rl::batch::{Advantage, host};
use crate::rl::entropy_control::EntropyState;
use crate::tasks::Faults;
use std::collections::BTreeMap;

/// What the updates of one step gave.
#[derive(Default)]
pub(super) struct Updates {
    pub sums: Option<Metrics>,
    pub mismatch: Option<f32>,
    pub grad_norm: f32,
    pub skipped: u32,
    pub tokens: usize,
    pub value_loss: Option<f64>,
    pub rounds: f64,
}

/// A step that is over, with what the run knows beside it.
pub(super) struct StepLog<'a> {
    pub settings: &'a Settings,
    pub questions: &'a Questions,
    pub entropy: Option<&'a EntropyState>,
    /// The environment replies.
    pub replies: bool,
    pub step: u64,
    pub collected: &'a Collected,
}

impl StepLog<'_> {
    /// The rewards of the episodes that the policy wrote in this step; NaN where there is none.
    pub fn fresh(&self) -> Vec<f32> {
        let batch = &self.collected.batch;
        let own = batch.reward.iter().zip(&batch.replayed).filter(|(_, replayed)| !**replayed);
        own.map(|(reward, _)| *reward).collect()
    }

    /// What the step showed of whether anything is learned.
    pub fn seen(&self, metrics: &StepMetrics) -> Seen {
        let batch = &self.collected.batch;
        let differ = |group: &[i64]| {
            let all = &batch.reward[group[0] as usize..group[1] as usize];
            all.iter().any(|reward| *reward != all[0] && !reward.is_nan())
        };
        let fresh = self.fresh();
        Seen {
            highest: fresh.iter().copied().fold(f32::NAN, f32::max),
            lowest: fresh.iter().copied().fold(f32::NAN, f32::min),
            truncated: f64::from(metrics.more.get("truncated").copied().unwrap_or(0.0)),
            unmixed: !batch.groups.windows(2).any(differ),
        }
    }

    /// The step's line of `metrics.jsonl`: `done` is what its updates gave, `stages` what its stages measured.
    pub fn measured(&self, done: &Updates, stages: &BTreeMap<String, f64>) -> StepMetrics {
        let (collected, fresh) = (self.collected, self.fresh());
        let batch = &collected.batch;
        let mut metrics = StepMetrics::new(self.step, Phase::Rl);
        let scored = fresh.iter().filter(|r| !r.is_nan()).count();
        let sum: f64 = fresh.iter().filter(|r| !r.is_nan()).map(|r| f64::from(*r)).sum();
        metrics.reward = Some((sum / scored.max(1) as f64) as f32);
        metrics.mismatch = done.mismatch;
        metrics.grad_norm = Some(done.grad_norm);
        let own = || batch.episodes.iter().zip(&batch.replayed).filter(|(_, back)| !**back);
        let lengths: usize = own().map(|(one, _)| one.written()).sum();
        metrics.response_length = Some(lengths as f32 / own().count().max(1) as f32);
        metrics.more = stages.iter().map(|(name, value)| (name.clone(), *value as f32)).collect();
        let cut = own().filter(|(one, _)| one.truncated).count();
        let mut note = |name: &str, value: f64| {
            metrics.more.insert(name.to_owned(), value as f32);
        };
        note("truncated", cut as f64 / own().count().max(1) as f64);
        note("groups_drawn", collected.drawn as f64);
        note("skipped_updates", f64::from(done.skipped));
        if self.settings.rollout.dynamic_sampling.is_some() {
            note("step_without_mixed_group", f64::from(u8::from(collected.unmixed)));
        }
        for (fault, count) in collected.faults.iter() {
            note(&format!("verifier_{}", fault.name()), count as f64);
        }
        if let Some(loss) = done.value_loss {
            note("value_loss", loss / done.rounds);
        }
        if let Some(state) = self.entropy {
            note("entropy_coefficient", state.coefficient);
        }
        if let Some(pool) = self.questions.pool() {
            let back = batch.replayed.iter().filter(|back| **back).count();
            note("replayed", back as f64 / batch.replayed.len().max(1) as f64);
            note("pool_problems", pool.len() as f64);
            note("pool_retired", pool.retired() as f64);
            note("only_replayed_groups", collected.only_replayed as f64);
        }
        if self.replies {
            let turns = batch.episodes.iter().map(|one| {
                1 + one.mask.windows(2).filter(|pair| pair[0] != 0 && pair[1] == 0).count()
            });
            note("turns", turns.sum::<usize>() as f64 / batch.episodes.len().max(1) as f64);
        }
        if let Some(sums) = &done.sums {
            note("ratio_max", sums.ratio_max);
            note("ratio_mean", sums.ratio_mean);
            for (name, value) in measured_by(&self.settings.objective, sums) {
                note(name, value);
            }
            metrics.loss = Some((sums.loss / done.rounds) as f32);
            metrics.entropy = Some(sums.entropy as f32);
            let kl = if self.settings.objective.kl.is_some() { sums.kl } else { sums.approx_kl };
            metrics.kl = Some(kl as f32);
            metrics.clip_fraction = Some(sums.clip_fraction as f32);
        }
        metrics
    }

    /// Writes some of the step's completions into `rollouts.jsonl`.
    ///
    /// # Errors
    /// As [`JsonlWriter::write`](super::metrics::JsonlWriter::write), and what a device reports.
    pub fn write(&self, logs: &mut Logs) -> Result<()> {
        let collected = self.collected;
        let batch = &collected.batch;
        let count = batch.episodes.len();
        let per_token = match &batch.advantage {
            Some(Advantage::PerToken(all)) if self.settings.rollout.logged > 0 => host(all)?,
            _ => Vec::new(),
        };
        let advantage = |at: usize| match &batch.advantage {
            Some(Advantage::PerEpisode(all)) => Some(all[at]),
            Some(Advantage::PerToken(_)) if !per_token.is_empty() => {
                let bounds = &batch.offsets()[at..at + 2];
                let own = &per_token[bounds[0] as usize..bounds[1] as usize];
                Some(own.iter().sum::<f32>() / own.len().max(1) as f32)
            }
            _ => None,
        };
        for i in 0..self.settings.rollout.logged.min(count) {
            // One of each group before a second of any.
            let group = self.settings.rollout.group;
            let at = ((i * group) % count + (i * group) / count).min(count - 1);
            let episode = &batch.episodes[at];
            let problem = &collected.problems[episode.prompt];
            logs.rollouts.write(&Rollout {
                step: self.step,
                prompt: problem.prompt().into_owned(),
                completion: collected.texts[at].clone(),
                answer: problem.answer.clone(),
                reward: batch.reward[at],
                advantage: advantage(at),
                tokens: episode.tokens.len(),
                truncated: episode.truncated,
            })?;
        }
        Ok(())
    }
}

/// What verifiers got wrong, in words.
pub(super) fn faults_in_words(faults: &Faults) -> String {
    let all: Vec<String> =
        faults.iter().map(|(fault, count)| format!("{} {count} times", fault.name())).collect();
    if all.is_empty() { "none is finite".to_owned() } else { all.join(", ") }
}

/// What an objective measures beyond the fields that every step has.
fn measured_by<'a>(
    objective: &Objective,
    sums: &'a Metrics,
) -> impl Iterator<Item = (&'static str, f64)> + use<'a> {
    let clips = matches!(objective.surrogate, Surrogate::PpoClip { .. });
    let dual = matches!(objective.surrogate, Surrogate::PpoClip { dual_clip: Some(_), .. });
    [
        ("clip_fraction_high", sums.clip_fraction_high, clips),
        ("clip_fraction_low", sums.clip_fraction_low, clips),
        ("dual_clip_fraction", sums.dual_clip_fraction, dual),
        ("ratio_variance", sums.ratio_variance, true),
        ("absolute_log_ratio", sums.absolute_log_ratio, true),
        ("drift_loss", sums.drift_loss, objective.drift.is_some()),
        ("selected_fraction", sums.selected_fraction, objective.selection.is_some()),
        ("dropped_fraction", sums.dropped_fraction, objective.off_policy_threshold.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, value, wanted)| wanted.then_some((name, value)))
}
