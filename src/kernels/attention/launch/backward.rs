//! The gradients of packed attention on a device: delta, then the queries' pass, then the keys'.

use super::plan::{Plan, WARP};
use super::{BLOCK, Segments, same_dtype};
use crate::DType;
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
use crate::error::Result;
use crate::kernels::args::{AttentionBackwardArgs, AttentionDeltaArgs};
use crate::kernels::attention::{Attention, check_len};
use crate::kernels::cast;
use crate::typed_kernel;
use std::ptr;

/// Arguments of [`backward`]: those of the forward pass, what it returned, and the gradients.
pub struct Backward<'a> {
    /// `[T, query_heads, head_dim]`.
    pub q: DeviceSlice<'a>,
    /// `[T, kv_heads, head_dim]`.
    pub k: DeviceSlice<'a>,
    /// `[T, kv_heads, head_dim]`.
    pub v: DeviceSlice<'a>,
    /// `[T, query_heads, head_dim]`, what the forward pass returned.
    pub out: DeviceSlice<'a>,
    /// `[T, query_heads]` f32, what the forward pass returned.
    pub logsumexp: DeviceSlice<'a>,
    /// The packed sequences.
    pub segments: &'a Segments,
    /// `[T, query_heads, head_dim]` f32, the gradient of `out`.
    pub dout: DeviceSlice<'a>,
    /// `[T, query_heads, head_dim]` f32; overwritten. `None`: not wanted.
    pub dq: Option<DeviceSliceMut<'a>>,
    /// dk and dv, `[T, kv_heads, head_dim]` f32; overwritten. `None`: not wanted.
    pub dkv: Option<[DeviceSliceMut<'a>; 2]>,
}

/// [`backward`](crate::kernels::attention::backward()) on a device. In bf16 the products take `dout` and the
/// probabilities rounded to bf16; f16 computes in f32.
///
/// # Errors
/// As [`forward`](super::forward()).
pub fn backward(spec: &Attention, args: Backward<'_>) -> Result<()> {
    spec.check()?;
    let Backward { q, k, v, out, logsumexp, segments, dout, dq, dkv } = args;
    let tokens = segments.tokens();
    let queries = [tokens, spec.query_heads, spec.head_dim];
    let keys = [tokens, spec.kv_heads, spec.head_dim];
    check_len("q", q.len(), queries)?;
    check_len("k", k.len(), keys)?;
    check_len("v", v.len(), keys)?;
    check_len("out", out.len(), queries)?;
    check_len("logsumexp", logsumexp.len(), [tokens, spec.query_heads, 1])?;
    check_len("dout", dout.len(), queries)?;
    same_dtype(q.dtype(), &[("k", k.dtype()), ("v", v.dtype()), ("out", out.dtype())])?;
    if tokens == 0 || (dq.is_none() && dkv.is_none()) {
        return Ok(());
    }
    let (gpu, dtype) = (q.gpu(), q.dtype());
    let rows = tokens * spec.query_heads;
    let mut delta = DeviceBuffer::recycled(gpu, DType::F32, rows)?;
    let round = dtype == DType::Bf16;
    let mut rounded = DeviceBuffer::recycled(gpu, dtype, if round { dout.len() } else { 0 })?;
    let args = AttentionDeltaArgs {
        out: out.ptr(),
        dout: dout.typed::<f32>()?,
        delta: delta.whole_mut().typed::<f32>()?,
        rounded: if round { rounded.whole_mut().ptr() } else { ptr::null_mut() },
        rows: rows as i64,
        head_dim: spec.head_dim as i32,
        unused: 0,
    };
    let launch = Launch {
        kernel: typed_kernel!("attention_backward", "attention_delta", dtype)?,
        grid: gpu.stride_grid(rows * WARP as usize, BLOCK),
        block: BLOCK,
        shared: 0,
    };
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&launch, &args)? };

    // The kernels are of bf16 and f32.
    let dtype = if round { dtype } else { DType::F32 };
    let mut widened = Vec::new();
    if q.dtype() != dtype {
        for x in [q, k, v] {
            let mut wide = DeviceBuffer::recycled(gpu, dtype, x.len())?;
            cast::launch::convert(x, wide.whole_mut())?;
            widened.push(wide);
        }
    }
    let [q, k, v] = match &widened[..] {
        [q, k, v] => [q, k, v].map(DeviceBuffer::whole),
        _ => [q, k, v],
    };
    let plan = Plan::new(spec, dtype, tokens)?;
    let dout = if round { rounded.whole() } else { dout };
    let aligned = [q, k, v, dout].map(DeviceSlice::address);
    let mut args = AttentionBackwardArgs {
        shape: plan.shape(spec, segments)?,
        q: q.ptr(),
        k: k.ptr(),
        v: v.ptr(),
        dout: dout.ptr(),
        logsumexp: logsumexp.typed::<f32>()?,
        delta: delta.whole().typed::<f32>()?,
        dq: ptr::null_mut(),
        dk: ptr::null_mut(),
        dv: ptr::null_mut(),
        vector: u32::from(plan.vector(&aligned)),
        unused: 0,
    };
    if let Some(mut dq) = dq {
        check_len("dq", dq.len(), queries)?;
        args.dq = dq.typed::<f32>()?;
        let warps = plan.warps(segments.longest * spec.group());
        let launch = Launch {
            kernel: queries_kernel(plan.width(), dtype),
            grid: plan.query_grid(spec, segments, warps, 1)?,
            block: warps as u32 * WARP,
            shared: plan.shared(gpu, plan.backward_bytes(warps))?,
        };
        // SAFETY: types and lengths were checked.
        unsafe { gpu.launch(&launch, &args)? };
    }
    if let Some([mut dk, mut dv]) = dkv {
        check_len("dk", dk.len(), keys)?;
        check_len("dv", dv.len(), keys)?;
        (args.dk, args.dv) = (dk.typed::<f32>()?, dv.typed::<f32>()?);
        let warps = plan.warps(segments.longest);
        let launch = Launch {
            kernel: keys_kernel(plan.width(), dtype),
            grid: plan.key_grid(spec, segments, warps)?,
            block: warps as u32 * WARP,
            shared: plan.shared(gpu, plan.backward_bytes(warps))?,
        };
        // SAFETY: types and lengths were checked.
        unsafe { gpu.launch(&launch, &args)? };
    }
    Ok(())
}

fn queries_kernel(width: usize, dtype: DType) -> Kernel {
    let [f32, bf16] = match width {
        32 => ["attention_backward_queries_32_f32", "attention_backward_queries_32_bf16"],
        64 => ["attention_backward_queries_64_f32", "attention_backward_queries_64_bf16"],
        128 => ["attention_backward_queries_128_f32", "attention_backward_queries_128_bf16"],
        _ => ["attention_backward_queries_256_f32", "attention_backward_queries_256_bf16"],
    };
    Kernel::new("attention_backward", if dtype == DType::Bf16 { bf16 } else { f32 })
}

fn keys_kernel(width: usize, dtype: DType) -> Kernel {
    let [f32, bf16] = match width {
        32 => ["attention_backward_keys_32_f32", "attention_backward_keys_32_bf16"],
        64 => ["attention_backward_keys_64_f32", "attention_backward_keys_64_bf16"],
        128 => ["attention_backward_keys_128_f32", "attention_backward_keys_128_bf16"],
        _ => ["attention_backward_keys_256_f32", "attention_backward_keys_256_bf16"],
    };
    Kernel::new("attention_backward", if dtype == DType::Bf16 { bf16 } else { f32 })
}
