//! What generating and scoring need to know of a causal language model, whatever is inside it.
//!
//! A sequence is given with all of its tokens so far, because a model may look back at more than its cache holds: a
//! [`Gpt`](super::Gpt) sums the embeddings of the tokens before.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::attention::KvCache;
use crate::nn::{Parameters, Prepared};
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
    fn vocab(&self) -> usize {
        self.head().leading()
    }

    /// The longest sequence, in tokens.
    fn context(&self) -> usize;

    /// Where its weights are and its operations run.
    fn device(&self) -> Device {
        self.head().device()
    }

    /// Moves the weights to `device`.
    ///
    /// # Errors
    /// [`Error::is_state`](crate::Error::is_state) when the device has no memory.
    fn move_to(&mut self, device: &Device) -> Result<()> {
        self.parameters_mut().move_to(device)
    }

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

    /// Recomputes each block in the backward pass instead of keeping its activations; changes no bit.
    fn set_checkpointed(&mut self, checkpointed: bool);
}
