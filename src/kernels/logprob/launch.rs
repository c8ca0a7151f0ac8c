//! Log-probs on a device: checks and launches of `kernels/logprob.cu`.
//!
//! The functions of the module above, on device memory and with its meaning. What the host cannot see there (a target
//! beyond the vocabulary, a temperature that is not positive) masks its row and raises a bit that
//! [`Gpu::check_status`] reports.

use super::check_len;
use crate::DType::{self, Bf16, F16, F32};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceElement, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{
    LOGPROB_CHAINS, LOGPROB_TILE, LOGPROB_UNIT, LogprobBackwardArgs, LogprobBothArgs,
    LogprobForwardArgs, OnlineSoftmax, SoftmaxRule,
};
use crate::typed_kernel;
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// Threads of a warp.
const WARP: u32 = 32;
/// Threads of a block that is given tiles or several warps' items.
const BLOCK: u32 = LOGPROB_CHAINS * WARP;

/// What logits are divided by before the softmax.
#[derive(Clone, Copy, Default)]
pub enum Temperature<'a> {
    /// Not divided.
    #[default]
    One,
    /// The same for every row; finite and positive.
    Same(f32),
    /// f32, one for each row of the outputs.
    PerRow(DeviceSlice<'a>),
}

/// How a row of logits becomes a distribution: softcap first, then the ban, then the temperature.
#[derive(Clone, Copy, Default)]
pub struct Softmax<'a> {
    /// What capped logits are divided by.
    pub temperature: Temperature<'a>,
    /// `logits := cap · tanh(logits / cap)`; finite and positive.
    pub softcap: Option<f32>,
    /// Ids whose probability is zero, as [`banned_ids`] makes them.
    pub banned: Option<DeviceSlice<'a>>,
}

/// Ids whose probability is zero, for [`Softmax::banned`]; `None` when there are none.
///
/// # Errors
/// [`Error::is_index`] for an id outside the vocabulary, and what the device reports.
pub fn banned_ids(gpu: &Arc<Gpu>, ids: &[i32], vocab: usize) -> Result<Option<DeviceBuffer>> {
    if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
        return Err(Error::index(format!("banned id {id} is outside the vocabulary of {vocab}")));
    }
    if ids.is_empty() {
        return Ok(None);
    }
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(&sorted)).map(Some)
}

/// Which rows are computed, and how.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// i32 `[outputs]`; negative: masked.
    pub targets: DeviceSlice<'a>,
    /// i32 `[rows]`: the place of each row of logits among targets, temperatures and outputs, negative: none. `None`:
    /// row i is i, and `outputs` is `rows`.
    pub row_of: Option<DeviceSlice<'a>>,
    /// Rows of logits.
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// How logits become a distribution.
    pub softmax: Softmax<'a>,
}

/// Outputs, each `[outputs]`, f32 and i32.
pub struct Outputs<'a> {
    /// Log-prob of the target.
    pub logprob: DeviceSliceMut<'a>,
    /// Entropy.
    pub entropy: Option<DeviceSliceMut<'a>>,
    /// Logsumexp of the capped and tempered logits.
    pub logsumexp: DeviceSliceMut<'a>,
    /// The first id of the largest logit.
    pub argmax: Option<DeviceSliceMut<'a>>,
}

/// Logits and where their gradient goes.
pub enum Logits<'a> {
    /// Overwritten with their gradient.
    InPlace(DeviceSliceMut<'a>),
    /// Kept.
    Apart {
        /// `[rows, vocab]`.
        logits: DeviceSlice<'a>,
        /// `[rows, vocab]`: f32 for any logits, 16-bit for f32 ones, or of their type.
        dlogits: DeviceSliceMut<'a>,
    },
}

/// The gradient of the loss by the outputs, f32 `[outputs]`; `None`: zero.
#[derive(Clone, Copy, Default)]
pub struct Upstream<'a> {
    /// By the log-probs.
    pub dlogprob: Option<DeviceSlice<'a>>,
    /// By the entropies.
    pub dentropy: Option<DeviceSlice<'a>>,
}

