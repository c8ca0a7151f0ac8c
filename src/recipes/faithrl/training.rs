//! Reinforcement of one arm: rollouts, verdicts, rewards, credit of steps, updates.

use super::evaluation::Counted;
use super::settings::{FaithRlSettings, Reward};
use super::start::{RL_FROM, Start};
use crate::error::{Error, Result};
use crate::kernels::advantage::{self, Estimator, Groups, Singleton};
use crate::kernels::policy_loss::{Advantages, Objective, Surrogate};
use crate::kernels::step_credit::{self, Part, Segment};
use crate::models::Gpt;
use crate::optim::AdamWSettings;
use crate::rl::faithful::{Mapping, Outcome, OutcomeReward};
use crate::rl::guarded::guarded;
use crate::rl::small_policy::{Completion, Drawing, Sequence, completions};
use crate::tasks::two_hop::{self, Problem, Verdict, verdict};
use crate::train::small_learner::{Sample, SmallLearner};

/// A trained policy and what was seen on the way.
pub(super) struct Trained {
    pub model: Gpt,
    /// `(step, share)` of hallucinated rollouts and of unsupported steps, as sampled for training.
    pub hallucinated: Vec<(f64, f64)>,
    pub unsupported: Vec<(f64, f64)>,
    /// Of the tokens whose response has an advantage, the share that the modulation left without.
    pub silenced: f64,
    /// Share of groups in which all rewards are equal.
    pub degenerate: f64,
    /// Rollouts whose verifier failed.
    pub unscored: u64,
}

/// Trains one arm.
pub(super) fn train(settings: &FaithRlSettings, seed: u64, start: &Start) -> Result<Trained> {
    let rl = &settings.rl;
    let optimizer = AdamWSettings {
        learning_rate: rl.learning_rate,
        beta2: 0.99,
        max_grad_norm: rl.max_grad_norm,
        ..AdamWSettings::default()
    };
    let mut learner = SmallLearner::new(start.model.copy()?, optimizer, rl.warmup)?;
    let objective = Objective {
        surrogate: Surrogate::PpoClip {
            clip_low: rl.clip,
            clip_high: rl.clip,
            dual_clip: None,
            delta: None,
        },
        ..Objective::default()
    };
    let reward = match settings.reward {
        Reward::Binary => OutcomeReward::Binary {},
        Reward::Ternary => OutcomeReward::Ternary {},
        Reward::Geometric => OutcomeReward::Geometric { baseline: start.baseline },
    };
    let (mut hallucinated, mut unsupported) = (Vec::new(), Vec::new());
    let (mut silenced, mut heard, mut degenerate, mut groups) = (0u64, 0u64, 0usize, 0usize);
    let mut unscored = 0;
    for step in 0..rl.steps {
        let problems: Vec<Problem> = (0..rl.prompts as u64)
            .map(|i| start.task.problem(seed, RL_FROM + step * rl.prompts as u64 + i))
            .collect();
        let prompts: Vec<&[i32]> = problems.iter().map(|problem| &problem.prompt[..]).collect();
        let drawing = Drawing {
            temperature: 1.0,
            max_new_tokens: two_hop::RESPONSE,
            stop: two_hop::END,
            banned: &[],
            seed,
            first_sequence: step * (rl.prompts * rl.group) as u64,
        };
        let drawn = completions(&learner.model, &prompts, &vec![rl.group; rl.prompts], &drawing)?;
        let of = |i: usize| &problems[i / rl.group];
        let judged: Vec<Option<Verdict>> = drawn
            .iter()
            .enumerate()
            .map(|(i, one)| guarded(|| verdict(of(i), one.own(), one.ended)))
            .collect();
        let mut counted = Counted::default();
        for (i, judged) in judged.iter().enumerate() {
            match judged {
                Some(judged) => counted.add(of(i), judged),
                None => unscored += 1,
            }
        }
        let rates = counted.rates();
        hallucinated.push((step as f64, rates.hallucinated));
        unsupported.push((step as f64, rates.unsupported));

        let rewards: Vec<f32> = judged
            .iter()
            .enumerate()
            .map(|(i, judged)| match judged {
                Some(judged) => {
                    let outcome = outcome(of(i), judged, settings.flagged);
                    reward.reward(outcome, 0.0, Mapping::ByLabel) as f32
                }
                None => f32::NAN,
            })
            .collect();
        let offsets: Vec<i64> = (0..=rl.prompts).map(|i| (i * rl.group) as i64).collect();
        let mut advantages = vec![0f32; rewards.len()];
        let outputs =
            advantage::Outputs { advantage: &mut advantages, mean: None, std: None, flags: None };
        let estimator = match settings.scaled {
            true => Estimator::default(),
            false => Estimator::DrGrpo { singleton: Singleton::Zero },
        };
        let counts = advantage::forward(&estimator, &rewards, Groups::Offsets(&offsets), outputs)?;
        degenerate += counts.degenerate;
        groups += counts.groups;

        let credited = credited(settings, &drawn, &judged, &advantages)?;
        silenced += credited.silenced;
        heard += credited.heard;
        let per_update = (rl.prompts / rl.minibatches.max(1)).max(1) * rl.group;
        let live: Vec<usize> = (0..drawn.len()).filter(|i| judged[*i].is_some()).collect();
        for part in live.chunks(per_update) {
            let samples: Vec<Sample<'_>> = part
                .iter()
                .map(|i| {
                    let one = &drawn[*i];
                    let [first, last] = [credited.offsets[*i], credited.offsets[i + 1]];
                    Sample {
                        sequence: Sequence { tokens: &one.tokens, prompt: one.prompt },
                        old_logprob: &one.logprob,
                        advantage: &credited.advantage[first as usize..last as usize],
                        replayed: false,
                    }
                })
                .collect();
            learner.improve(&samples, &objective, 1.0)?;
        }
    }
    if learner.skipped > 0 {
        return Err(Error::numeric(format!("{} updates were not finite", learner.skipped)));
    }
    Ok(Trained {
        model: learner.model,
        hallucinated,
        unsupported,
        silenced: silenced as f64 / heard.max(1) as f64,
        degenerate: degenerate as f64 / groups.max(1) as f64,
        unscored,
    })
}

