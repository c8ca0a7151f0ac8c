//! Reinforcement of one arm: which questions are asked and which come back, rollouts, the pool, updates, measurement.

use super::measurement::{Measured, accuracy};
use super::settings::{ExGrpoSettings, ReplaySettings};
use super::start::Start;
use crate::error::Result;
use crate::kernels::advantage::{self, Estimator, Groups, Singleton};
use crate::kernels::policy_loss::{Aggregation, Objective, Replay, ReplayShape, Rows, Surrogate};
use crate::models::Gpt;
use crate::optim::AdamWSettings;
use crate::rl::guarded::guarded_reward;
use crate::rl::replay::{Entry, Pool, PoolLimits, Trajectory, lowest};
use crate::rl::small_policy::{Completion, Drawing, Sequence, completions, logprobs};
use crate::rng;
use crate::tasks::permutation_chain::{PROMPT, RESPONSE};
use crate::tensor::autograd::no_grad;
use crate::train::small_learner::{Sample, SmallLearner};

/// The beta of policy shaping.
const BETA: f32 = 0.1;

/// A question of a batch and what comes back with it.
struct Asked {
    question: usize,
    replayed: Option<Trajectory>,
}

/// Trains one arm and measures it on the way.
pub(super) fn train(settings: &ExGrpoSettings, seed: u64, start: &Start) -> Result<Measured> {
    let optimizer = AdamWSettings {
        learning_rate: settings.learning_rate,
        beta2: 0.99,
        max_grad_norm: settings.max_grad_norm,
        ..AdamWSettings::default()
    };
    let mut run = Run {
        settings,
        start,
        seed,
        learner: SmallLearner::new(start.model.copy()?, optimizer, settings.warmup)?,
        pool: Pool::new(PoolLimits {
            group: settings.group as u32,
            trajectories: settings.kept,
            age: 0,
            retire: settings.retire,
        })?,
        begun: false,
        order: Vec::new(),
        next: 0,
        draws: rng::Sequence::new(seed, rng::Stream::Shuffle, 100),
        drawn: 0,
        measured: Measured::default(),
    };
    run.measure()?;
    let mut next_measurement = settings.measured_every as u64;
    while run.drawn < settings.rollouts as u64 {
        run.step()?;
        if run.drawn >= next_measurement || run.drawn >= settings.rollouts as u64 {
            run.measure()?;
            next_measurement += settings.measured_every as u64;
        }
    }
    run.measured.skipped = run.learner.skipped;
    run.measured.retired = run.pool.retired();
    Ok(run.measured)
}

struct Run<'a> {
    settings: &'a ExGrpoSettings,
    start: &'a Start,
    seed: u64,
    learner: SmallLearner,
    pool: Pool,
    /// Replay has begun.
    begun: bool,
    /// The questions in the order of this epoch.
    order: Vec<usize>,
    next: usize,
    draws: rng::Sequence,
    /// Rollouts generated so far.
    drawn: u64,
    measured: Measured,
}

