//! A model that learns from running text: steps of next-token prediction, steps of masked blocks, and what either is
//! worth on held-out text. A run and a reproduction are made of these.

use super::batch::Batch;
use super::bound;
use super::noising::Noising;
use super::settings::{DiffusionSettings, TokenizerSettings};
use super::step::{self, Denoised};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::{Decoder, DecoderConfig, Diffusion};
use crate::optim::{AdamW, Update};
use crate::rl::episode::{Scored, micro_batches};
use crate::rl::policy::Policy;
use crate::rl::sampling::Distribution;
use crate::tasks::source_text::{ALPHABET, Corpus, Split, TextSettings};
use crate::tensor::Gradients;
use crate::tensor::autograd::no_grad;
use crate::text::Tokenizer;
use crate::train::open::{dtype, element_type, folder};
use crate::train::settings::ModelSettings;
use crate::train::supervised::{self, Supervised};
use std::path::Path;

/// A model with the text that it learns from.
pub struct Learner {
    /// The model; its config says what the mask is.
    pub model: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The text.
    pub corpus: Corpus,
    /// Tokens of a row.
    pub length: usize,
    /// Rows a step.
    pub rows: usize,
    /// Tokens run at once.
    pub micro_batch_tokens: usize,
    /// The seed of the noise.
    pub seed: u64,
}

impl Learner {
    /// The model and the text of the settings, the model on `device`.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when nothing names a mask token, and what loading the model and reading the text report.
    pub fn new(settings: &DiffusionSettings, device: &Device) -> Result<Learner> {
        settings.check()?;
        Learner::of(settings, model(settings)?, device)
    }

    /// The model that the folder of a checkpoint holds, with the text of the settings.
    ///
    /// # Errors
    /// As [`Learner::new`].
    pub fn resumed(
        settings: &DiffusionSettings,
        checkpoint: &Path,
        device: &Device,
    ) -> Result<Learner> {
        settings.check()?;
        let model = Decoder::load_on(checkpoint, dtype(&settings.model)?, device)?;
        Learner::of(settings, (model, Tokenizer::load(checkpoint)?), device)
    }

    fn of(
        settings: &DiffusionSettings,
        (mut model, tokenizer): (Decoder, Tokenizer),
        device: &Device,
    ) -> Result<Learner> {
        let own = model.config().diffusion;
        let mask_id = settings.mask_id.or(own.map(|d| d.mask_id)).or(tokenizer.mask());
        let Some(mask_id) = mask_id else {
            return Err(Error::invalid(
                "neither the model's config nor its tokenizer names a mask token: say which id it is with \
                 --set mask_id=N",
            ));
        };
        let diffusion = Diffusion { mask_id, block: settings.block, shift: settings.shift };
        model.config_mut().set_diffusion(diffusion)?;
        let context = model.config().max_position_embeddings;
        if settings.length > context {
            return Err(Error::invalid(format!(
                "length = {} is longer than the model's context of {context}",
                settings.length
            )));
        }
        model.set_checkpointed(settings.recompute);
        model.move_to(device)?;
        Ok(Learner {
            corpus: settings.text.corpus(&tokenizer, settings.seed, settings.length)?,
            model,
            tokenizer,
            length: settings.length,
            rows: settings.rows,
            micro_batch_tokens: settings.micro_batch_tokens,
            seed: settings.seed,
        })
    }

    /// The rows of step `step`, counted from 0 over both phases.
    fn batch(&self, step: u64) -> Result<Batch> {
        let first = step * self.rows as u64;
        let ids = self.corpus.rows(Split::Training, first, self.rows, self.length)?;
        Batch::rows(ids, self.length, 1, first)
    }

    /// The gradient of next-token prediction in step `step`.
    ///
    /// # Errors
    /// As [`Policy::score`].
    pub fn next_token(&self, step: u64, gradients: &mut Gradients) -> Result<Supervised> {
        let batch = self.batch(step)?;
        let rows = scored(&batch.ids, self.length);
        supervised::gradients(&self.model, &rows, self.micro_batch_tokens, gradients)
    }

