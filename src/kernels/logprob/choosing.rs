//! The forward pass where each row's target is chosen from the row itself: what sampling does, in one read.

use super::forward::all_sums;
use super::row::distribution::Distribution;
use super::row::{self, Summary};
use super::{Outputs, Plan, Softmax, Workspace, check_logits};
use crate::dtype::{Float, FloatSlice};
use crate::error::Result;
use crate::with_float;

/// Chooses the target of a row.
pub(in crate::kernels) trait Choose: Sync {
    /// The chosen id; a negative one leaves the row out, as a negative target does.
    fn choose<T: Float>(&self, row: usize, from: &mut Distribution<'_, T>) -> i32;
}

/// The forward pass of `[rows, vocab]` logits with targets chosen by `choose` from the distribution without
/// `excluded` ids (sorted). The statistics are those of [`forward`](super::forward()) with the chosen targets, to the
/// bit: nothing is excluded from them.
pub(in crate::kernels) fn forward_choosing(
    op: &str,
    logits: FloatSlice<'_>,
    shape: [usize; 2],
    softmax: Softmax<'_>,
    excluded: &[usize],
    choose: &impl Choose,
    targets: &mut [i32],
    out: Option<Outputs<'_>>,
) -> Result<()> {
    let rows = shape[0];
    check_logits(op, logits.len(), shape)?;
    super::check_len(op, "tokens", targets.len(), rows)?;
    if let Some(out) = &out {
        out.check(op, rows)?;
    }
    targets.fill(0);
    let plan = Plan::new(op, shape, targets, softmax)?;
    let want_argmax = out.as_ref().is_some_and(|out| out.argmax.is_some());
    let mut chosen = vec![(-1, Summary::IGNORED); rows];
    with_float!(FloatSlice, logits, |logits| {
        let each = logits.chunks(plan.vocab.max(1));
        plan.each_row(each, &mut chosen, |workspace, row, logits, chosen, share| {
            let how = plan.reading(row);
            all_sums(&plan, logits, &how, workspace, share);
            let Workspace { pieces, scratch } = workspace;
            let mut from =
                Distribution { row: logits, how: &how, pieces, scratch, held: None, excluded };
            chosen.0 = choose.choose(row, &mut from);
            if let Ok(target) = usize::try_from(chosen.0) {
                chosen.1 = row::merge(logits, target, &how, scratch, pieces, want_argmax);
            }
        });
    });
    for (target, (id, _)) in targets.iter_mut().zip(&chosen) {
        *target = *id;
    }
    if let Some(mut out) = out {
        let summaries: Vec<Summary> = chosen.into_iter().map(|(_, summary)| summary).collect();
        out.write(&summaries);
    }
    Ok(())
}
