//! Log-prob, entropy, logsumexp and argmax of one target per row straight from hidden states and an output head, and
//! the gradients of both, without the `[rows, vocab]` logits.
//!
//! Here are the arguments, their checks and the plan; `pass` has the products. Rows are taken in chunks whose logits
//! fit a workspace budget. Rows that are ignored are left out of the chunks, and in a backward pass so are rows
//! without gradient: they cost nothing. What is done with the logits of a chunk is [`super::logprob`]'s, so
//! its results are the same bits as those of `logprob` on the product of `gemm::matmul`.
//!
//! Everything is f32 inside. A bf16 or f16 head is widened a block at a time into the workspace.
//!
#![doc = include_str!("../../../docs/kernels/linear_logprob.md")]

pub mod launch;
mod pass;

use super::logprob::{self, Outputs, Softmax, Upstream, check_len};
use crate::dtype::{DType, FloatSlice};
use crate::error::{Error, Result};
use pass::Pass;

/// The workspace of a call that gives no budget.
pub const DEFAULT_WORKSPACE: usize = 48 << 20;

/// Rows that a chunk has at least, whatever the budget.
const FEWEST_ROWS: usize = 8;
/// Rows that a chunk has at most: beyond, products no longer gain.
const MOST_ROWS: usize = 2048;
/// Elements of a head that are widened together: 8 MiB as f32.
const BLOCK: usize = 2 << 20;

/// Hidden states, the head, and what is asked of them.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `[rows, width]`, f32, bf16 or f16. Ignored rows are not read.
    pub hidden: FloatSlice<'a>,
    /// `[vocab, width]`, f32, bf16 or f16.
    pub weight: FloatSlice<'a>,
    /// `[vocab]`, added to the logits before anything else.
    pub bias: Option<FloatSlice<'a>>,
    /// `[rows]`; a negative one ([`IGNORE`](logprob::IGNORE)) leaves its row out.
    pub targets: &'a [i32],
    /// Rows.
    pub rows: usize,
    /// Elements of a hidden state.
    pub width: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// How logits become a distribution.
    pub softmax: Softmax<'a>,
    /// Bytes of workspace to stay within where eight rows allow it; 0: [`DEFAULT_WORKSPACE`]. The budget decides the
    /// chunks, and so the order in which `dweight` and `dbias` are summed; no other result depends on it.
    pub workspace: usize,
}

/// What a forward pass saved, and the gradient of the loss by its outputs.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// `[rows]` from the forward pass.
    pub logsumexp: &'a [f32],
    /// `[rows]` from the forward pass; needed with `dentropy`.
    pub entropy: Option<&'a [f32]>,
    /// `[rows]` gradient by the log-probs; `None`: zero.
    pub dlogprob: Option<&'a [f32]>,
    /// `[rows]` gradient by the entropies; `None`: zero.
    pub dentropy: Option<&'a [f32]>,
}

/// Where gradients go; `None`: not wanted, and not computed.
#[derive(Debug, Default)]
pub struct Gradients<'a> {
    /// `[rows, width]`, overwritten; 0 for ignored rows.
    pub dhidden: Option<&'a mut [f32]>,
    /// `[vocab, width]`, added to.
    pub dweight: Option<&'a mut [f32]>,
    /// `[vocab]`, added to.
    pub dbias: Option<&'a mut [f32]>,
}

impl Gradients<'_> {
    /// None is wanted.
    pub(in crate::kernels) fn is_empty(&self) -> bool {
        self.dhidden.is_none() && self.dweight.is_none() && self.dbias.is_none()
    }

    fn check(&self, op: &str, head: &Head<'_>) -> Result<()> {
        let lens = [
            ("dhidden", self.dhidden.as_ref().map(|g| g.len()), head.rows * head.width),
            ("dweight", self.dweight.as_ref().map(|g| g.len()), head.vocab * head.width),
            ("dbias", self.dbias.as_ref().map(|g| g.len()), head.vocab),
        ];
        for (what, len, want) in lens {
            if let Some(len) = len {
                check_len(op, what, len, want)?;
            }
        }
        Ok(())
    }
}

impl Head<'_> {
    fn check(&self, op: &str) -> Result<()> {
        let Head { rows, width, vocab, .. } = *self;
        let operands = [("hidden", self.hidden, rows), ("weight", self.weight, vocab)];
        for (what, data, height) in operands {
            if height.checked_mul(width) != Some(data.len()) {
                let (len, dtype) = (data.len(), data.dtype());
                return Err(Error::shape(format!(
                    "{op}: {what} has {len} {dtype} elements, not [{height}, {width}]"
                )));
            }
        }
        if let Some(bias) = self.bias {
            check_len(op, "bias", bias.len(), vocab)?;
        }
        logprob::check(op, [rows, vocab], self.targets, self.softmax)
    }

    /// Rows with a target.
    fn live(&self) -> Vec<usize> {
        (0..self.rows).filter(|row| self.targets[*row] >= 0).collect()
    }
}

