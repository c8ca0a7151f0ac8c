//! How much the gradient of one batch varies with its masks.

use crate::error::Result;
use crate::tensor::Gradients;
use crate::train::diffusion::{Learner, Noising, step};

/// The spread of the gradient over draws of masks, batch and weights being fixed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    /// The trace of the covariance.
    pub trace: f64,
    /// The squared norm of the mean, the part of it that is only noise taken off.
    pub mean_square: f64,
}

/// Measures it over `draws` draws for the first `rows` held-out rows.
pub(super) fn measure(
    learner: &Learner,
    noising: &Noising,
    rows: usize,
    draws: u64,
) -> Result<Spread> {
    let batch = learner.held_out(rows)?;
    let (diffusion, vocab) = (learner.model.diffusion()?, learner.model.config().vocab_size);
    let mut sum: Vec<f64> = Vec::new();
    let mut squares = 0f64;
    // The schedule itself, whatever its warm-up is.
    let noising = Noising { warm_up_steps: 0, ..*noising };
    for draw in 0..draws {
        let seed = learner.seed ^ 0x5EED_0000 ^ draw << 32;
        let noised = noising.apply(&batch, diffusion, vocab, seed, 0)?;
        let mut gradients = Gradients::new();
        step::gradients(
            &learner.model,
            &batch,
            &noised,
            learner.micro_batch_tokens,
            &mut gradients,
        )?;
        let mut at = 0;
        for parameter in learner.model.parameters().iter() {
            let Some(gradient) = gradients.get(parameter.id()) else { continue };
            let values = gradient.f32s()?;
            sum.resize(sum.len().max(at + values.len()), 0.0);
            for (sum, value) in sum[at..].iter_mut().zip(values) {
                *sum += f64::from(*value);
                squares += f64::from(*value) * f64::from(*value);
            }
            at += values.len();
        }
    }
    let n = draws as f64;
    let mean_square = sum.iter().map(|x| (x / n) * (x / n)).sum::<f64>();
    let trace = (squares - n * mean_square) / (n - 1.0);
    Ok(Spread { trace, mean_square: mean_square - trace / n })
}
