//! A token from each row of logits, with its log-prob.

use super::logprob::Truth;
use super::operation::operation;
use super::reference::{host, host_ids, places, worst};
use super::sizes::Sizes;
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::device::cpu::memory::Buffer;
use crate::error::Result;
use crate::kernels::logprob::Outputs;
use crate::kernels::sample::{Sample, Truncation, launch, tokens};
use crate::ops;
use crate::rng::{self, Stream};
use crate::tensor::{Storage, Tensor};
use std::rc::Rc;

const TEMPERATURE: f32 = 0.7;
const SEED: u64 = 11;
/// What cumulative probabilities may be off by.
const SLACK: f64 = 1e-5;

struct Problem {
    logits: Tensor,
    /// Numbers of the sequences and places in them: what a draw depends on besides its row.
    sequences: Vec<u64>,
    positions: Vec<u32>,
    on_gpu: Option<[Tensor; 2]>,
}

pub(super) fn cases(device: &Device, sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
    let own = size(device, sizes.quick, [[5, 1003], [32, 151_936], [1024, 151_936]]);
    sizes.shapes(&[own]).into_iter().try_for_each(|shape| of_shape(device, shape, sizes, give))
}

fn of_shape(device: &Device, shape: [usize; 2], sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
    let [rows, vocab] = shape;
    for dtype in sizes.dtypes(&[DType::F32, DType::Bf16]) {
        let of = Rc::new(Problem::new(device, dtype, shape)?);
        for (part, truncation) in [
            ("temperature", Truncation::default()),
            ("top_p", Truncation { top_k: None, top_p: Some(0.9), min_p: None }),
            ("top_k_top_p", Truncation { top_k: Some(50), top_p: Some(0.9), min_p: None }),
        ] {
            let (run, known) = (Rc::clone(&of), Rc::clone(&of));
            let error = move |out: &[Tensor; 2]| known.error(truncation, out);
            let work = operation(move || run.drawn(truncation), error);
            give(Case::bytes(part, &shape, dtype, rows * vocab * dtype.size(), work))?;
        }
    }
    Ok(())
}

impl Problem {
    fn new(device: &Device, dtype: DType, shape: [usize; 2]) -> Result<Problem> {
        let logits = ops::scale(&inputs::tensor(device, dtype, &shape, 1)?, 2.0)?;
        let sequences: Vec<u64> = (0..shape[0] as u64).map(|row| 5 * row + 2).collect();
        let positions: Vec<u32> = (0..shape[0] as u32).map(|row| row % 7).collect();
        let upload = |_| -> Result<[Tensor; 2]> {
            let sequences: Vec<i64> = sequences.iter().map(|number| *number as i64).collect();
            let sequences = Tensor::new(Storage::I64(sequences.into()), &[shape[0]])?;
            let positions = positions.iter().map(|place| *place as i32).collect();
            let positions = Tensor::from_i32(positions, &[shape[0]])?;
            Ok([sequences.to_device(device)?, positions.to_device(device)?])
        };
        let on_gpu = device.gpu().map(upload).transpose()?;
        Ok(Problem { logits, sequences, positions, on_gpu })
    }

    /// Tokens and their log-probs.
    fn drawn(&self, truncation: Truncation) -> Result<[Tensor; 2]> {
        let (rows, vocab) = (self.logits.leading(), self.logits.last_dim());
        let (temperature, softcap, seed) = (TEMPERATURE, None, SEED);
        let (stream, shape) = (Stream::Sample, [rows]);
        let (Some(gpu), Some([sequences, positions])) = (self.logits.gpu(), &self.on_gpu) else {
            let (mut ids, mut logprob) = (vec![0i32; rows], Buffer::recycled(rows));
            let mut logsumexp = Buffer::<f32>::recycled(rows);
            let read = Sample {
                logits: self.logits.floats()?,
                rows,
                vocab,
                temperature,
                softcap,
                truncation,
                banned: &[],
                seed,
                stream,
                sequences: &self.sequences,
                positions: &self.positions,
            };
            let (to, logsumexp) = (&mut logprob, &mut logsumexp);
            let out = Outputs { logprob: to, entropy: None, logsumexp, argmax: None };
            tokens(&read, &mut ids, Some(out), None)?;
            let logprob = Tensor::from_buffer(logprob, &shape, DType::F32)?;
            return Ok([Tensor::from_i32(ids, &shape)?, logprob]);
        };
        let mut ids = Tensor::recycled_on(&shape, DType::I32, gpu)?;
        let mut logprob = Tensor::recycled_on(&shape, DType::F32, gpu)?;
        let read = launch::Sample {
            logits: self.logits.device_slice()?,
            rows,
            vocab,
            temperature,
            softcap,
            truncation,
            banned: None,
            seed,
            stream,
            sequences: sequences.device_slice()?,
            positions: positions.device_slice()?,
        };
        let to = Some(logprob.device_slice_mut()?);
        let out = launch::Outputs { logprob: to, ..launch::Outputs::default() };
        launch::tokens(&read, ids.device_slice_mut()?, out)?;
        Ok([ids, logprob])
    }

    /// Some rows: the random number lies where the token's share of the probability is, and its log-prob is that of
    /// the whole distribution.
    fn error(&self, truncation: Truncation, [ids, logprob]: &[Tensor; 2]) -> Result<f64> {
        let (ids, logprob) = (host_ids(ids)?, host(logprob)?);
        let mut largest = 0f64;
        for row in places(ids.len()) {
            let logits = host(&self.logits.rows(row..row + 1)?)?;
            let tempered: Vec<f32> = logits.iter().map(|logit| logit / TEMPERATURE).collect();
            let Some(id) = usize::try_from(ids[row]).ok().filter(|id| *id < logits.len()) else {
                return Ok(f64::INFINITY);
            };
            let truth = Truth::of(&tempered, id);
            largest = largest.max(worst([(f64::from(logprob[row]), truth.logprob)], 1e-4, 1e-5));
            let [high, low, ..] =
                rng::bits(SEED, Stream::Sample, self.sequences[row], self.positions[row]);
            let unit = (u64::from(high) << 32 | u64::from(low)) as f64 / 2f64.powi(64);
            let [from, to] = share(&logits, truth.probabilities, truncation, id);
            largest = largest.max((from - unit).max(unit - to) / SLACK);
        }
        Ok(largest)
    }
}

/// Where `id` lies between 0 and 1 when the probabilities of what can be drawn are laid side by side: in the order of the
/// ids, and where something is cut off in that of the logits.
fn share(logits: &[f32], p: Vec<f64>, truncation: Truncation, id: usize) -> [f64; 2] {
    let mut order: Vec<usize> = (0..p.len()).collect();
    let kept = |order: &[usize]| order.iter().map(|id| p[*id]).sum::<f64>();
    if truncation != Truncation::default() {
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        order.truncate(truncation.top_k.map_or(order.len(), |k| k as usize));
        let goal = truncation.top_p.map_or(f64::INFINITY, f64::from) * kept(&order);
        let mut sum = 0.0;
        let reached = order.iter().position(|id| {
            sum += p[*id];
            sum >= goal
        });
        order.truncate(reached.map_or(order.len(), |last| last + 1));
    }
    let whole = kept(&order);
    let place = order.iter().position(|kept| *kept == id).unwrap_or(order.len());
    let before = kept(&order[..place]) / whole;
    [before, before + p[id] / whole]
}