/// The sizes of the work on `live` rows.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Rows of a chunk.
    rows: usize,
    /// Blocks that the head is taken in.
    blocks: usize,
    /// Elements of the largest widened block; 0 for a head that is f32 already.
    block: usize,
}

impl Plan {
    fn new(live: usize, width: usize, vocab: usize, weight: DType, budget: usize) -> Plan {
        let wide = weight == DType::F32;
        let elements = if wide { 0 } else { vocab.saturating_mul(width) };
        let blocks = elements.div_ceil(BLOCK).clamp(1, vocab.max(1));
        let block = if wide { 0 } else { vocab.div_ceil(blocks) * width };
        let budget = if budget == 0 { DEFAULT_WORKSPACE } else { budget };
        let most = budget.saturating_sub(4 * block) / Plan::row_bytes(width, vocab);
        let most = (most / FEWEST_ROWS * FEWEST_ROWS).clamp(FEWEST_ROWS, MOST_ROWS);
        // Equal chunks: a short last one would be the slowest.
        let chunks = live.div_ceil(most).max(1);
        let rows = live.div_ceil(chunks).max(1).next_multiple_of(FEWEST_ROWS);
        Plan { rows, blocks, block }
    }

    /// Logits, the hidden state and its gradient.
    fn row_bytes(width: usize, vocab: usize) -> usize {
        4 * (vocab + 2 * width).max(1)
    }
}

/// Bytes of workspace that a call with `live` rows takes under this budget (0: the default). The matrix products' own
/// packing buffers, some megabytes a thread and the same for any size, are not in it.
pub fn workspace_bytes(
    live: usize,
    width: usize,
    vocab: usize,
    weight: DType,
    budget: usize,
) -> usize {
    let plan = Plan::new(live, width, vocab, weight, budget);
    plan.rows * Plan::row_bytes(width, vocab) + 4 * plan.block
}

/// Log-probs, entropies, logsumexps and argmaxes of `softmax(hidden · weightᵀ + bias)`: 2·rows·width·vocab
/// floating-point operations.
///
/// # Errors
/// `is_shape` when a length does not fit; targets, temperature, softcap and banned ids as in
/// [`logprob::forward`].
///
/// # Source
/// [`logprob::forward`] on the product.
pub fn forward(head: &Head<'_>, mut out: Outputs<'_>) -> Result<()> {
    const OP: &str = "linear_logprob forward";
    head.check(OP)?;
    out.check(OP, head.rows)?;
    out.clear();
    Pass::new(head, head.live()).forward(&mut out)
}

/// Gradients of a loss by hidden states, head and bias, from the gradient by the outputs of [`forward`]:
/// 6·rows·width·vocab floating-point operations, of which a third computes the logits again.
///
/// # Errors
/// As [`forward`]; `is_invalid` for `dentropy` without `entropy`.
///
/// # Source
/// [`logprob::backward`] and the products' gradients: `dhidden = dlogits · weight`, `dweight += dlogitsᵀ · hidden`,
/// `dbias += Σ_rows dlogits`.
pub fn backward(head: &Head<'_>, saved: &Saved<'_>, mut into: Gradients<'_>) -> Result<()> {
    const OP: &str = "linear_logprob backward";
    head.check(OP)?;
    into.check(OP, head)?;
    check_len(OP, "logsumexp", saved.logsumexp.len(), head.rows)?;
    if let Some(entropy) = saved.entropy {
        check_len(OP, "entropy", entropy.len(), head.rows)?;
    } else if saved.dentropy.is_some() {
        return Err(Error::invalid(format!(
            "{OP}: dentropy needs the entropy of the forward pass"
        )));
    }
    let upstream = Upstream::Known { dlogprob: saved.dlogprob, dentropy: saved.dentropy };
    upstream.check(OP, head.rows)?;
    if let Some(dhidden) = &mut into.dhidden {
        dhidden.fill(0.0);
    }
    let mut live = head.live();
    live.retain(|row| upstream.at(*row, 0.0, 0.0) != (0.0, 0.0));
    Pass::new(head, live).backward(saved, upstream, &mut into)
}

/// [`forward`] and [`backward`] without computing the logits twice, where the gradient by a row's outputs is known or
/// follows from the row: 6·rows·width·vocab floating-point operations in all. The outputs and `dhidden` are the same
/// bits as those of the two calls, and so are `dweight` and `dbias` when no row is without gradient.
///
/// # Errors
/// As theirs.
pub fn forward_backward(
    head: &Head<'_>,
    upstream: Upstream<'_>,
    mut out: Outputs<'_>,
    mut into: Gradients<'_>,
) -> Result<()> {
    const OP: &str = "linear_logprob forward_backward";
    head.check(OP)?;
    out.check(OP, head.rows)?;
    into.check(OP, head)?;
    upstream.check(OP, head.rows)?;
    out.clear();
    if let Some(dhidden) = &mut into.dhidden {
        dhidden.fill(0.0);
    }
    Pass::new(head, head.live()).forward_backward(upstream, &mut out, &mut into)
}
