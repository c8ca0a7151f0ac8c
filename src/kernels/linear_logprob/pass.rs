//! One pass over the live rows in chunks: hidden states to logits, logits to their gradient, and that to the
//! gradients of hidden states and head.

use super::{Gradients, Head, Plan, Saved};
use crate::device::cpu::memory::Buffer;
use crate::device::cpu::{gemm, pool};
use crate::dtype::{FloatSlice, FloatSliceMut};
use crate::error::Result;
use crate::kernels::cast;
use crate::kernels::logprob::{
    self, Backward, Forward, ForwardBackward, Outputs, Softmax, Temperature, Upstream,
};
use crate::with_float;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// The live rows, their chunks and the workspace.
pub(super) struct Pass<'a> {
    head: &'a Head<'a>,
    rows: Vec<usize>,
    plan: Plan,
    hidden: Buffer<f32>,
    logits: Buffer<f32>,
    dhidden: Buffer<f32>,
    /// A widened block of the head.
    block: Buffer<f32>,
}

/// What a chunk's rows have in place of the whole call's.
struct Chunk<'a> {
    rows: &'a [usize],
    targets: Vec<i32>,
    temperature: Vec<f32>,
}

impl<'a> Chunk<'a> {
    fn new(head: &Head<'_>, rows: &'a [usize]) -> Chunk<'a> {
        let temperature = match head.softmax.temperature {
            Temperature::PerRow(all) => gather(all, rows),
            _ => Vec::new(),
        };
        Chunk { rows, targets: rows.iter().map(|row| head.targets[*row]).collect(), temperature }
    }

    fn softmax<'s>(&'s self, of: &Softmax<'s>) -> Softmax<'s> {
        match of.temperature {
            Temperature::PerRow(_) => {
                Softmax { temperature: Temperature::PerRow(&self.temperature), ..*of }
            }
            _ => *of,
        }
    }
}

fn gather(all: &[f32], rows: &[usize]) -> Vec<f32> {
    rows.iter().map(|row| all[*row]).collect()
}

/// Statistics of a chunk's rows, on their way to the rows of the call.
struct Stats {
    logprob: Vec<f32>,
    entropy: Vec<f32>,
    logsumexp: Vec<f32>,
    argmax: Option<Vec<i32>>,
}

impl Stats {
    fn new(rows: usize, argmax: bool) -> Stats {
        let zeros = vec![0.0; rows];
        let (logprob, entropy, logsumexp) = (zeros.clone(), zeros.clone(), zeros);
        Stats { logprob, entropy, logsumexp, argmax: argmax.then(|| vec![0; rows]) }
    }

    fn outputs(&mut self) -> Outputs<'_> {
        Outputs {
            logprob: &mut self.logprob,
            entropy: Some(&mut self.entropy),
            logsumexp: &mut self.logsumexp,
            argmax: self.argmax.as_deref_mut(),
        }
    }

    fn scatter(&self, rows: &[usize], out: &mut Outputs<'_>) {
        for (i, row) in rows.iter().enumerate() {
            out.logprob[*row] = self.logprob[i];
            out.logsumexp[*row] = self.logsumexp[i];
            if let Some(entropy) = &mut out.entropy {
                entropy[*row] = self.entropy[i];
            }
            if let (Some(argmax), Some(of)) = (&mut out.argmax, &self.argmax) {
                argmax[*row] = of[i];
            }
        }
    }
}

