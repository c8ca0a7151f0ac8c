//! The decoder: Llama, Qwen 2, Qwen 3 and Gemma 2 as one block with switches (LLaDA and SDAR are Llama and Qwen 3 under
//! another mask).
//!
//! Sequences come packed, one after another, with no padding. The same function runs training (whole sequences,
//! gradients) and generation (a few new tokens against a [`KvCache`]): every operation in it works on one row at a
//! time in a fixed order, so the hidden state of a token has the same bits in both.

use super::causal::Causal;
use super::config::{Activation, Architecture, DecoderConfig};
use super::packed::{Packed, Tokens};
use super::prepared::{self, Prepared};
use crate::device::Device;
use crate::device::cpu::gemm::{self, plain, transposed};
use crate::device::cpu::memory::Buffer;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::attention::{Attention, KvCache, Mask};
use crate::kernels::matmul;
use crate::kernels::rope::{Angles, Layout};
use crate::nn::{Parameters, normal};
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::autograd::{checkpoint, no_grad};
use std::path::Path;
use std::sync::Arc;

/// Indices of one block's parameters.
struct Block {
    input_norm: usize,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<usize>,
    k_norm: Option<usize>,
    post_attention_norm: usize,
    /// Gemma 2 norms the MLP's input and output as well.
    mlp_norms: Option<(usize, usize)>,
    gate: Linear,
    up: Linear,
    down: Linear,
    attention: Attention,
}

#[derive(Clone, Copy)]
struct Linear {
    weight: usize,
    bias: Option<usize>,
}

/// A language model: causal, or one that fills masked blocks.
pub struct Decoder {
    shape: Arc<Shape>,
    parameters: Parameters,
    embedding: usize,
    blocks: Vec<Arc<Block>>,
    norm: usize,
    head: usize,
    checkpointed: bool,
}

/// What a block computes, apart from its parameters.
#[derive(Clone)]
struct Shape {
    config: DecoderConfig,
    frequencies: Vec<f32>,
    rope_factor: f32,
}

/// The name and shape of every parameter, in the order of a forward pass; the source of a value for each.
struct Builder<'a> {
    parameters: Parameters,
    value: &'a mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
}

impl Builder<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<usize> {
        let value = (self.value)(name, shape)?;
        if value.shape() != shape {
            return Err(Error::shape(format!(
                "`{name}` is {:?}, the config says {shape:?}",
                value.shape()
            )));
        }
        if !value.dtype().is_float() {
            return Err(Error::dtype(format!("`{name}` is {}, not a float", value.dtype())));
        }
        self.parameters.add(name, value)
    }

    fn linear(&mut self, name: &str, [out, input]: [usize; 2], bias: bool) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[out, input])?;
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"), &[out])?) } else { None };
        Ok(Linear { weight, bias })
    }

    fn block(&mut self, i: usize, c: &DecoderConfig) -> Result<Block> {
        let at = format!("model.layers.{i}");
        let (h, m, d) = (c.hidden_size, c.intermediate_size, c.head_dim);
        let gemma = c.architecture == Architecture::Gemma2;
        let (query, key) = (c.heads * d, c.kv_heads * d);
        let input_norm = self.tensor(&format!("{at}.input_layernorm.weight"), &[h])?;
        let q = self.linear(&format!("{at}.self_attn.q_proj"), [query, h], c.qkv_bias)?;
        let k = self.linear(&format!("{at}.self_attn.k_proj"), [key, h], c.qkv_bias)?;
        let v = self.linear(&format!("{at}.self_attn.v_proj"), [key, h], c.qkv_bias)?;
        let o = self.linear(&format!("{at}.self_attn.o_proj"), [h, query], c.output_bias)?;
        let (q_norm, k_norm) = if c.architecture.norms_heads() {
            let q_norm = self.tensor(&format!("{at}.self_attn.q_norm.weight"), &[d])?;
            (Some(q_norm), Some(self.tensor(&format!("{at}.self_attn.k_norm.weight"), &[d])?))
        } else {
            (None, None)
        };
        let post_attention_norm =
            self.tensor(&format!("{at}.post_attention_layernorm.weight"), &[h])?;
        let mlp_norms = if gemma {
            let before = self.tensor(&format!("{at}.pre_feedforward_layernorm.weight"), &[h])?;
            Some((before, self.tensor(&format!("{at}.post_feedforward_layernorm.weight"), &[h])?))
        } else {
            None
        };
        let gate = self.linear(&format!("{at}.mlp.gate_proj"), [m, h], c.mlp_bias)?;
        let up = self.linear(&format!("{at}.mlp.up_proj"), [m, h], c.mlp_bias)?;
        let down = self.linear(&format!("{at}.mlp.down_proj"), [h, m], c.mlp_bias)?;
        let attention = Attention {
            scale: c.attention_scale,
            softcap: c.attention_softcap,
            window: c.windows[i],
            mask: Mask::Causal,
            ..Attention::causal(c.heads, c.kv_heads, d)
        };
        Ok(Block {
            input_norm,
            q,
            k,
            v,
            o,
            q_norm,
            k_norm,
            post_attention_norm,
            mlp_norms,
            gate,
            up,
            down,
            attention,
        })
    }
}

