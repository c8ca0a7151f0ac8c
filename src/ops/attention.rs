//! Attention over packed sequences, and over a cache while generating.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::{DeviceBuffer, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::attention::launch::Segments;
use crate::kernels::attention::{self as kernel, Attention, KvCache};
use crate::tensor::autograd::{Backward, Grads, record_one, recording};
use crate::tensor::{Storage, Tensor};
use std::sync::Arc;

fn check(op: &str, x: &Tensor, heads: usize, head_dim: usize) -> Result<()> {
    match *x.shape() {
        [_, h, d] if (h, d) == (heads, head_dim) => Ok(()),
        _ => {
            Err(Error::shape(format!("{op}: {:?} is not [tokens, {heads}, {head_dim}]", x.shape())))
        }
    }
}

/// Scaled dot-product attention of every token over its own sequence; the scores are never stored.
///
/// # Shapes
/// `q [T, query_heads, head_dim]`, `k`, `v` `[T, kv_heads, head_dim]` of one dtype; `segments [sequences + 1]` offsets
/// from 0 to T; the result is of `q`'s shape and dtype.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`] when the types differ, [`Error::is_invalid`] for a description that makes
/// no sense.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: &Attention,
    segments: &[usize],
) -> Result<Tensor> {
    check("attention", q, spec.query_heads, spec.head_dim)?;
    check("attention", k, spec.kv_heads, spec.head_dim)?;
    check("attention", v, spec.kv_heads, spec.head_dim)?;
    if let Some(gpu) = Tensor::common_gpu("attention", &[q, k, v])? {
        return on_device(gpu, [q, k, v], spec, segments);
    }
    let mut out = Storage::recycled(q.dtype(), q.len());
    let mut logsumexp = if recording(&[q, k, v]) {
        Some(Buffer::recycled(q.shape()[0] * spec.query_heads))
    } else {
        None
    };
    kernel::forward(
        spec,
        kernel::Forward {
            q: q.floats()?,
            k: k.floats()?,
            v: v.floats()?,
            segments,
            out: out.floats_mut().ok_or_else(|| Error::dtype("attention of integers"))?,
            logsumexp: logsumexp.as_mut().map(|l| &mut l[..]),
        },
    )?;
    let output = Tensor::new(out, q.shape())?;
    let saved = output.clone();
    Ok(record_one(&[q, k, v], output, || Saved {
        q: q.detach(),
        k: k.detach(),
        v: v.detach(),
        out: saved,
        logsumexp: logsumexp.unwrap_or_else(|| Buffer::recycled(0)),
        spec: *spec,
        segments: segments.to_vec(),
    }))
}

fn on_device(
    gpu: &Arc<Gpu>,
    [q, k, v]: [&Tensor; 3],
    spec: &Attention,
    segments: &[usize],
) -> Result<Tensor> {
    let segments = Segments::upload(gpu, spec.mask, segments)?;
    let mut out = Tensor::recycled_on(q.shape(), q.dtype(), gpu)?;
    let mut logsumexp = if recording(&[q, k, v]) {
        Some(DeviceBuffer::recycled(gpu, DType::F32, q.shape()[0] * spec.query_heads)?)
    } else {
        None
    };
    kernel::launch::forward(
        spec,
        q.device_slice()?,
        [k.device_slice()?, v.device_slice()?],
        &segments,
        out.device_slice_mut()?,
        logsumexp.as_mut().map(DeviceBuffer::whole_mut),
    )?;
    let Some(logsumexp) = logsumexp else { return Ok(out) };
    let saved = out.clone();
    Ok(record_one(&[q, k, v], out, || SavedOnDevice {
        q: q.detach(),
        k: k.detach(),
        v: v.detach(),
        out: saved,
        logsumexp,
        spec: *spec,
        segments,
    }))
}

struct SavedOnDevice {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: DeviceBuffer,
    spec: Attention,
    segments: Segments,
}

impl Backward for SavedOnDevice {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None; 3]) };
        let gpu = self.segments.gpu();
        let gradient = |of: &Tensor, wanted: bool| match wanted {
            true => Tensor::recycled_on(of.shape(), DType::F32, gpu).map(Some),
            false => Ok(None),
        };
        let mut dq = gradient(&self.q, wanted[0])?;
        // The keys' and the values' gradients come from one kernel.
        let mut dk = gradient(&self.k, wanted[1] || wanted[2])?;
        let mut dv = gradient(&self.v, wanted[1] || wanted[2])?;
        fn slice(gradient: &mut Option<Tensor>) -> Result<Option<DeviceSliceMut<'_>>> {
            gradient.as_mut().map(Tensor::device_slice_mut).transpose()
        }
        kernel::launch::backward(
            &self.spec,
            kernel::launch::Backward {
                q: self.q.device_slice()?,
                k: self.k.device_slice()?,
                v: self.v.device_slice()?,
                out: self.out.device_slice()?,
                logsumexp: self.logsumexp.whole(),
                segments: &self.segments,
                dout: grad.device_slice()?,
                dq: slice(&mut dq)?,
                dkv: match (slice(&mut dk)?, slice(&mut dv)?) {
                    (Some(dk), Some(dv)) => Some([dk, dv]),
                    _ => None,
                },
            },
        )?;
        Ok(vec![dq, dk.filter(|_| wanted[1]), dv.filter(|_| wanted[2])])
    }
}

struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Buffer<f32>,
    spec: Attention,
    segments: Vec<usize>,
}

impl Backward for Saved {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(self: Box<Self>, mut grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let Some(grad) = grads.pop().flatten() else { return Ok(vec![None; 3]) };
        let mut dq = Buffer::recycled(self.q.len());
        let (mut dk, mut dv) = (Buffer::recycled(self.k.len()), Buffer::recycled(self.v.len()));
        kernel::backward(
            &self.spec,
            kernel::Backward {
                q: self.q.floats()?,
                k: self.k.floats()?,
                v: self.v.floats()?,
                out: self.out.floats()?,
                logsumexp: &self.logsumexp,
                segments: &self.segments,
                dout: grad.f32s()?,
                dq: &mut dq,
                dk: &mut dk,
                dv: &mut dv,
            },
        )?;
        let pack = |values, of: &Tensor| Tensor::from_buffer(values, of.shape(), DType::F32);
        Ok(vec![
            Some(pack(dq, &self.q)?).filter(|_| wanted[0]),
            Some(pack(dk, &self.k)?).filter(|_| wanted[1]),
            Some(pack(dv, &self.v)?).filter(|_| wanted[2]),
        ])
    }
}

/// Attention of new tokens over cached sequences, their own keys and values already appended. No gradient: the same
/// bits as [`attention`] gives these tokens in the whole sequences.
///
/// # Shapes
/// `q [T, query_heads, head_dim]` in the cache's dtype; `segments [sequences + 1]` offsets from 0 to T, one segment a
/// cached sequence; the result is of `q`'s shape and dtype.
///
/// # Errors
/// As [`attention`]; [`Error::is_index`] for a layer that the cache does not have.
pub fn cached_attention(
    q: &Tensor,
    spec: &Attention,
    cache: &KvCache,
    layer: usize,
    segments: &[usize],
) -> Result<Tensor> {
    check("attention", q, spec.query_heads, spec.head_dim)?;
    if let (Some(gpu), Some(_)) = (q.gpu(), cache.gpu()) {
        on_cache_device("cached_attention", cache, q)?;
        let mut out = Tensor::recycled_on(q.shape(), q.dtype(), gpu)?;
        cache.attend_on(spec, layer, q.device_slice()?, segments, out.device_slice_mut()?)?;
        return Ok(out);
    }
    let mut out = Storage::recycled(q.dtype(), q.len());
    let floats = out.floats_mut().ok_or_else(|| Error::dtype("attention of integers"))?;
    cache.attend(spec, layer, q.floats()?, segments, floats)?;
    Tensor::new(out, q.shape())
}

/// Appends the keys and values of new tokens to `layer` of a cache, on the cache's device: see [`KvCache::append`].
///
/// # Shapes
/// `k`, `v` `[T, kv_heads, head_dim]` in the cache's dtype; `segments [sequences + 1]` offsets from 0 to T.
///
/// # Errors
/// As [`KvCache::append`]; [`Error::is_unsupported`] when cache and tensors are on different devices.
pub fn append_to_cache(
    cache: &mut KvCache,
    layer: usize,
    k: &Tensor,
    v: &Tensor,
    segments: &[usize],
) -> Result<()> {
    if k.gpu().is_none() && v.gpu().is_none() {
        return cache.append(layer, k.floats()?, v.floats()?, segments);
    }
    on_cache_device("append_to_cache", cache, k)?;
    on_cache_device("append_to_cache", cache, v)?;
    cache.append_on(layer, k.device_slice()?, v.device_slice()?, segments)
}

fn on_cache_device(op: &str, cache: &KvCache, x: &Tensor) -> Result<()> {
    match (x.gpu(), cache.gpu()) {
        (Some(own), Some(cached)) if Arc::ptr_eq(own, cached) => Ok(()),
        (_, cached) => Err(Error::unsupported(format!(
            "{op}: {x:?} is on {}, the cache on {}",
            x.device(),
            cached.map_or("cpu".to_owned(), |gpu| gpu.describe())
        ))),
    }
}
