//! Self-attention over packed sequences, whole or continuing a cache.

use super::linear::{Linear, linears};
use super::norm::RmsNorm;
use super::weights::Weights;
use crate::error::Result;
use crate::kernels::attention::{Attention, KvCache, Mask};
use crate::kernels::rope::{Angles, Layout};
use crate::ops;
use crate::tensor::Tensor;
use std::sync::Arc;

/// Where queries find their keys and values.
pub enum Keys<'a> {
    /// In the pass itself: whole sequences, with gradients.
    Own,
    /// In this layer of a cache, which grows by those of the pass. No gradients.
    Cached(&'a mut KvCache, usize),
}

/// Norms on queries and keys, before they are rotated.
#[derive(Clone, Copy, Debug)]
pub enum QueryKeyNorm {
    /// One over each head (Qwen 3): queries, keys.
    Heads(RmsNorm, RmsNorm),
    /// One over all heads together (OLMo 2): queries, keys.
    Whole(RmsNorm, RmsNorm),
}

/// Query, key and value projections, attention, and the projection back.
#[derive(Clone, Copy, Debug)]
pub struct SelfAttention {
    /// To `[query_heads · head_dim]`.
    pub query: Linear,
    /// To `[kv_heads · head_dim]`.
    pub key: Linear,
    /// To `[kv_heads · head_dim]`.
    pub value: Linear,
    /// From `[query_heads · head_dim]` back.
    pub out: Linear,
    /// Norms on queries and keys.
    pub norm: Option<QueryKeyNorm>,
    /// Heads, scale, window and softcap; its mask gives way to that of a call.
    pub heads: Attention,
}

impl SelfAttention {
    /// The indices of its parameters.
    pub fn indices(&self) -> impl Iterator<Item = usize> {
        let norms = match self.norm {
            None => [None, None],
            Some(QueryKeyNorm::Heads(q, k) | QueryKeyNorm::Whole(q, k)) => {
                [Some(q.index()), Some(k.index())]
            }
        };
        let linears = self.linears().into_iter().flat_map(Linear::indices);
        linears.chain(norms.into_iter().flatten())
    }

    /// Its linear layers.
    pub fn linears(&self) -> [Linear; 4] {
        [self.query, self.key, self.value, self.out]
    }

    /// What the heads saw, side by side: all but the projection back, which is [`SelfAttention::out`]'s.
    ///
    /// # Shapes
    /// `x [T, width]`, packed sequences that begin at `segments [sequences + 1]`, `angles` of T tokens where positions are
    /// rotary; `[T, query_heads · head_dim]`.
    ///
    /// # Errors
    /// As [`ops::attention`] or [`ops::cached_attention`].
    pub fn attended(
        &self,
        weights: Weights<'_>,
        x: Tensor,
        segments: &[usize],
        angles: Option<&Arc<Angles>>,
        mask: Mask,
        keys: &mut Keys<'_>,
    ) -> Result<Tensor> {
        let Attention { query_heads, kv_heads, head_dim, .. } = self.heads;
        let spec = Attention { mask, ..self.heads };
        let tokens = x.leading();
        let [q, k, v] = linears(weights, &x, [self.query, self.key, self.value])?;
        drop(x);
        let heads = |x: &Tensor, heads: usize| ops::reshape(x, &[tokens, heads, head_dim]);
        let (q, k) = match self.norm {
            None => (heads(&q, query_heads)?, heads(&k, kv_heads)?),
            Some(QueryKeyNorm::Heads(on_q, on_k)) => (
                on_q.forward(weights, &heads(&q, query_heads)?)?,
                on_k.forward(weights, &heads(&k, kv_heads)?)?,
            ),
            Some(QueryKeyNorm::Whole(on_q, on_k)) => (
                heads(&on_q.forward(weights, &q)?, query_heads)?,
                heads(&on_k.forward(weights, &k)?, kv_heads)?,
            ),
        };
        let rotated = |x: Tensor| match angles {
            Some(angles) => ops::rope_with(&x, angles, Layout::RotateHalf),
            None => Ok(x),
        };
        let (q, k, v) = (rotated(q)?, rotated(k)?, heads(&v, kv_heads)?);
        let attended = match keys {
            Keys::Own => ops::attention(&q, &k, &v, &spec, segments)?,
            Keys::Cached(cache, layer) => {
                ops::append_to_cache(cache, *layer, &k, &v, segments)?;
                ops::cached_attention(&q, &spec, cache, *layer, segments)?
            }
        };
        ops::reshape(&attended, &[tokens, query_heads * head_dim])
    }
}