impl Decoder {
    /// Builds a decoder, asking `value` for every parameter by name and shape.
    pub(super) fn build(
        config: DecoderConfig,
        value: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Decoder> {
        let mut builder = Builder { parameters: Parameters::new(), value };
        let table = [config.vocab_size, config.hidden_size];
        let embedding = builder.tensor("model.embed_tokens.weight", &table)?;
        let blocks = (0..config.layers)
            .map(|i| builder.block(i, &config).map(Arc::new))
            .collect::<Result<_>>()?;
        let norm = builder.tensor("model.norm.weight", &[config.hidden_size])?;
        let head =
            if config.tied { embedding } else { builder.tensor("lm_head.weight", &table)? };
        let (frequencies, rope_factor) = config.rope.frequencies(config.head_dim);
        let parameters = builder.parameters;
        let shape = Arc::new(Shape { config, frequencies, rope_factor });
        Ok(Decoder { shape, parameters, embedding, blocks, norm, head, checkpointed: false })
    }

    /// A new model with random weights: normal with deviation 0.02, the two projections back into the residual stream
    /// by `1/√(2·layers)` smaller (GPT-2), norms the identity, biases 0.
    ///
    /// # Errors
    /// [`Error::is_dtype`] when `dtype` is no float.
    pub fn random(config: DecoderConfig, dtype: DType, seed: u64) -> Result<Decoder> {
        if !dtype.is_float() {
            return Err(Error::dtype(format!("a model of {dtype}")));
        }
        let unit_offset = config.architecture == Architecture::Gemma2;
        let back = 0.02 / (2.0 * config.layers as f32).sqrt();
        let mut which = 0;
        let mut value = |name: &str, shape: &[usize]| {
            which += 1;
            if name.ends_with("norm.weight") {
                let identity = if unit_offset { 0.0 } else { 1.0 };
                let values = vec![identity; shape.iter().product()];
                return Tensor::from_buffer(values.into(), shape, dtype);
            }
            if name.ends_with(".bias") {
                return Tensor::zeros(shape, dtype);
            }
            let into_residual =
                name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            normal(seed, which, shape, if into_residual { back } else { 0.02 }, dtype)
        };
        Decoder::build(config, &mut value)
    }

    /// A model with the same weights that shares no memory which changes. Nothing of it is frozen.
    ///
    /// # Errors
    /// None for a model that was built.
    pub fn copy(&self) -> Result<Decoder> {
        let mut value = |name: &str, _: &[usize]| match self.parameters.index(name) {
            Some(index) => Ok(self.parameters.get(index).detach()),
            None => Err(Error::state(format!("no parameter `{name}`"))),
        };
        Decoder::build(self.shape.config.clone(), &mut value)
    }

    /// Its shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.shape.config
    }

    /// Its shape, for setting the ids that end a sequence.
    pub fn config_mut(&mut self) -> &mut DecoderConfig {
        &mut Arc::make_mut(&mut self.shape).config
    }

    /// Its tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Its tensors, for an optimizer.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// The element type of its weights and activations.
    pub fn dtype(&self) -> DType {
        self.parameters.get(self.embedding).dtype()
    }

    /// Where its weights are and its operations run.
    pub fn device(&self) -> Device {
        self.parameters.get(self.embedding).device()
    }