impl Rows<'_> {
    fn outputs(&self) -> usize {
        self.targets.len()
    }

    fn check(&self, op: &str) -> Result<()> {
        if i32::try_from(self.vocab).is_err() {
            let vocab = self.vocab;
            return Err(Error::shape(format!("{op}: a vocabulary of {vocab} does not fit in i32")));
        }
        let named = self.row_of.map_or(self.targets.len(), |row_of| row_of.len());
        check_len(op, if self.row_of.is_some() { "row_of" } else { "targets" }, named, self.rows)
    }

    fn row_of(&self) -> Result<*const i32> {
        optional(self.row_of)
    }

    fn units(&self) -> usize {
        self.vocab.div_ceil(LOGPROB_UNIT as usize)
    }

    /// A block that has a warp for each chain of a row.
    fn row_block(&self) -> u32 {
        (self.units().clamp(1, LOGPROB_CHAINS as usize) as u32) * WARP
    }

    /// Too few rows to keep the device busy with a block each. It decides who sums a unit and never what is summed.
    fn few(&self, gpu: &Gpu) -> bool {
        self.units() > 1 && self.rows < 4 * gpu.multiprocessors() as usize
    }

    fn rule(&self, op: &str) -> Result<SoftmaxRule> {
        let allowed = |what: &str, x: f32| {
            if x.is_finite() && x > 0.0 {
                return Ok(x);
            }
            Err(Error::invalid(format!("{op}: {what} {x} is not finite and positive")))
        };
        let Softmax { temperature, softcap, banned } = self.softmax;
        let (temperatures, temperature) = match temperature {
            Temperature::One => (null(), 1.0),
            Temperature::Same(t) => (null(), allowed("temperature", t)?),
            Temperature::PerRow(all) => {
                check_len(op, "temperature", all.len(), self.outputs())?;
                (all.typed::<f32>()?, 1.0)
            }
        };
        Ok(SoftmaxRule {
            temperatures,
            banned: optional(banned)?,
            banned_count: banned.map_or(0, DeviceSlice::len) as i64,
            temperature,
            softcap: softcap.map_or(Ok(0.0), |cap| allowed("softcap", cap))?,
        })
    }

    fn check_logits(&self, op: &str, len: usize) -> Result<()> {
        super::check_logits(op, len, [self.rows, self.vocab])
    }
}

impl Outputs<'_> {
    /// The same outputs for a shorter time.
    pub fn reborrow(&mut self) -> Outputs<'_> {
        Outputs {
            logprob: self.logprob.reborrow(),
            entropy: self.entropy.as_mut().map(DeviceSliceMut::reborrow),
            logsumexp: self.logsumexp.reborrow(),
            argmax: self.argmax.as_mut().map(DeviceSliceMut::reborrow),
        }
    }

    /// What masked rows get.
    pub(in crate::kernels) fn clear(&mut self, op: &str, outputs: usize) -> Result<()> {
        self.check(op, outputs)?;
        self.logprob.fill_bytes(0)?;
        self.logsumexp.fill_bytes(0)?;
        if let Some(entropy) = &mut self.entropy {
            entropy.fill_bytes(0)?;
        }
        // Bytes of -1.
        self.argmax.as_mut().map_or(Ok(()), |argmax| argmax.fill_bytes(0xff))
    }

    fn check(&self, op: &str, outputs: usize) -> Result<()> {
        check_len(op, "logprob", self.logprob.len(), outputs)?;
        check_len(op, "logsumexp", self.logsumexp.len(), outputs)?;
        let optional = [("entropy", &self.entropy), ("argmax", &self.argmax)];
        for (what, out) in optional {
            check_len(op, what, out.as_ref().map_or(outputs, DeviceSliceMut::len), outputs)?;
        }
        Ok(())
    }

    /// What a forward pass over `logits` takes.
    fn args(
        &mut self,
        op: &str,
        logits: DeviceSlice<'_>,
        rows: &Rows<'_>,
    ) -> Result<LogprobForwardArgs> {
        rows.check(op)?;
        rows.check_logits(op, logits.len())?;
        self.check(op, rows.outputs())?;
        Ok(LogprobForwardArgs {
            logits: logits.ptr(),
            targets: rows.targets.typed::<i32>()?,
            row_of: rows.row_of()?,
            logprob: self.logprob.typed::<f32>()?,
            entropy: optional_mut(self.entropy.as_mut())?,
            logsumexp: self.logsumexp.typed::<f32>()?,
            argmax: optional_mut(self.argmax.as_mut())?,
            units: null_mut(),
            status: logits.gpu().status(),
            rows: rows.rows as i64,
            vocab: rows.vocab as i64,
            softmax: rows.rule(op)?,
        })
    }
}

