//! A small GPT for problems made in code: learned positions, LayerNorm before each half of a block, GELU, and an
//! embedding that sums one table per token of a short n-gram.
//!
//! The n-gram is what makes two-layer models good at looking things up: an induction head needs a layer that tells
//! each token what stood before it, and a sum of three tables is that layer for nothing. Published models are the
//! [`Decoder`](super::Decoder)'s. As there, whole sequences and a few tokens against a
//! [`KvCache`] give a token the same bits.

use super::causal::Causal;
use super::fields::Fields;
use super::folder::{self, Weights as Files, read_json};
use crate::DType;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::attention::{Attention, KvCache, Mask};
use crate::nn::{
    self, Builder, Embedding, Keys, LayerNorm, Linear, Parameters, Prepared, SelfAttention,
    Weights, normal, recomputed,
};
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::autograd::no_grad;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// The size of a [`Gpt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GptConfig {
    /// Token ids.
    pub vocab: usize,
    /// Width of the residual stream; the MLP is four times as wide.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads, a divisor of `width`.
    pub heads: usize,
    /// The longest sequence.
    pub context: usize,
    /// Tokens whose embeddings are summed: 1 is the usual embedding, 3 adds the two tokens before.
    pub ngram: usize,
}

impl GptConfig {
    fn check(&self) -> Result<()> {
        let sizes = [self.vocab, self.width, self.layers, self.heads, self.context, self.ngram];
        if sizes.contains(&0) || !self.width.is_multiple_of(self.heads) {
            return Err(Error::invalid(format!(
                "gpt: {self:?}: no size may be 0 and heads must divide width"
            )));
        }
        Ok(())
    }
}

/// Tokens to run, each with those that its embedding looks back at.
pub struct Ngrams {
    /// `ids[k][t]`: the token `k` places before token `t`; the sequence's first one where there is none.
    ids: Vec<Vec<i32>>,
    positions: Vec<i32>,
    segments: Vec<usize>,
}

impl Ngrams {
    /// Packs the tokens from `first` on of each `(sequence, first)`; those before are only looked back at.
    pub fn new<'a>(ngram: usize, sequences: impl Iterator<Item = (&'a [i32], usize)>) -> Ngrams {
        let mut packed =
            Ngrams { ids: vec![Vec::new(); ngram], positions: Vec::new(), segments: vec![0] };
        for (tokens, first) in sequences {
            for at in first..tokens.len() {
                for (back, ids) in packed.ids.iter_mut().enumerate() {
                    ids.push(tokens[at.saturating_sub(back)]);
                }
                packed.positions.push(at as i32);
            }
            packed.segments.push(packed.positions.len());
        }
        packed
    }

    /// Offsets of the sequences `[sequences + 1]`.
    pub fn segments(&self) -> &[usize] {
        &self.segments
    }
}

struct Block {
    attention_norm: LayerNorm,
    attention: SelfAttention,
    mlp_norm: LayerNorm,
    up: Linear,
    down: Linear,
}

/// A small causal language model in f32.
pub struct Gpt {
    config: GptConfig,
    parameters: Parameters,
    tables: Vec<Embedding>,
    position: Embedding,
    blocks: Vec<Arc<Block>>,
    norm: LayerNorm,
    head: usize,
    checkpointed: bool,
}

const EPSILON: f32 = 1e-5;

/// The `model_type` of its `config.json`.
const MODEL_TYPE: &str = "gradstone_gpt";

