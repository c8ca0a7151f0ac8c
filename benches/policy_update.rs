//! A policy update of a decoder: log-probs again, GRPO's loss, gradients, AdamW. The vocabulary is 151,936 (width 256, 2 layers,
//! 8 completions of 128 tokens) or 32 (width 128, 4 layers, 64 completions of 16).
//!
//! `policy_update` is the update as the trainer makes it: three products of the head. `policy_update_apart` has a policy that
//! tells log-probs and no hidden states, so that the loss comes between two passes: four products. The two take turns. The
//! bound is the multiply-adds of three products of every weight at this machine's measured speed. `--seconds` is for each pair
//! of rows.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/closed_policy/mod.rs"]
mod closed_policy;
mod timing;

use closed_policy::Closed;
use gradstone::DType;
use gradstone::device::Device;
use gradstone::device::cpu::pool;
use gradstone::kernels::policy_loss::Objective;
use gradstone::models::{Causal, Decoder, DecoderConfig};
use gradstone::nn::Parameters;
use gradstone::optim::{AdamW, AdamWSettings};
use gradstone::rl::batch::{Advantage, Batch};
use gradstone::rl::episode::{Episode, Scored};
use gradstone::rl::policy::Policy;
use gradstone::rl::sampling::Distribution;
use gradstone::tensor::Gradients;
use gradstone::tensor::autograd::no_grad;
use gradstone::train::learner::{self, Minimise};
use timing::{Options, Work};

/// A decoder, and completions of equal length after prompts of 8 tokens.
struct Shape {
    vocab: usize,
    width: usize,
    layers: usize,
    completions: usize,
    length: usize,
}

const PROMPT: usize = 8;

impl Shape {
    fn model(&self) -> Decoder {
        let context = PROMPT + self.length;
        let of = [self.vocab, self.width, self.layers, 4, context];
        let [vocab, width, layers, heads, context] = of;

        let config = DecoderConfig::small("llama", vocab, width, layers, heads, context).unwrap();
        Decoder::random(config, DType::F32, 1).unwrap()
    }

    /// What the model would have written, as far as its log-probs tell: every ratio is 1.
    fn batch(&self, model: &Decoder) -> Batch {
        let ids = |from: usize, count: usize| -> Vec<i32> {
            (from..from + count).map(|i| (i * i % (self.vocab - 1)) as i32).collect()
        };
        let prompts: Vec<Vec<i32>> = (0..self.completions).map(|i| ids(i * 101, PROMPT)).collect();
        let episode = |i: usize| Episode {
            prompt: i,
            tokens: ids(7 + i * 977, self.length),
            mask: vec![1; self.length],
            logprob: vec![0.0; self.length],
            ..Episode::default()
        };
        let mut episodes: Vec<Episode> = (0..self.completions).map(episode).collect();
        let scored: Vec<Scored<'_>> =
            episodes.iter().map(|one| one.scored(&prompts[one.prompt])).collect();
        let drawn = Distribution::default();
        let logprob = no_grad(|| model.score(&scored, &drawn)).unwrap().logprob;
        let logprob = logprob.f32s().unwrap().to_vec();
        for (episode, own) in episodes.iter_mut().zip(logprob.chunks(self.length)) {
            episode.logprob = own.to_vec();
        }
        let groups = (0..=self.completions as i64).collect();
        let mut batch = Batch::new(prompts, episodes, groups, drawn, &Device::Cpu).unwrap();
        let advantages = (0..self.completions).map(|i| 0.5 - (i % 2) as f32).collect();
        batch.advantage = Some(Advantage::PerEpisode(advantages));
        batch
    }
}

fn update(policy: &mut dyn Policy, optimizer: &mut AdamW, batch: &Batch) {
    let objective = Objective::default();
    let how = Minimise {
        objective: &objective,
        micro_batch_tokens: usize::MAX,
        seed: 1,
        number: 1,
        value_head: None,
        policy: true,
        activity: None,
    };
    let mut gradients = Gradients::new();
    learner::gradients(policy, batch, &batch.members, &how, &mut gradients).unwrap();
    optimizer.step(policy.parameters_mut(), &gradients, 1.0).unwrap();
}

fn main() {
    let options = Options::from_args();
    if !options.wants("policy_update") {
        return;
    }
    for shape in [
        Shape { vocab: 151_936, width: 256, layers: 2, completions: 8, length: 128 },
        Shape { vocab: 32, width: 128, layers: 4, completions: 64, length: 16 },
    ] {
        let mut open = shape.model();
        let mut apart = Closed(Causal::copy(&open).unwrap());
        let batch = shape.batch(&open);
        // Weights that hardly move: every token keeps a ratio within the clip, and so a gradient.
        let settings = AdamWSettings { learning_rate: 1e-9, ..AdamWSettings::default() };
        let optimizer = |of: &Parameters| AdamW::new(settings.clone(), of).unwrap();
        let mut optimizers = [optimizer(Policy::parameters(&open)), optimizer(apart.parameters())];
        let [of_open, of_apart] = &mut optimizers;
        // The embedding is looked up, and the head, which is tied to it, is a product.
        let weights = Policy::parameters(&open).elements();
        let tokens = shape.completions * shape.length;
        let flops = 6.0 * (tokens * weights) as f64;
        for threads in &options.threads {
            pool::set_threads(*threads).unwrap();
            let bound = timing::gemm_flop() * flops * 1e3;
            let times = pool::install(|| {
                options.time_in_turn(
                    || update(&mut open, of_open, &batch),
                    || update(&mut apart, of_apart, &batch),
                )
            });
            let dims = [tokens, shape.vocab, shape.width, shape.layers];
            for (op, time) in ["policy_update", "policy_update_apart"].into_iter().zip(times) {
                timing::print(op, &dims, "f32", time, bound, &Work::Flops(flops));
            }
            let [one, two] = times.map(|time| time.cpu_ms);
            eprintln!("{threads} threads: {:.3} of the CPU time of two passes", one / two);
        }
    }
}
