//! The linear log-prob on a device: chunks of live rows through the device's matrix products and
//! [`logprob::launch`](crate::kernels::logprob::launch).
//!
//! The functions of the module above, on device memory and with its meaning. Operands have one storage type; logits and
//! gradients are f32, except that the products of a 16-bit head take the logits' gradient rounded to that type.

use crate::DType::{self, F32, I32};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{AddColumnsArgs, GatherLiveArgs, LiveRowsArgs, ScatterLiveArgs};
use crate::kernels::cast;
use crate::kernels::elementwise::launch::accumulate;
use crate::kernels::logprob::check_len;
use crate::kernels::logprob::launch::{self as logprob, optional};
use crate::kernels::matmul::{plain, product, transposed};
use crate::typed_kernel;
use std::sync::Arc;

pub use crate::kernels::logprob::launch::{Outputs, Softmax, Temperature, Upstream};

/// The workspace of a call that gives no budget.
pub const DEFAULT_WORKSPACE: usize = 1 << 30;

/// Threads of a block.
const BLOCK: u32 = 256;
/// Threads of the one block that scans the rows.
const SCAN_BLOCK: u32 = 1024;
/// Rows that a chunk is a multiple of.
const GRAIN: usize = 16;
/// Rows that a chunk has at most: beyond, products no longer gain.
const MOST_ROWS: usize = 8192;

/// Hidden states, the head, and what is asked of them.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[rows, width]`. Rows that are not live are not read.
    pub hidden: DeviceSlice<'a>,
    /// `[vocab, width]`, of the same type.
    pub weight: DeviceSlice<'a>,
    /// `[vocab]`, of the same type, added to the logits before anything else.
    pub bias: Option<DeviceSlice<'a>>,
    /// i32 `[rows]`; a negative one leaves its row out.
    pub targets: DeviceSlice<'a>,
    /// Rows.
    pub rows: usize,
    /// Elements of a hidden state.
    pub width: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// How logits become a distribution.
    pub softmax: Softmax<'a>,
    /// At most so many rows have a target, where the host knows it: only so many are multiplied. When there are more,
    /// the last ones are left out and a status bit is raised. `None`: any number.
    pub live: Option<usize>,
    /// Bytes of workspace to stay within where sixteen rows allow it; 0: [`DEFAULT_WORKSPACE`]. The budget decides the
    /// chunks, and so the order in which `dweight` and `dbias` are summed.
    pub workspace: usize,
}

/// What a forward pass saved, and the gradient of the loss by its outputs.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// f32 `[rows]` from the forward pass.
    pub logsumexp: DeviceSlice<'a>,
    /// f32 `[rows]` from the forward pass; needed with a gradient by the entropies.
    pub entropy: Option<DeviceSlice<'a>>,
    /// The gradient by the outputs.
    pub upstream: Upstream<'a>,
}

/// Where gradients go, f32; `None`: not wanted, and not computed.
#[derive(Default)]
pub struct Gradients<'a> {
    /// `[rows, width]`, overwritten; 0 for rows that are not live.
    pub dhidden: Option<DeviceSliceMut<'a>>,
    /// `[vocab, width]`, added to.
    pub dweight: Option<DeviceSliceMut<'a>>,
    /// `[vocab]`, added to.
    pub dbias: Option<DeviceSliceMut<'a>>,
}

impl Gradients<'_> {
    /// None is wanted.
    pub(in crate::kernels) fn is_empty(&self) -> bool {
        self.dhidden.is_none() && self.dweight.is_none() && self.dbias.is_none()
    }

    fn prepare(&mut self, op: &str, head: &Head<'_>) -> Result<()> {
        let Head { rows, width, vocab, .. } = *head;
        let lens = [
            ("dhidden", &self.dhidden, rows * width),
            ("dweight", &self.dweight, vocab * width),
            ("dbias", &self.dbias, vocab),
        ];
        for (what, out, want) in lens {
            check_len(op, what, out.as_ref().map_or(want, DeviceSliceMut::len), want)?;
        }
        match &mut self.dhidden {
            Some(dhidden) => dhidden.fill_bytes(0),
            None => Ok(()),
        }
    }
}

/// Sizes of the work on at most `live` rows.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Rows of a chunk.
    rows: usize,
    chunks: usize,
}

