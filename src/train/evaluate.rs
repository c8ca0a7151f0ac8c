//! Accuracy on held-out problems by greedy decoding.

use super::metrics::Rollout;
use super::world::{Attempts, World};
use crate::error::Result;
use crate::rl::activity::Activity;
use crate::rl::policy::Policy;
use crate::rl::sampling::Sampling;
use crate::rng::Stream;
use crate::tasks::{Judgement, Label, Problem};

/// What an evaluation is done with.
pub struct Evaluation<'a> {
    /// The policy.
    pub policy: &'a dyn Policy,
    /// What it works on.
    pub world: &'a World,
    /// `[functions]` weights of the named rewards.
    pub weights: Vec<f64>,
    /// An answer is worth 1 where its label says that it is right, else 0, whatever its rewards.
    pub by_label: bool,
    /// The longest completion, tokens.
    pub max_new_tokens: usize,
    /// Completions generated side by side.
    pub batch: usize,
    /// Told of every answer.
    pub activity: &'a Activity,
}

impl Evaluation<'_> {
    /// Answers every problem greedily: the mean reward, and the answers as they would be logged at `step`.
    ///
    /// # Errors
    /// As [`Policy::generate`], and what the verifier reports.
    pub fn run(&self, problems: &[Problem], step: u64) -> Result<(f32, Vec<Rollout>)> {
        let sampling = Sampling {
            temperature: 0.0,
            truncation: Default::default(),
            max_new_tokens: self.max_new_tokens,
            stop: self.world.stop.clone(),
            banned: self.world.codec.banned(),
            seed: 0,
            stream: Stream::HeldOut,
            first_sequence: 0,
            activity: self.activity.clone(),
        };
        self.activity.begin("evaluating", problems.len());
        let mut answers = Vec::with_capacity(problems.len());
        for part in problems.chunks(self.batch.max(1)) {
            let of: Vec<&Problem> = part.iter().collect();
            let Attempts { episodes, judged } =
                self.world.attempts(self.policy, &of, 1, &sampling)?;
            for (i, (episode, text)) in episodes.iter().zip(judged.texts).enumerate() {
                answers.push(Rollout {
                    step,
                    prompt: part[i].prompt().into_owned(),
                    answer: part[i].answer.clone(),
                    reward: judged.judgements[i].as_ref().map_or(f32::NAN, |one| self.worth(one)),
                    advantage: None,
                    tokens: episode.tokens.len(),
                    truncated: episode.truncated,
                    completion: text,
                });
            }
        }
        let scored: Vec<f32> = answers.iter().map(|a| a.reward).filter(|r| !r.is_nan()).collect();
        let mean = scored.iter().map(|r| f64::from(*r)).sum::<f64>() / scored.len().max(1) as f64;
        Ok((mean as f32, answers))
    }

    fn worth(&self, judgement: &Judgement) -> f32 {
        if self.by_label {
            let right = judgement.label == Some(Label::Right);
            return f32::from(u8::from(right));
        }
        match self.weights[..] {
            [1.0] => judgement.rewards[0],
            _ => {
                let terms = judgement.rewards.iter().zip(&self.weights);
                terms.map(|(reward, weight)| f64::from(*reward) * weight).sum::<f64>() as f32
            }
        }
    }
}
