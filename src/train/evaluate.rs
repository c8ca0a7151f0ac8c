//! Accuracy on held-out problems by greedy decoding.

use crate::error::Result;
use crate::models::Decoder;
use crate::rl::guarded::guarded_reward;
use crate::rl::rollout::{Sampling, rollouts};
use crate::rng::Stream;
use crate::tasks::{Problem, Verifier};
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
                .map(|problem| self.tokenizer.encode_prompt(&problem.prompt))
                .collect::<Result<Vec<_>>>()?;
            for (drawn, problem) in rollouts(self.model, &prompts, 1, &sampling)?.iter().zip(part) {
                let completion = self.tokenizer.decode(&drawn.tokens)?;
                answers.push(Rollout {
                    step,
                    prompt: problem.prompt.clone(),
                    answer: problem.answer.clone(),
                    reward: guarded_reward(|| {
                        self.verifier.reward(problem, &completion, drawn.truncated)
                    }),
                    advantage: None,
                    tokens: drawn.tokens.len(),
                    truncated: drawn.truncated,
                    completion,
                });
            }
        }
        let scored: Vec<f32> = answers.iter().map(|a| a.reward).filter(|r| !r.is_nan()).collect();
        let mean = scored.iter().map(|r| f64::from(*r)).sum::<f64>() / scored.len().max(1) as f64;
        Ok((mean as f32, answers))
    }
}