impl Plan {
    fn new(live: usize, row_bytes: usize, budget: usize) -> Plan {
        let budget = if budget == 0 { DEFAULT_WORKSPACE } else { budget };
        let most = (budget / row_bytes / GRAIN * GRAIN).clamp(GRAIN, MOST_ROWS);
        // Equal chunks: a short last one would be the slowest.
        let chunks = live.div_ceil(most);
        Plan { rows: live.div_ceil(chunks.max(1)).next_multiple_of(GRAIN), chunks }
    }
}

/// Bytes of a chunk's row: its hidden state and logits, and where gradients are wanted theirs.
fn row_bytes(width: usize, vocab: usize, dtype: DType, gradients: bool) -> usize {
    let narrow = if dtype == F32 { 0 } else { dtype.size() * vocab };
    let of_gradients = if gradients { narrow + 4 * width } else { 0 };
    (4 * vocab + dtype.size() * width + of_gradients).max(1)
}

/// Bytes of workspace that a call with at most `live` live rows takes under this budget (0: the default); `gradients`:
/// of [`backward`] and [`forward_backward`]. A bias of a 16-bit head takes four more an id.
pub fn workspace_bytes(
    live: usize,
    width: usize,
    vocab: usize,
    dtype: DType,
    gradients: bool,
    budget: usize,
) -> usize {
    let of_row = row_bytes(width, vocab, dtype, gradients);
    let plan = Plan::new(live, of_row, budget);
    plan.rows * (of_row + plan.chunks * size_of::<i32>())
}

impl Head<'_> {
    fn check(&self, op: &str) -> Result<()> {
        let Head { rows, width, vocab, .. } = *self;
        for (what, data, height) in [("hidden", self.hidden, rows), ("weight", self.weight, vocab)]
        {
            if height.checked_mul(width) != Some(data.len()) || width == 0 {
                let (len, dtype) = (data.len(), data.dtype());
                return Err(Error::shape(format!(
                    "{op}: {what} has {len} {dtype} elements, not [{height}, {width}]"
                )));
            }
            if data.dtype() != self.hidden.dtype() || !data.dtype().is_float() {
                let (hidden, weight) = (self.hidden.dtype(), self.weight.dtype());
                return Err(Error::dtype(format!(
                    "{op}: hidden is {hidden} and weight {weight} on a device, where storage types are not mixed"
                )));
            }
        }
        check_len(op, "bias", self.bias.map_or(vocab, DeviceSlice::len), vocab)?;
        if i32::try_from(rows).is_err() {
            return Err(Error::shape(format!("{op}: {rows} rows do not fit in i32")));
        }
        check_len(op, "targets", self.targets.len(), rows)
    }
}

/// Log-probs, entropies, logsumexps and argmaxes: 2·live·width·vocab floating-point operations.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] for what the host sees, and what the device reports.
pub fn forward(head: &Head<'_>, mut out: Outputs<'_>) -> Result<()> {
    const OP: &str = "linear_logprob forward";
    head.check(OP)?;
    out.clear(OP, head.rows)?;
    let mut pass = Pass::new(head, None, false)?;
    for chunk in 0..pass.plan.chunks {
        pass.compute_logits(chunk)?;
        pass.outputs(chunk, out.reborrow())?;
    }
    Ok(())
}

/// Gradients from what [`forward`] saved: 6·live·width·vocab floating-point operations, of which a third computes the
/// logits again. Rows without gradient are packed behind the others; where [`Head::live`] does not leave them out they
/// cost their share of the products.
///
/// # Errors
/// As [`forward`]; [`Error::is_invalid`] for a gradient by the entropies without the entropies.
pub fn backward(head: &Head<'_>, saved: &Saved<'_>, mut into: Gradients<'_>) -> Result<()> {
    const OP: &str = "linear_logprob backward";
    head.check(OP)?;
    check_len(OP, "logsumexp", saved.logsumexp.len(), head.rows)?;
    saved.upstream.check(OP, head.rows)?;
    into.prepare(OP, head)?;
    let mut pass = Pass::new(head, Some(saved.upstream), true)?;
    for chunk in 0..pass.plan.chunks {
        pass.compute_logits(chunk)?;
        pass.gradients(chunk, saved, &mut into)?;
    }
    Ok(())
}