    /// Moves the weights to `device`.
    ///
    /// # Errors
    /// [`Error::is_state`] when the device has no memory.
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        for index in 0..self.parameters.len() {
            let moved = self.parameters.get(index).to_device(device)?;
            self.parameters.set(index, moved)?;
        }
        Ok(())
    }

    /// Recomputes each block in the backward pass instead of keeping its activations.
    pub fn set_checkpointed(&mut self, checkpointed: bool) {
        self.checkpointed = checkpointed;
    }

    /// The head's weight `[vocab, hidden]`: the embedding where they are tied.
    pub fn head(&self) -> Tensor {
        self.parameters.get(self.head)
    }

    /// The hidden states after the last norm, every token attending to those before it.
    ///
    /// # Shapes
    /// `[T, hidden]` in the model's dtype.
    ///
    /// # Errors
    /// [`Error::is_index`] for a token id outside the vocabulary, [`Error::is_shape`] for offsets that do not fit.
    pub fn hidden(&self, tokens: Tokens<'_>) -> Result<Tensor> {
        self.hidden_under(tokens, Mask::Causal)
    }

    /// [`Decoder::hidden`] with another attention mask in every layer.
    ///
    /// # Errors
    /// As [`Decoder::hidden`], and [`Error::is_invalid`] for another mask than the causal one in a layer with a sliding
    /// window.
    pub fn hidden_under(&self, tokens: Tokens<'_>, mask: Mask) -> Result<Tensor> {
        let mut x = self.embed(tokens)?;
        let angles = self.shape.angles(tokens);
        for block in &self.blocks {
            x = if self.checkpointed {
                self.recomputed(block, &x, &angles, tokens.segments, mask)?
            } else {
                self.block(block, &x, &angles, tokens.segments, mask)?
            };
        }
        self.rms_norm(&x, self.norm)
    }

    /// The residual stream before each block, and after the last norm: `layers + 1` tensors `[T, hidden]`.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn hidden_states(&self, tokens: Tokens<'_>) -> Result<Vec<Tensor>> {
        let mut states = vec![self.embed(tokens)?];
        let angles = self.shape.angles(tokens);
        for block in &self.blocks {
            let last = &states[states.len() - 1];
            let next = self.block(block, last, &angles, tokens.segments, Mask::Causal)?;
            states.push(next);
        }
        if let Some(last) = states.last_mut() {
            *last = self.rms_norm(last, self.norm)?;
        }
        Ok(states)
    }

    /// A cache for generating `sequences` sequences of up to `capacity` tokens each, where the weights are.
    ///
    /// # Errors
    /// None for a model that was built.
    pub fn cache(&self, sequences: usize, capacity: usize) -> Result<KvCache> {
        let c = self.config();
        let heads = [c.kv_heads, c.head_dim];
        KvCache::new_on(&self.device(), self.dtype(), c.layers, sequences, heads, capacity)
    }

    /// The hidden states of new tokens that continue the cached sequences, which grow by them. No gradients.
    ///
    /// Segment s of `tokens` continues sequence s of the cache; a segment may be empty.
    ///
    /// # Errors
    /// As [`Decoder::hidden`], and [`Error::is_invalid`] when a sequence outgrows the cache.
    pub fn continued(&self, tokens: Tokens<'_>, cache: &mut KvCache) -> Result<Tensor> {
        self.continued_under(tokens, cache, Mask::Causal)
    }

    /// The weights as [`Decoder::continued_with`] reads them. They do not follow later changes of the parameters.
    ///
    /// # Errors
    /// None for a model that was built.
    pub fn prepared(&self) -> Result<Prepared> {
        let linears = self.blocks.iter().flat_map(|block| block.linears());
        let indices = linears.map(|linear| linear.weight).chain([self.head]);
        let weights: Vec<(usize, Tensor)> =
            indices.map(|index| (index, self.parameters.get(index))).collect();
        Prepared::new(weights.iter().map(|(index, weight)| (*index, weight)))
    }

    /// [`Decoder::continued`] of weights laid out for it, to the same bits.
    ///
    /// # Errors
    /// As [`Decoder::continued`].
    pub fn continued_with(
        &self,
        prepared: &Prepared,
        tokens: Tokens<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        self.continue_under(Some(prepared), tokens, cache, Mask::Causal)
    }

    /// [`Decoder::continued`] with another attention mask in every layer.
    ///
    /// # Errors
    /// As [`Decoder::continued`], [`Error::is_invalid`] for another mask than the causal one in a layer with a sliding
    /// window, and [`Error::is_unsupported`] for a mask of two copies.
    pub fn continued_under(
        &self,
        tokens: Tokens<'_>,
        cache: &mut KvCache,
        mask: Mask,
    ) -> Result<Tensor> {
        self.continue_under(None, tokens, cache, mask)
    }

    fn continue_under(
        &self,
        prepared: Option<&Prepared>,
        tokens: Tokens<'_>,
        cache: &mut KvCache,
        mask: Mask,
    ) -> Result<Tensor> {
        no_grad(|| {
            let mut x = self.embed(tokens)?;
            let angles = self.shape.angles(tokens);
            for (layer, block) in self.blocks.iter().enumerate() {
                let spec = Attention { mask, ..block.attention };
                let attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
                    ops::append_to_cache(cache, layer, k, v, tokens.segments)?;
                    ops::cached_attention(q, &spec, cache, layer, tokens.segments)
                };
                let weights = Weights { get: &|index| self.parameters.get(index), prepared };
                x = self.shape.block(weights, block, &x, &angles, attend)?;
            }
            self.rms_norm(&x, self.norm)
        })
    }

    /// Logits in f32 before any softcap. No gradients: training takes log-probs straight from the hidden states and
    /// [`Decoder::head`], and these are the same bits.
    ///
    /// # Shapes
    /// `hidden [rows, hidden]`; `[rows, vocab]`.
    ///
    /// # Errors
    /// [`Error::is_shape`] when the width differs.
    pub fn raw_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let (rows, width, vocab) = (hidden.leading(), hidden.last_dim(), self.config().vocab_size);
        let head = self.parameters.get(self.head).detach();
        if let Device::Gpu(gpu) = self.device() {
            let mut logits = Tensor::recycled_on(&[rows, vocab], DType::F32, &gpu)?;
            let shape = [rows, vocab, width];
            let (x, weight) = (hidden.device_slice()?, head.device_slice()?);
            let (x, weight) = (matmul::plain(x), matmul::transposed(weight));
            matmul::product(logits.device_slice_mut()?, x, weight, shape, 1, false)?;
            return Ok(logits);
        }
        let mut logits = Buffer::recycled(rows * vocab);
        let weight = head.to_f32s()?;
        gemm::matmul(
            &mut logits,
            plain(&hidden.to_f32s()?),
            transposed(&weight),
            [rows, vocab, width],
            false,
        )?;
        Tensor::from_buffer(logits, &[rows, vocab], DType::F32)
    }

    /// [`Decoder::raw_logits`] of weights laid out for generation, to the same bits.
    ///
    /// # Errors
    /// As [`Decoder::raw_logits`].
    pub fn raw_logits_with(&self, prepared: &Prepared, hidden: &Tensor) -> Result<Tensor> {
        let Some(head) = prepared.weight(self.head) else { return self.raw_logits(hidden) };
        let (rows, width, vocab) = (hidden.leading(), hidden.last_dim(), self.config().vocab_size);
        let mut logits = Buffer::recycled(rows * vocab);
        let shape = [rows, vocab, width];
        gemm::matmul(&mut logits, plain(&hidden.to_f32s()?), plain(head), shape, false)?;
        Tensor::from_buffer(logits, &[rows, vocab], DType::F32)
    }

    /// [`Decoder::raw_logits`], softcapped where the model does that.
    ///
    /// # Errors
    /// As [`Decoder::raw_logits`].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let raw = self.raw_logits(hidden)?;
        match self.config().final_softcap {
            Some(cap) => no_grad(|| ops::softcap(&raw, cap)),
            None => Ok(raw),
        }
    }

    fn embed(&self, tokens: Tokens<'_>) -> Result<Tensor> {
        let c = self.config();
        if tokens.positions.len() != tokens.ids.len()
            || tokens.segments.last() != Some(&tokens.ids.len())
        {
            return Err(Error::shape(format!(
                "decoder: {} tokens, {} positions, segments that end at {:?}",
                tokens.ids.len(),
                tokens.positions.len(),
                tokens.segments.last()
            )));
        }
        let limit = i32::try_from(c.max_position_embeddings).unwrap_or(i32::MAX);
        if let Some(position) = tokens.positions.iter().find(|p| !(0..limit).contains(*p)) {
            return Err(Error::index(format!(
                "decoder: position {position} of a context of {limit}"
            )));
        }
        let x = ops::embedding(&self.parameters.get(self.embedding), tokens.ids)?;
        if c.architecture == Architecture::Gemma2 {
            // Rounded to the storage type first: that is what the published models were trained with.
            let normalizer =
                Tensor::from_buffer(vec![(c.hidden_size as f32).sqrt()].into(), &[], self.dtype())?;
            return ops::scale(&x, normalizer.item()?);
        }
        Ok(x)
    }

    fn rms_norm(&self, x: &Tensor, weight: usize) -> Result<Tensor> {
        self.shape.norm(x, &self.parameters.get(weight))
    }

    fn block(
        &self,
        block: &Block,
        x: &Tensor,
        angles: &Arc<Angles>,
        segments: &[usize],
        mask: Mask,
    ) -> Result<Tensor> {
        let spec = Attention { mask, ..block.attention };
        let attend = |q: &Tensor, k: &Tensor, v: &Tensor| ops::attention(q, k, v, &spec, segments);
        let weights = Weights { get: &|index| self.parameters.get(index), prepared: None };
        self.shape.block(weights, block, x, angles, attend)
    }

    /// [`Decoder::block`] that keeps its input and parameters only, and runs again for the gradient.
    fn recomputed(
        &self,
        block: &Arc<Block>,
        x: &Tensor,
        angles: &Arc<Angles>,
        segments: &[usize],
        mask: Mask,
    ) -> Result<Tensor> {
        let indices = block.indices();
        let parameters: Vec<Tensor> =
            indices.iter().map(|index| self.parameters.get(*index)).collect();
        let mut inputs = vec![x];
        inputs.extend(&parameters);
        let (shape, block) = (Arc::clone(&self.shape), Arc::clone(block));
        let (angles, segments) = (Arc::clone(angles), segments.to_vec());
        let spec = Attention { mask, ..block.attention };
        let run = move |inputs: &[Tensor]| {
            let get = |index: usize| {
                // Every index that the block uses is in its list.
                let at = indices.iter().position(|i| *i == index).map_or(0, |at| at + 1);
                inputs[at].clone()
            };
            let attend =
                |q: &Tensor, k: &Tensor, v: &Tensor| ops::attention(q, k, v, &spec, &segments);
            let weights = Weights { get: &get, prepared: None };
            Ok(vec![shape.block(weights, &block, &inputs[0], &angles, attend)?])
        };
        let mut outputs = checkpoint(&inputs, run)?;
        outputs.pop().ok_or_else(|| Error::state("checkpoint: no output"))
    }
}

