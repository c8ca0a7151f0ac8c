//! The loss and the advantages.

use super::{Amount, Case, Work, inputs, worst};
use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::Result;
use crate::kernels::advantage::{self, Estimator, Groups};
use crate::kernels::policy_loss::{
    Advantages, Gradients, Inputs, Objective, Totals, forward_backward, launch,
};
use std::sync::Arc;

/// The clip of the default objective.
const CLIP: f64 = 0.2;

/// GRPO's loss over sequences of equal length, three quarters to all of each live.
struct PolicyLoss {
    length: usize,
    logprob: Vec<f32>,
    old_logprob: Vec<f32>,
    advantage: Vec<f32>,
    mask: Vec<u8>,
    offsets: Vec<i64>,
    gradient: Vec<f32>,
    loss: f64,
    gpu: Option<OnGpu>,
}

/// The same numbers on a device.
struct OnGpu {
    logprob: DeviceBuffer,
    old_logprob: DeviceBuffer,
    advantage: DeviceBuffer,
    mask: DeviceBuffer,
    offsets: DeviceBuffer,
    gradient: DeviceBuffer,
    metrics: Option<launch::DeviceMetrics>,
}

fn f32s(gpu: &Arc<Gpu>, values: &[f32]) -> Result<DeviceBuffer> {
    DeviceBuffer::upload(gpu, DType::F32, bytemuck::cast_slice(values))
}

impl OnGpu {
    fn new(gpu: &Arc<Gpu>, work: &PolicyLoss) -> Result<OnGpu> {
        let offsets = bytemuck::cast_slice(&work.offsets);
        Ok(OnGpu {
            logprob: f32s(gpu, &work.logprob)?,
            old_logprob: f32s(gpu, &work.old_logprob)?,
            advantage: f32s(gpu, &work.advantage)?,
            mask: DeviceBuffer::upload(gpu, DType::U8, &work.mask)?,
            offsets: DeviceBuffer::upload(gpu, DType::I64, offsets)?,
            gradient: f32s(gpu, &work.gradient)?,
            metrics: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        let read = launch::Inputs {
            logprob: self.logprob.whole(),
            old_logprob: self.old_logprob.whole(),
            advantage: launch::Advantages::PerSequence(self.advantage.whole()),
            mask: self.mask.whole(),
            offsets: self.offsets.whole(),
            reference_logprob: None,
            entropy: None,
            weight: None,
            sampler_logprob: None,
            off_policy: None,
            selected: None,
            totals: Totals::default(),
        };
        let gradients = launch::Gradients { logprob: self.gradient.whole_mut(), entropy: None };
        self.metrics = Some(launch::forward_backward(&Objective::default(), &read, gradients)?);
        Ok(())
    }
}

pub(super) fn policy_loss(
    device: &Device,
    quick: bool,
    give: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    for (sequences, length) in if quick { vec![(3, 50)] } else { vec![(64, 1024), (256, 4096)] } {
        let tokens = sequences * length;
        let logprob: Vec<f32> = inputs::normal(tokens, 1).iter().map(|x| -1.0 - x.abs()).collect();
        let near = logprob.iter().zip(inputs::normal(tokens, 2)).map(|(l, n)| l + 0.2 * n);
        let end = |row: usize| length - (row * 37) % (length / 4);
        let mut work = PolicyLoss {
            length,
            old_logprob: near.collect(),
            logprob,
            advantage: inputs::normal(sequences, 3),
            mask: (0..tokens).map(|i| u8::from(i % length < end(i / length))).collect(),
            offsets: (0..=sequences).map(|row| (row * length) as i64).collect(),
            gradient: vec![0.0; tokens],
            loss: 0.0,
            gpu: None,
        };
        work.gpu = device.gpu().map(|gpu| OnGpu::new(gpu, &work)).transpose()?;
        give(Case {
            part: "forward_backward",
            shape: vec![sequences, length],
            dtype: DType::F32,
            // Two log-probs and a mask in, a gradient out.
            amount: Amount::Bytes(13.0 * tokens as f64),
            work: Box::new(work),
        })?;
    }
    Ok(())
}

impl Work for PolicyLoss {
    fn run(&mut self) -> Result<()> {
        if let Some(gpu) = &mut self.gpu {
            return gpu.run();
        }
        let advantage = Advantages::PerSequence(&self.advantage);
        let read =
            Inputs::new(&self.logprob, &self.old_logprob, advantage, &self.mask, &self.offsets);
        let gradients = Gradients { logprob: &mut self.gradient, entropy: None };
        self.loss = forward_backward(&Objective::default(), &read, gradients)?.loss;
        Ok(())
    }

    /// The clipped objective in f64, its mean over live tokens.
    fn error(&mut self) -> Result<f64> {
        if let Some(OnGpu { gradient, metrics: Some(metrics), .. }) = &self.gpu {
            self.gradient = inputs::downloaded(gradient)?;
            self.loss = metrics.read()?.loss;
        }
        let live = self.mask.iter().filter(|m| **m != 0).count() as f64;
        let (mut loss, mut gradients) = (0.0, Vec::with_capacity(self.mask.len()));
        for (i, mask) in self.mask.iter().enumerate() {
            if *mask == 0 {
                gradients.push(0.0);
                continue;
            }
            let a = f64::from(self.advantage[i / self.length]);
            let ratio = (f64::from(self.logprob[i]) - f64::from(self.old_logprob[i])).exp();
            let (free, clipped) = (-a * ratio, -a * ratio.clamp(1.0 - CLIP, 1.0 + CLIP));
            loss += free.max(clipped) / live;
            // The gradient jumps at a bound, and a ratio within rounding of one may be on either side.
            let near = [1.0 - CLIP, 1.0 + CLIP].iter().any(|bound| (ratio - bound).abs() < 1e-5);
            let gradient = if free >= clipped { free / live } else { 0.0 };
            gradients.push(if near { f64::from(self.gradient[i]) } else { gradient });
        }
        let got = self.gradient.iter().map(|g| f64::from(*g));
        let of_gradients = worst(got.zip(gradients), 1e-6 / live, 1e-5);
        Ok(of_gradients.max(worst([(self.loss, loss)], 1e-6, 1e-5)))
    }
}

/// GRPO's advantages of groups of eight.
struct Advantage {
    rewards: Vec<f32>,
    offsets: Vec<i64>,
    advantage: Vec<f32>,
    gpu: Option<(DeviceBuffer, advantage::launch::DeviceGroups, DeviceBuffer)>,
}

const GROUP: usize = 8;

/// The default estimator's.
const EPSILON: f64 = 1e-6;

pub(super) fn advantage(
    device: &Device,
    quick: bool,
    give: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    let groups = if quick { 5 } else { 8192 };
    let responses = groups * GROUP;
    let mut work = Advantage {
        rewards: inputs::normal(responses, 4),
        offsets: (0..=groups).map(|group| (group * GROUP) as i64).collect(),
        advantage: vec![0.0; responses],
        gpu: None,
    };
    if let Some(gpu) = device.gpu() {
        let groups = Groups::Offsets(&work.offsets);
        let groups = advantage::launch::DeviceGroups::upload(gpu, groups, responses)?;
        work.gpu = Some((f32s(gpu, &work.rewards)?, groups, f32s(gpu, &work.advantage)?));
    }
    give(Case {
        part: "forward",
        shape: vec![groups, GROUP],
        dtype: DType::F32,
        amount: Amount::Bytes((8 * responses + 8 * groups) as f64),
        work: Box::new(work),
    })
}

impl Work for Advantage {
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