/// [`forward`] and [`backward`] without computing the logits twice, for gradients that are known before:
/// 6·live·width·vocab floating-point operations in all.
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
    upstream.check(OP, head.rows)?;
    let mut pass = Pass::both(OP, head, &mut out, &mut into)?;
    for chunk in 0..pass.plan.chunks {
        pass.compute_logits(chunk)?;
        let (logits, rows) = pass.in_and_out(chunk)?;
        logprob::forward_backward(logits, &rows, out.reborrow(), upstream)?;
        pass.accumulate(chunk, &mut into)?;
    }
    Ok(())
}

/// The live rows, their chunks and the workspace.
pub(in crate::kernels) struct Pass<'a> {
    head: &'a Head<'a>,
    gpu: &'a Arc<Gpu>,
    plan: Plan,
    /// Rows of the call, packed: those of chunk `i` from `i * plan.rows` on.
    row_of: DeviceBuffer,
    hidden: DeviceBuffer,
    logits: DeviceBuffer,
    /// The logits' gradient in the type of the head, where that is not f32.
    dlogits: Option<DeviceBuffer>,
    dhidden: Option<DeviceBuffer>,
    /// The bias as f32, where it is not.
    bias: Option<DeviceBuffer>,
}

impl<'a> Pass<'a> {
    /// A pass that gives outputs and gradients of every row with a target.
    pub fn both(
        op: &str,
        head: &'a Head<'a>,
        out: &mut Outputs<'_>,
        into: &mut Gradients<'_>,
    ) -> Result<Pass<'a>> {
        head.check(op)?;
        out.clear(op, head.rows)?;
        into.prepare(op, head)?;
        Pass::new(head, None, true)
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> usize {
        self.plan.chunks
    }

    /// `of`: rows whose gradients are zero are not live.
    fn new(head: &'a Head<'a>, of: Option<Upstream<'_>>, gradients: bool) -> Result<Pass<'a>> {
        let Head { width, vocab, .. } = *head;
        let (gpu, dtype) = (head.hidden.gpu(), head.hidden.dtype());
        let live = head.live.unwrap_or(head.rows).min(head.rows);
        let plan = Plan::new(live, row_bytes(width, vocab, dtype, gradients), head.workspace);
        let new = |dtype, len: usize| DeviceBuffer::recycled(gpu, dtype, plan.rows * len);
        let mut row_of = new(I32, plan.chunks)?;
        if plan.chunks > 0 {
            let of = of.unwrap_or_default();
            let args = LiveRowsArgs {
                targets: head.targets.typed::<i32>()?,
                dlogprob: optional(of.dlogprob)?,
                dentropy: optional(of.dentropy)?,
                row_of: row_of.whole_mut().typed::<i32>()?,
                status: gpu.status(),
                rows: head.rows as i64,
                capacity: row_of.len() as i64,
            };
            let kernel = Kernel::new("linear_logprob", "linear_logprob_rows");
            let launch = Launch { kernel, grid: [1, 1, 1], block: SCAN_BLOCK, shared: 0 };
            // SAFETY: types and lengths were checked.
            unsafe { gpu.launch(&launch, &args)? };
        }
        let bias = match head.bias {
            Some(bias) if bias.dtype() != F32 => {
                let mut wide = DeviceBuffer::recycled(gpu, F32, vocab)?;
                cast::launch::convert(bias, wide.whole_mut())?;
                Some(wide)
            }
            _ => None,
        };
        let narrow = gradients && dtype != F32;
        Ok(Pass {
            head,
            gpu,
            plan,
            row_of,
            hidden: new(dtype, width)?,
            logits: new(F32, vocab)?,
            dlogits: if narrow { Some(new(dtype, vocab)?) } else { None },
            dhidden: if gradients { Some(new(F32, width)?) } else { None },
            bias,
        })
    }

    fn row_of(&self, chunk: usize) -> Result<DeviceSlice<'_>> {
        self.row_of.slice(chunk * self.plan.rows..(chunk + 1) * self.plan.rows)
    }

