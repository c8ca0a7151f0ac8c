//! The loss and the advantages.

use super::{Amount, Case, Work, inputs, worst};
use crate::DType;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::advantage::{self, Estimator, Groups};
use crate::kernels::policy_loss::{
    Advantages, Gradients, Inputs, Objective, Totals, forward_backward,
};

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
}

pub(super) fn policy_loss(
    device: &Device,
    quick: bool,
    give: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    only_on_cpu(device, "policy_loss")?;
    for (sequences, length) in if quick { vec![(3, 50)] } else { vec![(64, 1024), (256, 4096)] } {
        let tokens = sequences * length;
        let logprob: Vec<f32> = inputs::normal(tokens, 1).iter().map(|x| -1.0 - x.abs()).collect();
        let near = logprob.iter().zip(inputs::normal(tokens, 2)).map(|(l, n)| l + 0.2 * n);
        let end = |row: usize| length - (row * 37) % (length / 4);
        let work = PolicyLoss {
            length,
            old_logprob: near.collect(),
            logprob,
            advantage: inputs::normal(sequences, 3),
            mask: (0..tokens).map(|i| u8::from(i % length < end(i / length))).collect(),
            offsets: (0..=sequences).map(|row| (row * length) as i64).collect(),
            gradient: vec![0.0; tokens],
            loss: 0.0,
        };
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

fn only_on_cpu(device: &Device, kernel: &str) -> Result<()> {
    match device.gpu() {
        None => Ok(()),
        Some(_) => Err(Error::unsupported(format!("{kernel} is measured on the CPU alone so far"))),
    }
}

impl Work for PolicyLoss {
    fn run(&mut self) -> Result<()> {
        let read = Inputs {
            logprob: &self.logprob,
            old_logprob: &self.old_logprob,
            advantage: Advantages::PerSequence(&self.advantage),
            mask: &self.mask,
            offsets: &self.offsets,
            reference_logprob: None,
            entropy: None,
            weight: None,
            totals: Totals::default(),
        };
        let gradients = Gradients { logprob: &mut self.gradient, entropy: None };
        self.loss = forward_backward(&Objective::default(), &read, gradients)?.loss;
        Ok(())
    }

    /// The clipped objective in f64, its mean over live tokens.
    fn error(&mut self) -> Result<f64> {
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
}

const GROUP: usize = 8;

pub(super) fn advantage(
    device: &Device,
    quick: bool,
    give: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    only_on_cpu(device, "advantage")?;
    let groups = if quick { 5 } else { 8192 };
    let responses = groups * GROUP;
    let work = Advantage {
        rewards: inputs::normal(responses, 4),
        offsets: (0..=groups).map(|group| (group * GROUP) as i64).collect(),
        advantage: vec![0.0; responses],
    };
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
        let mut want = Vec::with_capacity(self.rewards.len());
        for group in self.rewards.chunks(GROUP) {
            let rewards: Vec<f64> = group.iter().map(|r| f64::from(*r)).collect();
            let mean = rewards.iter().sum::<f64>() / GROUP as f64;
            let squares: f64 = rewards.iter().map(|r| (r - mean).powi(2)).sum();
            let std = (squares / (GROUP - 1) as f64).sqrt();
            want.extend(rewards.iter().map(|r| (r - mean) / (std + 1e-4)));
        }
        Ok(worst(self.advantage.iter().map(|a| f64::from(*a)).zip(want), 1e-5, 1e-4))
    }
}
