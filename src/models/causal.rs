//! What generating and scoring need to know of a causal language model, whatever is inside it.
//!
//! A sequence is given with all of its tokens so far, because a model may look back at more than its cache holds: a
//! [`Gpt`](super::Gpt) sums the embeddings of the tokens before.

use super::prepared::Prepared;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::attention::KvCache;
use crate::nn::Parameters;
use crate::tensor::Tensor;
use std::path::Path;

/// A causal language model: [`Decoder`](super::Decoder) or [`Gpt`](super::Gpt).
///
/// The hidden state of a token has the same bits in [`Causal::hidden_at`] and in [`Causal::continued`], and so have the
/// log-probs that [`ops::linear_logprob`](crate::ops::linear_logprob) takes from it with [`Causal::head`] and those of
/// [`Causal::raw_logits`].
pub trait Causal: Send + Sync {
    /// Its tensors.
    fn parameters(&self) -> &Parameters;

    /// Its tensors, for an optimizer.
    fn parameters_mut(&mut self) -> &mut Parameters;

    /// Token ids that it predicts.
    fn vocab(&self) -> usize;

    /// The longest sequence, in tokens.
    fn context(&self) -> usize;

    /// Where its weights are and its operations run.
    fn device(&self) -> Device;

    /// The softcap of its logits, which [`Causal::raw_logits`] leaves to the caller.
    fn softcap(&self) -> Option<f32>;

    /// The head's weight `[vocab, hidden]`, tracked unless it is frozen.
    fn head(&self) -> Tensor;

    /// The hidden states after the last norm of some tokens of whole sequences, tracked where the parameters are.
    ///
    /// # Shapes
    /// `rows [R]` indices into the tokens of all sequences laid end to end; `[R, hidden]` in the model's dtype.
    ///
    /// # Errors
    /// [`Error::is_index`](crate::Error::is_index) for a token id outside the vocabulary, a sequence longer than the
    /// context or a row that is not there.
    fn hidden_at(&self, sequences: &[&[i32]], rows: &[usize]) -> Result<Tensor>;

    /// The weights as [`Causal::continued`] and [`Causal::raw_logits`] read them fastest. They do not follow later
    /// changes of the parameters.
    ///
    /// # Errors
    /// None for a model that was built.
    fn prepared(&self) -> Result<Prepared>;

    /// An empty cache for generating `sequences` sequences of up to `capacity` tokens each, where the weights are.
    ///
    /// # Errors
    /// None for a model that was built.
    fn cache(&self, sequences: usize, capacity: usize) -> Result<KvCache>;

    /// The hidden states of new tokens that continue the cached sequences, which grow by them. No gradients.
    ///
    /// Entry s is `(tokens, first)`: all tokens of sequence s of the cache, and the index of the first one that is new.
    /// The cache holds those before it. `prepared` changes no bit.
    ///
    /// # Shapes
    /// `[new tokens of all sequences, hidden]`, sequence after sequence.
    ///
    /// # Errors
    /// As [`Causal::hidden_at`], and [`Error::is_invalid`](crate::Error::is_invalid) when a sequence outgrows the cache.
    fn continued(
        &self,
        prepared: Option<&Prepared>,
        sequences: &[(&[i32], usize)],
        cache: &mut KvCache,
    ) -> Result<Tensor>;

    /// Logits in f32 before any softcap. No gradients. `prepared` changes no bit.
    ///
    /// # Shapes
    /// `hidden [rows, hidden]`; `[rows, vocab]`.
    ///
    /// # Errors
    /// [`Error::is_shape`](crate::Error::is_shape) when the width differs.
    fn raw_logits(&self, prepared: Option<&Prepared>, hidden: &Tensor) -> Result<Tensor>;

    /// A model with the same weights that shares no memory which changes. Nothing of it is frozen.
    ///
    /// # Errors
    /// None for a model that was built.
    fn copy(&self) -> Result<Self>
    where
        Self: Sized;

    /// Writes the model into an existing folder, as [`Causal::load_on`] reads it.
    ///
    /// # Errors
    /// [`Error::is_io`](crate::Error::is_io) when it cannot be written.
    fn save(&self, dir: &Path) -> Result<()>;