impl Run<'_> {
    fn measure(&mut self) -> Result<()> {
        let levels = accuracy(&self.learner.model, &self.start.task, self.seed)?;
        self.measured.note(self.drawn, self.measured.updates, levels);
        Ok(())
    }

    /// One batch and one update.
    fn step(&mut self) -> Result<()> {
        let (task, group) = (&self.start.task, self.settings.group);
        let asked = self.ask()?;
        let questions = task.training();
        let prompts: Vec<Vec<i32>> =
            asked.iter().map(|asked| task.prompt(&questions[asked.question])).collect();
        let fresh: Vec<usize> =
            asked.iter().map(|a| group - usize::from(a.replayed.is_some())).collect();
        let drawing = Drawing {
            temperature: 1.0,
            max_new_tokens: RESPONSE,
            stop: task.end(),
            banned: &[task.padding()],
            seed: self.seed,
            first_sequence: self.drawn,
        };
        let slices: Vec<&[i32]> = prompts.iter().map(|prompt| &prompt[..]).collect();
        let drawn = completions(&self.learner.model, &slices, &fresh, &drawing)?;
        self.drawn += drawn.len() as u64;

        let (rows, offsets) = rows(&asked, &prompts, &fresh, drawn);
        let rewards: Vec<f32> = rows
            .iter()
            .map(|row| {
                let question = &questions[asked[row.asked].question];
                guarded_reward(|| f32::from(u8::from(task.is_right(question, row.own()))))
            })
            .collect();
        let mut advantages = vec![0f32; rows.len()];
        let outputs =
            advantage::Outputs { advantage: &mut advantages, mean: None, std: None, flags: None };
        let counts = advantage::forward(
            &Estimator::DrGrpo { singleton: Singleton::Zero },
            &rewards,
            Groups::Offsets(&offsets),
            outputs,
        )?;
        let solved: Vec<bool> = rewards.iter().map(|reward| *reward > 0.5).collect();
        let fresh_rows = || rows.iter().zip(&solved).filter(|(row, _)| !row.replayed);
        let share = fresh_rows().filter(|(_, solved)| **solved).count() as f64
            / fresh_rows().count() as f64;
        let only_replayed = offsets.windows(2).filter(|bounds| {
            let members = bounds[0] as usize..bounds[1] as usize;
            members.clone().any(|i| rows[i].replayed && solved[i])
                && members.clone().all(|i| rows[i].replayed || !solved[i])
        });
        self.measured.only_replayed += only_replayed.count() as u64;
        self.measured.groups += counts.groups as u64;
        self.measured.degenerate += counts.degenerate as u64;
        self.measured.unscored += counts.unscored as u64;

        self.remember(&asked, &rows, &solved, &offsets)?;
        if let Some(replaying) = self.settings.replaying() {
            self.begun |= share > replaying.starts_at;
        }
        if counts.degenerate == counts.groups {
            // Nothing to learn from: the entropy bonus alone, through Adam, would undo what was learned.
            return Ok(());
        }
        let objective = self.objective();
        let per_token: Vec<Vec<f32>> =
            rows.iter().zip(&advantages).map(|(row, a)| vec![*a; row.own().len()]).collect();
        let samples: Vec<Sample<'_>> = rows
            .iter()
            .zip(&per_token)
            .zip(&rewards)
            .filter(|(_, reward)| !reward.is_nan())
            .map(|((row, advantage), _)| Sample {
                sequence: Sequence { tokens: &row.tokens, prompt: PROMPT },
                old_logprob: &row.logprob,
                advantage,
                replayed: row.replayed,
            })
            .collect();
        let metrics = self.learner.improve(&samples, &objective, 1.0)?;
        self.measured.updates += 1;
        self.measured.entropy.push((self.drawn as f64, metrics.entropy));
        let largest = metrics.ratio_max.max(metrics.replay.ratio_max);
        self.measured.largest_ratio = self.measured.largest_ratio.max(largest);
        Ok(())
    }

    /// Questions of the next batch: some from the pool, the others as they come.
    fn ask(&mut self) -> Result<Vec<Asked>> {
        let mut asked = Vec::new();
        if let Some(replaying) = self.settings.replaying().filter(|_| self.begun) {
            let most = (self.settings.prompts as f64 * self.settings.replayed) as usize;
            for question in self.pool.draw(&replaying.law, most, &mut self.draws)? {
                if let Some(entry) = self.pool.entry(question) {
                    let question = question as usize;
                    let chosen = choose(
                        &self.learner.model,
                        &self.start.task.prompt(&self.start.task.training()[question]),
                        entry,
                        replaying.lowest_entropy,
                        &mut self.draws,
                    )?;
                    asked.push(Asked { question, replayed: chosen });
                }
            }
        }
        // What comes back is not asked a second time in a batch. Retired questions fill a batch for which too few are left:
        // smaller batches would be another experiment.
        let all = self.start.task.training().len();
        for retired_too in [false, true] {
            let mut looked_at = 0;
            while asked.len() < self.settings.prompts && looked_at < all {
                if self.next >= self.order.len() {
                    self.order = (0..all).collect();
                    self.draws.shuffle(&mut self.order);
                    self.next = 0;
                }
                let question = self.order[self.next];
                self.next += 1;
                looked_at += 1;
                let twice = asked.iter().any(|one| one.question == question);
                if !twice && (retired_too || !self.pool.is_retired(question as u64)) {
                    asked.push(Asked { question, replayed: None });
                }
            }
        }
        Ok(asked)
    }

    /// What the pool keeps of a batch: successes counted on fresh rollouts alone.
    fn remember(
        &mut self,
        asked: &[Asked],
        rows: &[Row],
        solved: &[bool],
        offsets: &[i64],
    ) -> Result<()> {
        let collects = self.settings.replaying().is_some() && self.begun;
        if !collects && !self.settings.retire {
            return Ok(());
        }
        for (one, bounds) in asked.iter().zip(offsets.windows(2)) {
            let members = bounds[0] as usize..bounds[1] as usize;
            let fresh: Vec<usize> = members.filter(|i| !rows[*i].replayed).collect();
            let successes: Vec<usize> = fresh.iter().copied().filter(|i| solved[*i]).collect();
            if !collects && successes.len() < fresh.len() {
                continue;
            }
            let kept = successes.iter().map(|i| Trajectory {
                tokens: rows[*i].own().to_vec(),
                logprob: rows[*i].logprob.clone(),
                step: self.measured.updates,
            });
            let (question, kept) = (one.question as u64, kept.collect());
            self.pool.record(question, successes.len(), fresh.len(), kept)?;
        }
        Ok(())
    }

    fn objective(&self) -> Objective {
        let replaying = self.settings.replaying().filter(|_| self.begun);
        let clip = self.settings.clip;
        let clipped =
            Surrogate::PpoClip { clip_low: clip, clip_high: clip, dual_clip: None, delta: None };
        let surrogate = match replaying {
            Some(replaying) if !replaying.clipped => Surrogate::Ratio {},
            _ => clipped,
        };
        let shape = |replaying: ReplaySettings| match replaying.shaped {
            true => ReplayShape::Sigmoid { beta: BETA, gain: replaying.gain },
            false => ReplayShape::Plain {},
        };
        Objective {
            surrogate,
            replay: replaying.map(|r| Replay { shape: shape(r), ..Replay::default() }),
            entropy_coefficient: self.settings.entropy_coefficient,
            // Dr.GRPO: a constant length.
            aggregation: Aggregation::SequenceMeanTokenSum {
                rows: Rows::All,
                length: RESPONSE as f32,
            },
            entropy_aggregation: Some(Aggregation::TokenMean {}),
            ..Objective::default()
        }
    }
}

