//! A policy of your own in the library's loop: a table that says which token follows which learns to count.
//!
//! ```sh
//! cargo run --release --example own_policy
//! ```
//! [`Policy::rows`] gives a hidden state for each token and the head behind them: log-probs, the loss, critics and every
//! stage follow from these.

use gradstone::device::Device;
use gradstone::dtype::FloatSlice;
use gradstone::files::safetensors::{self, SafetensorsFile, TensorBytes};
use gradstone::kernels::sample::{self, Sample};
use gradstone::nn::Parameters;
use gradstone::recipes;
use gradstone::rl::episode::{Episode, Scored};
use gradstone::rl::policy::{Policy, Replies, Rows, Scores};
use gradstone::rl::sampling::{Distribution, Sampling};
use gradstone::tasks::environment::OneShot;
use gradstone::tasks::{Example, Language, Problem, RewardFn, Task, Verifier};
use gradstone::tensor::autograd::no_grad;
use gradstone::text::Tokenizer;
use gradstone::train::codec::Codec;
use gradstone::train::{Observer, Reinforcement, RunDir, StepMetrics, World, config, run};
use gradstone::{DType, Error, Result, Tensor, ops};
use std::path::Path;

/// The logits of the token after `t` are `head · table[t]`.
struct Table {
    parameters: Parameters,
    vocab: usize,
}

impl Table {
    fn new(table: Tensor, head: Tensor) -> Result<Table> {
        let vocab = table.leading();
        let mut parameters = Parameters::new();
        parameters.add("table", table)?;
        parameters.add("head", head)?;
        Ok(Table { parameters, vocab })
    }

    /// Every token follows every other alike.
    fn even(vocab: usize) -> Result<Table> {
        let one = (0..vocab * vocab).map(|i| f32::from(u8::from(i / vocab == i % vocab))).collect();
        let head = Tensor::from_f32(one, &[vocab, vocab])?;
        Table::new(Tensor::zeros(&[vocab, vocab], DType::F32)?, head)
    }

    /// `[ids, vocab]`, f32.
    fn logits(&self, ids: &[i32]) -> Result<Tensor> {
        ops::logits(&ops::embedding(&self.parameters.get(0), ids)?, &self.parameters.get(1))
    }
}

impl Policy for Table {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context(&self) -> usize {
        1024
    }

    /// One token of every episode at a time. A draw depends on the episode's number and the place alone.
    fn generate(
        &self,
        prompts: &[Vec<i32>],
        counts: &[usize],
        sampling: &Sampling,
        replies: Option<&dyn Replies>,
    ) -> Result<Vec<Episode>> {
        if replies.is_some() {
            return Err(Error::unsupported("a table has no turns"));
        }
        let owners: Vec<usize> =
            (0..prompts.len()).flat_map(|p| std::iter::repeat_n(p, counts[p])).collect();
        let mut episodes: Vec<Episode> = owners
            .iter()
            .zip(sampling.first_sequence..)
            .map(|(prompt, number)| Episode {
                prompt: *prompt,
                number,
                truncated: true,
                ..Episode::default()
            })
            .collect();
        for place in 0..sampling.max_new_tokens {
            let live: Vec<usize> = (0..episodes.len()).filter(|i| episodes[*i].truncated).collect();
            let last = |episode: &Episode| {
                let token = episode.tokens.last().or(prompts[episode.prompt].last());
                token.copied().ok_or_else(|| Error::invalid("an empty prompt"))
            };
            let ids: Vec<i32> = live.iter().map(|i| last(&episodes[*i])).collect::<Result<_>>()?;
            let logits = no_grad(|| self.logits(&ids))?;
            let numbers: Vec<u64> = live.iter().map(|i| episodes[*i].number).collect();
            let draw = Sample {
                logits: FloatSlice::F32(logits.f32s()?),
                rows: live.len(),
                vocab: self.vocab,
                temperature: sampling.temperature,
                softcap: None,
                truncation: sampling.truncation,
                banned: &sampling.banned,
                seed: sampling.seed,
                stream: sampling.stream,
                sequences: &numbers,
                positions: &vec![place as u32; live.len()],
            };
            let mut tokens = vec![0; live.len()];
            sample::tokens(&draw, &mut tokens, None, None)?;
            for (i, token) in live.into_iter().zip(tokens) {
                let episode = &mut episodes[i];
                episode.tokens.push(token);
                episode.mask.push(1);
                episode.logprob.push(0.0);
                episode.truncated = !sampling.stop.contains(&token);
            }
        }
        for episode in &mut episodes {
            let scored = no_grad(|| {
                self.score(&[episode.scored(&prompts[episode.prompt])], &sampling.distribution())
            })?;
            episode.logprob = scored.logprob.f32s()?.to_vec();
        }
        Ok(episodes)
    }