    /// Reads the model of a folder onto `device`, tensor by tensor: a checkpoint needs nothing else, no model that is
    /// built first.
    ///
    /// `dtype` is the type to hold the weights in; `None` keeps that of the file.
    ///
    /// # Errors
    /// [`Error::is_io`](crate::Error::is_io) for a missing file, [`Error::is_format`](crate::Error::is_format) for a
    /// broken one, [`Error::is_unsupported`](crate::Error::is_unsupported) for another model,
    /// [`Error::is_shape`](crate::Error::is_shape) for a tensor that does not fit the config.
    fn load_on(dir: &Path, dtype: Option<DType>, device: &Device) -> Result<Self>
    where
        Self: Sized;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Architecture, Decoder, DecoderConfig, Gpt, GptConfig};
    use crate::ops;
    use crate::tensor::autograd::no_grad;

    fn gpt() -> Gpt {
        let config = GptConfig { vocab: 13, width: 16, layers: 2, heads: 2, context: 12, ngram: 3 };
        Gpt::random(config, 3).unwrap()
    }

    fn decoder() -> Decoder {
        let config = DecoderConfig::small(Architecture::Qwen2, 13, 16, 2, 2, 12).unwrap();
        Decoder::random(config, DType::Bf16, 3).unwrap()
    }

    fn bytes(tensor: &Tensor) -> Vec<u8> {
        tensor.bytes().unwrap().to_vec()
    }

    /// Two sequences, grown token by token from a prompt, with prepared weights and without: every way of reading a
    /// token gives its hidden state and its logits the same bits.
    fn agrees(model: &impl Causal) {
        let sequences: [&[i32]; 2] = [&[1, 2, 3, 4, 5, 6, 7], &[8, 9, 10, 11, 12, 0, 1]];
        let rows: Vec<usize> = (0..14).collect();
        let whole = model.hidden_at(&sequences, &rows).unwrap();
        let logits = model.raw_logits(None, &whole).unwrap();
        assert_eq!(logits.shape(), [14, model.vocab()]);
        let ids: Vec<i32> = sequences.concat();
        let softmax =
            ops::SoftmaxOptions { softcap: model.softcap(), ..ops::SoftmaxOptions::default() };
        let fused = ops::linear_logprob(&whole, &model.head(), None, &ids, &softmax).unwrap().0;
        let apart = ops::logprob(&logits, &ids, &softmax).unwrap().0;
        assert_eq!(bytes(&fused), bytes(&apart));
        let prepared = model.prepared().unwrap();
        assert!(prepared.bytes() > 0);
        for prepared in [None, Some(&prepared)] {
            let mut cache = model.cache(2, 7).unwrap();
            let prompts = sequences.map(|tokens| (&tokens[..3], 0));
            model.continued(prepared, &prompts, &mut cache).unwrap();
            for length in 4..=7 {
                let grown = sequences.map(|tokens| (&tokens[..length], length - 1));
                let hidden = model.continued(prepared, &grown, &mut cache).unwrap();
                let at = [length - 1, 7 + length - 1];
                let want = no_grad(|| ops::gather(&whole, &at)).unwrap();
                assert_eq!(bytes(&hidden), bytes(&want), "{length}");
                let got = model.raw_logits(prepared, &hidden).unwrap();
                assert_eq!(bytes(&got), bytes(&ops::gather(&logits, &at).unwrap()), "{length}");
            }
            let grown = sequences.map(|tokens| (tokens, 6));
            assert!(model.continued(prepared, &grown, &mut cache).unwrap_err().is_invalid());
        }
        let some = model.hidden_at(&sequences, &[9, 2]).unwrap();
        assert_eq!(bytes(&some), bytes(&ops::gather(&whole, &[9, 2]).unwrap()));
        let long = vec![1; model.context() + 1];
        assert!(model.hidden_at(&[&long], &[0]).unwrap_err().is_index());
        assert!(model.hidden_at(&[&[model.vocab() as i32]], &[0]).unwrap_err().is_index());
    }

    /// A copy and what comes back from files are the model, and nothing of a copy is frozen.
    fn returns<M: Causal>(mut model: M) {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path()).unwrap();
        let loaded = M::load_on(folder.path(), None, &Device::Cpu).unwrap();
        model.parameters_mut().freeze(true, |_| true);
        let copy = model.copy().unwrap();
        assert!(!copy.parameters().iter().any(|parameter| parameter.is_frozen()));
        for other in [&loaded, &copy] {
            assert_eq!(model.parameters().len(), other.parameters().len());
            for (a, b) in model.parameters().iter().zip(other.parameters().iter()) {
                assert_eq!((a.name(), bytes(a.value())), (b.name(), bytes(b.value())));
                assert_ne!(a.id(), b.id());
            }
        }
    }

    #[test]
    fn every_way_of_reading_a_token_gives_the_same_bits() {
        agrees(&gpt());
        agrees(&decoder());
    }

    #[test]
    fn copies_and_files_hold_the_model() {
        returns(gpt());
        returns(decoder());
    }

    #[test]
    fn a_model_of_another_kind_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Causal::save(&gpt(), folder.path()).unwrap();
        let error = Decoder::load_on(folder.path(), None, &Device::Cpu).err().unwrap();
        assert!(error.is_unsupported() && error.to_string().contains("gradstone_gpt"), "{error}");
        decoder().save(folder.path()).unwrap();
        let error = Gpt::load_on(folder.path(), None, &Device::Cpu).err().unwrap();
        assert!(error.is_unsupported() && error.to_string().contains("model_type"), "{error}");
    }
}
