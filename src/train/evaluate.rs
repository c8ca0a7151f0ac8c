//! Accuracy on held-out problems by greedy decoding.

use crate::error::Result;
use crate::models::Decoder;
use crate::rl::rollout::{Sampling, rollouts};
use crate::rng::Stream;
use crate::tasks::{Attempt, Problem, Verifier, judged};
use crate::text::Tokenizer;
use crate::train::metrics::Rollout;

/// What an evaluation is done with.
pub struct Evaluation<'a> {
    /// The model.
    pub model: &'a Decoder,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// What tells right from wrong.
    pub verifier: &'a dyn Verifier,
    /// Ids that end a completion.
    pub stop: &'a [i32],
    /// The longest completion, tokens.
    pub max_new_tokens: usize,
    /// Completions generated side by side.
    pub batch: usize,
}

impl Evaluation<'_> {
    /// Answers every problem greedily: the mean reward, and the answers as they would be logged at `step`.
    ///
    /// # Errors
    /// As [`rollouts`].
    pub fn run(&self, problems: &[Problem], step: u64) -> Result<(f32, Vec<Rollout>)> {
        let sampling = Sampling {
            temperature: 0.0,
            truncation: Default::default(),
            max_new_tokens: self.max_new_tokens,
            stop: self.stop.to_vec(),
            banned: Vec::new(),
            seed: 0,
            stream: Stream::HeldOut,
            first_sequence: 0,
        };
        let mut answers = Vec::with_capacity(problems.len());
        for part in problems.chunks(self.batch.max(1)) {
            let prompts = part
                .iter()
                .map(|problem| self.tokenizer.encode_prompt(&problem.prompt()))
                .collect::<Result<Vec<_>>>()?;
            let drawn = rollouts(self.model, &prompts, 1, &sampling)?;
            let completions = drawn
                .iter()
                .map(|one| self.tokenizer.decode(&one.tokens))
                .collect::<Result<Vec<_>>>()?;
            let attempts: Vec<(&Problem, Attempt<'_>)> = part
                .iter()
                .zip(&drawn)
                .zip(&completions)
                .map(|((problem, one), text)| {
                    (problem, Attempt::one_shot(text, &one.tokens, one.truncated))
                })
                .collect();
            let rewards = judged(self.verifier, &attempts)?.totals();
            for ((problem, attempt), reward) in attempts.iter().zip(rewards) {
                answers.push(Rollout {
                    step,
                    prompt: problem.prompt().into_owned(),
                    completion: attempt.text.to_owned(),
                    answer: problem.answer.clone(),
                    reward,
                    advantage: None,
                    tokens: attempt.tokens.len(),
                    truncated: attempt.truncated,
                });
            }
        }
        let scored: Vec<f32> = answers.iter().map(|a| a.reward).filter(|r| !r.is_nan()).collect();
        let mean = scored.iter().map(|r| f64::from(*r)).sum::<f64>() / scored.len().max(1) as f64;
        Ok((mean as f32, answers))
    }
}
