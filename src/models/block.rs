//! One block of the decoder: attention and a gated MLP, each with norms before it, after it, or both.

use super::architecture::{NormOver, Norms};
use super::config::{Activation, DecoderConfig};
use crate::error::Result;
use crate::kernels::attention::{Attention, Mask};
use crate::kernels::rope::Angles;
use crate::nn::{Builder, Keys, Linear, QueryKeyNorm, RmsNorm, SelfAttention, Weights, linears};
use crate::ops;
use crate::tensor::Tensor;
use std::sync::Arc;

/// One block.
pub(super) struct Block {
    attention: SelfAttention,
    attention_norms: HalfNorms,
    gate: Linear,
    up: Linear,
    down: Linear,
    mlp_norms: HalfNorms,
    activation: Activation,
}

/// The norms of one half of a block.
#[derive(Clone, Copy)]
struct HalfNorms {
    before: Option<RmsNorm>,
    after: Option<RmsNorm>,
}

impl HalfNorms {
    fn indices(self) -> impl Iterator<Item = usize> {
        [self.before, self.after].into_iter().flatten().map(RmsNorm::index)
    }

    /// What goes into the half.
    fn enter(self, weights: Weights<'_>, x: &Tensor) -> Result<Tensor> {
        match self.before {
            Some(norm) => norm.forward(weights, x),
            None => Ok(x.clone()),
        }
    }

    /// The residual stream after what came out of the half.
    fn leave(self, weights: Weights<'_>, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        match self.after {
            Some(norm) => ops::add(x, &norm.forward(weights, y)?),
            None => ops::add(x, y),
        }
    }
}

/// A norm with the settings of a model.
pub(super) fn norm(
    builder: &mut Builder<'_>,
    name: &str,
    width: usize,
    config: &DecoderConfig,
) -> Result<RmsNorm> {
    let unit_offset = config.architecture.unit_offset;
    RmsNorm::new(builder, &format!("{name}norm"), width, config.rms_norm_eps, unit_offset)
}

impl Block {
    /// Adds the parameters of block `i`, in the order of a forward pass.
    pub fn new(builder: &mut Builder<'_>, i: usize, c: &DecoderConfig) -> Result<Block> {
        let at = format!("model.layers.{i}");
        let (h, m, d) = (c.hidden_size, c.intermediate_size, c.head_dim);
        let (query_width, key_width) = (c.heads * d, c.kv_heads * d);
        let norms = c.architecture.norms;
        let own = |builder: &mut Builder<'_>, wanted: bool, name: &str| {
            let name = format!("{at}.{name}layer");
            if wanted { norm(builder, &name, h, c).map(Some) } else { Ok(None) }
        };
        let linear = |builder: &mut Builder<'_>, name: &str, shape: [usize; 2], bias: bool| {
            Linear::new(builder, &format!("{at}.{name}_proj"), shape, bias)
        };
        let before_attention = own(builder, norms != Norms::After, "input_")?;
        let query = linear(builder, "self_attn.q", [query_width, h], c.qkv_bias)?;
        let key = linear(builder, "self_attn.k", [key_width, h], c.qkv_bias)?;
        let value = linear(builder, "self_attn.v", [key_width, h], c.qkv_bias)?;
        let out = linear(builder, "self_attn.o", [h, query_width], c.output_bias)?;
        let mut on_both = |[q, k]: [usize; 2]| -> Result<(RmsNorm, RmsNorm)> {
            let q = norm(builder, &format!("{at}.self_attn.q_"), q, c)?;
            Ok((q, norm(builder, &format!("{at}.self_attn.k_"), k, c)?))
        };
        let query_key_norm = match c.architecture.query_key_norm {
            None => None,
            Some(NormOver::Head) => {
                let (q, k) = on_both([d, d])?;
                Some(QueryKeyNorm::Heads(q, k))
            }
            Some(NormOver::Projection) => {
                let (q, k) = on_both([query_width, key_width])?;
                Some(QueryKeyNorm::Whole(q, k))
            }
        };
        // Llama's files call the norm before the MLP by what it comes after.
        let between = own(builder, true, "post_attention_")?;
        let (after_attention, before_mlp) = match norms {
            Norms::Before => (None, between),
            Norms::Around => (between, own(builder, true, "pre_feedforward_")?),
            Norms::After => (between, None),
        };
        let after_mlp = own(builder, norms != Norms::Before, "post_feedforward_")?;
        let heads = Attention {
            scale: c.attention_scale,
            softcap: c.attention_softcap,
            window: c.windows.get(i).copied().flatten(),
            ..Attention::causal(c.heads, c.kv_heads, d)
        };
        Ok(Block {
            attention: SelfAttention { query, key, value, out, norm: query_key_norm, heads },
            attention_norms: HalfNorms { before: before_attention, after: after_attention },
            gate: linear(builder, "mlp.gate", [m, h], c.mlp_bias)?,
            up: linear(builder, "mlp.up", [m, h], c.mlp_bias)?,
            down: linear(builder, "mlp.down", [h, m], c.mlp_bias)?,
            mlp_norms: HalfNorms { before: before_mlp, after: after_mlp },
            activation: c.activation,
        })
    }

    /// Its linear layers.
    pub fn linears(&self) -> impl Iterator<Item = Linear> {
        self.attention.linears().into_iter().chain([self.gate, self.up, self.down])
    }

    /// The indices of its parameters.
    pub fn indices(&self) -> Vec<usize> {
        let norms = self.attention_norms.indices().chain(self.mlp_norms.indices());
        let mlp = [self.gate, self.up, self.down].into_iter().flat_map(Linear::indices);
        self.attention.indices().chain(mlp).chain(norms).collect()
    }

    /// The residual stream after the block, from that before it, both `[T, hidden]`.
    pub fn forward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        segments: &[usize],
        angles: &Arc<Angles>,
        mask: Mask,
        keys: &mut Keys<'_>,
    ) -> Result<Tensor> {
        let normed = self.attention_norms.enter(weights, x)?;
        let attended =
            self.attention.attended(weights, normed, segments, Some(angles), mask, keys)?;
        let attended = self.attention.out.forward(weights, &attended)?;
        let x = self.attention_norms.leave(weights, x, &attended)?;
        let normed = self.mlp_norms.enter(weights, &x)?;
        let [gate, up] = linears(weights, &normed, [self.gate, self.up])?;
        let gated = match self.activation {
            Activation::Silu => ops::silu_mul(&gate, &up)?,
            Activation::GeluTanh => ops::gelu_tanh_mul(&gate, &up)?,
            Activation::Gelu => ops::mul(&ops::gelu(&gate)?, &up)?,
        };
        let down = self.down.forward(weights, &gated)?;
        self.mlp_norms.leave(weights, &x, &down)
    }
}