impl Block {
    fn new(builder: &mut Builder<'_>, i: usize, config: &GptConfig) -> Result<Block> {
        let GptConfig { width, heads, .. } = *config;
        let norm = |builder: &mut Builder<'_>, name: &str| {
            LayerNorm::new(builder, &format!("{i}.{name}"), width, EPSILON)
        };
        let linear = |builder: &mut Builder<'_>, name: &str, shape: [usize; 2]| {
            Linear::new(builder, &format!("{i}.{name}"), shape, true)
        };
        Ok(Block {
            attention_norm: norm(builder, "attention.norm")?,
            attention: SelfAttention {
                query: linear(builder, "attention.query", [width, width])?,
                key: linear(builder, "attention.key", [width, width])?,
                value: linear(builder, "attention.value", [width, width])?,
                out: linear(builder, "attention.out", [width, width])?,
                norm: None,
                heads: Attention::causal(heads, heads, width / heads),
            },
            mlp_norm: norm(builder, "mlp.norm")?,
            up: linear(builder, "mlp.up", [4 * width, width])?,
            down: linear(builder, "mlp.down", [width, 4 * width])?,
        })
    }

    fn linears(&self) -> impl Iterator<Item = Linear> {
        self.attention.linears().into_iter().chain([self.up, self.down])
    }

    fn indices(&self) -> Vec<usize> {
        let linears = self.linears().flat_map(Linear::indices);
        linears.chain(self.attention_norm.indices()).chain(self.mlp_norm.indices()).collect()
    }

    /// The residual stream after the block; of these rows only, where some are `wanted`.
    fn forward(
        &self,
        weights: Weights<'_>,
        x: &Tensor,
        segments: &[usize],
        wanted: Option<&[usize]>,
        keys: &mut Keys<'_>,
    ) -> Result<Tensor> {
        let normed = self.attention_norm.forward(weights, x)?;
        let attended =
            self.attention.attended(weights, normed, segments, None, Mask::Causal, keys)?;
        let (x, attended) = match wanted {
            Some(rows) => (ops::gather(x, rows)?, ops::gather(&attended, rows)?),
            None => (x.clone(), attended),
        };
        let x = ops::add(&x, &self.attention.out.forward(weights, &attended)?)?;
        let up = self.up.forward(weights, &self.mlp_norm.forward(weights, &x)?)?;
        ops::add(&x, &self.down.forward(weights, &ops::gelu_tanh(&up)?)?)
    }
}

impl Gpt {
    /// A new model. Tables are normal and sum to deviation 1; a weight's deviation is `1/√(3·inputs)`, smaller by
    /// `√(2·layers)` where it writes into the residual stream; norms are the identity, biases 0.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for sizes that cannot be.
    pub fn random(config: GptConfig, seed: u64) -> Result<Gpt> {
        config.check()?;
        let table = 1.0 / ((config.ngram + 1) as f32).sqrt();
        let back = 1.0 / (2.0 * config.layers as f32).sqrt();
        let mut which = 0;
        let mut value = |name: &str, shape: &[usize]| {
            which += 1;
            if name.ends_with(".gain") {
                return Tensor::from_f32(vec![1.0; shape.iter().product()], shape);
            }
            if name.ends_with(".bias") {
                return Tensor::zeros(shape, DType::F32);
            }
            let inputs = shape.last().copied().unwrap_or(1) as f32;
            let deviation = match name {
                name if name.starts_with("embed.") => table,
                name if name.ends_with("out.weight") || name.ends_with("down.weight") => {
                    back / (3.0 * inputs).sqrt()
                }
                _ => 1.0 / (3.0 * inputs).sqrt(),
            };
            normal(seed, which, shape, deviation, DType::F32)
        };
        Gpt::build(config, &mut value)
    }

    fn build(
        config: GptConfig,
        value: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Gpt> {
        let mut builder = Builder::new(value);
        let GptConfig { vocab, width, layers, context, ngram, .. } = config;
        let tables = (0..ngram)
            .map(|back| {
                Embedding::new(&mut builder, &format!("embed.token.{back}"), [vocab, width])
            })
            .collect::<Result<_>>()?;
        let position = Embedding::new(&mut builder, "embed.position", [context, width])?;
        let blocks = (0..layers)
            .map(|i| Block::new(&mut builder, i, &config).map(Arc::new))
            .collect::<Result<_>>()?;
        let norm = LayerNorm::new(&mut builder, "norm", width, EPSILON)?;
        let head = builder.tensor("head.weight", &[vocab, width])?;
        let parameters = builder.finish();
        Ok(Gpt { config, parameters, tables, position, blocks, norm, head, checkpointed: false })
    }

    /// A model with the same weights that is trained on its own.
    ///
    /// # Errors
    /// None for a model that was built.
    pub fn copy(&self) -> Result<Gpt> {
        Gpt::build(self.config, &mut |name, _| self.parameters.by_name(name))
    }

    /// Its size.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// Its tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Its tensors, for an optimizer.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// The head's weight `[vocab, width]`.
    pub fn head(&self) -> Tensor {
        self.parameters.get(self.head)
    }

    /// An empty cache of `sequences` sequences.
    ///
    /// # Errors
    /// None for a model that was built.
    pub fn cache(&self, sequences: usize) -> Result<KvCache> {
        Causal::cache(self, sequences, self.config.context)
    }

    /// The hidden states after the last norm of some tokens of whole sequences, `[rows, width]`: what predicts nothing
    /// is left out of all that follows the last attention.
    ///
    /// # Errors
    /// [`Error::is_index`] for an id outside the vocabulary, a position outside the context or a row that is not there.
    pub fn hidden(&self, tokens: &Ngrams, rows: &[usize]) -> Result<Tensor> {
        let mut x = self.embed(self.weights(), tokens)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let rows = Some(rows).filter(|_| layer + 1 == self.blocks.len());
            x = if self.checkpointed {
                let (block, own) = (Arc::clone(block), block.indices());
                let (segments, rows) = (tokens.segments.clone(), rows.map(<[usize]>::to_vec));
                recomputed(&self.parameters, own, &x, move |weights, x| {
                    block.forward(weights, x, &segments, rows.as_deref(), &mut Keys::Own)
                })?
            } else {
                block.forward(self.weights(), &x, &tokens.segments, rows, &mut Keys::Own)?
            };
        }
        self.norm.forward(self.weights(), &x)
    }