    /// The gradient of the masked blocks of step `step`, `noise_step` of its phase.
    ///
    /// # Errors
    /// As [`step::gradients`].
    pub fn denoise(
        &self,
        noising: &Noising,
        step: u64,
        noise_step: u64,
        gradients: &mut Gradients,
    ) -> Result<Denoised> {
        let batch = self.batch(step)?;
        let (diffusion, vocab) = (self.model.diffusion()?, self.model.config().vocab_size);
        let noised = noising.apply(&batch, diffusion, vocab, self.seed, noise_step)?;
        step::gradients(&self.model, &batch, &noised, self.micro_batch_tokens, gradients)
    }

    /// The first `rows` held-out rows.
    ///
    /// # Errors
    /// As [`Corpus::row`].
    pub fn held_out(&self, rows: usize) -> Result<Batch> {
        let ids = self.corpus.rows(Split::HeldOut, 0, rows, self.length)?;
        Batch::rows(ids, self.length, 1, 1 << 40)
    }

    /// The bound of held-out rows, nats per token.
    ///
    /// # Errors
    /// As [`bound::per_token`].
    pub fn held_out_bound(&self, rows: usize, rounds: u64) -> Result<f64> {
        let batch = self.held_out(rows)?;
        bound::per_token(&self.model, &batch, rounds, self.seed, self.micro_batch_tokens)
    }

    /// The negative log-likelihood of held-out rows by next-token prediction, nats per token; the first of a row is given.
    ///
    /// # Errors
    /// As [`Policy::score`].
    pub fn held_out_next_token(&self, rows: usize) -> Result<f64> {
        let batch = self.held_out(rows)?;
        let (mut sum, mut count) = (0f64, 0);
        for part in micro_batches(&scored(&batch.ids, self.length), self.micro_batch_tokens) {
            let scores = no_grad(|| self.model.score(part, &Distribution::default()))?;
            let logprob = scores.logprob.to_device(&Device::Cpu)?;
            sum -= logprob.f32s()?.iter().map(|l| f64::from(*l)).sum::<f64>();
            count += logprob.len();
        }
        Ok(sum / count.max(1) as f64)
    }

    /// An optimizer step, `factor` on the learning rate.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn update(
        &mut self,
        optimizer: &mut AdamW,
        gradients: &Gradients,
        factor: f64,
    ) -> Result<Update> {
        optimizer.step(self.model.parameters_mut(), gradients, factor)
    }
}

/// Rows as text that continues its first token.
fn scored(ids: &[i32], length: usize) -> Vec<Scored<'_>> {
    ids.chunks(length.max(1))
        .map(|row| Scored::new(&row[..1.min(row.len())], row.get(1..).unwrap_or(&[])))
        .collect()
}

/// The model of the settings with its tokenizer.
fn model(settings: &DiffusionSettings) -> Result<(Decoder, Tokenizer)> {
    match &settings.model {
        ModelSettings::Folder { path, dtype, .. } => {
            let dtype = dtype.as_deref().map(element_type).transpose()?;
            folder(path, dtype, &Device::Cpu)
        }
        ModelSettings::Ids { .. } => Err(Error::invalid(
            "model.kind = \"ids\" is for tasks that are made of ids; running text needs \"small\" or a folder",
        )),
        ModelSettings::Small { architecture, hidden_size, layers, heads, context, dtype } => {
            let tokenizer = match &settings.tokenizer {
                TokenizerSettings::Characters if settings.text != TextSettings::Programs => {
                    return Err(Error::invalid(
                        "tokenizer.kind = \"characters\" is for the made programs; files need bytes or byte_pairs",
                    ));
                }
                TokenizerSettings::Characters => Tokenizer::characters(ALPHABET)?,
                TokenizerSettings::Bytes => Tokenizer::bytes()?,
                TokenizerSettings::BytePairs { vocab_size } => {
                    Tokenizer::byte_pairs(&[&settings.text.sample(settings.seed)?], *vocab_size)?
                }
            };
            // Characters have no mask among them: it is one id more.
            let vocab = tokenizer.vocab_size() + usize::from(tokenizer.mask().is_none());
            let mut config =
                DecoderConfig::small(architecture, vocab, *hidden_size, *layers, *heads, *context)?;
            config.set_eos(tokenizer.eos());
            if tokenizer.mask().is_none() {
                config.set_diffusion(Diffusion::new(vocab as i32 - 1))?;
            }
            Ok((Decoder::random(config, element_type(dtype)?, settings.seed)?, tokenizer))
        }
    }
}
