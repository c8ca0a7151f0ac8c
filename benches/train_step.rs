//! A training step of a small Llama: forward, cross entropy, backward, AdamW, over 64 sequences of 64 tokens in f32; and a
//! step of block diffusion, noise drawn, over 32 sequences of 64 tokens in two copies, blocks of 4.
//!
//! `peers/train_step.py` does the same with PyTorch. The bound is the step's multiply-adds at this machine's measured
//! GEMM speed. `--seconds` is for each number of threads.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::DType;
use gradstone::device::cpu::pool;
use gradstone::models::{Decoder, DecoderConfig, Diffusion};
use gradstone::optim::{AdamW, AdamWSettings};
use gradstone::rl::episode::Scored;
use gradstone::tensor::Gradients;
use gradstone::train::diffusion::{Batch, Noising, step};
use gradstone::train::supervised;
use timing::{Options, Work};

const VOCAB: usize = 256;
const WIDTH: usize = 128;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const LENGTH: usize = 64;
const SEQUENCES: usize = 64;

/// The same model, every block of four masked by clipped noise. Only masked rows reach the head: about 0.56 of them.
fn diffusion(options: &Options) {
    let mut config = DecoderConfig::small("llama", VOCAB, WIDTH, LAYERS, HEADS, LENGTH).unwrap();
    let matrices = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * config.intermediate_size);
    let block = 4;
    let diffusion = Diffusion { mask_id: 255, block, shift: false };
    config.set_diffusion(diffusion).unwrap();
    let mut model = Decoder::random(config, DType::F32, 1).unwrap();
    let settings = AdamWSettings { max_grad_norm: 0.0, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(settings, model.parameters()).unwrap();
    let rows = SEQUENCES / 2;
    let tokens = rows * LENGTH;
    let ids = (0..tokens).map(|i| (i * i % 251) as i32).collect();
    let batch = Batch::rows(ids, LENGTH, block, 0).unwrap();
    let seen = LAYERS * 2 * WIDTH * (LENGTH + block);
    let flops = 6.0 * (tokens * (2 * matrices + VOCAB * WIDTH * 9 / 16 + seen)) as f64;
    for threads in &options.threads {
        pool::set_threads(*threads).unwrap();
        let bound = timing::gemm_flop() * flops * 1e3;
        let mut place = 0;
        let time = pool::install(|| {
            options.time(|| {
                let mut gradients = Gradients::new();
                let noised =
                    Noising::default().apply(&batch, diffusion, VOCAB, place, place).unwrap();
                step::gradients(&model, &batch, &noised, 2 * tokens, &mut gradients).unwrap();
                optimizer.step(model.parameters_mut(), &gradients, 1.0).unwrap();
                place += 1;
            })
        });
        let shape = [rows, LENGTH, WIDTH, LAYERS];
        timing::print("diffusion_step", &shape, "f32", time, bound, &Work::Flops(flops));
    }
}

fn main() {
    let options = Options::from_args();
    if options.wants("diffusion_step") {
        diffusion(&options);
    }
    if !options.wants("train_step") {
        return;
    }
    let config = DecoderConfig::small("llama", VOCAB, WIDTH, LAYERS, HEADS, LENGTH).unwrap();
    let matrices = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * config.intermediate_size);
    let mut model = Decoder::random(config, DType::F32, 1).unwrap();
    let settings = AdamWSettings { max_grad_norm: 0.0, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(settings, model.parameters()).unwrap();
    let parameters = model.parameters().elements();
    let tokens = SEQUENCES * LENGTH;
    // A token depends on the one before it, so that there is something to learn.
    let text: Vec<i32> = (0..SEQUENCES * (LENGTH + 1)).map(|i| (i * i % 251) as i32).collect();
    let examples: Vec<Scored<'_>> =
        text.chunks(LENGTH + 1).map(|s| Scored::new(&s[..1], &s[1..])).collect();
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
