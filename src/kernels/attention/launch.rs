//! Attention on a device: checks, plans and launches of `kernels/attention_forward.cu` and `kernels/attention_backward.cu`.
//!
//! The plan (warps of a block, one block for all key groups or one for each) decides how fast a result comes, never its
//! bits.

mod backward;
mod plan;

pub use backward::{Backward, backward};

use super::{Attention, Mask, check_len, check_segments};
use crate::DType;
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{ATTENTION_GROUP, AttentionForwardArgs, AttentionMergeArgs};
use crate::typed_kernel;
pub(super) use plan::grid;
use plan::{Plan, WARP};
use std::ptr;
use std::sync::Arc;

/// Threads of a block of the kernels that take an element each.
const BLOCK: u32 = 128;
/// The most query rows of one key-value head, and keys of a sequence: kernels count whole tiles by int32, past their end.
const MOST: usize = i32::MAX as usize - 127;
/// Keys of one softmax chain.
const GROUP: usize = ATTENTION_GROUP as usize;

/// Offsets of packed sequences on a device, and what a launch has to know of them.
pub struct Segments {
    offsets: DeviceBuffer,
    sequences: usize,
    tokens: usize,
    longest: usize,
}

impl Segments {
    /// Uploads CSR offsets `0, …, tokens` of sequences that the mask fits.
    ///
    /// # Errors
    /// [`Error::is_shape`] unless they rise from 0 to at most 2³¹ - 128, and what the device reports.
    pub fn upload(gpu: &Arc<Gpu>, mask: Mask, segments: &[usize]) -> Result<Segments> {
        let tokens = segments.last().copied().unwrap_or(0);
        check_segments(mask, segments, tokens)?;
        let longest = segments.windows(2).map(|bounds| bounds[1] - bounds[0]).max().unwrap_or(0);
        let offsets = upload_i32(gpu, segments)?;
        Ok(Segments { offsets, sequences: segments.len() - 1, tokens, longest })
    }

    /// Queries of all sequences.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The device that holds them.
    pub fn gpu(&self) -> &Arc<Gpu> {
        self.offsets.gpu()
    }

    /// The offsets, i32.
    pub(super) fn offsets(&self) -> DeviceSlice<'_> {
        self.offsets.whole()
    }
}

/// Counts or offsets as the kernels take them.
pub(super) fn upload_i32(gpu: &Arc<Gpu>, values: &[usize]) -> Result<DeviceBuffer> {
    let narrow = |value: &usize| match i32::try_from(*value) {
        Ok(narrow) if *value <= MOST => Ok(narrow),
        _ => Err(Error::shape(format!("attention: {value} tokens; a device takes {MOST}"))),
    };
    let values = values.iter().map(narrow).collect::<Result<Vec<i32>>>()?;
    DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(&values))
}

/// The keys and values that queries attend to.
pub(super) enum Keys<'a> {
    /// `[T, kv_heads, head_dim]` each, beside the queries.
    Packed(DeviceSlice<'a>, DeviceSlice<'a>),
    /// Those of a cache.
    Paged {
        /// i32 `[sequences]`.
        lengths: DeviceSlice<'a>,
        /// Addresses `[sequences, pages_per_sequence]`.
        table: DeviceSlice<'a>,
        pages_per_sequence: usize,
        /// Elements from a page's start to the layer.
        page_offset: usize,
        /// Keys of the longest sequence.
        longest: usize,
    },
}