/// A rollout or a replayed trajectory of a batch.
struct Row {
    asked: usize,
    tokens: Vec<i32>,
    logprob: Vec<f32>,
    replayed: bool,
}

impl Row {
    fn own(&self) -> &[i32] {
        self.tokens.get(PROMPT..).unwrap_or_default()
    }
}

/// The rows of a batch, question by question, what comes back first; and where each question's begin.
fn rows(
    asked: &[Asked],
    prompts: &[Vec<i32>],
    fresh: &[usize],
    drawn: Vec<Completion>,
) -> (Vec<Row>, Vec<i64>) {
    let mut drawn = drawn.into_iter();
    let (mut rows, mut offsets) = (Vec::new(), vec![0i64]);
    for (at, one) in asked.iter().enumerate() {
        if let Some(trajectory) = &one.replayed {
            let tokens = [&prompts[at][..], &trajectory.tokens].concat();
            let logprob = trajectory.logprob.clone();
            rows.push(Row { asked: at, tokens, logprob, replayed: true });
        }
        let own = drawn.by_ref().take(fresh[at]);
        rows.extend(own.map(|completion| Row {
            asked: at,
            tokens: completion.tokens,
            logprob: completion.logprob,
            replayed: false,
        }));
        offsets.push(rows.len() as i64);
    }
    (rows, offsets)
}

/// The trajectory of a question that comes back.
fn choose(
    model: &Gpt,
    prompt: &[i32],
    entry: &Entry,
    lowest_entropy: bool,
    draws: &mut rng::Sequence,
) -> Result<Option<Trajectory>> {
    let stored = &entry.trajectories;
    // One draw a question in any case: arms that choose otherwise see the same later draws.
    let random = draws.below(stored.len() as u32) as usize;
    if stored.len() < 2 || !lowest_entropy {
        return Ok(stored.get(random).cloned());
    }
    let sequences: Vec<Vec<i32>> =
        stored.iter().map(|one| [prompt, &one.tokens[..]].concat()).collect();
    let batch: Vec<Sequence<'_>> =
        sequences.iter().map(|tokens| Sequence { tokens, prompt: prompt.len() }).collect();
    let (_, entropy) = no_grad(|| logprobs(model, &batch))?;
    let mut rest = entropy.f32s()?;
    let mut means = Vec::new();
    for one in stored {
        let (own, others) = rest.split_at(one.tokens.len());
        means.push(own.iter().sum::<f32>() / own.len() as f32);
        rest = others;
    }
    Ok(lowest(&means).and_then(|i| stored.get(i)).cloned())
}
