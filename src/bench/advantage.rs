//! Advantages: of the responses of a group, and of tokens (GAE).

use super::operation::operation;
use super::packed::Packed;
use super::reference::{places, row, worst, worst_of};
use super::{Case, Give, Work, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::DeviceBuffer;
use crate::error::Result;
use crate::kernels::advantage::{self, Estimator, Gae, Groups};
use crate::tensor::Tensor;
use std::rc::Rc;

/// GRPO's advantages of groups of eight.
struct OfGroups {
    rewards: Vec<f32>,
    offsets: Vec<i64>,
    advantage: Vec<f32>,
    gpu: Option<(DeviceBuffer, advantage::launch::DeviceGroups, DeviceBuffer)>,
}

const GROUP: usize = 8;

/// The default estimator's.
const EPSILON: f64 = 1e-6;

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    of_groups(device, quick, give)?;
    of_tokens(device, quick, give)
}

fn of_groups(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let groups = if quick { 5 } else { 8192 };
    let responses = groups * GROUP;
    let mut work = OfGroups {
        rewards: inputs::normal(responses, 4),
        offsets: (0..=groups).map(|group| (group * GROUP) as i64).collect(),
        advantage: vec![0.0; responses],
        gpu: None,
    };
    if let Some(gpu) = device.gpu() {
        let groups = Groups::Offsets(&work.offsets);
        let groups = advantage::launch::DeviceGroups::upload(gpu, groups, responses)?;
        work.gpu = Some((
            inputs::uploaded(gpu, &work.rewards)?,
            groups,
            inputs::uploaded(gpu, &work.advantage)?,
        ));
    }
    let (shape, bytes) = ([groups, GROUP], 8 * responses + 8 * groups);
    give(Case::bytes("forward", &shape, DType::F32, bytes, Box::new(work)))
}

impl Work for OfGroups {
    fn run(&mut self) -> Result<()> {
        if let Some((rewards, groups, advantage)) = &mut self.gpu {
            let outputs = advantage::launch::Outputs {
                advantage: advantage.whole_mut(),
                mean: None,
                std: None,
                flags: None,
                counts: None,
            };
            let estimator = Estimator::default();
            return advantage::launch::forward(&estimator, rewards.whole(), groups, outputs);
        }
        let outputs = advantage::Outputs {
            advantage: &mut self.advantage,
            mean: None,
            std: None,
            flags: None,
        };
        let groups = Groups::Offsets(&self.offsets);
        advantage::forward(&Estimator::default(), &self.rewards, groups, outputs).map(|_| ())
    }

    /// `(reward - mean) / (std + epsilon)` with the unbiased deviation, in f64.
    fn error(&mut self) -> Result<f64> {
        if let Some((_, _, advantage)) = &self.gpu {
            self.advantage = inputs::downloaded(advantage)?;
        }
        let mut want = Vec::with_capacity(self.rewards.len());
        for group in self.rewards.chunks(GROUP) {
            let rewards: Vec<f64> = group.iter().map(|r| f64::from(*r)).collect();
            let mean = rewards.iter().sum::<f64>() / GROUP as f64;
            let squares: f64 = rewards.iter().map(|r| (r - mean).powi(2)).sum();
            let std = (squares / (GROUP - 1) as f64).sqrt();
            want.extend(rewards.iter().map(|r| (r - mean) / (std + EPSILON)));
        }
        Ok(worst(self.advantage.iter().map(|a| f64::from(*a)).zip(want), 1e-5, 1e-4))
    }
}

struct OfTokens {
    settings: Gae,
    packed: Packed,
    rewards: Tensor,
    values: Tensor,
}

/// Generalised advantages of tokens with a critic's values.
fn of_tokens(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let shape = size(device, quick, [[3, 50], [256, 4096], [2048, 8192]]);
    let packed = Packed::new(device, shape)?;
    let of = Rc::new(OfTokens {
        settings: Gae { gamma: 0.99, lambda: 0.95, whiten: false, ..Gae::default() },
        rewards: inputs::tensor(device, DType::F32, &shape, 1)?,
        values: inputs::tensor(device, DType::F32, &shape, 2)?,
        packed,
    });
    // A reward, a value and a mask in, an advantage out.
    let bytes = 13 * of.packed.tokens();
    let run = Rc::clone(&of);
    let work = operation(move || run.gae(), move |out| of.error(out));
    give(Case::bytes("gae", &shape, DType::F32, bytes, work))
}

impl OfTokens {
    fn gae(&self) -> Result<Tensor> {
        let shape = self.rewards.shape();
        let Some([mask, offsets]) = self.packed.on_gpu() else {
            let mut out = Buffer::recycled(self.packed.tokens());
            let Packed { mask, offsets, .. } = &self.packed;
            let to = advantage::TokenOutputs { advantage: &mut out, returns: None };
            let of = advantage::Tokens { mask, offsets };
            let (rewards, values) = (self.rewards.f32s()?, self.values.f32s()?);
            advantage::gae(&self.settings, rewards, values, of, to)?;
            return Tensor::from_buffer(out, shape, DType::F32);
        };
        let mut out = Tensor::recycled_on(shape, DType::F32, mask.gpu())?;
        let advantage = out.device_slice_mut()?;
        let to = advantage::launch::TokenOutputs { advantage, returns: None };
        let of = advantage::launch::Tokens { mask, offsets };
        let (rewards, values) = (self.rewards.device_slice()?, self.values.device_slice()?);
        advantage::launch::gae(&self.settings, rewards, values, of, to)?;
        Ok(out)
    }

    /// Some sequences, from the end: `A[t] = r + gamma V[t + 1] - V + gamma lambda A[t + 1]`.
    fn error(&self, out: &Tensor) -> Result<f64> {
        let Gae { gamma, lambda, .. } = self.settings;
        places(self.packed.sequences()).into_iter().try_fold(0f64, |largest, at| {
            let (rewards, values) = (row(&self.rewards, at)?, row(&self.values, at)?);
            let mut want = vec![0f64; rewards.len()];
            let (mut after, mut value_after) = (0.0, 0.0);
            for t in (0..want.len()).rev() {
                if self.packed.is_live(self.packed.sequence(at).start + t) {
                    after = rewards[t] + gamma * value_after - values[t] + gamma * lambda * after;
                    value_after = values[t];
                    want[t] = after;
                }
            }
            Ok(largest.max(worst_of(&row(out, at)?, &want, 1e-5, 1e-5)))
        })
    }
}
