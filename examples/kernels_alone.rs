//! Kernels without tensors, models or the loop: one step of GRPO on a matrix of logits that any trainer may have made.
//!
//! ```sh
//! cargo run --release --no-default-features --example kernels_alone
//! ```

use gradstone::dtype::{FloatSlice, FloatSliceMut};
use gradstone::kernels::advantage::{self, Estimator, Groups};
use gradstone::kernels::logprob::{self, Backward, Forward, Outputs, Softmax};
use gradstone::kernels::policy_loss::{Advantages, Gradients, Inputs, Objective, forward_backward};
use gradstone::{Error, Result};

const VOCAB: usize = 5;

/// Log-probs and logsumexps of the targets.
fn logprobs(logits: &[f32], targets: &[i32]) -> Result<(Vec<f32>, Vec<f32>)> {
    let rows = targets.len();
    let (mut logprob, mut logsumexp) = (vec![0.0; rows], vec![0.0; rows]);
    let args = Forward {
        logits: FloatSlice::F32(logits),
        targets,
        rows,
        vocab: VOCAB,
        softmax: Softmax::default(),
    };
    let out =
        Outputs { logprob: &mut logprob, entropy: None, logsumexp: &mut logsumexp, argmax: None };
    logprob::forward(&args, out)?;
    Ok((logprob, logsumexp))
}

fn main() -> Result<()> {
    // Two responses of two tokens each to one prompt; the second is right.
    let (targets, offsets, mask) = ([1, 2, 3, 4], [0i64, 2, 4], [1u8; 4]);
    let mut logits: Vec<f32> = (0..4 * VOCAB).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut advantages = [0.0; 2];
    let outputs =
        advantage::Outputs { advantage: &mut advantages, mean: None, std: None, flags: None };
    advantage::forward(&Estimator::default(), &[0.0, 1.0], Groups::Offsets(&[0, 2]), outputs)?;

    let (old, _) = logprobs(&logits, &targets)?;
    for _ in 0..20 {
        let (now, logsumexp) = logprobs(&logits, &targets)?;
        let inputs = Inputs::new(&now, &old, Advantages::PerSequence(&advantages), &mask, &offsets);
        let mut dlogprob = [0.0; 4];
        let gradients = Gradients { logprob: &mut dlogprob, entropy: None };
        forward_backward(&Objective::default(), &inputs, gradients)?;
        // The gradient by the logits, written over a copy of them.
        let mut gradient = logits.clone();
        logprob::backward(Backward {
            logits: FloatSliceMut::F32(&mut gradient),
            targets: &targets,
            rows: 4,
            vocab: VOCAB,
            softmax: Softmax::default(),
            logsumexp: &logsumexp,
            entropy: None,
            dlogprob: Some(&dlogprob),
            dentropy: None,
        })?;
        for (logit, slope) in logits.iter_mut().zip(&gradient) {
            *logit -= 2.0 * slope;
        }
    }
    let (now, _) = logprobs(&logits, &targets)?;
    println!("log-probs before {old:?}\n           after {now:?}");
    let moved = |range: std::ops::Range<usize>| -> f32 { range.map(|i| now[i] - old[i]).sum() };
    if moved(0..2) < 0.0 && moved(2..4) > 0.0 {
        Ok(())
    } else {
        Err(Error::state("the right response did not become more likely"))
    }
}
