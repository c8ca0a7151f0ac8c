//! One block of the decoder: attention, and a gated MLP or a mixture of them, each with norms before it, after it, or both.

use super::architecture::{NormOver, Norms};
use super::config::DecoderConfig;
use crate::error::Result;
use crate::kernels::attention::{Attention, Mask};
use crate::kernels::rope::Angles;
use crate::nn::{
    Builder, Experts, GatedMlp, Keys, Linear, QueryKeyNorm, RmsNorm, SelfAttention, Weights,
};
use crate::ops;
use crate::tensor::Tensor;
use std::sync::Arc;

/// One block.
pub(super) struct Block {
    attention: SelfAttention,
    attention_norms: HalfNorms,
    mlp: Mlp,
    mlp_norms: HalfNorms,
    residual_multiplier: f32,
}

enum Mlp {
    One(GatedMlp),
    Mixture(Experts),
}

impl Mlp {
    fn linears(&self) -> Vec<Linear> {
        match self {
            Mlp::One(mlp) => mlp.linears().to_vec(),
            Mlp::Mixture(experts) => experts.linears().collect(),
        }
    }
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

    /// What came out of the half, as it joins the residual stream.
    fn leave(self, weights: Weights<'_>, y: Tensor) -> Result<Tensor> {
        match self.after {
            Some(norm) => norm.forward(weights, &y),
            None => Ok(y),
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
        let mlp = format!("{at}.mlp");
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
            mlp: match c.experts.get(i).copied().flatten() {
                Some(sizes) => Mlp::Mixture(Experts::new(builder, &mlp, h, sizes, c.activation)?),
                None => Mlp::One(GatedMlp::new(builder, &mlp, [h, m], c.mlp_bias, c.activation)?),
            },
            mlp_norms: HalfNorms { before: before_mlp, after: after_mlp },
            residual_multiplier: c.residual_multiplier,
        })
    }

    /// Its linear layers.
    pub fn linears(&self) -> impl Iterator<Item = Linear> {
        self.attention.linears().into_iter().chain(self.mlp.linears())
    }

    /// The indices of its parameters.
    pub fn indices(&self) -> Vec<usize> {
        let norms = self.attention_norms.indices().chain(self.mlp_norms.indices());
        let mlp = self.mlp.linears().into_iter().flat_map(Linear::indices);
        self.attention.indices().chain(mlp).chain(norms).collect()
    }

    /// The residual stream with what a half adds to it.
    fn add(&self, x: &Tensor, half: &Tensor) -> Result<Tensor> {
        match self.residual_multiplier {
            1.0 => ops::add(x, half),
            factor => ops::add(x, &ops::scale(half, factor)?),
        }
    }

    /// The residual stream after the block, from that before it, both `[T, hidden]`.
    pub fn forward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        segments: &[usize],
        angles: Option<&Arc<Angles>>,
        mask: Mask,
        keys: &mut Keys<'_>,
    ) -> Result<Tensor> {
        let normed = self.attention_norms.enter(weights, x)?;
        let attended = self.attention.attended(weights, normed, segments, angles, mask, keys)?;
        let attended = self.attention.out.forward(weights, &attended)?;
        let x = self.add(x, &self.attention_norms.leave(weights, attended)?)?;
        let normed = self.mlp_norms.enter(weights, &x)?;
        let changed = match &self.mlp {
            Mlp::One(mlp) => mlp.forward(weights, &normed)?,
            Mlp::Mixture(experts) => experts.forward(weights, &normed)?,
        };
        drop(normed);
        self.add(&x, &self.mlp_norms.leave(weights, changed)?)
    }
}
