//! Attention over packed sequences, and over a cache while generating.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::attention::{self as kernel, Attention, KvCache};
use crate::tensor::autograd::{Backward, Grads, record_one, recording};
use crate::tensor::{Storage, Tensor};

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
    let mut out = Storage::recycled(q.dtype(), q.len());
    let floats = out.floats_mut().ok_or_else(|| Error::dtype("attention of integers"))?;
    cache.attend(spec, layer, q.floats()?, segments, floats)?;
    Tensor::new(out, q.shape())
}