impl Upstream<'_> {
    pub(in crate::kernels) fn check(&self, op: &str, outputs: usize) -> Result<()> {
        for (what, given) in [("dlogprob", self.dlogprob), ("dentropy", self.dentropy)] {
            check_len(op, what, given.map_or(outputs, DeviceSlice::len), outputs)?;
        }
        Ok(())
    }
}

impl Logits<'_> {
    fn read(&self) -> DeviceSlice<'_> {
        match self {
            Logits::InPlace(logits) => logits.as_slice(),
            Logits::Apart { logits, .. } => *logits,
        }
    }

    /// The address that gradients go to, and the kernel's instance for the two types.
    fn write(&mut self, op: &str, instances: &Instances) -> Result<(*mut c_void, Kernel)> {
        let from = self.read().dtype();
        let len = self.read().len();
        let into = match self {
            Logits::InPlace(logits) => logits,
            Logits::Apart { dlogits, .. } => dlogits,
        };
        check_len(op, "dlogits", into.len(), len)?;
        let name = instances.iter().find(|(types, _)| *types == (from, into.dtype()));
        let (_, name) = name.ok_or_else(|| {
            Error::dtype(format!("{op}: gradients of {from} logits as {}", into.dtype()))
        })?;
        Ok((into.ptr(), Kernel::new("logprob", name)))
    }
}