    /// The hidden states of new tokens that continue the cached sequences. No gradients.
    ///
    /// # Errors
    /// As [`Gpt::hidden`], and [`Error::is_invalid`] when a sequence outgrows the cache.
    pub fn continued(&self, tokens: &Ngrams, cache: &mut KvCache) -> Result<Tensor> {
        self.continue_with(None, tokens, cache)
    }

    fn continue_with(
        &self,
        prepared: Option<&Prepared>,
        tokens: &Ngrams,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let weights = self.weights().with(prepared);
        no_grad(|| {
            let mut x = self.embed(weights, tokens)?;
            for (layer, block) in self.blocks.iter().enumerate() {
                let mut keys = Keys::Cached(cache, layer);
                x = block.forward(weights, &x, &tokens.segments, None, &mut keys)?;
            }
            self.norm.forward(weights, &x)
        })
    }

    /// Logits `[rows, vocab]` of hidden states. No gradients; training takes log-probs from [`Gpt::head`], to the
    /// same bits.
    ///
    /// # Errors
    /// [`Error::is_shape`] when the width differs.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        nn::logits(self.weights(), self.head, hidden)
    }

    fn weights(&self) -> Weights<'_> {
        Weights::of(&self.parameters)
    }

    fn embed(&self, weights: Weights<'_>, tokens: &Ngrams) -> Result<Tensor> {
        if tokens.ids.len() != self.tables.len() {
            return Err(Error::shape(format!(
                "gpt: {}-grams for a model of {}-grams",
                tokens.ids.len(),
                self.tables.len()
            )));
        }
        let mut x = self.position.forward(weights, &tokens.positions)?;
        for (table, ids) in self.tables.iter().zip(&tokens.ids) {
            x = ops::add(&x, &table.forward(weights, ids)?)?;
        }
        Ok(x)
    }
}

impl Causal for Gpt {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn context(&self) -> usize {
        self.config.context
    }

    fn softcap(&self) -> Option<f32> {
        None
    }

    fn head(&self) -> Tensor {
        self.head()
    }

    fn hidden_at(&self, sequences: &[&[i32]], rows: &[usize]) -> Result<Tensor> {
        let whole = sequences.iter().map(|tokens| (*tokens, 0));
        self.hidden(&Ngrams::new(self.config.ngram, whole), rows)
    }

    fn prepared(&self) -> Result<Prepared> {
        let linears = self.blocks.iter().flat_map(|block| block.linears());
        self.parameters.prepared(linears.map(|linear| linear.weight()).chain([self.head]))
    }

    fn cache(&self, sequences: usize, capacity: usize) -> Result<KvCache> {
        let GptConfig { layers, heads, width, .. } = self.config;
        let heads = [heads, width / heads];
        KvCache::new_on(&self.device(), DType::F32, layers, sequences, heads, capacity)
    }

    fn continued(
        &self,
        prepared: Option<&Prepared>,
        sequences: &[(&[i32], usize)],
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let packed = Ngrams::new(self.config.ngram, sequences.iter().copied());
        self.continue_with(prepared, &packed, cache)
    }

