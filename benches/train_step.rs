//! A training step of a small Llama: forward, cross entropy, backward, AdamW, over 64 sequences of 64 tokens in f32.
//!
//! `peers/train_step.py` does the same with PyTorch. The bound is the step's multiply-adds at this machine's measured
//! GEMM speed. `--seconds` is for each number of threads.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::DType;
use gradstone::device::cpu::pool;
use gradstone::models::{Architecture, Decoder, DecoderConfig};
use gradstone::optim::{AdamW, AdamWSettings};
use gradstone::rl::scoring::Scored;
use gradstone::tensor::Gradients;
use gradstone::train::supervised;
use timing::{Options, Work};

const VOCAB: usize = 256;
const WIDTH: usize = 128;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const LENGTH: usize = 64;
const SEQUENCES: usize = 64;

fn main() {
    let options = Options::from_args();
    let config =
        DecoderConfig::small(Architecture::Llama, VOCAB, WIDTH, LAYERS, HEADS, LENGTH).unwrap();
    let matrices = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * config.intermediate_size);
    let mut model = Decoder::random(config, DType::F32, 1).unwrap();
    let settings = AdamWSettings { max_grad_norm: 0.0, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(settings, model.parameters()).unwrap();
    let parameters = model.parameters().elements();
    let tokens = SEQUENCES * LENGTH;
    // A token depends on the one before it, so that there is something to learn.
    let text: Vec<i32> = (0..SEQUENCES * (LENGTH + 1)).map(|i| (i * i % 251) as i32).collect();
    let examples: Vec<Scored<'_>> =
        text.chunks(LENGTH + 1).map(|s| Scored { prompt: &s[..1], completion: &s[1..] }).collect();
    // Forward once and backward twice; attention reads half of its square on average.
    let attention = LAYERS * 2 * WIDTH * (LENGTH + 1) / 2;
    let flops = 2.0 * 3.0 * (tokens * (matrices + VOCAB * WIDTH + attention)) as f64;
    eprintln!("{parameters} parameters, {:.2} GFLOP a step", flops / 1e9);
    for threads in &options.threads {
        pool::set_threads(*threads).unwrap();
        let bound = timing::gemm_flop() * flops * 1e3;
        let mut loss = 0.0;
        let time = pool::install(|| {
            options.time(|| {
                let mut gradients = Gradients::new();
                let step = supervised::gradients(&model, &examples, tokens, &mut gradients);
                loss = step.unwrap().loss;
                optimizer.step(model.parameters_mut(), &gradients, 1.0).unwrap();
            })
        });
        let shape = [SEQUENCES, LENGTH, WIDTH, LAYERS];
        timing::print("train_step", &shape, "f32", time, bound, &Work::Flops(flops));
        let rate = tokens as f64 / time.median_ms * 1e3;
        eprintln!("{threads} threads: {rate:.0} tokens/s, loss {loss:.3}");
    }
}