impl<'a> Pass<'a> {
    pub(super) fn new(head: &'a Head<'a>, rows: Vec<usize>) -> Pass<'a> {
        let Head { width, vocab, .. } = *head;
        let plan = Plan::new(rows.len(), width, vocab, head.weight.dtype(), head.workspace);
        let chunk = plan.rows.min(rows.len());
        Pass {
            head,
            rows,
            plan,
            hidden: Buffer::recycled(chunk * width),
            logits: Buffer::recycled(chunk * vocab),
            dhidden: Buffer::recycled(0),
            block: Buffer::recycled(plan.block),
        }
    }

    pub(super) fn forward(mut self, out: &mut Outputs<'_>) -> Result<()> {
        let head = self.head;
        for rows in std::mem::take(&mut self.rows).chunks(self.plan.rows) {
            let chunk = Chunk::new(head, rows);
            self.compute_logits(rows)?;
            let mut stats = Stats::new(rows.len(), out.argmax.is_some());
            let args = Forward {
                logits: FloatSlice::F32(&self.logits[..rows.len() * head.vocab]),
                targets: &chunk.targets,
                rows: rows.len(),
                vocab: head.vocab,
                softmax: chunk.softmax(&head.softmax),
            };
            logprob::forward(&args, stats.outputs())?;
            stats.scatter(rows, out);
        }
        Ok(())
    }

    pub(super) fn backward(
        mut self,
        saved: &Saved<'_>,
        upstream: Upstream<'_>,
        into: &mut Gradients<'_>,
    ) -> Result<()> {
        let head = self.head;
        for rows in std::mem::take(&mut self.rows).chunks(self.plan.rows) {
            let chunk = Chunk::new(head, rows);
            self.compute_logits(rows)?;
            let (dlogprob, dentropy): (Vec<f32>, Vec<f32>) =
                rows.iter().map(|row| upstream.at(*row, 0.0, 0.0)).unzip();
            let entropy = saved.entropy.map(|all| gather(all, rows));
            let args = Backward {
                logits: FloatSliceMut::F32(&mut self.logits[..rows.len() * head.vocab]),
                targets: &chunk.targets,
                rows: rows.len(),
                vocab: head.vocab,
                softmax: chunk.softmax(&head.softmax),
                logsumexp: &gather(saved.logsumexp, rows),
                entropy: entropy.as_deref(),
                dlogprob: Some(&dlogprob),
                dentropy: saved.dentropy.map(|_| &*dentropy),
            };
            logprob::backward(args)?;
            self.accumulate(chunk.rows, into)?;
        }
        Ok(())
    }

    pub(super) fn forward_backward(
        mut self,
        upstream: Upstream<'_>,
        out: &mut Outputs<'_>,
        into: &mut Gradients<'_>,
    ) -> Result<()> {
        let head = self.head;
        for rows in std::mem::take(&mut self.rows).chunks(self.plan.rows) {
            let chunk = Chunk::new(head, rows);
            self.compute_logits(rows)?;
            let has_gradient: Vec<AtomicBool> = rows.iter().map(|_| false.into()).collect();
            let of_row = |i: usize, logprob: f32, entropy: f32| {
                let gradient = upstream.at(rows[i], logprob, entropy);
                has_gradient[i].store(gradient != (0.0, 0.0), Ordering::Relaxed);
                gradient
            };
            let mut stats = Stats::new(rows.len(), out.argmax.is_some());
            let args = ForwardBackward {
                logits: FloatSliceMut::F32(&mut self.logits[..rows.len() * head.vocab]),
                targets: &chunk.targets,
                rows: rows.len(),
                vocab: head.vocab,
                softmax: chunk.softmax(&head.softmax),
                upstream: Upstream::PerRow(&of_row),
            };
            logprob::forward_backward(args, stats.outputs())?;
            stats.scatter(rows, out);
            let kept = self.keep(rows, &has_gradient);
            self.accumulate(&kept, into)?;
        }
        Ok(())
    }

    /// Moves the rows that have a gradient to the front of the workspace; returns them.
    fn keep(&mut self, rows: &[usize], has_gradient: &[AtomicBool]) -> Vec<usize> {
        let Head { width, vocab, .. } = *self.head;
        let mut kept = Vec::new();
        for (from, row) in rows.iter().enumerate() {
            if has_gradient[from].load(Ordering::Relaxed) {
                let to = kept.len();
                if to != from {
                    self.logits.copy_within(from * vocab..(from + 1) * vocab, to * vocab);
                    self.hidden.copy_within(from * width..(from + 1) * width, to * width);
                }
                kept.push(*row);
            }
        }
        kept
    }

    /// The head's ids block by block, each with its f32 rows.
    fn each_block(
        head: &Head<'_>,
        plan: Plan,
        block: &mut [f32],
        mut work: impl FnMut(Range<usize>, &[f32]) -> Result<()>,
    ) -> Result<()> {
        if let FloatSlice::F32(weight) = head.weight {
            return work(0..head.vocab, weight);
        }
        for i in 0..plan.blocks {
            let at = |i: usize| i * head.vocab / plan.blocks;
            let ids = at(i)..at(i + 1);
            let from = head.weight.slice(ids.start * head.width..ids.end * head.width)?;
            let into = &mut block[..from.len()];
            cast::cast(from, FloatSliceMut::F32(into))?;
            work(ids, into)?;
        }
        Ok(())
    }

    /// `hidden` and `logits` of these rows.
    fn compute_logits(&mut self, rows: &[usize]) -> Result<()> {
        let head = self.head;
        let Head { width, vocab, .. } = *head;
        let hidden = &mut self.hidden[..rows.len() * width];
        if width > 0 {
            with_float!(FloatSlice, head.hidden, |all| {
                for (row, into) in rows.iter().zip(hidden.chunks_mut(width)) {
                    cast::widen(&all[row * width..][..width], into);
                }
            });
        }
        let logits = &mut self.logits[..rows.len() * vocab];
        Pass::each_block(head, self.plan, &mut self.block, |ids, weight| {
            let shape = [rows.len(), ids.len(), width];
            let (x, w) = (gemm::plain(hidden), gemm::transposed(weight));
            gemm::matmul_columns(&mut logits[ids.start..], vocab, x, w, shape, false)
        })?;
        if let Some(bias) = head.bias {
            let bias = bias.to_f32();
            pool::each(logits.chunks_mut(vocab.max(1)), 1, |_, row| {
                row.iter_mut().zip(&*bias).for_each(|(z, b)| *z += b);
            });
        }
        Ok(())
    }

    /// Adds what `rows`, whose hidden states and dlogits are first in the workspace, give to the gradients.
    fn accumulate(&mut self, rows: &[usize], into: &mut Gradients<'_>) -> Result<()> {
        let head = self.head;
        let Head { width, vocab, .. } = *head;
        let dlogits = &self.logits[..rows.len() * vocab];
        if let Some(dhidden) = &mut into.dhidden {
            if self.dhidden.len() < rows.len() * width {
                self.dhidden = Buffer::recycled(self.plan.rows.max(rows.len()) * width);
            }
            let chunk = &mut self.dhidden[..rows.len() * width];
            Pass::each_block(head, self.plan, &mut self.block, |ids, weight| {
                let shape = [rows.len(), width, ids.len()];
                let columns = dlogits.get(ids.start..).unwrap_or_default();
                let dz = gemm::plain(columns).with_stride(vocab);
                gemm::matmul(chunk, dz, gemm::plain(weight), shape, ids.start > 0)
            })?;
            for (row, from) in rows.iter().zip(chunk.chunks(width.max(1))) {
                dhidden[row * width..][..width].copy_from_slice(from);
            }
        }
        if let Some(dweight) = &mut into.dweight {
            let hidden = &self.hidden[..rows.len() * width];
            let (dz, x) = (gemm::transposed(dlogits), gemm::plain(hidden));
            gemm::matmul(dweight, dz, x, [vocab, width, rows.len()], true)?;
        }
        if let Some(dbias) = &mut into.dbias {
            const TOGETHER: usize = 4096;
            pool::blocks(dbias, TOGETHER, |i, part| {
                let (first, len) = (i * TOGETHER, part.len());
                for row in dlogits.chunks_exact(vocab) {
                    part.iter_mut().zip(&row[first..first + len]).for_each(|(d, z)| *d += z);
                }
            });
        }
        Ok(())
    }
}
