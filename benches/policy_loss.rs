//! Policy losses of `[256, 4096]` tokens: loss, gradient and all metrics of PPO's clip (with and without k3 to a reference),
//! GSPO, CISPO and GMPO.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::device::cpu::pool;
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Gradients, ImportanceLevel, Inputs, Kl, KlEstimator, LogRatio,
    Objective, Rows, Surrogate, forward_backward,
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
        for (op, objective) in objectives() {
            if !options.wants(op) {
                continue;
            }
            let with_kl = objective.kl.is_some();
            let time = options.time(|| {
                let advantage = Advantages::PerSequence(&advantage);
                let inputs = Inputs {
                    reference_logprob: with_kl.then_some(&reference[..]),
                    ..Inputs::new(&logprob, &old_logprob, advantage, &mask, &offsets)
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

/// The peer script computes the same.
fn objectives() -> Vec<(&'static str, Objective)> {
    let grpo = Objective {
        surrogate: Surrogate::clip(0.2, 0.28),
        log_ratio: LogRatio::Unclamped,
        aggregation: Aggregation::SequenceMeanTokenMean { rows: Rows::All },
        ..Objective::default()
    };
    let gspo = Objective {
        surrogate: Surrogate::clip(3e-4, 4e-4),
        importance_level: ImportanceLevel::Sequence,
        ..grpo.clone()
    };
    let cispo = Objective {
        surrogate: Surrogate::Cispo { least: Some(0.8), most: 1.28 },
        aggregation: Aggregation::TokenMean {},
        ..grpo.clone()
    };
    let gmpo =
        Objective { surrogate: Surrogate::Gmpo { clip_low: 0.4, clip_high: 0.4 }, ..grpo.clone() };
    let with_kl = Objective { kl: Some(Kl::new(KlEstimator::K3, 0.04)), ..grpo.clone() };
    vec![
        ("grpo_loss_fwd_bwd", grpo),
        ("grpo_loss_kl_fwd_bwd", with_kl),
        ("gspo_loss_fwd_bwd", gspo),
        ("cispo_loss_fwd_bwd", cispo),
        ("gmpo_loss_fwd_bwd", gmpo),
    ]
}