impl Causal for Decoder {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn vocab(&self) -> usize {
        self.config().vocab_size
    }

    fn context(&self) -> usize {
        self.config().max_position_embeddings
    }

    fn device(&self) -> Device {
        self.device()
    }

    fn softcap(&self) -> Option<f32> {
        self.config().final_softcap
    }

    fn head(&self) -> Tensor {
        self.head()
    }

    fn hidden_at(&self, sequences: &[&[i32]], rows: &[usize]) -> Result<Tensor> {
        let packed = Packed::new(sequences.iter().map(|tokens| (0, *tokens)));
        ops::gather(&self.hidden(packed.tokens())?, rows)
    }

    fn prepared(&self) -> Result<Prepared> {
        self.prepared()
    }

    fn cache(&self, sequences: usize, capacity: usize) -> Result<KvCache> {
        self.cache(sequences, capacity)
    }

    fn continued(
        &self,
        prepared: Option<&Prepared>,
        sequences: &[(&[i32], usize)],
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let new = sequences.iter().map(|(tokens, first)| {
            let new = tokens.get(*first..).unwrap_or_default();
            (*first, new)
        });
        self.continue_under(prepared, Packed::new(new).tokens(), cache, Mask::Causal)
    }

    fn raw_logits(&self, prepared: Option<&Prepared>, hidden: &Tensor) -> Result<Tensor> {
        match prepared {
            Some(prepared) => self.raw_logits_with(prepared, hidden),
            None => self.raw_logits(hidden),
        }
    }

