//! One token for every live episode of a rollout, and the log-prob under which it was drawn.
//!
//! On a device a step ends in the one copy to the host that decides who goes on: the drawn ids. Log-probs stay there until
//! all episodes have ended.

use super::live::Live;
use super::sampling::Sampling;
use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::{Error, Result};
use crate::kernels::logprob::Outputs;
use crate::kernels::logprob::launch::banned_ids;
use crate::kernels::sample::{self, Sample, launch};
use crate::models::Causal;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Log-probs of one piece of device memory; more are allocated as episodes grow.
const KEPT_TOGETHER: usize = 1 << 16;

/// What the draws need to know of the model.
#[derive(Clone, Copy)]
struct Logits {
    vocab: usize,
    softcap: Option<f32>,
}

/// Draws for the episodes of one rollout.
pub(super) struct Drawing<'a> {
    of: Logits,
    sampling: &'a Sampling,
    on_device: Option<OnDevice>,
}

struct OnDevice {
    gpu: Arc<Gpu>,
    banned: Option<DeviceBuffer>,
    /// f32 log-probs in the order of the draws; the last one has room behind its elements that are used.
    kept: Vec<(DeviceBuffer, usize)>,
    /// f32 masses that the truncation kept, beside each of these; empty where there is none.
    masses: Vec<DeviceBuffer>,
    /// Which episode and which of its tokens each of them belongs to.
    places: Vec<(usize, usize)>,
}

