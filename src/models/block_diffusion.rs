//! What training of a decoder that fills masked blocks reads at once, and the log-probs that it takes from it.
//!
//! A model of blocks of B tokens predicts the masked tokens of a block from the rest of the block and from the clean
//! blocks before it. Training does that for all blocks of a document in one pass over two copies of it, `[noised; clean]`
//! ([`Copies`]); where a document is one block, the noised copy alone is enough. Noise is drawn elsewhere, blocks are
//! filled by [`rl`](crate::rl).
//!
//! Position i predicts token i. With the *logit shift* of models that come from next-token prediction (Dream,
//! DiffuCoder) position i − 1 does: in its own block that is the noised copy's, for the first token of a block the clean
//! copy's last of the block before, which is what decoding has; the first token of all predicts itself.

use super::decoder::Decoder;
use super::diffusion::Diffusion;
use super::packed::Tokens;
use crate::error::{Error, Result};
use crate::kernels::attention::Mask;
use crate::ops;
use crate::tensor::Tensor;

/// Documents with their noise, as a forward pass reads them.
///
/// Documents that must not see each other are segments of their own; what is packed into one document is mutually
/// visible, with positions that go on.
#[derive(Clone, Debug)]
pub struct Copies {
    ids: Vec<i32>,
    positions: Vec<i32>,
    segments: Vec<usize>,
    mask: Mask,
    /// The row of each token in the noised copies, and the row that predicts it.
    noised: Vec<usize>,
    predicting: Vec<usize>,
    clean: Vec<i32>,
}

impl Copies {
    /// Lays out documents with their noise.
    ///
    /// # Shapes
    /// `noised`, `clean` `[T]`; `documents [count + 1]` offsets from 0 to T, each document cut into blocks from its own
    /// beginning, the last block perhaps shorter.
    ///
    /// # Errors
    /// [`Error::is_shape`] when lengths do not fit or offsets do not rise from 0 to T.
    pub fn new(
        diffusion: Diffusion,
        noised: &[i32],
        clean: &[i32],
        documents: &[usize],
    ) -> Result<Copies> {
        let total = clean.len();
        let fit = documents.first() == Some(&0) && documents.last() == Some(&total);
        if noised.len() != total || !fit || !documents.is_sorted() {
            return Err(Error::shape(format!(
                "block diffusion: {} noised and {total} clean tokens in documents {documents:?}",
                noised.len()
            )));
        }
        let lengths = || documents.windows(2).map(|bounds| bounds[1] - bounds[0]);
        // One block sees itself and nothing else: it needs no clean copy.
        let single = lengths().all(|length| length <= diffusion.block);
        let mask = match single {
            true => Mask::Full,
            false => Mask::BlockDiffusion { block: diffusion.block },
        };
        let mut copies = Copies {
            ids: Vec::with_capacity(2 * total),
            positions: Vec::with_capacity(2 * total),
            segments: vec![0],
            mask,
            noised: Vec::with_capacity(total),
            predicting: Vec::with_capacity(total),
            clean: clean.to_vec(),
        };
        for (bounds, length) in documents.windows(2).zip(lengths()) {
            let first = copies.ids.len();
            let document = bounds[0]..bounds[1];
            copies.ids.extend_from_slice(&noised[document.clone()]);
            copies.positions.extend(0..length as i32);
            if !single {
                copies.ids.extend_from_slice(&clean[document]);
                copies.positions.extend(0..length as i32);
            }
            copies.segments.push(copies.ids.len());
            copies.noised.extend(first..first + length);
            copies.predicting.extend((0..length).map(|place| match diffusion.shift {
                false => first + place,
                true if place == 0 => first,
                true if place % diffusion.block == 0 => first + length + place - 1,
                true => first + place - 1,
            }));
        }
        Ok(copies)
    }

    /// What the decoder reads.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens { ids: &self.ids, positions: &self.positions, segments: &self.segments }
    }

    /// The mask that goes with it.
    pub fn mask(&self) -> Mask {
        self.mask
    }

    /// Where each document's copies begin, and the end of the last.
    pub fn segments(&self) -> &[usize] {
        &self.segments
    }

    /// The row of each clean token's place in the noised copies, `[T]`.
    pub fn noised_rows(&self) -> &[usize] {
        &self.noised
    }

    /// Tokens of the documents.
    pub fn len(&self) -> usize {
        self.clean.len()
    }

    /// No tokens at all.
    pub fn is_empty(&self) -> bool {
        self.clean.is_empty()
    }
}

impl Decoder {
    /// What this model needs to fill masked blocks.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] when its config names no mask token.
    pub fn diffusion(&self) -> Result<Diffusion> {
        self.config().diffusion.ok_or_else(|| {
            Error::unsupported(format!(
                "this {} model has no mask token (mask_token_id in config.json): it cannot fill masked blocks",
                self.config().architecture.model_type
            ))
        })
    }

    /// The log-prob of the clean token at each of `places`, and the entropy there, given the noised copies. The mask
    /// token has no probability.
    ///
    /// # Shapes
    /// `places [K]` indices into the clean tokens; two f32 tensors `[K]`, tracked where the parameters are.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] for a model without a mask token, [`Error::is_index`] for a place or token that does not
    /// exist, [`Error::is_invalid`] for a temperature that is not positive or a layer with a sliding window.
    pub fn masked_logprob(
        &self,
        copies: &Copies,
        places: &[usize],
        temperature: f32,
    ) -> Result<(Tensor, Tensor)> {
        let diffusion = self.diffusion()?;
        if let Some(place) = places.iter().find(|place| **place >= copies.len()) {
            return Err(Error::index(format!(
                "block diffusion: place {place} of {} tokens",
                copies.len()
            )));
        }
        let rows: Vec<usize> = places.iter().map(|place| copies.predicting[*place]).collect();
        let targets: Vec<i32> = places.iter().map(|place| copies.clean[*place]).collect();
        let hidden = ops::gather(&self.hidden_under(copies.tokens(), copies.mask)?, &rows)?;
        let softmax = ops::SoftmaxOptions {
            temperature,
            softcap: self.config().final_softcap,
            banned: vec![diffusion.mask_id],
        };
        ops::linear_logprob(&hidden, &self.head(), None, &targets, &softmax)
    }
}