/// The instances of a kernel: types of logits and gradients, and its name for them.
type Instances = [((DType, DType), &'static str)];

const BACKWARD: &Instances = &[
    ((F32, F32), "logprob_backward_f32"),
    ((Bf16, Bf16), "logprob_backward_bf16"),
    ((F16, F16), "logprob_backward_f16"),
    ((F32, Bf16), "logprob_backward_f32_bf16"),
    ((F32, F16), "logprob_backward_f32_f16"),
    ((Bf16, F32), "logprob_backward_bf16_f32"),
    ((F16, F32), "logprob_backward_f16_f32"),
];

const BOTH: &Instances = &[
    ((F32, F32), "logprob_both_f32"),
    ((Bf16, Bf16), "logprob_both_bf16"),
    ((F16, F16), "logprob_both_f16"),
    ((F32, Bf16), "logprob_both_f32_bf16"),
    ((F32, F16), "logprob_both_f32_f16"),
];

/// [`forward`](super::forward()) on a device.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] as on the CPU for what the host sees, and what the
/// device reports.
pub fn forward(logits: DeviceSlice<'_>, rows: &Rows<'_>, mut out: Outputs<'_>) -> Result<()> {
    let args = out.args("logprob forward", logits, rows)?;
    sums(logits, rows, &args)
}

/// The forward pass, whole or split.
fn sums(logits: DeviceSlice<'_>, rows: &Rows<'_>, args: &LogprobForwardArgs) -> Result<()> {
    let gpu = logits.gpu();
    if !rows.few(gpu) {
        let kernel = typed_kernel!("logprob", "logprob_forward", logits.dtype())?;
        let (grid, block) = (gpu.item_grid(rows.rows), rows.row_block());
        // SAFETY: types and lengths were checked; ids are checked by the kernel.
        return unsafe { gpu.launch(&Launch { kernel, grid, block, shared: 0 }, args) };
    }
    let items = rows.rows * rows.units();
    let words = items * size_of::<OnlineSoftmax>() / size_of::<f32>();
    let mut units = DeviceBuffer::recycled(gpu, F32, words)?;
    let args = LogprobForwardArgs { units: units.whole_mut().ptr().cast(), ..*args };
    let by_warps = |items: usize| gpu.item_grid(items.div_ceil((BLOCK / WARP) as usize));
    let kernel = typed_kernel!("logprob", "logprob_units", logits.dtype())?;
    let launch = Launch { kernel, grid: by_warps(items), block: BLOCK, shared: 0 };
    // SAFETY: as above; the workspace has a struct for each unit of each row.
    unsafe { gpu.launch(&launch, &args)? };
    let kernel = typed_kernel!("logprob", "logprob_merge", logits.dtype())?;
    let launch = Launch { kernel, grid: by_warps(rows.rows), block: BLOCK, shared: 0 };
    // SAFETY: as above.
    unsafe { gpu.launch(&launch, &args) }
}

/// [`backward`](super::backward()) on a device. `logsumexp` and `entropy` are those of the forward pass, `[outputs]`.
///
/// # Errors
/// As [`forward`]; [`Error::is_invalid`] for a `dentropy` without `entropy`.
pub fn backward(
    mut logits: Logits<'_>,
    rows: &Rows<'_>,
    logsumexp: DeviceSlice<'_>,
    entropy: Option<DeviceSlice<'_>>,
    upstream: Upstream<'_>,
) -> Result<()> {
    const OP: &str = "logprob backward";
    rows.check(OP)?;
    rows.check_logits(OP, logits.read().len())?;
    upstream.check(OP, rows.outputs())?;
    check_len(OP, "logsumexp", logsumexp.len(), rows.outputs())?;
    check_len(OP, "entropy", entropy.map_or(rows.outputs(), DeviceSlice::len), rows.outputs())?;
    if entropy.is_none() && upstream.dentropy.is_some() {
        return Err(Error::invalid(format!(
            "{OP}: dentropy needs the entropy of the forward pass"
        )));
    }
    let (dlogits, kernel) = logits.write(OP, BACKWARD)?;
    let args = LogprobBackwardArgs {
        logits: logits.read().ptr(),
        dlogits,
        targets: rows.targets.typed::<i32>()?,
        row_of: rows.row_of()?,
        logsumexp: logsumexp.typed::<f32>()?,
        entropy: optional(entropy)?,
        dlogprob: optional(upstream.dlogprob)?,
        dentropy: optional(upstream.dentropy)?,
        rows: rows.rows as i64,
        vocab: rows.vocab as i64,
        softmax: rows.rule(OP)?,
    };
    let gpu = logsumexp.gpu();
    let tiles = rows.rows * rows.vocab.div_ceil(LOGPROB_TILE as usize);
    let launch = Launch { kernel, grid: gpu.item_grid(tiles), block: BLOCK, shared: 0 };
    // SAFETY: types and lengths were checked; ids are checked by the kernel.
    unsafe { gpu.launch(&launch, &args) }
}

/// [`forward`] and [`backward`] for gradients that are known before: the same bits, and the logits are read from
/// memory once where there are rows enough to give each a block.
///
/// # Errors
/// As theirs.
pub fn forward_backward(
    mut logits: Logits<'_>,
    rows: &Rows<'_>,
    mut out: Outputs<'_>,
    upstream: Upstream<'_>,
) -> Result<()> {
    const OP: &str = "logprob forward_backward";
    let forward = out.args(OP, logits.read(), rows)?;
    upstream.check(OP, rows.outputs())?;
    let gpu = Arc::clone(logits.read().gpu());
    if rows.few(&gpu) {
        let mut own = None;
        if out.entropy.is_none() && upstream.dentropy.is_some() {
            own = Some(DeviceBuffer::recycled(&gpu, F32, rows.outputs())?);
        }
        let entropy = out.entropy.or_else(|| own.as_mut().map(DeviceBuffer::whole_mut));
        let mut out = Outputs { entropy, ..out };
        let args = out.args(OP, logits.read(), rows)?;
        sums(logits.read(), rows, &args)?;
        let entropy = out.entropy.as_ref().map(DeviceSliceMut::as_slice);
        return backward(logits, rows, out.logsumexp.as_slice(), entropy, upstream);
    }
    let (dlogits, kernel) = logits.write(OP, BOTH)?;
    let args = LogprobBothArgs {
        forward,
        dlogits,
        dlogprob: optional(upstream.dlogprob)?,
        dentropy: optional(upstream.dentropy)?,
    };
    let (grid, block) = (gpu.item_grid(rows.rows), rows.row_block());
    // SAFETY: types and lengths were checked; ids are checked by the kernel.
    unsafe { gpu.launch(&Launch { kernel, grid, block, shared: 0 }, &args) }
}

/// The address of memory that may be absent, which is null then.
pub(in crate::kernels) fn optional<T: DeviceElement>(
    of: Option<DeviceSlice<'_>>,
) -> Result<*const T> {
    of.map_or(Ok(null()), DeviceSlice::typed)
}

/// The same for writing.
pub(in crate::kernels) fn optional_mut<T: DeviceElement>(
    of: Option<&mut DeviceSliceMut<'_>>,
) -> Result<*mut T> {
    of.map_or(Ok(null_mut()), DeviceSliceMut::typed)
}
