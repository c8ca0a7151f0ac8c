//! A policy objective straight from hidden states and an output head: the loss, its metrics, and the gradients of hidden
//! states, head and bias.
//!
//! The composition of `linear_logprob` and `policy_loss` in one place, and
//! nothing of its own: every objective works, entropy bonus and sequence ratios too, because the loss sees log-probs and
//! entropies as vectors and its gradient goes back as vectors. Masked tokens have no row in any product.

pub mod launch;

use super::linear_logprob::{self, Gradients, Head, Saved};
use super::logprob::{IGNORE, Outputs};
use super::policy_loss::{self, Advantages, Inputs, Metrics, Objective, Totals};
use crate::error::{Error, Result};

/// The loss of a batch of packed sequences: the objective, and what it reads beside the log-probs of now. `[tokens]`
/// unless said otherwise; see [`Inputs`].
#[derive(Clone, Copy, Debug)]
pub struct Loss<'a> {
    /// What is minimised.
    pub objective: &'a Objective,
    /// Log-probs under the policy that ratios compare with; `None`: those of now, so that every ratio is 1.
    pub old_logprob: Option<&'a [f32]>,
    /// Advantages, no gradient.
    pub advantage: Advantages<'a>,
    /// Non-zero: the token counts. Others are left out of the products.
    pub mask: &'a [u8],
    /// `[sequences + 1]`.
    pub offsets: &'a [i64],
    /// Needed when the objective has a `kl`.
    pub reference_logprob: Option<&'a [f32]>,
    /// Importance weights.
    pub weight: Option<&'a [f32]>,
    /// Read by the off-policy mask.
    pub sampler_logprob: Option<&'a [f32]>,
    /// Non-zero: replayed.
    pub off_policy: Option<&'a [u8]>,
    /// Non-zero: picked by the objective's selection.
    pub selected: Option<&'a [u8]>,
    /// What this call must know of the whole batch.
    pub totals: Totals,
}

/// What lies between the two kernels; made once and used again. After a call it holds that call's values.
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    /// Log-prob of each token, 0 where masked.
    pub logprob: Vec<f32>,
    /// Entropy of each token, nats, 0 where masked.
    pub entropy: Vec<f32>,
    logsumexp: Vec<f32>,
    dlogprob: Vec<f32>,
    dentropy: Vec<f32>,
    targets: Vec<i32>,
}

/// The loss of `head.rows` tokens and its gradients: 8·live·width·vocab floating-point operations.
///
/// `dhidden` is overwritten, `dweight` and `dbias` are added to.
///
/// # Errors
/// Those of [`linear_logprob::forward`] and [`policy_loss::forward_backward`].
///
/// # Source
/// The fused GRPO losses of Liger (`LigerFusedLinearGRPOLoss`) compute this for some objectives.
pub fn forward_backward(
    head: &Head<'_>,
    loss: &Loss<'_>,
    workspace: &mut Workspace,
    into: Gradients<'_>,
) -> Result<Metrics> {
    let rows = head.rows;
    if loss.mask.len() != rows || head.targets.len() != rows {
        return Err(Error::shape(format!(
            "linear_policy_loss: {} mask bytes and {} targets for {rows} rows",
            loss.mask.len(),
            head.targets.len()
        )));
    }
    workspace.resize(rows);
    for ((target, mask), live) in head.targets.iter().zip(loss.mask).zip(&mut workspace.targets) {
        *live = if *mask != 0 { *target } else { IGNORE };
    }
    let live = Head { targets: &workspace.targets, ..*head };
    linear_logprob::forward(
        &live,
        Outputs {
            logprob: &mut workspace.logprob,
            entropy: Some(&mut workspace.entropy),
            logsumexp: &mut workspace.logsumexp,
            argmax: None,
        },
    )?;
    let wants_entropy = loss.objective.entropy_coefficient != 0.0;
    let metrics = policy_loss::forward_backward(
        loss.objective,
        &Inputs {
            logprob: &workspace.logprob,
            old_logprob: loss.old_logprob.unwrap_or(&workspace.logprob),
            advantage: loss.advantage,
            mask: loss.mask,
            offsets: loss.offsets,
            reference_logprob: loss.reference_logprob,
            entropy: Some(&workspace.entropy),
            weight: loss.weight,
            sampler_logprob: loss.sampler_logprob,
            off_policy: loss.off_policy,
            selected: loss.selected,
            totals: loss.totals,
        },
        policy_loss::Gradients {
            logprob: &mut workspace.dlogprob,
            entropy: wants_entropy.then_some(&mut workspace.dentropy[..]),
        },
    )?;
    let saved = Saved {
        logsumexp: &workspace.logsumexp,
        entropy: Some(&workspace.entropy),
        dlogprob: Some(&workspace.dlogprob),
        dentropy: wants_entropy.then_some(&workspace.dentropy[..]),
    };
    linear_logprob::backward(&live, &saved, into)?;
    Ok(metrics)
}

impl Workspace {
    fn resize(&mut self, rows: usize) {
        for values in [
            &mut self.logprob,
            &mut self.entropy,
            &mut self.logsumexp,
            &mut self.dlogprob,
            &mut self.dentropy,
        ] {
            values.resize(rows, 0.0);
        }
        self.targets.resize(rows, IGNORE);
    }
}