/// The label that training sees. It knows the answer key of every prompt, answerable or not, so a lucky guess is correct;
/// only `flagged` tells it which prompts miss a fact.
fn outcome(problem: &Problem, judged: &Verdict, flagged: bool) -> Outcome {
    let refused = judged.outcome == two_hop::Outcome::Refused;
    if flagged && problem.class.is_unanswerable() {
        return if refused { Outcome::Correct } else { Outcome::Hallucinated };
    }
    match judged.outcome {
        two_hop::Outcome::Correct => Outcome::Correct,
        two_hop::Outcome::Refused => Outcome::Refused,
        two_hop::Outcome::Wrong | two_hop::Outcome::Malformed => Outcome::Hallucinated,
    }
}

/// Advantages of tokens.
struct Credited {
    advantage: Vec<f32>,
    offsets: Vec<i64>,
    /// Tokens whose response has an advantage, and those of them left without.
    heard: u64,
    silenced: u64,
}

fn credited(
    settings: &FaithRlSettings,
    drawn: &[Completion],
    judged: &[Option<Verdict>],
    advantages: &[f32],
) -> Result<Credited> {
    let mut offsets = vec![0i64];
    let mut segments = Vec::new();
    for (sequence, (one, judged)) in drawn.iter().zip(judged).enumerate() {
        offsets.push(offsets[sequence] + one.own().len() as i64);
        let Some(judged) = judged else { continue };
        for step in &judged.steps {
            let (start, end, supported) = (step.tokens.start, step.tokens.end, step.supported);
            let number = Part::StepNumber { supported };
            segments.push(Segment { sequence, start, end: start + 1, part: number });
            let words = Part::Step { supported };
            segments.push(Segment { sequence, start: start + 1, end, part: words });
        }
        let (start, end) = (judged.answer.start, judged.answer.end);
        segments.push(Segment { sequence, start, end, part: Part::Answer });
    }
    let tokens = offsets.last().copied().unwrap_or(0) as usize;
    let mut labels = vec![0f32; tokens];
    let spans = settings.labelling.spans(&segments);
    step_credit::paint(&spans, &offsets, step_credit::UNSUPPORTED, &mut labels)?;
    let mask = vec![1u8; tokens];
    let mut advantage = vec![0f32; tokens];
    let counts = step_credit::forward(
        &settings.credit,
        &step_credit::Inputs {
            advantage: Advantages::PerSequence(advantages),
            labels: &labels,
            mask: &mask,
            offsets: &offsets,
        },
        step_credit::Outputs { advantage: &mut advantage, kept: None },
    )?;
    let heard = drawn.iter().zip(advantages).filter(|(_, advantage)| **advantage != 0.0);
    let heard = heard.map(|(one, _)| one.own().len() as u64).sum();
    Ok(Credited { advantage, offsets, heard, silenced: counts.zeroed })
}