/// Attention of packed sequences: [`forward`](super::forward()) on a device.
///
/// # Shapes
/// `q`, `out` `[T, query_heads, head_dim]`, `k`, `v` `[T, kv_heads, head_dim]` of one float type; `logsumexp`
/// `[T, query_heads]` f32.
///
/// # Errors
/// [`Error::is_invalid`], [`Error::is_shape`], [`Error::is_dtype`]; [`Error::is_unsupported`] for heads wider than 256;
/// and what the device reports.
pub fn forward(
    spec: &Attention,
    q: DeviceSlice<'_>,
    [k, v]: [DeviceSlice<'_>; 2],
    segments: &Segments,
    out: DeviceSliceMut<'_>,
    logsumexp: Option<DeviceSliceMut<'_>>,
) -> Result<()> {
    spec.check()?;
    check_len("k", k.len(), [segments.tokens, spec.kv_heads, spec.head_dim])?;
    check_len("v", v.len(), [segments.tokens, spec.kv_heads, spec.head_dim])?;
    same_dtype(q.dtype(), &[("k", k.dtype()), ("v", v.dtype())])?;
    attend(spec, q, Keys::Packed(k, v), segments, out, logsumexp)
}

pub(super) fn same_dtype(q: DType, others: &[(&str, DType)]) -> Result<()> {
    match others.iter().find(|(_, dtype)| *dtype != q) {
        None => Ok(()),
        Some((name, dtype)) => {
            Err(Error::dtype(format!("attention: q is {q} but {name} is {dtype}")))
        }
    }
}

/// Attention of queries to packed or cached keys; the keys are checked.
pub(super) fn attend(
    spec: &Attention,
    q: DeviceSlice<'_>,
    keys: Keys<'_>,
    segments: &Segments,
    mut out: DeviceSliceMut<'_>,
    mut logsumexp: Option<DeviceSliceMut<'_>>,
) -> Result<()> {
    let tokens = segments.tokens;
    check_len("q", q.len(), [tokens, spec.query_heads, spec.head_dim])?;
    check_len("out", out.len(), [tokens, spec.query_heads, spec.head_dim])?;
    if let Some(logsumexp) = &logsumexp {
        check_len("logsumexp", logsumexp.len(), [tokens, spec.query_heads, 1])?;
    }
    same_dtype(q.dtype(), &[("out", out.dtype())])?;
    if tokens == 0 {
        return Ok(());
    }
    let gpu = q.gpu();
    let plan = Plan::new(spec, q.dtype(), tokens)?;
    let longest = match &keys {
        Keys::Packed(..) => segments.longest,
        Keys::Paged { longest, .. } => *longest,
    };
    let groups = longest.div_ceil(GROUP).max(1);
    let warps = plan.warps(segments.longest * spec.group());
    let split = groups > 1 && warps == 1 && logsumexp.is_none();
    let rows = tokens * spec.query_heads;
    let mut partial = DeviceBuffer::recycled(
        gpu,
        DType::F32,
        if split { groups * rows * spec.head_dim } else { 0 },
    )?;
    let mut statistics =
        DeviceBuffer::recycled(gpu, DType::F32, if split { groups * rows * 2 } else { 0 })?;
    let mut args = AttentionForwardArgs {
        shape: plan.shape(spec, segments)?,
        q: q.ptr(),
        k: ptr::null(),
        v: ptr::null(),
        pages: ptr::null(),
        out: out.ptr(),
        logsumexp: match &mut logsumexp {
            Some(logsumexp) => logsumexp.typed::<f32>()?,
            None => ptr::null_mut(),
        },
        partial: if split { partial.whole_mut().typed::<f32>()? } else { ptr::null_mut() },
        statistics: if split { statistics.whole_mut().typed::<f32>()? } else { ptr::null_mut() },
        page_offset: 0,
        pages_per_sequence: 0,
        groups: groups as i32,
        vector: u32::from(plan.vector(&[q.address()])),
        unused: 0,
    };
    match keys {
        Keys::Packed(k, v) => {
            (args.k, args.v) = (k.ptr(), v.ptr());
            args.vector &= u32::from(plan.vector(&[k.address(), v.address()]));
        }
        Keys::Paged { lengths, table, pages_per_sequence, page_offset, .. } => {
            args.shape.lengths = lengths.typed::<i32>()?;
            args.pages = table.ptr().cast();
            args.pages_per_sequence = pages_per_sequence as i32;
            args.page_offset = page_offset as i64;
        }
    }
    let launch = Launch {
        kernel: forward_kernel(plan.width(), q.dtype())?,
        grid: plan.query_grid(spec, segments, warps, if split { groups } else { 1 })?,
        block: warps as u32 * WARP,
        shared: plan.shared(gpu, plan.forward_bytes(warps, groups > 1 && !split))?,
    };
    // SAFETY: types and lengths were checked; the offsets were when they were uploaded, and the kernel looks again.
    unsafe { gpu.launch(&launch, &args)? };
    if !split {
        return Ok(());
    }
    let args = AttentionMergeArgs {
        partial: partial.whole().typed::<f32>()?,
        statistics: statistics.whole().typed::<f32>()?,
        out: out.ptr(),
        rows: rows as i64,
        head_dim: spec.head_dim as i32,
        groups: groups as i32,
    };
    let launch = Launch {
        kernel: typed_kernel!("attention_forward", "attention_merge", q.dtype())?,
        grid: gpu.stride_grid(rows * spec.head_dim, BLOCK),
        block: BLOCK,
        shared: 0,
    };
    // SAFETY: the partial results are [groups, rows, ..] and all were written.
    unsafe { gpu.launch(&launch, &args) }
}

fn forward_kernel(width: usize, dtype: DType) -> Result<Kernel> {
    match width {
        32 => typed_kernel!("attention_forward", "attention_forward_32", dtype),
        64 => typed_kernel!("attention_forward", "attention_forward_64", dtype),
        128 => typed_kernel!("attention_forward", "attention_forward_128", dtype),
        _ => typed_kernel!("attention_forward", "attention_forward_256", dtype),
    }
}
