//! A model that writes from left to right as a policy: the decoder, and the small GPT of problems made in code.

use super::episode::{Episode, Scored};
use super::generate;
use super::policy::{Policy, Replies, Rows, Scores};
use super::sampling::{Distribution, Sampling};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::logprob::IGNORE;
use crate::models::Causal;
use crate::nn::Parameters;
use std::path::Path;

impl<M: Causal + 'static> Policy for M {
    fn parameters(&self) -> &Parameters {
        Causal::parameters(self)
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        Causal::parameters_mut(self)
    }

    fn device(&self) -> Device {
        Causal::device(self)
    }

    fn vocab(&self) -> usize {
        Causal::vocab(self)
    }

    fn context(&self) -> usize {
        Causal::context(self)
    }

    fn width(&self) -> usize {
        self.head().last_dim()
    }

    fn generate(
        &self,
        prompts: &[Vec<i32>],
        counts: &[usize],
        sampling: &Sampling,
        replies: Option<&dyn Replies>,
    ) -> Result<Vec<Episode>> {
        generate::episodes(self, prompts, counts, sampling, replies)
    }

    fn score(&self, batch: &[Scored<'_>], drawn: &Distribution) -> Result<Scores> {
        scored_rows(self, batch)?.score(drawn)
    }

    fn rows(&self, batch: &[Scored<'_>]) -> Result<Option<Rows>> {
        scored_rows(self, batch).map(Some)
    }

    fn copy(&self) -> Result<Box<dyn Policy>> {
        Ok(Box::new(Causal::copy(self)?))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        Causal::save(self, folder)
    }

    fn loaded(&self, folder: &Path) -> Result<Box<dyn Policy>> {
        let dtype = self.head().dtype();
        Ok(Box::new(M::load_on(folder, Some(dtype), &Causal::device(self))?))
    }
}

/// The hidden state that predicts each token of some completions. The last token of a completion predicts nothing and is not
/// read.
fn scored_rows(model: &impl Causal, batch: &[Scored<'_>]) -> Result<Rows> {
    if let Some(i) = batch.iter().position(|one| one.prompt.is_empty()) {
        return Err(Error::invalid(format!("scoring: prompt {i} is empty")));
    }
    let read: Vec<Vec<i32>> = batch
        .iter()
        .map(|one| one.prompt.iter().chain(one.completion).copied().take(one.tokens()).collect())
        .collect();
    let sequences: Vec<&[i32]> = read.iter().map(|tokens| &tokens[..]).collect();
    let (mut predicting, mut targets) = (Vec::new(), Vec::new());
    let mut start = 0;
    for one in batch {
        let first = start + one.prompt.len() - 1;
        predicting.extend(first..first + one.completion.len());
        targets.extend_from_slice(one.completion);
        if let Some(mask) = one.mask {
            let from = targets.len() - one.completion.len();
            let unscored = targets[from..].iter_mut().zip(mask).filter(|(_, mask)| **mask == 0);
            unscored.for_each(|(target, _)| *target = IGNORE);
        }
        start += one.tokens();
    }
    Ok(Rows {
        hidden: model.hidden_at(&sequences, &predicting)?,
        head: model.head(),
        targets,
        softcap: model.softcap(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Gpt, GptConfig};
    use crate::rng::Stream;

    fn model() -> Gpt {
        let config = GptConfig { vocab: 11, width: 16, layers: 2, heads: 2, context: 12, ngram: 3 };
        Gpt::random(config, 3).unwrap()
    }

    fn sampling() -> Sampling {
        Sampling {
            temperature: 1.0,
            truncation: Default::default(),
            max_new_tokens: 6,
            stop: vec![10],
            banned: vec![0],
            seed: 7,
            stream: Stream::Sample,
            first_sequence: 40,
            activity: Default::default(),
        }
    }

    #[test]
    fn training_sees_the_bits_that_sampling_saw() {
        let model = model();
        let prompts = [vec![1, 2, 3], vec![4, 5, 6, 7], vec![8]];
        let drawn = Policy::generate(&model, &prompts, &[3, 0, 2], &sampling(), None).unwrap();
        assert_eq!(drawn.len(), 5);
        assert!(drawn.iter().all(|c| !c.tokens.contains(&0) && !c.tokens.is_empty()));
        let again: Vec<Scored<'_>> = drawn.iter().map(|c| c.scored(&prompts[c.prompt])).collect();
        let scores = model.score(&again, &sampling().distribution()).unwrap();
        let recorded: Vec<f32> = drawn.iter().flat_map(|c| c.logprob.clone()).collect();
        assert_eq!(scores.logprob.f32s().unwrap(), recorded);
        // Alone or in a batch, an episode is the same.
        let alone = Sampling { first_sequence: 43, ..sampling() };
        let alone = generate::rollouts(&model, &prompts[2..], 2, &alone).unwrap();
        assert_eq!(alone.len(), 2);
        for (alone, batched) in alone.iter().zip(&drawn[3..]) {
            assert_eq!((&alone.tokens, &alone.logprob), (&batched.tokens, &batched.logprob));
        }
    }

    /// An environment that answers the first `turns` turns with the same tokens.
    struct Echo(usize);

    impl Replies for Echo {
        fn reply(&self, episode: &Episode) -> Result<Option<Vec<i32>>> {
            let turns = episode.tokens.iter().filter(|token| **token == 10).count();
            Ok((turns <= self.0).then(|| vec![5, 6]))
        }
    }

    #[test]
    fn an_environment_replies_and_its_tokens_are_not_scored() {
        let model = model();
        let prompts = [vec![1, 2], vec![4, 5, 6]];
        let sampling = Sampling { max_new_tokens: 9, stop: vec![10, 3, 4, 7], ..sampling() };
        let drawn = Policy::generate(&model, &prompts, &[8, 8], &sampling, Some(&Echo(1))).unwrap();
        let heard: usize = drawn.iter().map(|one| one.tokens.len() - one.written()).sum();
        assert!(heard > 4, "{heard}");
        let scored: Vec<Scored<'_>> = drawn.iter().map(|c| c.scored(&prompts[c.prompt])).collect();
        let scores = model.score(&scored, &sampling.distribution()).unwrap();
        let recorded: Vec<f32> = drawn.iter().flat_map(|c| c.logprob.clone()).collect();
        assert_eq!(scores.logprob.f32s().unwrap(), recorded, "over turns too");
        for one in &drawn {
            assert!(one.tokens.len() <= 9 && one.mask.len() == one.tokens.len());
            for (at, mask) in one.mask.iter().enumerate().filter(|(_, mask)| **mask == 0) {
                assert_eq!((*mask, one.logprob[at]), (0, 0.0));
            }
        }
    }
}
