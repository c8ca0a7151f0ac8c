//! A policy objective from hidden states and a head, on a device: three kernels' launches one after another, and nothing
//! goes to the host.

use crate::DType::F32;
use crate::device::gpu::{DeviceBuffer, DeviceSlice};
use crate::error::Result;
use crate::kernels::linear_logprob::launch::{
    self as linear_logprob, Gradients, Head, Outputs, Saved, Upstream,
};
use crate::kernels::policy_loss::launch::{self as policy_loss, Advantages, DeviceMetrics};
use crate::kernels::policy_loss::{Objective, Totals};

/// [`Loss`](super::Loss) in device memory.
#[derive(Clone, Copy)]
pub struct Loss<'a> {
    /// What is minimised.
    pub objective: &'a Objective,
    /// f32 `[tokens]`; `None`: the log-probs of now.
    pub old_logprob: Option<DeviceSlice<'a>>,
    /// No gradient.
    pub advantage: Advantages<'a>,
    /// u8 `[tokens]`. A masked token whose target is negative is left out of the products.
    pub mask: DeviceSlice<'a>,
    /// i64 `[sequences + 1]`.
    pub offsets: DeviceSlice<'a>,
    /// f32 `[tokens]`; needed when the objective has a `kl`.
    pub reference_logprob: Option<DeviceSlice<'a>>,
    /// f32 `[tokens]`.
    pub weight: Option<DeviceSlice<'a>>,
    /// f32 `[tokens]`.
    pub sampler_logprob: Option<DeviceSlice<'a>>,
    /// u8 `[tokens]`.
    pub off_policy: Option<DeviceSlice<'a>>,
    /// u8 `[tokens]`.
    pub selected: Option<DeviceSlice<'a>>,
    /// What this call must know of the whole batch.
    pub totals: Totals,
}

/// What a call leaves on the device.
pub struct Computed {
    /// The loss and what to watch beside it.
    pub metrics: DeviceMetrics,
    /// f32 `[tokens]`.
    pub logprob: DeviceBuffer,
    /// f32 `[tokens]`, nats.
    pub entropy: DeviceBuffer,
}

/// [`forward_backward`](super::forward_backward) on a device.
///
/// # Errors
/// Those of [`linear_logprob::forward`] and [`policy_loss::forward_backward`].
pub fn forward_backward(head: &Head<'_>, loss: &Loss<'_>, into: Gradients<'_>) -> Result<Computed> {
    let gpu = head.hidden.gpu();
    let new = || DeviceBuffer::recycled(gpu, F32, head.rows);
    let (mut logprob, mut entropy, mut logsumexp) = (new()?, new()?, new()?);
    linear_logprob::forward(
        head,
        Outputs {
            logprob: logprob.whole_mut(),
            entropy: Some(entropy.whole_mut()),
            logsumexp: logsumexp.whole_mut(),
            argmax: None,
        },
    )?;
    let mut dlogprob = new()?;
    let mut dentropy = if loss.objective.entropy_coefficient != 0.0 { Some(new()?) } else { None };
    let metrics = policy_loss::forward_backward(
        loss.objective,
        &policy_loss::Inputs {
            logprob: logprob.whole(),
            old_logprob: loss.old_logprob.unwrap_or(logprob.whole()),
            advantage: loss.advantage,
            mask: loss.mask,
            offsets: loss.offsets,
            reference_logprob: loss.reference_logprob,
            entropy: Some(entropy.whole()),
            weight: loss.weight,
            sampler_logprob: loss.sampler_logprob,
            off_policy: loss.off_policy,
            selected: loss.selected,
            totals: loss.totals,
        },
        policy_loss::Gradients {
            logprob: dlogprob.whole_mut(),
            entropy: dentropy.as_mut().map(DeviceBuffer::whole_mut),
        },
    )?;
    let saved = Saved {
        logsumexp: logsumexp.whole(),
        entropy: Some(entropy.whole()),
        upstream: Upstream {
            dlogprob: Some(dlogprob.whole()),
            dentropy: dentropy.as_ref().map(DeviceBuffer::whole),
        },
    };
    linear_logprob::backward(head, &saved, into)?;
    Ok(Computed { metrics, logprob, entropy })
}
