//! The loss from log-probs.

use super::packed::Packed;
use super::reference::worst;
use super::sizes::Sizes;
use super::{Case, Give, Work, inputs};
use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, DeviceSlice, Gpu};
use crate::error::Result;
use crate::kernels::policy_loss::{
    Advantages, Gradients, Inputs, Objective, Totals, forward_backward, launch,
};
use std::sync::Arc;

/// The clip of the default objective.
const CLIP: f64 = 0.2;

/// GRPO's loss.
struct PolicyLoss {
    packed: Packed,
    logprob: Vec<f32>,
    old_logprob: Vec<f32>,
    advantage: Vec<f32>,
    gradient: Vec<f32>,
    loss: f64,
    gpu: Option<OnGpu>,
}

/// The same numbers on a device.
struct OnGpu {
    logprob: DeviceBuffer,
    old_logprob: DeviceBuffer,
    advantage: DeviceBuffer,
    gradient: DeviceBuffer,
    metrics: Option<launch::DeviceMetrics>,
}

impl OnGpu {
    fn new(gpu: &Arc<Gpu>, work: &PolicyLoss) -> Result<OnGpu> {
        Ok(OnGpu {
            logprob: inputs::uploaded(gpu, &work.logprob)?,
            old_logprob: inputs::uploaded(gpu, &work.old_logprob)?,
            advantage: inputs::uploaded(gpu, &work.advantage)?,
            gradient: inputs::uploaded(gpu, &work.gradient)?,
            metrics: None,
        })
    }

    fn run(&mut self, [mask, offsets]: [DeviceSlice<'_>; 2]) -> Result<()> {
        let read = launch::Inputs {
            logprob: self.logprob.whole(),
            old_logprob: self.old_logprob.whole(),
            advantage: launch::Advantages::PerSequence(self.advantage.whole()),
            mask,
            offsets,
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

pub(super) fn cases(device: &Device, sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
    let own: &[[usize; 2]] = if sizes.quick { &[[3, 50]] } else { &[[64, 1024], [256, 4096]] };
    for shape in sizes.shapes(own) {
        let packed = Packed::new(device, shape)?;
        let tokens = packed.tokens();
        let [logprob, old_logprob] = inputs::two_logprobs(tokens, 0.2);
        let mut work = PolicyLoss {
            old_logprob,
            logprob,
            advantage: inputs::normal(packed.sequences(), 3),
            packed,
            gradient: vec![0.0; tokens],
            loss: 0.0,
            gpu: None,
        };
        work.gpu = device.gpu().map(|gpu| OnGpu::new(gpu, &work)).transpose()?;
        // Two log-probs and a mask in, a gradient out.
        let work = Box::new(work);
        give(Case::bytes("forward_backward", &shape, DType::F32, 13 * tokens, work))?;
    }
    Ok(())
}

impl Work for PolicyLoss {
    fn run(&mut self) -> Result<()> {
        if let (Some(gpu), Some(packed)) = (&mut self.gpu, self.packed.on_gpu()) {
            return gpu.run(packed);
        }
        let advantage = Advantages::PerSequence(&self.advantage);
        let Packed { mask, offsets, .. } = &self.packed;
        let read = Inputs::new(&self.logprob, &self.old_logprob, advantage, mask, offsets);
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
        let live = self.packed.live() as f64;
        let (mut loss, mut gradients) = (0.0, Vec::with_capacity(self.packed.tokens()));
        for i in 0..self.packed.tokens() {
            if !self.packed.is_live(i) {
                gradients.push(0.0);
                continue;
            }
            let a = f64::from(self.advantage[i / self.packed.length]);
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
