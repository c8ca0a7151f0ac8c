//! What a policy is trained on: a task, an environment, a verifier, and how problems become ids.

use super::codec::Codec;
use crate::error::{Error, Result};
use crate::kernels::step_credit::Part as Credited;
use crate::rl::batch::Verdicts;
use crate::rl::episode::Episode;
use crate::rl::policy::{Policy, Replies};
use crate::rl::sampling::Sampling;
use crate::tasks::{
    Attempt, Environment, Faults, Judgement, Part, Problem, Task, Turn, Verifier, judged,
};

/// Everything around a policy.
pub struct World {
    /// Where problems come from.
    pub task: Box<dyn Task>,
    /// What replies while the policy works.
    pub environment: Box<dyn Environment>,
    /// What tells right from wrong.
    pub verifier: Box<dyn Verifier>,
    /// How problems become ids.
    pub codec: Codec,
    /// Ids that end a turn.
    pub stop: Vec<i32>,
    /// Whether the environment ever replies.
    pub replies: bool,
}

/// Episodes of some problems, judged.
pub struct Judged {
    /// One per episode, in their order; `None`: left out.
    pub judgements: Vec<Option<Judgement>>,
    /// The text of each.
    pub texts: Vec<String>,
    /// What went wrong.
    pub faults: Faults,
}

/// What a policy wrote, judged.
pub struct Attempts {
    /// The first problem's, then the second's.
    pub episodes: Vec<Episode>,
    /// What is thought of them.
    pub judged: Judged,
}

impl World {
    /// The ids of a problem's prompt, as the environment begins it.
    ///
    /// # Errors
    /// As [`Codec::prompt`], naming the problem.
    pub fn prompt(&self, problem: &Problem) -> Result<Vec<i32>> {
        let ids = self.codec.prompt(&self.environment.begin(problem));
        ids.map_err(|e| e.at(format!("task {}, problem {}", self.task.name(), problem.id)))
    }

    /// Lets a policy attempt problems, `samples` times each, and judges what it wrote.
    ///
    /// # Errors
    /// As [`World::prompt`], [`Policy::generate`] and [`World::judge`].
    pub fn attempts(
        &self,
        policy: &dyn Policy,
        problems: &[&Problem],
        samples: usize,
        sampling: &Sampling,
    ) -> Result<Attempts> {
        let prompts = problems.iter().map(|one| self.prompt(one)).collect::<Result<Vec<_>>>()?;
        let conversation = self.replies_to(problems);
        let replies = if self.replies { Some(&conversation as _) } else { None };
        let counts = vec![samples; problems.len()];
        let episodes = policy.generate(&prompts, &counts, sampling, replies)?;
        let of: Vec<&Problem> = problems.iter().flat_map(|one| vec![*one; samples]).collect();
        let judged = self.judge(&of, &episodes.iter().collect::<Vec<_>>())?;
        Ok(Attempts { episodes, judged })
    }

    /// Judges episodes; `of[i]` is the problem of episode i.
    ///
    /// # Errors
    /// Where no later attempt could be judged either: the judge cannot be started again.
    pub fn judge(&self, of: &[&Problem], episodes: &[&Episode]) -> Result<Judged> {
        let texts: Vec<String> =
            episodes.iter().map(|one| self.codec.decode(&one.tokens)).collect::<Result<_>>()?;
        let mut attempts = Vec::with_capacity(episodes.len());
        for ((problem, episode), text) in of.iter().zip(episodes).zip(&texts) {
            let turn = episode.mask.iter().rposition(|mask| *mask == 0).map_or(0, |at| at + 1);
            let last_turn =
                if turn == 0 { 0 } else { self.codec.decode(&episode.tokens[..turn])?.len() };
            let (tokens, truncated) = (&episode.tokens[..], episode.truncated);
            attempts.push((*problem, Attempt { text, tokens, truncated, last_turn }));
        }
        let all = judged(&*self.verifier, &attempts)?;
        Ok(Judged { judgements: all.judgements, texts, faults: all.faults })
    }

    /// The verdicts about the steps of an episode as ranges of its tokens.
    ///
    /// # Errors
    /// As [`Codec::ends`].
    pub fn verdicts(&self, episode: &Episode, judgement: &Judgement) -> Result<Verdicts> {
        let ends = self.codec.ends(&episode.tokens)?;
        let mut parts = Verdicts::new();
        for step in &judgement.steps {
            let supported = step.score > 0.5;
            let (opening, body) = (step.opening.tokens(&ends), step.body.tokens(&ends));
            if !opening.is_empty() {
                parts.push((opening, Credited::StepNumber { supported }));
            }
            let part = match step.score {
                score if score == 0.0 || score == 1.0 => Credited::Step { supported },
                score => Credited::Value(score),
            };
            parts.push((body, part));
        }
        let markup = judgement.markup.iter().map(|one| (one.tokens(&ends), Credited::Tag));
        parts.extend(markup);
        parts.extend(judgement.answer.iter().map(|one| (one.tokens(&ends), Credited::Answer)));
        Ok(parts)
    }

    /// The environment's side of some episodes, of which episode i answers `problems[i]`.
    pub fn replies_to<'a>(&'a self, problems: &'a [&'a Problem]) -> Conversation<'a> {
        Conversation { world: self, problems }
    }
}

/// An environment that talks with the episodes of a batch.
pub struct Conversation<'a> {
    world: &'a World,
    /// Of each prompt.
    problems: &'a [&'a Problem],
}

impl Conversation<'_> {
    fn turns(&self, episode: &Episode) -> Result<Vec<Turn>> {
        let mut turns = Vec::new();
        let mut start = 0;
        while start < episode.tokens.len() {
            let by = episode.mask[start];
            let own = episode.mask[start..].iter().take_while(|mask| **mask == by).count();
            let part = self.world.codec.part(&episode.tokens[start..start + own])?;
            turns.push(if by == 0 { Turn::environment(part) } else { Turn::policy(part) });
            start += own;
        }
        Ok(turns)
    }
}

impl Replies for Conversation<'_> {
    fn ends_turn(&self, episode: &Episode) -> Result<bool> {
        let stops = self.world.environment.stops();
        let Some(longest) = stops.iter().map(String::len).max() else { return Ok(false) };
        // A token that shows has at least one byte; twice as many leave room for those that do not.
        let own = episode.mask.iter().rev().take_while(|mask| **mask != 0).count();
        let tail = own.min(2 * longest + 2);
        let text = self.world.codec.decode(&episode.tokens[episode.tokens.len() - tail..])?;
        Ok(stops.iter().any(|stop| text.contains(stop.as_str())))
    }

    fn reply(&self, episode: &Episode) -> Result<Option<Vec<i32>>> {
        let Some(problem) = self.problems.get(episode.prompt) else {
            return Err(Error::state(format!("episode {} has no problem", episode.number)));
        };
        let turns = self.turns(episode)?;
        match self.world.environment.reply(problem, &turns) {
            None => Ok(None),
            Some(Part::Text(text)) if text.is_empty() => Ok(Some(Vec::new())),
            Some(part) => self.world.codec.encode(&part).map(Some),
        }
    }
}
