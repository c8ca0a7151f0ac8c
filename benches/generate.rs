//! Generation with a KV cache: 256 sequences of 64 new tokens each, sampled at temperature 1, f32.
//!
//! `peers/generate.py` does the same with PyTorch. The bound is the multiply-adds at this machine's measured GEMM
//! speed. `--seconds` is for each number of threads.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::DType;
use gradstone::device::cpu::pool;
use gradstone::kernels::sample::Truncation;
use gradstone::models::{Decoder, DecoderConfig};
use gradstone::rl::generate::rollouts;
use gradstone::rl::sampling::Sampling;
use gradstone::rng::Stream;
use timing::{Options, Work};

const VOCAB: usize = 256;
const WIDTH: usize = 128;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const NEW: usize = 64;
const SEQUENCES: usize = 256;

fn main() {
    let options = Options::from_args();
    let config = DecoderConfig::small("llama", VOCAB, WIDTH, LAYERS, HEADS, NEW + 1).unwrap();
    let matrices = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * config.intermediate_size);
    let model = Decoder::random(config, DType::F32, 1).unwrap();
    // Every sequence has a prompt of its own: what is timed is decoding, one token a sequence a step.
    let prompts: Vec<Vec<i32>> = (0..SEQUENCES).map(|i| vec![i as i32]).collect();
    let sampling = Sampling {
        temperature: 1.0,
        truncation: Truncation::default(),
        max_new_tokens: NEW,
        stop: Vec::new(),
        banned: Vec::new(),
        seed: 1,
        stream: Stream::Sample,
        first_sequence: 0,
        activity: Default::default(),
    };
    let tokens = SEQUENCES * NEW;
    let attention = LAYERS * 2 * WIDTH * (NEW + 1) / 2;
    let flops = 2.0 * (tokens * (matrices + VOCAB * WIDTH + attention)) as f64;
    for threads in &options.threads {
        pool::set_threads(*threads).unwrap();
        let bound = timing::gemm_flop() * flops * 1e3;
        let time = pool::install(|| {
            options.time(|| {
                let done = rollouts(&model, &prompts, 1, &sampling).unwrap();
                assert!(done.iter().all(|rollout| rollout.tokens.len() == NEW));
            })
        });
        let shape = [SEQUENCES, NEW, WIDTH, LAYERS];
        timing::print("generate", &shape, "f32", time, bound, &Work::Flops(flops));
        eprintln!("{threads} threads: {:.0} tokens/s", tokens as f64 / time.median_ms * 1e3);
    }
}
