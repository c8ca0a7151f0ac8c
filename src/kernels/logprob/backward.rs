//! The gradient of the logits, in place, and both passes in one.

use super::forward;
use super::row::{self, Gradient, PIECE, Summary};
use super::{Outputs, Plan, Softmax, check_len, check_logits};
use crate::device::cpu::pool;
use crate::dtype::{Float, FloatSliceMut};
use crate::error::{Error, Result};
use crate::with_float;

/// Arguments of [`backward`].
#[derive(Debug)]
pub struct Backward<'a> {
    /// `[rows, vocab]`: the logits of the forward pass, overwritten with their gradient.
    pub logits: FloatSliceMut<'a>,
    /// As in the forward pass.
    pub targets: &'a [i32],
    /// Rows.
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// As in the forward pass.
    pub softmax: Softmax<'a>,
    /// `[rows]` from the forward pass.
    pub logsumexp: &'a [f32],
    /// `[rows]` from the forward pass; needed with `dentropy`.
    pub entropy: Option<&'a [f32]>,
    /// `[rows]` gradient of the loss by the log-probs; `None`: zero.
    pub dlogprob: Option<&'a [f32]>,
    /// `[rows]` gradient of the loss by the entropies; `None`: zero.
    pub dentropy: Option<&'a [f32]>,
}

/// The gradient of a loss by the outputs of each row.
#[derive(Clone, Copy)]
pub enum Upstream<'a> {
    /// Known before.
    Known {
        /// `[rows]` by the log-probs; `None`: zero.
        dlogprob: Option<&'a [f32]>,
        /// `[rows]` by the entropies; `None`: zero.
        dentropy: Option<&'a [f32]>,
    },
    /// `(row, logprob, entropy) -> (dlogprob, dentropy)`, called once for each live row, from any thread: what a
    /// token-level loss needs.
    PerRow(&'a (dyn Fn(usize, f32, f32) -> (f32, f32) + Sync)),
}

/// Arguments of [`forward_backward`].
pub struct ForwardBackward<'a> {
    /// `[rows, vocab]` logits, overwritten with their gradient.
    pub logits: FloatSliceMut<'a>,
    /// As in [`Forward`](super::Forward).
    pub targets: &'a [i32],
    /// Rows.
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// How logits become a distribution.
    pub softmax: Softmax<'a>,
    /// The gradient of the loss by the outputs.
    pub upstream: Upstream<'a>,
}

impl Upstream<'_> {
    pub(in crate::kernels) fn check(&self, op: &str, rows: usize) -> Result<()> {
        let Upstream::Known { dlogprob, dentropy } = self else { return Ok(()) };
        for (what, given) in [("dlogprob", dlogprob), ("dentropy", dentropy)] {
            if let Some(given) = given {
                check_len(op, what, given.len(), rows)?;
            }
        }
        Ok(())
    }

    /// `(dlogprob, dentropy)` of a live row.
    pub(in crate::kernels) fn at(&self, row: usize, logprob: f32, entropy: f32) -> (f32, f32) {
        match self {
            Upstream::Known { dlogprob, dentropy } => {
                (dlogprob.map_or(0.0, |all| all[row]), dentropy.map_or(0.0, |all| all[row]))
            }
            Upstream::PerRow(of) => of(row, logprob, entropy),
        }
    }
}

