//! The forward pass over many rows.

use super::row::{self, Reading, Scratch, Summary};
use super::{Plan, Softmax, Workspace, check_len, check_logits};
use crate::device::cpu::pool;
use crate::dtype::{Float, FloatSlice};
use crate::error::Result;
use crate::with_float;

/// Arguments of [`forward`].
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// `[rows, vocab]`, f32, bf16 or f16.
    pub logits: FloatSlice<'a>,
    /// `[rows]`; a negative one ([`IGNORE`](super::IGNORE)) leaves its row out: its logits are not read.
    pub targets: &'a [i32],
    /// Rows.
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// How logits become a distribution.
    pub softmax: Softmax<'a>,
}

/// Outputs of the forward pass, each `[rows]`. An ignored row gets 0, and -1 as its argmax.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// Log-prob of the target, nats; -inf when it is banned or its logit is -inf.
    pub logprob: &'a mut [f32],
    /// Entropy of the row, nats, not negative.
    pub entropy: Option<&'a mut [f32]>,
    /// Logsumexp of the capped and tempered logits: what the backward pass needs.
    pub logsumexp: &'a mut [f32],
    /// The first id of the largest logit; -1 when no logit is above -inf.
    pub argmax: Option<&'a mut [i32]>,
}

impl Outputs<'_> {
    pub(in crate::kernels) fn check(&self, op: &str, rows: usize) -> Result<()> {
        check_len(op, "logprob", self.logprob.len(), rows)?;
        check_len(op, "logsumexp", self.logsumexp.len(), rows)?;
        if let Some(entropy) = &self.entropy {
            check_len(op, "entropy", entropy.len(), rows)?;
        }
        if let Some(argmax) = &self.argmax {
            check_len(op, "argmax", argmax.len(), rows)?;
        }
        Ok(())
    }

    /// What ignored rows get.
    pub(in crate::kernels) fn clear(&mut self) {
        self.write(&vec![Summary::IGNORED; self.logprob.len()]);
    }

    pub(super) fn write(&mut self, summaries: &[Summary]) {
        for (row, summary) in summaries.iter().enumerate() {
            self.logprob[row] = summary.logprob;
            self.logsumexp[row] = summary.logsumexp;
            if let Some(entropy) = &mut self.entropy {
                entropy[row] = summary.entropy;
            }
            if let Some(argmax) = &mut self.argmax {
                argmax[row] = summary.argmax;
            }
        }
    }
}

/// Log-probs, entropies, logsumexps and argmaxes straight from logits, reading them once.
///
/// `logprob[i] = log softmax(logits[i] / τ)[targets[i]]`, `entropy[i] = -Σ_v p_v log p_v`.
///
/// A row whose logits are all -inf or banned has log-prob and logsumexp -inf and entropy 0. A NaN logit of a live row
/// makes its outputs NaN. Sums are f32 within 2048 logits and f64 over these.
///
/// # Errors
/// `is_shape` when a length does not fit, `is_index` for a target or banned id outside the vocabulary, `is_invalid`
/// for a temperature or softcap that is not finite and positive.
///
/// # Source
/// The same as TRL's `selective_log_softmax` with `entropy_from_logits`, and verl's `logprobs_from_logits`.
pub fn forward(args: &Forward<'_>, mut out: Outputs<'_>) -> Result<()> {
    const OP: &str = "logprob forward";
    let shape = [args.rows, args.vocab];
    check_logits(OP, args.logits.len(), shape)?;
    out.check(OP, args.rows)?;
    let plan = Plan::new(OP, shape, args.targets, args.softmax)?;
    let want_argmax = out.argmax.is_some();
    let mut summaries = vec![Summary::IGNORED; plan.rows];
    with_float!(FloatSlice, args.logits, |logits| {
        let rows = logits.chunks(plan.vocab.max(1));
        plan.each_row(rows, &mut summaries, |workspace, row, logits, summary, share| {
            if let Some(target) = plan.target(row) {
                *summary = one(&plan, logits, [row, target], workspace, want_argmax, share);
            }
        });
    });
    out.write(&summaries);
    Ok(())
}

/// The summary of one live row, computed by this thread or, where `share`, by all.
pub(super) fn one<T: Float>(
    plan: &Plan<'_>,
    logits: &[T],
    [row, target]: [usize; 2],
    workspace: &mut Workspace,
    want_argmax: bool,
    share: bool,
) -> Summary {
    let how = plan.reading(row);
    all_sums(plan, logits, &how, workspace, share);
    row::merge(logits, target, &how, &mut workspace.scratch, &workspace.pieces, want_argmax)
}

/// The sums of every piece of one row, into the workspace.
pub(super) fn all_sums<T: Float>(
    plan: &Plan<'_>,
    logits: &[T],
    how: &Reading<'_>,
    workspace: &mut Workspace,
    share: bool,
) {
    const TOGETHER: usize = 16;
    let Workspace { pieces, scratch } = workspace;
    if share {
        let memory = || Scratch::new(plan.vocab);
        pool::each_with(pieces.chunks_mut(TOGETHER), 1, memory, |scratch, i, out| {
            row::sums(logits, i * TOGETHER, how, scratch, out);
        });
    } else {
        row::sums(logits, 0, how, scratch, pieces);
    }
}
