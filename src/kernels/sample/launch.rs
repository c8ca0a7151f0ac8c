//! Sampling on a device: checks and launches of `kernels/sample.cu`.

use super::{OP, Truncation, check_draw};
use crate::device::engine::Launch;
use crate::device::gpu::{DeviceSlice, DeviceSliceMut};
use crate::error::{Error, Result};
use crate::kernels::args::{LOGPROB_CHAINS, SampleArgs, SoftmaxRule};
use crate::kernels::logprob::launch::{optional, optional_mut};
use crate::rng::Stream;
use crate::typed_kernel;
use std::ptr::null;

/// Threads of a block, which takes a row.
const BLOCK: u32 = LOGPROB_CHAINS * 32;

/// Arguments of [`tokens`]: [`Sample`](super::Sample) in device memory.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    /// `[rows, vocab]`, f32, bf16 or f16.
    pub logits: DeviceSlice<'a>,
    /// Rows.
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// Logits are divided by it; 0: the first of the largest, with log-probs at temperature 1.
    pub temperature: f32,
    /// `logits := cap · tanh(logits / cap)` before the temperature.
    pub softcap: Option<f32>,
    /// What may be drawn.
    pub truncation: Truncation,
    /// Ids that are never drawn, as [`banned_ids`](crate::kernels::logprob::launch::banned_ids) makes them.
    pub banned: Option<DeviceSlice<'a>>,
    /// The seed of every draw.
    pub seed: u64,
    /// What the draws are for.
    pub stream: Stream,
    /// i64 `[rows]`: a number of the sequence that a row belongs to.
    pub sequences: DeviceSlice<'a>,
    /// i32 `[rows]`: the place of the token in its sequence.
    pub positions: DeviceSlice<'a>,
}

/// What is known of each drawn token, `[rows]`; `None`: not wanted.
#[derive(Default)]
pub struct Outputs<'a> {
    /// f32.
    pub logprob: Option<DeviceSliceMut<'a>>,
    /// f32.
    pub entropy: Option<DeviceSliceMut<'a>>,
    /// f32.
    pub logsumexp: Option<DeviceSliceMut<'a>>,
    /// i32.
    pub argmax: Option<DeviceSliceMut<'a>>,
    /// f32: the share of the distribution that the truncation left to be drawn from, 1 where there is none.
    pub kept_mass: Option<DeviceSliceMut<'a>>,
}

/// Draws a token from every row into `tokens`, i32 `[rows]`, and its statistics where wanted: the bits of
/// [`logprob::launch::forward`](crate::kernels::logprob::launch::forward) of that token.
///
/// A row with NaN or +inf, or with nothing to draw, gets -1 and raises a status bit. The token is the CPU's for the same
/// logits, unless the random number lies within rounding of the boundary between two.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] as on the CPU for what the host sees, and what the
/// device reports.
pub fn tokens(
    args: &Sample<'_>,
    mut tokens: DeviceSliceMut<'_>,
    mut out: Outputs<'_>,
) -> Result<()> {
    let Sample { rows, vocab, temperature, truncation, .. } = *args;
    check_draw(temperature, &truncation)?;
    if let Some(cap) = args.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
        return Err(Error::invalid(format!("{OP}: softcap {cap} is not finite and positive")));
    }
    if rows.checked_mul(vocab) != Some(args.logits.len()) || i32::try_from(vocab).is_err() {
        let len = args.logits.len();
        return Err(Error::shape(format!("{OP}: {len} logits as [{rows}, {vocab}]")));
    }
    let of = |out: &Option<DeviceSliceMut<'_>>| out.as_ref().map_or(rows, DeviceSliceMut::len);
    let lengths = [
        ("sequences", args.sequences.len()),
        ("positions", args.positions.len()),
        ("tokens", tokens.len()),
        ("logprob", of(&out.logprob)),
        ("entropy", of(&out.entropy)),
        ("logsumexp", of(&out.logsumexp)),
        ("argmax", of(&out.argmax)),
        ("kept_mass", of(&out.kept_mass)),
    ];
    if let Some((name, len)) = lengths.iter().find(|(_, len)| *len != rows) {
        return Err(Error::shape(format!("{OP}: {len} {name} for {rows} rows")));
    }
    let greedy = temperature == 0.0;
    let gpu = args.logits.gpu();
    let device_args = SampleArgs {
        logits: args.logits.ptr(),
        sequences: args.sequences.typed::<i64>()?.cast(),
        positions: args.positions.typed::<i32>()?.cast(),
        excluded: optional(args.banned)?,
        tokens: tokens.typed::<i32>()?,
        logprob: optional_mut(out.logprob.as_mut())?,
        entropy: optional_mut(out.entropy.as_mut())?,
        logsumexp: optional_mut(out.logsumexp.as_mut())?,
        argmax: optional_mut(out.argmax.as_mut())?,
        kept_mass: optional_mut(out.kept_mass.as_mut())?,
        status: gpu.status(),
        rows: rows as i64,
        vocab: vocab as i64,
        excluded_count: args.banned.map_or(0, DeviceSlice::len) as i64,
        seed: args.seed,
        softmax: SoftmaxRule {
            temperatures: null(),
            banned: null(),
            banned_count: 0,
            temperature: if greedy { 1.0 } else { temperature },
            softcap: args.softcap.unwrap_or(0.0),
        },
        top_p: truncation.top_p.unwrap_or(1.0),
        top_k: truncation.top_k.unwrap_or(0),
        min_p_depth: truncation.depth(temperature),
        stream: args.stream as u32,
        greedy: u32::from(greedy),
        unused: 0,
    };
    let kernel = typed_kernel!("sample", "sample", args.logits.dtype())?;
    let launch = Launch { kernel, grid: gpu.item_grid(rows), block: BLOCK, shared: 0 };
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&launch, &device_args) }
}
