//! Which problems a step asks: in the task's order or in epochs of the run's own, some of them with a past success that
//! comes back.

use super::world::World;
use crate::error::{Error, Result};
use crate::kernels::policy_loss::Objective;
use crate::rl::batch::host;
use crate::rl::episode::{Episode, Scored};
use crate::rl::policy::Policy;
use crate::rl::replay::{Entry, Pool, PoolFile, ReplaySettings, Trajectory, lowest};
use crate::rl::sampling::Distribution;
use crate::rng::{Sequence, Stream};
use crate::tasks::Problem;
use crate::tensor::autograd::no_grad;
use crate::train::settings::Order;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A problem of a batch and what comes back with it.
pub(super) struct Asked {
    pub problem: Problem,
    pub replayed: Option<Trajectory>,
}

/// Where the source of problems stands; a checkpoint holds it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// Problems asked in the task's order: the number of the next one.
    pub problem: u64,
    /// The problems of this epoch, where the run draws the order.
    pub order: Vec<u64>,
    /// The next of them.
    pub next: usize,
    /// Numbers drawn so far for orders and for what comes back.
    pub drawn: u64,
    /// Replay has begun.
    pub begun: bool,
}

/// Draws of orders and replay follow this number of the seed's shuffles.
const DRAWS: u64 = 100;

/// Problems that are looked at for one that may be asked, where a task draws them without end.
const MOST_LOOKED_AT: u64 = 100_000;

/// The file of the pool in a checkpoint.
const POOL: &str = "replay_pool.jsonl";

/// The source of problems.
pub(super) struct Questions {
    seed: u64,
    group: usize,
    order: Order,
    replay: Option<ReplaySettings>,
    pool: Option<Pool>,
    draws: Sequence,
    pub cursor: Cursor,
}

impl Questions {
    /// A source at its beginning, with the pool that the settings name.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for an order that the task does not have, or a pool that does not fit the task or the
    /// vocabulary; what is wrong with the pool's file.
    pub fn new(
        seed: u64,
        group: usize,
        order: Order,
        replay: Option<ReplaySettings>,
        world: &World,
        vocab: usize,
    ) -> Result<Questions> {
        if order == Order::Epochs && world.task.size().is_none() {
            return Err(Error::invalid(format!(
                "rollout.order = \"epochs\" needs a task with a fixed set of problems, and {} draws them without end",
                world.task.name()
            )));
        }
        let pool = match &replay {
            None => None,
            Some(replay) => Some(match &replay.pool {
                None => Pool::new(replay.limits(group))?,
                Some(path) if !path.exists() => {
                    return Err(Error::invalid(format!(
                        "replay.pool: there is no {}",
                        path.display()
                    )));
                }
                Some(path) => {
                    let pool = PoolFile::open(path, replay.limits(group))?.pool;
                    fits(&pool, world, seed, vocab).map_err(|e| e.at(path.display()))?;
                    pool
                }
            }),
        };
        let draws = Sequence::new(seed, Stream::Shuffle, DRAWS);
        Ok(Questions { seed, group, order, replay, pool, draws, cursor: Cursor::default() })
    }

    /// The source as it was when a checkpoint was written.
    pub fn resume(&mut self, cursor: Cursor, folder: &Path) -> Result<()> {
        self.draws = Sequence::at(self.seed, Stream::Shuffle, DRAWS, cursor.drawn);
        self.cursor = cursor;
        if let Some(replay) = &self.replay {
            let path = folder.join(POOL);
            if !path.exists() {
                return Err(Error::format(format!("{} is missing", path.display())));
            }
            self.pool = Some(PoolFile::open(&path, replay.limits(self.group))?.pool);
        }
        Ok(())
    }

