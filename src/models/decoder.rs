//! The decoder: the families of [`ARCHITECTURES`](super::ARCHITECTURES) as one model with switches.
//!
//! Sequences come packed, one after another, with no padding. The same function runs training (whole sequences,
//! gradients) and generation (a few new tokens against a [`KvCache`]): every operation in it works on one row at a
//! time in a fixed order, so the hidden state of a token has the same bits in both.

use super::block::{self, Block};
use super::causal::Causal;
use super::config::DecoderConfig;
use super::packed::{Packed, Tokens};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::attention::{KvCache, Mask};
use crate::kernels::rope::Angles;
use crate::nn::{
    self, Builder, Embedding, Keys, Parameters, Prepared, RmsNorm, Weights, normal, recomputed,
};
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::autograd::no_grad;
use std::path::Path;
use std::sync::Arc;

/// A language model: causal, or one that fills masked blocks.
pub struct Decoder {
    config: DecoderConfig,
    /// The frequencies of each rotary embedding, and the factor on its cos and sin.
    frequencies: Vec<(Vec<f32>, f32)>,
    parameters: Parameters,
    embedding: Embedding,
    blocks: Vec<Arc<Block>>,
    norm: RmsNorm,
    head: usize,
    checkpointed: bool,
}

impl Decoder {
    /// Builds a decoder, asking `value` for every parameter by name and shape.
    pub(super) fn build(
        config: DecoderConfig,
        value: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Decoder> {
        let mut builder = Builder::new(value);
        let table = [config.vocab_size, config.hidden_size];
        let embedding = Embedding::new(&mut builder, "model.embed_tokens.weight", table)?;
        let blocks = (0..config.layers)
            .map(|i| Block::new(&mut builder, i, &config).map(Arc::new))
            .collect::<Result<_>>()?;
        let norm = block::norm(&mut builder, "model.", config.hidden_size, &config)?;
        let head = match config.tied {
            true => embedding.index(),
            false => builder.tensor("lm_head.weight", &table)?,
        };
        let frequencies =
            config.ropes.iter().map(|rope| rope.frequencies(config.rotary_dim)).collect();
        Ok(Decoder {
            config,
            frequencies,
            parameters: builder.finish(),
            embedding,
            blocks,
            norm,
            head,
            checkpointed: false,
        })
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
        let unit_offset = config.architecture.unit_offset;
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
        Decoder::build(self.config.clone(), &mut |name, _| self.parameters.by_name(name))
    }

    /// Its shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Its shape, for setting the ids that end a sequence.
    pub fn config_mut(&mut self) -> &mut DecoderConfig {
        &mut self.config
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
        self.head().dtype()
    }

    /// Where its weights are and its operations run.
    pub fn device(&self) -> Device {
        self.head().device()
    }

    /// Moves the weights to `device`.
    ///
    /// # Errors
    /// [`Error::is_state`] when the device has no memory.
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        self.parameters.move_to(device)
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
        let angles = self.angles(tokens);
        for (block, rotary) in self.blocks.iter().zip(&self.config.rotary) {
            let angles = rotary.map(|which| &angles[which]);
            x = self.block(block, &x, angles, tokens.segments, mask)?;
        }
        self.for_head(&self.norm.forward(self.weights(), &x)?)
    }

    /// The residual stream before each block, and after the last norm (before a division of the logits, if there is one):
    /// `layers + 1` tensors `[T, hidden]`.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn hidden_states(&self, tokens: Tokens<'_>) -> Result<Vec<Tensor>> {
        let mut states = vec![self.embed(tokens)?];
        let angles = self.angles(tokens);
        for (block, rotary) in self.blocks.iter().zip(&self.config.rotary) {
            let angles = rotary.map(|which| &angles[which]);
            let last = &states[states.len() - 1];
            let next = self.block(block, last, angles, tokens.segments, Mask::Causal)?;
            states.push(next);
        }
        if let Some(last) = states.last_mut() {
            *last = self.norm.forward(self.weights(), last)?;
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
        self.parameters.prepared(linears.map(|linear| linear.weight()).chain([self.head]))
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
            let angles = self.angles(tokens);
            let weights = self.weights().with(prepared);
            for (layer, block) in self.blocks.iter().enumerate() {
                let mut keys = Keys::Cached(cache, layer);
                let angles = self.config.rotary[layer].map(|which| &angles[which]);
                x = block.forward(weights, &x, tokens.segments, angles, mask, &mut keys)?;
            }
            self.for_head(&self.norm.forward(self.weights(), &x)?)
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
        nn::logits(self.weights(), self.head, hidden)
    }

    /// [`Decoder::raw_logits`] of weights laid out for generation, to the same bits.
    ///
    /// # Errors
    /// As [`Decoder::raw_logits`].
    pub fn raw_logits_with(&self, prepared: &Prepared, hidden: &Tensor) -> Result<Tensor> {
        nn::logits(self.weights().with(Some(prepared)), self.head, hidden)
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
        let x = self.embedding.forward(self.weights(), tokens.ids)?;
        if c.architecture.scaled_embedding {
            // Rounded to the storage type first: that is what the published models were trained with.
            let normalizer =
                Tensor::from_buffer(vec![(c.hidden_size as f32).sqrt()].into(), &[], self.dtype())?;
            return ops::scale(&x, normalizer.item()?);
        }
        match c.embedding_multiplier {
            1.0 => Ok(x),
            factor => ops::scale(&x, factor),
        }
    }

    /// Hidden states as the head multiplies them: where logits are divided, the division is made here, on `[T, hidden]` and not
    /// on `[T, vocab]`.
    fn for_head(&self, hidden: &Tensor) -> Result<Tensor> {
        match self.config.logits_scaling {
            1.0 => Ok(hidden.clone()),
            divisor => ops::scale(hidden, 1.0 / divisor),
        }
    }

    fn weights(&self) -> Weights<'_> {
        Weights::of(&self.parameters)
    }

    /// The angles of every rotary embedding.
    fn angles(&self, tokens: Tokens<'_>) -> Vec<Arc<Angles>> {
        let of = |(frequencies, factor): &(Vec<f32>, f32)| {
            Arc::new(Angles::new(tokens.positions, frequencies, *factor))
        };
        self.frequencies.iter().map(of).collect()
    }

    /// One block over whole sequences.
    fn block(
        &self,
        block: &Arc<Block>,
        x: &Tensor,
        angles: Option<&Arc<Angles>>,
        segments: &[usize],
        mask: Mask,
    ) -> Result<Tensor> {
        if !self.checkpointed {
            return block.forward(self.weights(), x, segments, angles, mask, &mut Keys::Own);
        }
        let (own, angles, segments) = (Arc::clone(block), angles.cloned(), segments.to_vec());
        recomputed(&self.parameters, block.indices(), x, move |weights, x| {
            own.forward(weights, x, &segments, angles.as_ref(), mask, &mut Keys::Own)
        })
    }
}

impl Causal for Decoder {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn context(&self) -> usize {
        self.config().max_position_embeddings
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

    fn set_checkpointed(&mut self, checkpointed: bool) {
        self.set_checkpointed(checkpointed);
    }
}