    fn score(&self, batch: &[Scored<'_>], drawn: &Distribution) -> Result<Scores> {
        let rows = self.rows(batch)?.ok_or_else(|| Error::state("a table has rows"))?;
        rows.score(drawn)
    }

    fn rows(&self, batch: &[Scored<'_>]) -> Result<Option<Rows>> {
        let (mut ids, mut targets) = (Vec::new(), Vec::new());
        for one in batch {
            let mut last = *one.prompt.last().ok_or_else(|| Error::invalid("an empty prompt"))?;
            for (i, token) in one.completion.iter().enumerate() {
                ids.push(last);
                targets.push(if one.mask.is_none_or(|mask| mask[i] != 0) { *token } else { -1 });
                last = *token;
            }
        }
        let hidden = ops::embedding(&self.parameters.get(0), &ids)?;
        Ok(Some(Rows { hidden, head: self.parameters.get(1), targets, softcap: None }))
    }

    fn width(&self) -> usize {
        self.vocab
    }

    fn copy(&self) -> Result<Box<dyn Policy>> {
        let own = |index: usize| {
            Tensor::from_f32(self.parameters.get(index).f32s()?.to_vec(), &[self.vocab, self.vocab])
        };
        Ok(Box::new(Table::new(own(0)?, own(1)?)?))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let bytes = |index: usize| -> Result<Vec<u8>> {
            Ok(self.parameters.get(index).f32s()?.iter().flat_map(|x| x.to_le_bytes()).collect())
        };
        let (table, head) = (bytes(0)?, bytes(1)?);
        let shape = [self.vocab, self.vocab];
        let of = |name, bytes| TensorBytes { name, dtype: DType::F32, shape: &shape, bytes };
        let tensors = [of("head", &head), of("table", &table)];
        safetensors::write(&folder.join("model.safetensors"), &tensors, &[])
    }

    fn loaded(&self, folder: &Path) -> Result<Box<dyn Policy>> {
        let file = SafetensorsFile::open(&folder.join("model.safetensors"))?;
        let read = |name: &str| -> Result<Tensor> {
            let (_, shape, bytes) = file.read(name)?;
            let (words, _) = bytes.as_chunks::<4>();
            Tensor::from_f32(words.iter().map(|word| f32::from_le_bytes(*word)).collect(), &shape)
        };
        Ok(Box::new(Table::new(read("table")?, read("head")?)?))
    }
}

/// `4` is answered by `567`.
struct Counting;

impl Task for Counting {
    fn name(&self) -> &str {
        "counting"
    }

    fn problem(&self, _seed: u64, index: u64) -> Problem {
        let from = index % 10;
        let answer: String = (1..4).map(|i| ((from + i) % 10).to_string()).collect();
        Problem::text(from, from.to_string(), answer)
    }

    fn held_out(&self, seed: u64, count: usize) -> Vec<Problem> {
        (0..count.min(10)).map(|index| self.problem(seed, index as u64)).collect()
    }

    fn by_id(&self, seed: u64, id: u64) -> Option<Problem> {
        (id < 10).then(|| self.problem(seed, id))
    }

    /// Nothing is imitated.
    fn worked_example(&self, _seed: u64, _index: u64) -> Option<Example> {
        None
    }

    /// The share of the digits that are right.
    fn verifier(&self) -> Box<dyn Verifier> {
        Box::new(RewardFn::new("digits", |problem: &Problem, text: &str, _truncated: bool| {
            let right = text.chars().zip(problem.answer.chars()).filter(|(a, b)| a == b).count();
            right as f32 / 3.0
        }))
    }

    fn language(&self) -> Language<'_> {
        Language::Characters("0123456789")
    }
}

/// Prints what was measured.
struct Lines;

impl Observer for Lines {
    fn step(&mut self, metrics: &StepMetrics) {
        if let (Some(reward), Some(held_out)) = (metrics.reward, metrics.eval_accuracy) {
            println!("step {}: reward {reward:.2}, greedy {held_out:.2}", metrics.step);
        }
    }
}

fn main() -> Result<()> {
    let tokenizer = Tokenizer::characters("0123456789")?;
    let policy = Box::new(Table::even(tokenizer.vocab_size())?);

    let mut settings = recipes::arithmetic();
    settings.steps = 60;
    settings.warmup.steps = 0;
    settings.rollout.prompts = 10;
    settings.rollout.group = 8;
    settings.rollout.max_new_tokens = 3;
    settings.optimizer.learning_rate = 0.1;
    settings.evaluation.every = 20;

    let task = Counting;
    let world = World {
        verifier: task.verifier(),
        task: Box::new(task),
        environment: Box::new(OneShot),
        codec: Codec::text(tokenizer),
        stop: Vec::new(),
        replies: false,
    };
    let folder = std::env::temp_dir().join(format!("gradstone-counting-{}", std::process::id()));
    let directory = RunDir::create(&folder, &config::to_toml(&settings)?)?;
    let mut trainee = Reinforcement::new(settings, world, policy)?;
    let before = trainee.evaluate()?.0;
    run(&mut trainee, &directory, &mut Lines)?;
    let after = trainee.evaluate()?.0;
    println!("digits right: {before:.2} before, {after:.2} after");
    drop(directory);
    std::fs::remove_dir_all(&folder).map_err(|e| Error::io("removing the run directory", e))?;
    if after > before + 0.3 { Ok(()) } else { Err(Error::state("nothing was learned")) }
}
