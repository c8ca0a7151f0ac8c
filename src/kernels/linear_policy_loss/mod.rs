//! A policy objective straight from hidden states and an output head: the loss, its metrics, and the gradients of hidden
//! states, head and bias.
//!
//! The composition of `linear_logprob` and `policy_loss` in one place. Where the gradient of a token follows from its own
//! log-prob ([`Objective::is_token_by_token`]) the logits of a chunk of rows become gradients while they are there: three
//! products of the head. Every other objective takes two passes over the chunks, which is one product more: the loss needs
//! all log-probs first, and the logits are computed again for their gradients. Both ways are the same arithmetic; see
//! [`forward_backward`] for what is equal to the bit.

pub mod launch;

use super::linear_logprob::{self, Gradients, Head, Saved};
use super::logprob::{Outputs, Upstream};
use super::policy_loss::{self, Advantages, Inputs, Metrics, Objective, TokenGradients, Totals};
use crate::error::Result;

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
    /// Non-zero: the token counts. What has a log-prob is decided by the targets of the head: a negative one leaves its row
    /// out of the products, and a masked token with another one has a log-prob and no gradient.
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

impl<'a> Loss<'a> {
    /// What [`policy_loss::forward_backward`] reads, once log-probs and entropies are known.
    pub fn inputs(&self, logprob: &'a [f32], entropy: &'a [f32]) -> Inputs<'a> {
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

/// What lies between the two kernels; made once and used again. After a call it holds that call's values.
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    /// Log-prob of each token, 0 where its target is negative.
    pub logprob: Vec<f32>,
    /// Entropy of each token, nats, 0 where its target is negative.
    pub entropy: Vec<f32>,
    logsumexp: Vec<f32>,
    dlogprob: Vec<f32>,
    dentropy: Vec<f32>,
}

/// The loss of `head.rows` tokens and its gradients: 6·live·width·vocab floating-point operations for an objective that is
/// token by token, 8 for others, 2 where no gradient is wanted; `live` are the rows with a target.
///
/// `dhidden` is overwritten, `dweight` and `dbias` are added to. Metrics, log-probs, entropies and `dhidden` are the same
/// bits whether one pass is made or two. So are `dweight` and `dbias` where every live row has a gradient: two passes leave
/// rows without one out before they cut the others into chunks, one pass can only leave them out of their chunk, and the
/// chunks are the order in which these two are summed.
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
    workspace.resize(head.rows);
    // Not known yet, and not read.
    let unknown = vec![0.0; head.rows];
    let tokens = TokenGradients::new(loss.objective, &loss.inputs(&unknown, &unknown))?;
    match tokens.filter(|_| !into.is_empty()) {
        Some(tokens) => one_pass(head, loss, &tokens, workspace, into),
        None => two_passes(head, loss, workspace, into),
    }
}

fn one_pass(
    head: &Head<'_>,
    loss: &Loss<'_>,
    tokens: &TokenGradients<'_>,
    workspace: &mut Workspace,
    into: Gradients<'_>,
) -> Result<Metrics> {
    let of_row = |row: usize, logprob: f32, _: f32| {
        tokens.of(row, logprob, loss.old_logprob.map_or(logprob, |all| all[row]))
    };
    let upstream = Upstream::PerRow(&of_row);
    linear_logprob::forward_backward(head, upstream, workspace.outputs(), into)?;
    // The gradients have been used by now. Metrics are sums in an order of their own.
    workspace.loss(loss, false)
}

fn two_passes(
    head: &Head<'_>,
    loss: &Loss<'_>,
    workspace: &mut Workspace,
    into: Gradients<'_>,
) -> Result<Metrics> {
    linear_logprob::forward(head, workspace.outputs())?;
    let wants_entropy = loss.objective.entropy_coefficient != 0.0;
    let metrics = workspace.loss(loss, wants_entropy)?;
    if into.is_empty() {
        return Ok(metrics);
    }
    let saved = Saved {
        logsumexp: &workspace.logsumexp,
        entropy: Some(&workspace.entropy),
        dlogprob: Some(&workspace.dlogprob),
        dentropy: wants_entropy.then_some(&workspace.dentropy[..]),
    };
    linear_logprob::backward(head, &saved, into)?;
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
    }

    fn outputs(&mut self) -> Outputs<'_> {
        Outputs {
            logprob: &mut self.logprob,
            entropy: Some(&mut self.entropy),
            logsumexp: &mut self.logsumexp,
            argmax: None,
        }
    }

    /// The loss from the log-probs and entropies that are here.
    fn loss(&mut self, loss: &Loss<'_>, wants_entropy: bool) -> Result<Metrics> {
        policy_loss::forward_backward(
            loss.objective,
            &loss.inputs(&self.logprob, &self.entropy),
            policy_loss::Gradients {
                logprob: &mut self.dlogprob,
                entropy: wants_entropy.then_some(&mut self.dentropy[..]),
            },
        )
    }
}