impl<'a> Drawing<'a> {
    /// Draws from `model`'s logits, where the model is.
    ///
    /// # Errors
    /// [`Error::is_index`] for a banned id outside the vocabulary, and what a device reports.
    pub fn new(model: &impl Causal, sampling: &'a Sampling) -> Result<Drawing<'a>> {
        let of = Logits { vocab: model.vocab(), softcap: model.softcap() };
        let on_device = match model.device() {
            Device::Cpu => None,
            Device::Gpu(gpu) => {
                let banned = banned_ids(&gpu, &sampling.banned, of.vocab)?;
                Some(OnDevice {
                    gpu,
                    banned,
                    kept: Vec::new(),
                    masses: Vec::new(),
                    places: Vec::new(),
                })
            }
        };
        Ok(Drawing { of, sampling, on_device })
    }

    /// The next token of each episode of `live`, which has a row of `logits` each. Its log-prob is in the episode now
    /// or after [`Drawing::finish`].
    ///
    /// # Errors
    /// [`Error::is_numeric`] naming an episode with nothing to draw from, and what a device reports.
    pub fn draw(&mut self, logits: &Tensor, live: &mut [Live<'_>]) -> Result<Vec<i32>> {
        let sequences: Vec<u64> = live.iter().map(|one| one.episode.number).collect();
        let positions: Vec<u32> = live.iter().map(|one| one.episode.tokens.len() as u32).collect();
        match &mut self.on_device {
            None => draw(self.of, self.sampling, logits, &sequences, &positions, live),
            Some(device) => {
                let places = live.iter_mut().map(|one| {
                    one.episode.logprob.push(0.0);
                    if let Some(drawn) = &mut one.episode.drawn_logprob {
                        drawn.push(0.0);
                    }
                    (one.index, one.episode.tokens.len())
                });
                let places: Vec<(usize, usize)> = places.collect();
                device.draw(self.of, self.sampling, logits, &sequences, &positions, places)
            }
        }
    }

    /// Hands the log-probs that were kept on the device to the episodes, which have all ended.
    ///
    /// # Errors
    /// What the device reports.
    pub fn finish(self, done: Vec<Live<'_>>) -> Result<()> {
        let Some(device) = self.on_device else { return Ok(()) };
        let mut done: BTreeMap<usize, Live<'_>> =
            done.into_iter().map(|one| (one.index, one)).collect();
        let mut places = device.places.iter();
        for (at, (buffer, used)) in device.kept.iter().enumerate() {
            let mut logprobs = vec![0f32; *used];
            buffer.download(0..*used, bytemuck::cast_slice_mut(&mut logprobs))?;
            let mut masses = vec![1f32; *used];
            if let Some(buffer) = device.masses.get(at) {
                buffer.download(0..*used, bytemuck::cast_slice_mut(&mut masses))?;
            }
            for ((logprob, mass), (index, token)) in
                logprobs.into_iter().zip(masses).zip(&mut places)
            {
                let lost = || Error::state(format!("episode {index} is lost"));
                let episode = &mut done.get_mut(index).ok_or_else(lost)?.episode;
                *episode.logprob.get_mut(*token).ok_or_else(lost)? = logprob;
                if let Some(drawn) = &mut episode.drawn_logprob {
                    *drawn.get_mut(*token).ok_or_else(lost)? = of_the_draw(logprob, mass);
                }
            }
        }
        Ok(())
    }
}

/// The log-prob under what a truncation left of the distribution.
fn of_the_draw(logprob: f32, kept_mass: f32) -> f32 {
    (f64::from(logprob) - f64::from(kept_mass).ln()).min(0.0) as f32
}

fn draw(
    of: Logits,
    sampling: &Sampling,
    logits: &Tensor,
    sequences: &[u64],
    positions: &[u32],
    live: &mut [Live<'_>],
) -> Result<Vec<i32>> {
    let rows = live.len();
    let mut ids = vec![0i32; rows];
    let (mut logprob, mut logsumexp) = (vec![0f32; rows], vec![0f32; rows]);
    let args = Sample {
        logits: logits.floats()?,
        rows,
        vocab: of.vocab,
        temperature: sampling.temperature,
        softcap: of.softcap,
        truncation: sampling.truncation,
        banned: &sampling.banned,
        seed: sampling.seed,
        stream: sampling.stream,
        sequences,
        positions,
    };
    let outputs =
        Outputs { logprob: &mut logprob, entropy: None, logsumexp: &mut logsumexp, argmax: None };
    let mut masses = vec![0f32; if sampling.cuts() { rows } else { 0 }];
    let kept = sampling.cuts().then_some(&mut masses[..]);
    sample::tokens(&args, &mut ids, Some(outputs), kept)?;
    for (row, (one, logprob)) in live.iter_mut().zip(logprob).enumerate() {
        one.episode.logprob.push(logprob);
        if let Some(drawn) = &mut one.episode.drawn_logprob {
            drawn.push(of_the_draw(logprob, masses[row]));
        }
    }
    Ok(ids)
}

impl OnDevice {
    fn draw(
        &mut self,
        of: Logits,
        sampling: &Sampling,
        logits: &Tensor,
        sequences: &[u64],
        positions: &[u32],
        places: Vec<(usize, usize)>,
    ) -> Result<Vec<i32>> {
        let gpu = &self.gpu;
        let rows = places.len();
        let sequences = DeviceBuffer::upload(gpu, DType::I64, bytemuck::cast_slice(sequences))?;
        let positions = DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(positions))?;
        let mut tokens = DeviceBuffer::recycled(gpu, DType::I32, rows)?;
        if self.kept.last().is_none_or(|(buffer, used)| buffer.len() - used < rows) {
            let more = || DeviceBuffer::recycled(gpu, DType::F32, rows.max(KEPT_TOGETHER));
            if sampling.cuts() {
                self.masses.push(more()?);
            }
            self.kept.push((more()?, 0));
        }
        let Some((kept, used)) = self.kept.last_mut() else { return Ok(Vec::new()) };
        let args = launch::Sample {
            logits: logits.device_slice()?,
            rows,
            vocab: of.vocab,
            temperature: sampling.temperature,
            softcap: of.softcap,
            truncation: sampling.truncation,
            banned: self.banned.as_ref().map(DeviceBuffer::whole),
            seed: sampling.seed,
            stream: sampling.stream,
            sequences: sequences.whole(),
            positions: positions.whole(),
        };
        let mut kept = kept.whole_mut();
        let logprob = kept.slice_mut(*used..*used + rows)?;
        let mut masses = self.masses.last_mut().map(DeviceBuffer::whole_mut);
        let kept_mass = match &mut masses {
            Some(masses) => Some(masses.slice_mut(*used..*used + rows)?),
            None => None,
        };
        let outputs =
            launch::Outputs { logprob: Some(logprob), kept_mass, ..launch::Outputs::default() };
        launch::tokens(&args, tokens.whole_mut(), outputs)?;
        *used += rows;
        let mut ids = vec![0i32; rows];
        tokens.download(0..rows, bytemuck::cast_slice_mut(&mut ids))?;
        if let Some(row) = ids.iter().position(|id| *id < 0) {
            return Err(Error::numeric(format!(
                "sampling: the logits of completion {} hold a NaN or nothing to draw",
                places[row].0
            )));
        }
        self.places.extend(places);
        Ok(ids)
    }
}
