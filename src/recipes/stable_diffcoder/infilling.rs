//! One token of a row is missing: who finds it?
//!
//! The diffusion model sees the clean blocks before it and the rest of its block. The next-token model sees what comes
//! before the hole; asked once a candidate, it can also weigh what comes after it in the block.

use crate::device::Device;
use crate::error::Result;
use crate::models::{Copies, Packed, Tokens};
use crate::ops;
use crate::rl::episode::{Scored, micro_batches};
use crate::rl::policy::Policy;
use crate::rl::sampling::Distribution;
use crate::tensor::autograd::no_grad;
use crate::train::diffusion::Learner;

/// Shares of holes that were filled right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// By the likeliest token.
    pub right: f64,
    /// Mean negative log-prob of the right token, nats.
    pub loss: f64,
}

fn likeliest(row: &[f32], banned: i32) -> i32 {
    let allowed = row.iter().enumerate().filter(|(id, _)| *id as i32 != banned);
    // Of equal ones the first.
    allowed
        .fold(
            (0, f32::NEG_INFINITY),
            |best, (id, logit)| {
                if *logit > best.1 { (id as i32, *logit) } else { best }
            },
        )
        .0
}

/// Log-prob of `target` in a row of logits without `banned`.
fn logprob(row: &[f32], target: i32, banned: i32) -> f64 {
    let allowed = || row.iter().enumerate().filter(|(id, _)| *id as i32 != banned);
    let top = allowed().map(|(_, l)| *l).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = allowed().map(|(_, l)| f64::from(*l - top).exp()).sum();
    f64::from(row[target as usize] - top) - sum.ln()
}

/// Every token of the held-out rows as a hole, but the first of each row, which no model can tell.
pub(super) fn by_diffusion(learner: &Learner, rows: usize) -> Result<Found> {
    let model = &learner.model;
    let diffusion = model.diffusion()?;
    let batch = learner.held_out(rows)?;
    let vocab = model.config().vocab_size;
    let (mut right, mut loss, mut count) = (0usize, 0f64, 0usize);
    // A hole in every block at once: blocks do not see each other's holes.
    for place in 0..diffusion.block {
        let holes: Vec<usize> = (0..batch.ids.len())
            .filter(|i| i % diffusion.block == place && i % learner.length > 0)
            .collect();
        let mut noised = batch.ids.clone();
        holes.iter().for_each(|hole| noised[*hole] = diffusion.mask_id);
        let copies = Copies::new(diffusion, &noised, &batch.ids, &batch.documents)?;
        let logits = no_grad(|| {
            let hidden = model.hidden_under(copies.tokens(), copies.mask())?;
            let rows: Vec<usize> = holes.iter().map(|hole| copies.noised_rows()[*hole]).collect();
            model.logits(&ops::gather(&hidden, &rows)?)?.to_device(&Device::Cpu)
        })?;
        for (hole, row) in holes.iter().zip(logits.f32s()?.chunks(vocab)) {
            right += usize::from(likeliest(row, diffusion.mask_id) == batch.ids[*hole]);
            loss -= logprob(row, batch.ids[*hole], diffusion.mask_id);
            count += 1;
        }
    }
    let count = count.max(1) as f64;
    Ok(Found { right: right as f64 / count, loss: loss / count })
}

/// The same holes by next-token prediction, from the left alone.
pub(super) fn by_next_token(learner: &Learner, rows: usize) -> Result<Found> {
    let model = &learner.model;
    let banned = model.diffusion()?.mask_id;
    let batch = learner.held_out(rows)?;
    let vocab = model.config().vocab_size;
    let packed = Packed::new(batch.ids.chunks(learner.length).map(|row| (0, row)));
    let tokens: Tokens<'_> = packed.tokens();
    let logits = no_grad(|| model.logits(&model.hidden(tokens)?)?.to_device(&Device::Cpu))?;
    let logits = logits.f32s()?;
    let (mut right, mut loss, mut count) = (0usize, 0f64, 0usize);
    for hole in (0..batch.ids.len()).filter(|i| i % learner.length > 0) {
        let row = &logits[(hole - 1) * vocab..hole * vocab];
        right += usize::from(likeliest(row, banned) == batch.ids[hole]);
        loss -= logprob(row, batch.ids[hole], banned);
        count += 1;
    }
    let count = count.max(1) as f64;
    Ok(Found { right: right as f64 / count, loss: loss / count })
}

/// Some of the holes by next-token prediction that tries every token: the likeliest of `token, rest of the block` after what
/// comes before. One pass a candidate where the diffusion model needs one.
pub(super) fn by_trying_all(learner: &Learner, holes: usize) -> Result<f64> {
    let model = &learner.model;
    let diffusion = model.diffusion()?;
    let length = learner.length;
    let batch = learner.held_out(holes)?;
    let vocab = model.config().vocab_size;
    let mut right = 0usize;
    for (i, row) in batch.ids.chunks(length).enumerate() {
        // A place of its own in every row.
        let hole = 1 + i * 7919 % (length - 1);
        let end = ((hole / diffusion.block + 1) * diffusion.block).min(length);
        let fillings: Vec<Vec<i32>> = (0..vocab as i32)
            .filter(|id| *id != diffusion.mask_id)
            .map(|id| std::iter::once(id).chain(row[hole + 1..end].iter().copied()).collect())
            .collect();
        let scored: Vec<Scored<'_>> =
            fillings.iter().map(|completion| Scored::new(&row[..hole], completion)).collect();
        let mut sums = Vec::with_capacity(scored.len());
        for part in micro_batches(&scored, learner.micro_batch_tokens) {
            let scores = no_grad(|| model.score(part, &Distribution::default()))?;
            let values = scores.logprob.to_device(&Device::Cpu)?;
            sums.extend(values.f32s()?.chunks(end - hole).map(|part| part.iter().sum::<f32>()));
        }
        let best = likeliest(&sums, -1) as usize;
        right += usize::from(fillings.get(best).is_some_and(|f| f[0] == row[hole]));
    }
    Ok(right as f64 / holes.max(1) as f64)
}
