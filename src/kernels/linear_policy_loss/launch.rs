//! A policy objective from hidden states and a head, on a device: launches one after another, and nothing goes to the host.

use crate::DType::F32;
use crate::device::gpu::{DeviceBuffer, DeviceSlice};
use crate::error::Result;
use crate::kernels::linear_logprob::launch::{
    self as linear_logprob, Gradients, Head, Outputs, Pass, Saved, Upstream,
};
use crate::kernels::policy_loss::launch::{
    self as policy_loss, Advantages, DeviceMetrics, Inputs, Launches,
};
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
    /// u8 `[tokens]`.
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

impl<'a> Loss<'a> {
    /// What [`policy_loss::forward_backward`] reads, once log-probs and entropies are known.
    pub fn inputs(&self, logprob: DeviceSlice<'a>, entropy: DeviceSlice<'a>) -> Inputs<'a> {
        Inputs {
            logprob,
            old_logprob: self.old_logprob.unwrap_or(logprob),
            advantage: self.advantage,
            mask: self.mask,
            offsets: self.offsets,
            reference_logprob: self.reference_logprob,
            entropy: Some(entropy),
            weight: self.weight,
            sampler_logprob: self.sampler_logprob,
            off_policy: self.off_policy,
            selected: self.selected,
            totals: self.totals,
        }
    }
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

/// [`forward_backward`](super::forward_backward) on a device. In one pass the gradients of all tokens are launched once per
/// chunk, when its log-probs are there: those of later chunks are overwritten by a later launch before they are read.
///
/// # Errors
/// Those of [`linear_logprob::forward`] and [`policy_loss::forward_backward`].
pub fn forward_backward(
    head: &Head<'_>,
    loss: &Loss<'_>,
    mut into: Gradients<'_>,
) -> Result<Computed> {
    let mut between = Between::new(head, loss)?;
    if !loss.objective.is_token_by_token() || into.is_empty() {
        return two_passes(head, loss, between, into);
    }
    const OP: &str = "linear_policy_loss";
    let mut launches = {
        let (inputs, mut gradients) = between.inputs(loss);
        let mut launches = Launches::of(loss.objective, &inputs, &gradients)?;
        launches.sequences(&inputs, &mut gradients)?;
        launches
    };
    let mut pass = Pass::both(OP, head, &mut between.outputs(), &mut into)?;
    for chunk in 0..pass.chunks() {
        pass.compute_logits(chunk)?;
        pass.outputs(chunk, between.outputs())?;
        let (inputs, mut gradients) = between.inputs(loss);
        launches.tokens(&inputs, &mut gradients)?;
        pass.gradients(chunk, &between.saved(), &mut into)?;
    }
    let (inputs, mut gradients) = between.inputs(loss);
    if pass.chunks() == 0 {
        launches.tokens(&inputs, &mut gradients)?;
    }
    let metrics = launches.metrics(&inputs, &mut gradients)?;
    Ok(between.computed(metrics))
}

fn two_passes(
    head: &Head<'_>,
    loss: &Loss<'_>,
    mut between: Between,
    into: Gradients<'_>,
) -> Result<Computed> {
    linear_logprob::forward(head, between.outputs())?;
    let (inputs, gradients) = between.inputs(loss);
    let metrics = policy_loss::forward_backward(loss.objective, &inputs, gradients)?;
    if !into.is_empty() {
        linear_logprob::backward(head, &between.saved(), into)?;
    }
    Ok(between.computed(metrics))
}

/// What lies between the two kernels: f32 `[tokens]` each.
struct Between {
    logprob: DeviceBuffer,
    entropy: DeviceBuffer,
    logsumexp: DeviceBuffer,
    dlogprob: DeviceBuffer,
    /// Where the objective has a bonus.
    dentropy: Option<DeviceBuffer>,
}

impl Between {
    fn new(head: &Head<'_>, loss: &Loss<'_>) -> Result<Between> {
        let new = || DeviceBuffer::recycled(head.hidden.gpu(), F32, head.rows);
        let wants_entropy = loss.objective.entropy_coefficient != 0.0;
        Ok(Between {
            logprob: new()?,
            entropy: new()?,
            logsumexp: new()?,
            dlogprob: new()?,
            dentropy: wants_entropy.then(new).transpose()?,
        })
    }

    fn outputs(&mut self) -> Outputs<'_> {
        Outputs {
            logprob: self.logprob.whole_mut(),
            entropy: Some(self.entropy.whole_mut()),
            logsumexp: self.logsumexp.whole_mut(),
            argmax: None,
        }
    }

    fn inputs<'a>(&'a mut self, loss: &Loss<'a>) -> (Inputs<'a>, policy_loss::Gradients<'a>) {
        let gradients = policy_loss::Gradients {
            logprob: self.dlogprob.whole_mut(),
            entropy: self.dentropy.as_mut().map(DeviceBuffer::whole_mut),
        };
        (loss.inputs(self.logprob.whole(), self.entropy.whole()), gradients)
    }

    fn saved(&self) -> Saved<'_> {
        Saved {
            logsumexp: self.logsumexp.whole(),
            entropy: Some(self.entropy.whole()),
            upstream: Upstream {
                dlogprob: Some(self.dlogprob.whole()),
                dentropy: self.dentropy.as_ref().map(DeviceBuffer::whole),
            },
        }
    }

    fn computed(self, metrics: DeviceMetrics) -> Computed {
        Computed { metrics, logprob: self.logprob, entropy: self.entropy }
    }
}
