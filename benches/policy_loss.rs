//! GRPO loss of `[256, 4096]` tokens: loss, gradient and all metrics, with and without k3 to a reference.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::device::cpu::pool;
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Clamp, Gradients, Inputs, Kl, KlEstimator, Objective, Rows, Surrogate,
    Totals, forward_backward,
};
use std::hint::black_box;
use timing::{Memory, Options, Work};

const ROWS: usize = 256;
const LENGTH: usize = 4096;

fn main() {
    let options = Options::from_args();
    let tokens = ROWS * LENGTH;
    let logprob: Vec<f32> = timing::normal(tokens, 1, 1.0).iter().map(|x| -1.0 - x.abs()).collect();
    let near = |seed| -> Vec<f32> {
        logprob.iter().zip(timing::normal(tokens, seed, 0.1)).map(|(l, n)| l + n).collect()
    };
    let (old_logprob, reference) = (near(2), near(3));
    let advantage = timing::normal(ROWS, 4, 1.0);
    // Completions of 75 % to 100 % of the longest.
    let end = |row: usize| LENGTH - (row * 37) % (LENGTH / 4);
    let mask: Vec<u8> = (0..tokens).map(|i| u8::from(i % LENGTH < end(i / LENGTH))).collect();
    let offsets: Vec<i64> = (0..=ROWS).map(|row| (row * LENGTH) as i64).collect();
    let mut dlogprob = vec![0f32; tokens];

    for threads in &options.threads {
        pool::set_threads(*threads).unwrap();
        let memory = Memory::measure();
        for (op, with_kl) in [("grpo_loss_fwd_bwd", false), ("grpo_loss_kl_fwd_bwd", true)] {
            if !options.wants(op) {
                continue;
            }
            let objective = Objective {
                surrogate: Surrogate::PpoClip {
                    clip_low: 0.2,
                    clip_high: 0.28,
                    dual_clip: None,
                    delta: None,
                },
                aggregation: Aggregation::SequenceMeanTokenMean { rows: Rows::All },
                kl: with_kl.then_some(Kl {
                    estimator: KlEstimator::K3,
                    coefficient: 0.04,
                    clamp: Clamp::Clamped,
                    bias_correction: false,
                    straight_through: false,
                }),
                ..Objective::default()
            };
            let time = options.time(|| {
                let inputs = Inputs {
                    logprob: &logprob,
                    old_logprob: &old_logprob,
                    advantage: Advantages::PerSequence(&advantage),
                    mask: &mask,
                    offsets: &offsets,
                    reference_logprob: with_kl.then_some(&reference[..]),
                    entropy: None,
                    weight: None,
                    sampler_logprob: None,
                    off_policy: None,
                    selected: None,
                    totals: Totals::default(),
                };
                let gradients = Gradients { logprob: &mut dlogprob, entropy: None };
                black_box(forward_backward(&objective, &inputs, gradients).unwrap());
            });
            let bytes = tokens * if with_kl { 17 } else { 13 };
            let bound = memory.read * bytes as f64 * 1e3;
            let work = Work::Bytes(bytes);
            timing::print(op, &[ROWS, LENGTH], "f32", time, bound, &work);
        }
    }
}