    fn copy(&self) -> Result<Decoder> {
        self.copy()
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.save(dir)
    }

    fn load_on(dir: &Path, dtype: Option<DType>, device: &Device) -> Result<Decoder> {
        Decoder::load_on(dir, dtype, device)
    }
}

/// Where a block finds its parameters.
#[derive(Clone, Copy)]
struct Weights<'a> {
    get: &'a dyn Fn(usize) -> Tensor,
    /// Weights laid out for generation, without gradients.
    prepared: Option<&'a Prepared>,
}

/// Linear layers of one input.
fn linears<const N: usize>(
    Weights { get, prepared }: Weights<'_>,
    x: &Tensor,
    layers: [Linear; N],
) -> Result<[Tensor; N]> {
    let found = layers.map(|layer| prepared.and_then(|prepared| prepared.weight(layer.weight)));
    if found.iter().all(Option::is_some) {
        let given = layers.iter().zip(found.iter().flatten());
        let outputs: Vec<Tensor> = given
            .map(|(layer, weight)| prepared::linear(x, weight, layer.bias.map(get).as_ref()))
            .collect::<Result<_>>()?;
        return outputs.try_into().map_err(|_| Error::state("linear: as many outputs as weights"));
    }
    let tensors = layers.map(|l| (get(l.weight), l.bias.map(get)));
    ops::linears(x, std::array::from_fn(|i| (&tensors[i].0, tensors[i].1.as_ref())))
}

