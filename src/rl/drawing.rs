//! One token for every live completion of a rollout, and the log-prob under which it was drawn.
//!
//! On a device a step ends in the one copy to the host that decides who goes on: the drawn ids. Log-probs stay there until
//! all completions have ended.

use super::rollout::{Rollout, Sampling};
use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::{Error, Result};
use crate::kernels::logprob::Outputs;
use crate::kernels::logprob::launch::banned_ids;
use crate::kernels::sample::{self, Sample, launch};
use crate::models::Decoder;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Log-probs of one piece of device memory; more are allocated as completions grow.
const KEPT_TOGETHER: usize = 1 << 16;

/// Draws for the completions of one rollout.
pub(super) struct Drawing<'a> {
    model: &'a Decoder,
    sampling: &'a Sampling,
    on_device: Option<OnDevice>,
}

struct OnDevice {
    gpu: Arc<Gpu>,
    banned: Option<DeviceBuffer>,
    /// f32 log-probs in the order of the draws; the last one has room behind its elements that are used.
    kept: Vec<(DeviceBuffer, usize)>,
    /// The number of the completion of each of them.
    numbers: Vec<usize>,
}

impl<'a> Drawing<'a> {
    /// Draws from `model`'s logits, where the model is.
    ///
    /// # Errors
    /// [`Error::is_index`] for a banned id outside the vocabulary, and what a device reports.
    pub fn new(model: &'a Decoder, sampling: &'a Sampling) -> Result<Drawing<'a>> {
        let on_device = match model.device() {
            Device::Cpu => None,
            Device::Gpu(gpu) => {
                let banned = banned_ids(&gpu, &sampling.banned, model.config().vocab_size)?;
                Some(OnDevice { gpu, banned, kept: Vec::new(), numbers: Vec::new() })
            }
        };
        Ok(Drawing { model, sampling, on_device })
    }

    /// The next token of each completion of `live`, which has a row of `logits` each. Its log-prob is in the completion now
    /// or after [`Drawing::finish`].
    ///
    /// # Errors
    /// [`Error::is_numeric`] naming a completion with nothing to draw from, and what a device reports.
    pub fn draw(
        &mut self,
        logits: &Tensor,
        live: &mut [(usize, &mut Rollout)],
    ) -> Result<Vec<i32>> {
        let first = self.sampling.first_sequence;
        let sequences: Vec<u64> = live.iter().map(|(number, _)| first + *number as u64).collect();
        let positions: Vec<u32> = live.iter().map(|(_, one)| one.tokens.len() as u32).collect();
        match &mut self.on_device {
            None => draw(self.model, self.sampling, logits, &sequences, &positions, live),
            Some(device) => {
                let numbers: Vec<usize> = live.iter().map(|(number, _)| *number).collect();
                device.draw(self.model, self.sampling, logits, &sequences, &positions, numbers)
            }
        }
    }

    /// Hands the log-probs that were kept on the device to the completions, which have all ended.
    ///
    /// # Errors
    /// What the device reports.
    pub fn finish(self, done: Vec<(usize, &mut Rollout)>) -> Result<()> {
        let Some(device) = self.on_device else { return Ok(()) };
        let mut done: BTreeMap<usize, &mut Rollout> = done.into_iter().collect();
        let mut numbers = device.numbers.iter();
        for (buffer, used) in &device.kept {
            let mut logprobs = vec![0f32; *used];
            buffer.download(0..*used, bytemuck::cast_slice_mut(&mut logprobs))?;
            for (logprob, number) in logprobs.into_iter().zip(&mut numbers) {
                let rollout = done.get_mut(number);
                let rollout =
                    rollout.ok_or_else(|| Error::state(format!("completion {number} is lost")))?;
                rollout.logprob.push(logprob);
            }
        }
        Ok(())
    }
}

fn draw(
    model: &Decoder,
    sampling: &Sampling,
    logits: &Tensor,
    sequences: &[u64],
    positions: &[u32],
    live: &mut [(usize, &mut Rollout)],
) -> Result<Vec<i32>> {
    let rows = live.len();
    let mut ids = vec![0i32; rows];
    let (mut logprob, mut logsumexp) = (vec![0f32; rows], vec![0f32; rows]);
    let args = Sample {
        logits: logits.floats()?,
        rows,
        vocab: model.config().vocab_size,
        temperature: sampling.temperature,
        softcap: model.config().final_softcap,
        truncation: sampling.truncation,
        banned: &sampling.banned,
        seed: sampling.seed,
        stream: sampling.stream,
        sequences,
        positions,
    };
    let outputs =
        Outputs { logprob: &mut logprob, entropy: None, logsumexp: &mut logsumexp, argmax: None };
    sample::tokens(&args, &mut ids, Some(outputs))?;
    live.iter_mut().zip(logprob).for_each(|((_, rollout), logprob)| rollout.logprob.push(logprob));
    Ok(ids)
}

impl OnDevice {
    fn draw(
        &mut self,
        model: &Decoder,
        sampling: &Sampling,
        logits: &Tensor,
        sequences: &[u64],
        positions: &[u32],
        numbers: Vec<usize>,
    ) -> Result<Vec<i32>> {
        let gpu = &self.gpu;
        let rows = numbers.len();
        let sequences = DeviceBuffer::upload(gpu, DType::I64, bytemuck::cast_slice(sequences))?;
        let positions = DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(positions))?;
        let mut tokens = DeviceBuffer::recycled(gpu, DType::I32, rows)?;
        if self.kept.last().is_none_or(|(buffer, used)| buffer.len() - used < rows) {
            let more = DeviceBuffer::recycled(gpu, DType::F32, rows.max(KEPT_TOGETHER))?;
            self.kept.push((more, 0));
        }
        let Some((kept, used)) = self.kept.last_mut() else { return Ok(Vec::new()) };
        let args = launch::Sample {
            logits: logits.device_slice()?,
            rows,
            vocab: model.config().vocab_size,
            temperature: sampling.temperature,
            softcap: model.config().final_softcap,
            truncation: sampling.truncation,
            banned: self.banned.as_ref().map(DeviceBuffer::whole),
            seed: sampling.seed,
            stream: sampling.stream,
            sequences: sequences.whole(),
            positions: positions.whole(),
        };
        let mut kept = kept.whole_mut();
        let logprob = kept.slice_mut(*used..*used + rows)?;
        let outputs = launch::Outputs { logprob: Some(logprob), ..launch::Outputs::default() };
        launch::tokens(&args, tokens.whole_mut(), outputs)?;
        *used += rows;
        let mut ids = vec![0i32; rows];
        tokens.download(0..rows, bytemuck::cast_slice_mut(&mut ids))?;
        if let Some(row) = ids.iter().position(|id| *id < 0) {
            return Err(Error::numeric(format!(
                "sampling: the logits of completion {} hold a NaN or nothing to draw",
                numbers[row]
            )));
        }
        self.numbers.extend(numbers);
        Ok(ids)
    }
}
