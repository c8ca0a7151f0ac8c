//! The loss from hidden states and a head, with all gradients.

use super::linear_logprob::{Head, HeadGradients, HeadOnGpu, sizes};
use super::packed::Packed;
use super::reference::worst;
use super::{Case, Give, Work, inputs};
use crate::device::Device;
use crate::device::gpu::DeviceBuffer;
use crate::error::Result;
use crate::kernels::linear_logprob::{self, launch as linear_launch};
use crate::kernels::linear_policy_loss::{Loss, Workspace, forward_backward, launch};
use crate::kernels::logprob::IGNORE;
use crate::kernels::policy_loss::{Advantages, Objective, Totals, launch as policy_loss};

/// Sequences that the rows are cut into.
const SEQUENCES: usize = 2;

/// GRPO's loss right after the rollout, where every ratio is 1.
struct LinearPolicyLoss {
    packed: Packed,
    head: Head,
    advantage: Vec<f32>,
    gradients: HeadGradients,
    workspace: Workspace,
    loss: f64,
    gpu: Option<OnGpu>,
}

struct OnGpu {
    head: HeadOnGpu,
    advantage: DeviceBuffer,
    computed: Option<launch::Computed>,
}

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let (shape, dtype) = sizes(device, quick);
    let [rows, width, vocab] = shape;
    let packed = Packed::new(device, [SEQUENCES, rows / SEQUENCES])?;
    let mut head = Head::new(device, dtype, shape)?;
    for (row, target) in head.targets.iter_mut().enumerate() {
        *target = if packed.is_live(row) { *target } else { IGNORE };
    }
    let advantage = inputs::normal(SEQUENCES, 3);
    let on_gpu = |gpu| -> Result<OnGpu> {
        let advantage = inputs::uploaded(gpu, &advantage)?;
        Ok(OnGpu { head: HeadOnGpu::new(gpu, &head)?, advantage, computed: None })
    };
    // Three products of the rows that are live.
    let flops = 6.0 * packed.live() as f64 * (width * vocab) as f64;
    let work = LinearPolicyLoss {
        gpu: device.gpu().map(on_gpu).transpose()?,
        gradients: HeadGradients::new(device, &head)?,
        packed,
        head,
        advantage,
        workspace: Workspace::default(),
        loss: 0.0,
    };
    give(Case::flops("forward_backward", &shape, dtype, flops, Box::new(work)))
}

impl Work for LinearPolicyLoss {
    fn refresh(&mut self) -> Result<()> {
        self.gradients.clear()
    }

    fn run(&mut self) -> Result<()> {
        let objective = &Objective::default();
        match (&mut self.gradients, &mut self.gpu, self.packed.on_gpu()) {
            (HeadGradients::Gpu { dhidden, dweight }, Some(gpu), Some([mask, offsets])) => {
                let loss = launch::Loss {
                    objective,
                    old_logprob: None,
                    advantage: policy_loss::Advantages::PerSequence(gpu.advantage.whole()),
                    mask,
                    offsets,
                    reference_logprob: None,
                    weight: None,
                    sampler_logprob: None,
                    off_policy: None,
                    selected: None,
                    totals: Totals::default(),
                };
                let (dhidden, dweight) = (Some(dhidden.whole_mut()), Some(dweight.whole_mut()));
                let into = linear_launch::Gradients { dhidden, dweight, dbias: None };
                gpu.computed = Some(launch::forward_backward(&gpu.head.args(), &loss, into)?);
            }
            (HeadGradients::Cpu { dhidden, dweight }, ..) => {
                let loss = Loss {
                    objective,
                    old_logprob: None,
                    advantage: Advantages::PerSequence(&self.advantage),
                    mask: &self.packed.mask,
                    offsets: &self.packed.offsets,
                    reference_logprob: None,
                    weight: None,
                    sampler_logprob: None,
                    off_policy: None,
                    selected: None,
                    totals: Totals::default(),
                };
                let (dhidden, dweight) = (Some(&mut dhidden[..]), Some(&mut dweight[..]));
                let into = linear_logprob::Gradients { dhidden, dweight, dbias: None };
                let head = self.head.args()?;
                self.loss = forward_backward(&head, &loss, &mut self.workspace, into)?.loss;
            }
            _ => {}
        }
        Ok(())
    }

    /// At ratio 1 the loss is the mean of `-A` over live tokens, and `-A / live` the gradient of a log-prob.
    fn error(&mut self) -> Result<f64> {
        let logprob = match &self.gpu {
            Some(OnGpu { computed: Some(computed), .. }) => {
                self.loss = computed.metrics.read()?.loss;
                inputs::downloaded(&computed.logprob)?
            }
            _ => self.workspace.logprob.clone(),
        };
        let live = self.packed.live() as f32;
        let of_token = |token: usize| match self.packed.is_live(token) {
            true => -self.advantage[token / self.packed.length] / live,
            false => 0.0,
        };
        let dlogprob: Vec<f32> = (0..self.packed.tokens()).map(of_token).collect();
        let loss: f64 = dlogprob.iter().map(|d| f64::from(*d)).sum();
        let computed = self.gradients.computed(&self.head, logprob)?;
        let of_gradients = self.head.error(&dlogprob, &computed);
        Ok(of_gradients.max(worst([(self.loss, loss)], 1e-6, 1e-5)))
    }
}