    fn raw_logits(&self, prepared: Option<&Prepared>, hidden: &Tensor) -> Result<Tensor> {
        nn::logits(self.weights().with(prepared), self.head, hidden)
    }

    fn copy(&self) -> Result<Gpt> {
        self.copy()
    }

    /// `config.json` and `model.safetensors`, as a decoder's folder; the `model_type` is `gradstone_gpt`.
    fn save(&self, dir: &Path) -> Result<()> {
        let GptConfig { vocab, width, layers, heads, context, ngram } = self.config;
        let config = json!({
            "model_type": MODEL_TYPE, "vocab": vocab, "width": width, "layers": layers, "heads": heads,
            "context": context, "ngram": ngram,
        });
        folder::write(dir, &config, self.parameters.iter().map(|p| (p.name(), p.value())))
    }

    /// The weights are f32: any other `dtype` is an error.
    fn load_on(dir: &Path, dtype: Option<DType>, device: &Device) -> Result<Gpt> {
        if let Some(other) = dtype.filter(|dtype| *dtype != DType::F32) {
            return Err(Error::unsupported(format!("gpt: weights of {other}; they are f32")));
        }
        let load = || {
            let raw = read_json(&dir.join("config.json"))?;
            if raw.get("model_type").and_then(Value::as_str) != Some(MODEL_TYPE) {
                return Err(Error::unsupported(format!(
                    "config.json: the model_type is not {MODEL_TYPE}"
                )));
            }
            let fields = Fields(&raw);
            let config = GptConfig {
                vocab: fields.size("vocab")?,
                width: fields.size("width")?,
                layers: fields.size("layers")?,
                heads: fields.size("heads")?,
                context: fields.size("context")?,
                ngram: fields.size("ngram")?,
            };
            config.check()?;
            let mut files = Files::open(dir)?;
            let model =
                Gpt::build(config, &mut |name, _| files.take(name, Some(DType::F32), device))?;
            files.check_taken(MODEL_TYPE, |_| false)?;
            Ok(model)
        };
        load().map_err(|e: Error| e.at(dir.display()))
    }

    fn set_checkpointed(&mut self, checkpointed: bool) {
        self.checkpointed = checkpointed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_changes_no_bit() {
        let config = GptConfig { vocab: 9, width: 16, layers: 2, heads: 2, context: 8, ngram: 3 };
        let model = Gpt::random(config, 5).unwrap();
        let sequences = [vec![1, 2, 3, 4, 5, 6], vec![7, 8, 0, 1, 2, 3]];
        let whole = Ngrams::new(3, sequences.iter().map(|s| (&s[..], 0)));
        let hidden = model.hidden(&whole, &(0..12).collect::<Vec<_>>()).unwrap();
        let some = model.hidden(&whole, &[7, 2]).unwrap();
        assert_eq!(some.f32s().unwrap()[16..], hidden.f32s().unwrap()[2 * 16..3 * 16]);
        let mut cache = model.cache(2).unwrap();
        let head = Ngrams::new(3, sequences.iter().map(|s| (&s[..4], 0)));
        model.continued(&head, &mut cache).unwrap();
        for at in 4..6 {
            let step = Ngrams::new(3, sequences.iter().map(|s| (&s[..=at], at)));
            let new = model.continued(&step, &mut cache).unwrap();
            for row in 0..2 {
                let range = |r: usize| r * 16..(r + 1) * 16;
                assert_eq!(
                    new.f32s().unwrap()[range(row)],
                    hidden.f32s().unwrap()[range(row * 6 + at)]
                );
            }
        }
    }

    #[test]
    fn sizes_are_checked() {
        let config = GptConfig { vocab: 9, width: 15, layers: 2, heads: 2, context: 8, ngram: 3 };
        assert!(Gpt::random(config, 5).err().is_some_and(|e| e.is_invalid()));
        let model = Gpt::random(GptConfig { width: 16, ..config }, 5).unwrap();
        let one = [1i32];
        assert!(
            model
                .hidden(&Ngrams::new(2, [(&one[..], 0)].into_iter()), &[0])
                .unwrap_err()
                .is_shape()
        );
        let outside = [9i32];
        let outside = Ngrams::new(3, [(&outside[..], 0)].into_iter());
        assert!(model.hidden(&outside, &[0]).unwrap_err().is_index());
    }
}
