//! Log-prob, entropy, logsumexp and argmax of one target per row of logits, and the gradient of the logits in place.
//!
//! Here are the arguments, their checks and the plan of the work. [`forward`](forward()) reads the logits once;
//! [`backward`](backward()) overwrites them with their gradient; [`forward_backward`] does both while a row is still
//! in the cache. `row` has the arithmetic of one row. The product that makes logits from hidden states is not here
//! (`linear_logprob`).
//!
//! With `z` the logits after softcap and ban, `τ` the temperature, `p = softmax(z / τ)` and `y` the target:
//! `logprob = log p_y`, `entropy = -Σ p log p`, both in nats. Every row stands alone: its bits depend on nothing but
//! the row, whatever the number of rows or threads.
//!
#![doc = include_str!("../../../docs/kernels/logprob.md")]

mod backward;
mod choosing;
mod forward;
pub mod launch;
mod row;

pub use backward::{Backward, ForwardBackward, Upstream, backward, forward_backward};
pub(in crate::kernels) use choosing::{Choose, forward_choosing};
pub use forward::{Forward, Outputs, forward};

use crate::device::cpu::pool;
use crate::error::{Error, Result};
pub(in crate::kernels) use row::distribution::Distribution;
pub(in crate::kernels) use row::distribution::buckets::{Buckets, Candidate, Tally};
use row::{PIECE, Piece, Reading, Scratch};

/// The target of a row to leave out; any negative target does the same.
pub const IGNORE: i32 = -100;

/// What logits are divided by before the softmax.
#[derive(Clone, Copy, Debug, Default)]
pub enum Temperature<'a> {
    /// Not divided.
    #[default]
    One,
    /// The same for every row; finite and positive.
    Same(f32),
    /// `[rows]`, one for each; those of live rows finite and positive.
    PerRow(&'a [f32]),
}

/// How a row of logits becomes a distribution: softcap first, then the ban, then the temperature.
#[derive(Clone, Copy, Debug, Default)]
pub struct Softmax<'a> {
    /// What capped logits are divided by.
    pub temperature: Temperature<'a>,
    /// `logits := cap · tanh(logits / cap)`; finite and positive.
    pub softcap: Option<f32>,
    /// Ids whose probability is zero, in any order: their logits are never read into arithmetic.
    pub banned: &'a [i32],
}

/// Checked arguments that every function of this family shares.
struct Plan<'a> {
    rows: usize,
    vocab: usize,
    targets: &'a [i32],
    temperature: Temperature<'a>,
    softcap: Option<f32>,
    /// Sorted, without repetition.
    banned: Vec<usize>,
}

impl<'a> Plan<'a> {
    fn new(
        op: &str,
        [rows, vocab]: [usize; 2],
        targets: &'a [i32],
        softmax: Softmax<'a>,
    ) -> Result<Plan<'a>> {
        check_len(op, "targets", targets.len(), rows)?;
        if i32::try_from(vocab).is_err() {
            return Err(Error::shape(format!("{op}: a vocabulary of {vocab} does not fit in i32")));
        }
        if let Some((row, target)) = targets.iter().enumerate().find(|(_, t)| **t >= vocab as i32) {
            return Err(Error::index(format!(
                "{op}: target {target} of row {row} is outside the vocabulary of {vocab}"
            )));
        }
        let allowed = |x: f32| x.is_finite() && x > 0.0;
        let bad = match softmax.temperature {
            Temperature::One => None,
            Temperature::Same(t) => (!allowed(t)).then_some((0, t)),
            Temperature::PerRow(all) => {
                check_len(op, "temperature", all.len(), rows)?;
                let live = (0..rows).filter(|row| targets[*row] >= 0);
                live.map(|row| (row, all[row])).find(|(_, t)| !allowed(*t))
            }
        };
        if let Some((row, t)) = bad {
            return Err(Error::invalid(format!(
                "{op}: temperature {t} (row {row}) is not finite and positive"
            )));
        }
        if let Some(cap) = softmax.softcap.filter(|cap| !allowed(*cap)) {
            return Err(Error::invalid(format!("{op}: softcap {cap} is not finite and positive")));
        }
        if let Some(id) = softmax.banned.iter().find(|id| **id < 0 || **id >= vocab as i32) {
            return Err(Error::index(format!(
                "{op}: banned id {id} is outside the vocabulary of {vocab}"
            )));
        }
        let mut banned: Vec<usize> = softmax.banned.iter().map(|id| *id as usize).collect();
        banned.sort_unstable();
        banned.dedup();
        let Softmax { temperature, softcap, .. } = softmax;
        Ok(Plan { rows, vocab, targets, temperature, softcap, banned })
    }

    /// The target of a live row.
    fn target(&self, row: usize) -> Option<usize> {
        usize::try_from(self.targets[row]).ok()
    }

    fn inverse_temperature(&self, row: usize) -> f64 {
        1.0 / f64::from(match self.temperature {
            Temperature::One => 1.0,
            Temperature::Same(t) => t,
            Temperature::PerRow(all) => all[row],
        })
    }

    fn reading(&self, row: usize) -> Reading<'_> {
        let inverse_temperature = self.inverse_temperature(row);
        Reading { softcap: self.softcap, banned: &self.banned, inverse_temperature }
    }

    /// Calls `work(workspace, row, logits, out, share)` for every row, in parallel. `share` says that there are too
    /// few rows to keep the threads busy: the rows come one by one then, each to be shared out. It decides who
    /// computes a piece of a row and never which pieces there are.
    fn each_row<Row: Send, Out: Send>(
        &self,
        rows: impl ExactSizeIterator<Item = Row> + Send,
        out: &mut [Out],
        work: impl Fn(&mut Workspace, usize, Row, &mut Out, bool) + Sync,
    ) {
        let threads = pool::threads();
        let share = threads > 1 && self.rows < 4 * threads && self.vocab >= 8 * PIECE;
        let together = if share { self.rows } else { pool::rows_per_task(self.vocab * 4) };
        let memory = || Workspace::new(self.vocab);
        pool::each_with(rows.zip(out), together, memory, |workspace, row, (logits, out)| {
            work(workspace, row, logits, out, share);
        });
    }
}

/// What one thread needs for the rows it works on.
struct Workspace {
    pieces: Vec<Piece>,
    scratch: Scratch,
}

impl Workspace {
    fn new(vocab: usize) -> Workspace {
        let pieces = vec![Piece::EMPTY; vocab.div_ceil(PIECE)];
        Workspace { pieces, scratch: Scratch::new(vocab) }
    }
}

pub(super) fn check_len(op: &str, what: &str, len: usize, want: usize) -> Result<()> {
    if len == want {
        return Ok(());
    }
    Err(Error::shape(format!("{op}: {what} has {len} elements, not {want}")))
}

/// Checks what every function of this family checks, for what stands on it.
///
/// # Errors
/// As [`forward`](forward()).
pub(crate) fn check(
    op: &str,
    shape: [usize; 2],
    targets: &[i32],
    softmax: Softmax<'_>,
) -> Result<()> {
    Plan::new(op, shape, targets, softmax).map(|_| ())
}

/// `len` against `rows * vocab`, without overflow.
fn check_logits(op: &str, len: usize, [rows, vocab]: [usize; 2]) -> Result<()> {
    if rows.checked_mul(vocab) == Some(len) {
        return Ok(());
    }
    Err(Error::shape(format!("{op}: logits have {len} elements, not [{rows}, {vocab}]")))
}