/// Overwrites logits with the gradient of a loss by them.
///
/// `dz_v = (1/τ) (dlogprob ([v = y] - p_v) - dentropy p_v (log p_v + H))`, then through the softcap. Banned ids and
/// ids of probability zero get exactly 0, and so do ignored rows and rows whose upstream gradients are both zero:
/// these are not read. With -inf as its logsumexp a row has no distribution, and gets 0.
///
/// # Errors
/// As [`forward`](super::forward()); `is_invalid` for `dentropy` without `entropy`.
///
/// # Source
/// The derivative of [`forward`](super::forward()), with the softmax recomputed from the saved logsumexp.
pub fn backward(args: Backward<'_>) -> Result<()> {
    const OP: &str = "logprob backward";
    let shape = [args.rows, args.vocab];
    check_logits(OP, args.logits.len(), shape)?;
    check_len(OP, "logsumexp", args.logsumexp.len(), args.rows)?;
    if let Some(entropy) = args.entropy {
        check_len(OP, "entropy", entropy.len(), args.rows)?;
    } else if args.dentropy.is_some() {
        return Err(Error::invalid(format!(
            "{OP}: dentropy needs the entropy of the forward pass"
        )));
    }
    let upstream = Upstream::Known { dlogprob: args.dlogprob, dentropy: args.dentropy };
    upstream.check(OP, args.rows)?;
    let plan = Plan::new(OP, shape, args.targets, args.softmax)?;
    let gradient = |row: usize| {
        let (dlogprob, dentropy) = upstream.at(row, 0.0, 0.0);
        let entropy = args.entropy.map_or(0.0, |all| all[row]);
        Gradient { logsumexp: args.logsumexp[row], entropy, dlogprob, dentropy }
    };
    with_float!(FloatSliceMut, args.logits, |logits| {
        let rows = logits.chunks_mut(plan.vocab.max(1));
        plan.each_row(rows, &mut vec![(); plan.rows], |_, row, logits, (), share| {
            match plan.target(row) {
                Some(target) => one(&plan, logits, [row, target], &gradient(row), share),
                None => logits.fill(Default::default()),
            }
        });
    });
    Ok(())
}

/// [`forward`](super::forward()) and [`backward`] with one read and one write of memory: a row's gradient is taken
/// while the row is still in the cache. The results are the same bits as those of the two calls.
///
/// # Errors
/// As theirs.
pub fn forward_backward(args: ForwardBackward<'_>, mut out: Outputs<'_>) -> Result<()> {
    const OP: &str = "logprob forward_backward";
    let shape = [args.rows, args.vocab];
    check_logits(OP, args.logits.len(), shape)?;
    out.check(OP, args.rows)?;
    args.upstream.check(OP, args.rows)?;
    let plan = Plan::new(OP, shape, args.targets, args.softmax)?;
    let want_argmax = out.argmax.is_some();
    let mut summaries = vec![Summary::IGNORED; plan.rows];
    with_float!(FloatSliceMut, args.logits, |logits| {
        let rows = logits.chunks_mut(plan.vocab.max(1));
        plan.each_row(rows, &mut summaries, |workspace, row, logits, summary, share| {
            let Some(target) = plan.target(row) else { return logits.fill(Default::default()) };
            *summary = forward::one(&plan, logits, [row, target], workspace, want_argmax, share);
            let Summary { logprob, entropy, logsumexp, .. } = *summary;
            let (dlogprob, dentropy) = args.upstream.at(row, logprob, entropy);
            let g = Gradient { logsumexp, entropy, dlogprob, dentropy };
            one(&plan, logits, [row, target], &g, share);
        });
    });
    out.write(&summaries);
    Ok(())
}

/// The gradient of one live row, computed by this thread or, where `share`, by all.
fn one<T: Float>(
    plan: &Plan<'_>,
    logits: &mut [T],
    [row, target]: [usize; 2],
    g: &Gradient,
    share: bool,
) {
    const TOGETHER: usize = 8 * PIECE;
    if (g.dlogprob == 0.0 && g.dentropy == 0.0) || g.logsumexp == f32::NEG_INFINITY {
        return logits.fill(T::default());
    }
    let how = plan.reading(row);
    let work = |(i, part): (usize, &mut [T])| {
        row::differentiate(part, i * TOGETHER, target, &how, g);
    };
    if share {
        pool::each(logits.chunks_mut(TOGETHER), 1, |i, part| work((i, part)));
    } else {
        // The end of the row was read last and is the likeliest to be in the cache.
        logits.chunks_mut(TOGETHER).enumerate().rev().for_each(work);
    }
}