    fn rows(&self, chunk: usize) -> Result<logprob::Rows<'_>> {
        let Head { targets, vocab, softmax, .. } = *self.head;
        let row_of = Some(self.row_of(chunk)?);
        Ok(logprob::Rows { targets, row_of, rows: self.plan.rows, vocab, softmax })
    }

    /// A chunk's logits and where their gradient goes, and its rows.
    fn in_and_out(&mut self, chunk: usize) -> Result<(logprob::Logits<'_>, logprob::Rows<'_>)> {
        let Head { targets, vocab, softmax, .. } = *self.head;
        let of_chunk = chunk * self.plan.rows..(chunk + 1) * self.plan.rows;
        let row_of = Some(self.row_of.slice(of_chunk)?);
        let rows = logprob::Rows { targets, row_of, rows: self.plan.rows, vocab, softmax };
        let logits = match &mut self.dlogits {
            None => logprob::Logits::InPlace(self.logits.whole_mut()),
            Some(dlogits) => {
                logprob::Logits::Apart { logits: self.logits.whole(), dlogits: dlogits.whole_mut() }
            }
        };
        Ok((logits, rows))
    }

    /// The outputs of a chunk whose logits have been computed.
    pub fn outputs(&self, chunk: usize, out: Outputs<'_>) -> Result<()> {
        logprob::forward(self.logits.whole(), &self.rows(chunk)?, out)
    }

    /// Overwrites the logits of a chunk with their gradient, and adds what that gives to the gradients.
    pub fn gradients(
        &mut self,
        chunk: usize,
        saved: &Saved<'_>,
        into: &mut Gradients<'_>,
    ) -> Result<()> {
        let (logits, rows) = self.in_and_out(chunk)?;
        logprob::backward(logits, &rows, saved.logsumexp, saved.entropy, saved.upstream)?;
        self.accumulate(chunk, into)
    }

    /// The hidden states and the logits of a chunk.
    pub fn compute_logits(&mut self, chunk: usize) -> Result<()> {
        let Head { hidden, weight, width, vocab, .. } = *self.head;
        let rows = self.plan.rows;
        let args = GatherLiveArgs {
            x: hidden.ptr(),
            row_of: self.row_of(chunk)?.typed::<i32>()?,
            out: self.hidden.whole_mut().ptr(),
            rows: self.head.rows as i64,
            count: rows as i64,
            width: width as i64,
        };
        let kernel = typed_kernel!("linear_logprob", "linear_logprob_gather", hidden.dtype())?;
        let grid = self.gpu.stride_grid(rows * width, BLOCK);
        // SAFETY: types and lengths were checked; row indices are checked by the kernel.
        unsafe { self.gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, &args)? };
        let (x, w) = (plain(self.hidden.whole()), transposed(weight));
        product(self.logits.whole_mut(), x, w, [rows, vocab, width], 1, false)?;
        let Some(bias) = self.head.bias else { return Ok(()) };
        accumulate(self.logits.whole_mut(), self.bias.as_ref().map_or(bias, DeviceBuffer::whole))
    }

    /// Adds what a chunk gives to the gradients.
    fn accumulate(&mut self, chunk: usize, into: &mut Gradients<'_>) -> Result<()> {
        let Head { weight, width, vocab, .. } = *self.head;
        let rows = self.plan.rows;
        let dlogits = self.dlogits.as_ref().unwrap_or(&self.logits).whole();
        if let (Some(dhidden), Some(of_chunk)) = (&mut into.dhidden, &mut self.dhidden) {
            let shape = [rows, width, vocab];
            product(of_chunk.whole_mut(), plain(dlogits), plain(weight), shape, 1, false)?;
            let args = ScatterLiveArgs {
                x: of_chunk.whole().typed::<f32>()?,
                row_of: self.row_of.slice(chunk * rows..(chunk + 1) * rows)?.typed::<i32>()?,
                out: dhidden.typed::<f32>()?,
                rows: self.head.rows as i64,
                count: rows as i64,
                width: width as i64,
            };
            let kernel = Kernel::new("linear_logprob", "linear_logprob_scatter");
            let grid = self.gpu.stride_grid(rows * width, BLOCK);
            // SAFETY: types and lengths were checked; row indices are checked by the kernel.
            unsafe { self.gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, &args)? };
        }
        if let Some(dweight) = &mut into.dweight {
            let (dz, x) = (transposed(dlogits), plain(self.hidden.whole()));
            product(dweight.reborrow(), dz, x, [vocab, width, rows], 1, true)?;
        }
        if let Some(dbias) = &mut into.dbias {
            let args = AddColumnsArgs {
                x: dlogits.ptr(),
                sum: dbias.typed::<f32>()?,
                rows: rows as i64,
                width: vocab as i64,
            };
            let kernel = typed_kernel!("linear_logprob", "linear_logprob_bias", dlogits.dtype())?;
            let grid = self.gpu.stride_grid(vocab, BLOCK);
            // SAFETY: types and lengths were checked.
            unsafe { self.gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, &args)? };
        }
        Ok(())
    }
}
