//! Importance weights and rejections between sampler and policy: a weight of each token, and one of each sequence.

use super::operation::operation;
use super::packed::Packed;
use super::reference::{differs, host, host_bytes, worst};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::device::cpu::memory::Buffer;
use crate::error::Result;
use crate::kernels::rollout_correction::{
    Bound, Inputs, Level, Outputs, Over, Rejection, RolloutCorrection, Statistic, Weight, forward,
    launch,
};
use crate::tensor::{Storage, Tensor};
use std::rc::Rc;

/// The largest weight of a token.
const MOST: f64 = 1.05;
/// Geometric means of ratios outside become 0.
const BAND: (f64, f64) = (0.998, 1.002);
/// Sequences of a larger mean divergence are rejected: about half of them.
const DIVERGENCE: f64 = 0.00125;

fn by_token() -> RolloutCorrection {
    let bound = Bound::Truncate { max: MOST, min: None };
    let weight = Weight { level: Level::Token, bound, normalize: false };
    RolloutCorrection { weight: Some(weight), reject: Vec::new() }
}

fn by_sequence() -> RolloutCorrection {
    let bound = Bound::Mask { max: BAND.1, min: Some(BAND.0) };
    let weight = Weight { level: Level::Geometric, bound, normalize: false };
    let statistic = Statistic::K3 { high: DIVERGENCE };
    let reject = vec![Rejection { over: Over::SequenceMean, statistic }];
    RolloutCorrection { weight: Some(weight), reject }
}

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let shape = size(device, quick, [[3, 50], [256, 4096], [2048, 8192]]);
    for (part, settings) in [("token", by_token()), ("sequence", by_sequence())] {
        let of = Problem::new(device, shape, settings)?;
        // Two log-probs and a mask in, a weight and a mask out.
        let bytes = 14 * of.packed.tokens();
        let of = Rc::new(of);
        let run = Rc::clone(&of);
        let work = operation(move || run.corrected(), move |out| of.error(out));
        give(Case::bytes(part, &shape, DType::F32, bytes, work))?;
    }
    Ok(())
}

struct Problem {
    settings: RolloutCorrection,
    packed: Packed,
    policy: Tensor,
    sampler: Tensor,
}

impl Problem {
    fn new(device: &Device, shape: [usize; 2], settings: RolloutCorrection) -> Result<Problem> {
        let packed = Packed::new(device, shape)?;
        let [policy, sampler] = inputs::two_logprobs(packed.tokens(), 0.05);
        let tensor = |values: Vec<f32>| Tensor::from_f32(values, &[packed.tokens()]);
        let policy = tensor(policy)?.to_device(device)?;
        let sampler = tensor(sampler)?.to_device(device)?;
        Ok(Problem { settings, packed, policy, sampler })
    }

    /// Weight and new mask.
    fn corrected(&self) -> Result<[Tensor; 2]> {
        let shape = [self.packed.tokens()];
        let Some([mask, offsets]) = self.packed.on_gpu() else {
            let mut weight = Buffer::recycled(shape[0]);
            let mut kept = Storage::recycled(DType::U8, shape[0]);
            let read = Inputs {
                policy_logprob: self.policy.f32s()?,
                sampler_logprob: Some(self.sampler.f32s()?),
                mask: &self.packed.mask,
                offsets: &self.packed.offsets,
            };
            let out = Outputs { weight: &mut weight, mask: kept.bytes_mut() };
            forward(&self.settings, &read, out)?;
            let weight = Tensor::from_buffer(weight, &shape, DType::F32)?;
            return Ok([weight, Tensor::new(kept, &shape)?]);
        };
        let mut weight = Tensor::recycled_on(&shape, DType::F32, mask.gpu())?;
        let mut kept = Tensor::recycled_on(&shape, DType::U8, mask.gpu())?;
        let read = launch::Inputs {
            policy_logprob: self.policy.device_slice()?,
            sampler_logprob: Some(self.sampler.device_slice()?),
            mask,
            offsets,
        };
        let (to_weight, to_mask) = (weight.device_slice_mut()?, kept.device_slice_mut()?);
        launch::forward(
            &self.settings,
            &read,
            launch::Outputs { weight: to_weight, mask: to_mask },
        )?;
        Ok([weight, kept])
    }

    /// Every token, in f64.
    fn error(&self, [weight, kept]: &[Tensor; 2]) -> Result<f64> {
        let (policy, sampler) = (host(&self.policy)?, host(&self.sampler)?);
        let gap = |token: usize| f64::from(policy[token]) - f64::from(sampler[token]);
        let tokens = self.packed.tokens();
        let (mut want, mut want_kept) = (vec![0f64; tokens], vec![0u8; tokens]);
        for row in 0..self.packed.sequences() {
            let live: Vec<usize> =
                self.packed.sequence(row).filter(|token| self.packed.is_live(*token)).collect();
            let mean = |of: &dyn Fn(f64) -> f64| {
                live.iter().map(|token| of(gap(*token))).sum::<f64>() / live.len() as f64
            };
            let geometric = mean(&|gap| gap).exp();
            let is_inside = geometric >= BAND.0 && geometric <= BAND.1;
            let divergence = mean(&|gap| gap.exp() - 1.0 - gap);
            let by_token = self.settings.reject.is_empty();
            if !by_token && divergence > DIVERGENCE {
                continue;
            }
            for token in live {
                want_kept[token] = 1;
                want[token] = match by_token {
                    true => gap(token).exp().min(MOST),
                    false => f64::from(u8::from(is_inside)) * geometric,
                };
            }
        }
        let got = host(weight)?.into_iter().map(f64::from);
        let of_weights = worst(got.zip(want), 1e-6, 1e-6);
        Ok(of_weights.max(differs(&host_bytes(kept)?, &want_kept)))
    }
}