    /// Writes the pool into a checkpoint.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let (Some(pool), Some(replay)) = (&self.pool, &self.replay) else { return Ok(()) };
        let mut file = PoolFile::open(&folder.join(POOL), replay.limits(self.group))?;
        file.pool = pool.clone();
        file.save()
    }

    /// Where it stands.
    pub fn cursor(&self) -> Cursor {
        Cursor { drawn: self.draws.position(), ..self.cursor.clone() }
    }

    /// True once past successes come back.
    pub fn replays(&self) -> bool {
        self.cursor.begun && self.replay.as_ref().is_some_and(|replay| replay.enabled)
    }

    /// The pool, where there is one.
    pub fn pool(&self) -> Option<&Pool> {
        self.pool.as_ref()
    }

    /// The objective of now: without its replay term until replay begins.
    pub fn objective(&self, objective: &Objective) -> Objective {
        match &self.replay {
            Some(_) if self.replays() => objective.clone(),
            Some(replay) => match &replay.objective_before {
                Some(before) => before.clone(),
                None => Objective { replay: None, ..objective.clone() },
            },
            None => objective.clone(),
        }
    }

    /// The next `count` problems: some from the pool, the others as they come.
    pub fn ask(
        &mut self,
        count: usize,
        batch: usize,
        world: &World,
        policy: &dyn Policy,
        drawn: &Distribution,
    ) -> Result<Vec<Asked>> {
        let mut asked = Vec::new();
        if let (Some(replay), Some(pool), true) =
            (self.replay.clone(), self.pool.as_ref(), self.replays())
        {
            let most = ((batch as f64 * replay.share) as usize).min(count);
            for question in pool.draw(&replay.law, most, &mut self.draws)? {
                let (Some(entry), Some(problem)) =
                    (pool.entry(question), world.task.by_id(self.seed, question))
                else {
                    continue;
                };
                let prompt = world.prompt(&problem)?;
                let by_entropy = replay.lowest_entropy;
                let replayed = choose(policy, &prompt, entry, by_entropy, drawn, &mut self.draws)?;
                asked.push(Asked { problem, replayed });
            }
        }
        match (self.order, world.task.size()) {
            (Order::Epochs, Some(size)) => self.in_epochs(count, size, world, &mut asked),
            _ => self.in_order(count, world, &mut asked),
        }
        Ok(asked)
    }

    /// The task's own order; what is retired or comes back already is passed over.
    fn in_order(&mut self, count: usize, world: &World, asked: &mut Vec<Asked>) {
        let mut left = world.task.size().unwrap_or(MOST_LOOKED_AT);
        while asked.len() < count {
            let problem = world.task.problem(self.seed, self.cursor.problem);
            self.cursor.problem += 1;
            let passed_over = self.replay.is_some()
                && left > 0
                && (self.pool.as_ref().is_some_and(|pool| pool.is_retired(problem.id))
                    || asked.iter().any(|one| one.problem.id == problem.id));
            left = left.saturating_sub(1);
            if !passed_over {
                asked.push(Asked { problem, replayed: None });
            }
        }
    }

    /// Epochs in drawn orders. What comes back is not asked a second time in a batch. Retired problems fill a batch for which
    /// too few are left: smaller batches would be another experiment.
    fn in_epochs(&mut self, count: usize, size: u64, world: &World, asked: &mut Vec<Asked>) {
        for retired_too in [false, true] {
            let mut looked_at = 0;
            while asked.len() < count && looked_at < size {
                if self.cursor.next >= self.cursor.order.len() {
                    self.cursor.order = (0..size).collect();
                    self.draws.shuffle(&mut self.cursor.order);
                    self.cursor.next = 0;
                }
                let id = self.cursor.order[self.cursor.next];
                self.cursor.next += 1;
                looked_at += 1;
                let twice = asked.iter().any(|one| one.problem.id == id);
                let retired = self.pool.as_ref().is_some_and(|pool| pool.is_retired(id));
                if twice || (retired && !retired_too) {
                    continue;
                }
                if let Some(problem) = world.task.by_id(self.seed, id) {
                    asked.push(Asked { problem, replayed: None });
                }
            }
        }
        // Fewer problems than a batch: some are asked twice.
        self.in_order_of_need(count, world, asked);
    }

    fn in_order_of_need(&mut self, count: usize, world: &World, asked: &mut Vec<Asked>) {
        while asked.len() < count {
            let problem = world.task.problem(self.seed, self.cursor.problem);
            self.cursor.problem += 1;
            asked.push(Asked { problem, replayed: None });
        }
    }

    /// What the pool keeps of a group: successes counted on fresh episodes alone.
    pub fn remember(
        &mut self,
        problem: &Problem,
        fresh: &[&Episode],
        rewards: &[f32],
        update: u64,
    ) -> Result<()> {
        let replays = self.replays();
        let (Some(replay), Some(pool)) = (&self.replay, &mut self.pool) else { return Ok(()) };
        if !replays && !replay.retire {
            return Ok(());
        }
        let right: Vec<&Episode> = fresh
            .iter()
            .zip(rewards)
            .filter(|(_, reward)| **reward > replay.correct_above)
            .map(|(episode, _)| *episode)
            .collect();
        if !replays && right.len() < fresh.len() {
            return Ok(());
        }
        let kept = right.iter().filter(|one| !one.tokens.is_empty() && !one.mask.contains(&0));
        let kept = kept.map(|one| Trajectory {
            tokens: one.tokens.clone(),
            logprob: one.logprob.clone(),
            step: update,
        });
        pool.record(problem.id, right.len(), fresh.len(), kept.collect())
    }

    /// After a step: drops what is too old, and begins replay where enough was right.
    pub fn after(&mut self, rewards: &[f32], update: u64) {
        let Some(replay) = &self.replay else { return };
        if let Some(pool) = &mut self.pool {
            pool.forget(update);
        }
        let right = rewards.iter().filter(|reward| **reward > replay.correct_above).count();
        self.cursor.begun |= right as f64 / rewards.len() as f64 > replay.starts_at;
    }
}

/// A pool belongs to the problems and the vocabulary that it was made with.
fn fits(pool: &Pool, world: &World, seed: u64, vocab: usize) -> Result<()> {
    for (question, entry) in pool.iter() {
        if world.task.by_id(seed, question).is_none() {
            return Err(Error::invalid(format!(
                "the pool has successes of problem {question}, which task {} does not have",
                world.task.name()
            )));
        }
        let ids = || entry.trajectories.iter().flat_map(|one| &one.tokens);
        if let Some(id) = ids().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
            return Err(Error::invalid(format!(
                "the pool has token {id} of problem {question}, outside the model's vocabulary of {vocab}"
            )));
        }
    }
    Ok(())
}

/// The past success of a problem that comes back.
fn choose(
    policy: &dyn Policy,
    prompt: &[i32],
    entry: &Entry,
    lowest_entropy: bool,
    drawn: &Distribution,
    draws: &mut Sequence,
) -> Result<Option<Trajectory>> {
    let stored = &entry.trajectories;
    // One draw per problem in any case: runs that choose otherwise see the same later draws.
    let random = draws.below(stored.len() as u32) as usize;
    if stored.len() < 2 || !lowest_entropy {
        return Ok(stored.get(random).cloned());
    }
    let batch: Vec<Scored<'_>> =
        stored.iter().map(|one| Scored::new(prompt, &one.tokens)).collect();
    let entropy = host(&no_grad(|| policy.score(&batch, drawn))?.entropy)?;
    let mut rest = &entropy[..];
    let mut means = Vec::new();
    for one in stored {
        let (own, others) = rest.split_at(one.tokens.len());
        means.push(own.iter().sum::<f32>() / own.len() as f32);
        rest = others;
    }
    Ok(lowest(&means).and_then(|i| stored.get(i)).cloned())
}