impl Block {
    fn linears(&self) -> [Linear; 7] {
        [self.q, self.k, self.v, self.o, self.gate, self.up, self.down]
    }

    fn indices(&self) -> Vec<usize> {
        let mut list = vec![self.input_norm, self.post_attention_norm];
        list.extend(self.linears().iter().flat_map(|l| [Some(l.weight), l.bias]).flatten());
        list.extend([self.q_norm, self.k_norm].into_iter().flatten());
        list.extend(self.mlp_norms.iter().flat_map(|(before, after)| [*before, *after]));
        list
    }
}

impl Shape {
    fn angles(&self, tokens: Tokens<'_>) -> Arc<Angles> {
        Arc::new(Angles::new(tokens.positions, &self.frequencies, self.rope_factor))
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let unit_offset = self.config.architecture == Architecture::Gemma2;
        ops::rms_norm(x, weight, self.config.rms_norm_eps, unit_offset)
    }

    /// One block, over given parameters and attention as the caller does it.
    fn block(
        &self,
        weights: Weights<'_>,
        block: &Block,
        x: &Tensor,
        angles: &Arc<Angles>,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (c, get) = (&self.config, weights.get);
        let linear = |x: &Tensor, l: Linear| linears(weights, x, [l]).map(|[y]| y);
        let heads = |x: &Tensor, heads: usize, norm: Option<usize>| -> Result<Tensor> {
            let x = ops::reshape(x, &[x.leading(), heads, c.head_dim])?;
            match norm {
                Some(weight) => self.norm(&x, &get(weight)),
                None => Ok(x),
            }
        };
        let rotate = |x: &Tensor| ops::rope_with(x, angles, Layout::RotateHalf);
        let normed = self.norm(x, &get(block.input_norm))?;
        let [q, k, v] = linears(weights, &normed, [block.q, block.k, block.v])?;
        drop(normed);
        let q = rotate(&heads(&q, c.heads, block.q_norm)?)?;
        let k = rotate(&heads(&k, c.kv_heads, block.k_norm)?)?;
        let v = heads(&v, c.kv_heads, None)?;
        let attended = attend(&q, &k, &v)?;
        let attended = ops::reshape(&attended, &[x.leading(), c.heads * c.head_dim])?;
        let attended = linear(&attended, block.o)?;
        let post = |x: &Tensor, norm: usize| self.norm(x, &get(norm));
        let (x, mlp_in) = match block.mlp_norms {
            Some((before, _)) => {
                let x = ops::add(x, &post(&attended, block.post_attention_norm)?)?;
                let mlp_in = post(&x, before)?;
                (x, mlp_in)
            }
            None => {
                let x = ops::add(x, &attended)?;
                let mlp_in = post(&x, block.post_attention_norm)?;
                (x, mlp_in)
            }
        };
        let [gate, up] = linears(weights, &mlp_in, [block.gate, block.up])?;
        let gated = match c.activation {
            Activation::Silu => ops::silu_mul(&gate, &up)?,
            Activation::GeluTanh => ops::gelu_tanh_mul(&gate, &up)?,
            Activation::Gelu => ops::mul(&ops::gelu(&gate)?, &up)?,
        };
        let down = linear(&gated, block.down)?;
        match block.mlp_norms {
            Some((_, after)) => ops::add(&x, &post(&down, after)?),
            None => ops::add(&x, &down),
        }
    }
}
