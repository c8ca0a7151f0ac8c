//! A model that fills masked blocks as a policy: the log-prob of each token of a completion, for any objective that is made
//! of log-probs.
//!
//! The probability of a whole completion is a sum over all orders in which its tokens can be set, which nobody computes.
//! [`Likelihood`] names what is computed instead and how it differs. All of them put the prompt in as it is, score only
//! the completion, never give the mask a probability, and are functions of their arguments: the old, the current and
//! the reference policy are measured under the same masks.

use super::episode::{Order, Scored};
use crate::error::{Error, Result};
use crate::models::{Copies, Decoder};
use crate::ops;
use crate::rng::{Sequence, Stream};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// What stands for the log-prob of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Likelihood {
    /// `log p(token | what had been set when it was set)`, in the order in which it was sampled.
    ///
    /// Exact for the tokens given the order: the probability that the sampler chose these *places* is left out. That is no
    /// bias where places do not depend on the model (sequential, random); with places chosen by confidence the gradient
    /// of the choice is missing. As many passes as the longest block took.
    Trajectory,
    /// `log p(token | clean blocks before, nothing of its own block)`: one pass.
    ///
    /// Biased: the tokens of a block count as independent. Exact for blocks of one token, and for completions whose blocks
    /// were filled in one pass.
    MeanField,
    /// Pairs of complementary masks, so that each token is scored once a pair, given about half of its block; the mean
    /// over the pairs (coupled sampling of DiffuCoder).
    ///
    /// Biased: a conditional that sees later tokens of the block, neither a bound nor a likelihood; low variance.
    Coupled {
        /// Pairs of masks.
        pairs: usize,
    },
    /// The evidence lower bound: a count k uniform in `1..=n` and k of the n tokens of a block masked, weighted by n/k.
    ///
    /// The expected sum over a completion is at most its log-likelihood, with equality where the order does not matter. By
    /// token it is an estimate with weights from 1 to n, and 0 where the token was not masked in any draw.
    Bound {
        /// Draws of masks.
        draws: usize,
    },
}

/// Documents with their noise, and for each token of the completions the rows that score it.
#[derive(Default)]
struct Layout {
    noised: Vec<i32>,
    clean: Vec<i32>,
    documents: Vec<usize>,
    places: Vec<usize>,
    /// For every round: by token its row among the places and its factor, 0 where the round does not score it.
    rounds: Vec<Vec<(usize, f32)>>,
}

/// The log-prob, or what stands for it, and the entropy of every completion token, one completion after another.
///
/// # Shapes
/// Two f32 tensors `[Σ completion lengths]`, tracked where the model's parameters are.
///
/// # Errors
/// [`Error::is_unsupported`] for a model without a mask token, [`Error::is_invalid`] for 0 draws, [`Error::is_shape`] for a
/// completion without the steps of its tokens, [`Error::is_index`] for a token outside the vocabulary.
pub fn logprobs(
    model: &Decoder,
    batch: &[Scored<'_>],
    likelihood: Likelihood,
    temperature: f32,
    seed: u64,
) -> Result<(Tensor, Tensor)> {
    let diffusion = model.diffusion()?;
    let steps = |one: &Scored<'_>| one.order.map_or(one.completion.len(), |order| order.step.len());
    if let Some(one) = batch.iter().find(|one| steps(one) != one.completion.len()) {
        return Err(Error::shape(format!(
            "masked policy: {} steps for {} tokens",
            steps(one),
            one.completion.len()
        )));
    }
    if likelihood == Likelihood::Trajectory && batch.iter().any(|one| one.order.is_none()) {
        return Err(Error::invalid(
            "masked policy: the trajectory likelihood needs the order in which tokens were set",
        ));
    }
    let rounds = match likelihood {
        Likelihood::Trajectory => {
            let last = batch.iter().flat_map(|one| steps_of(one.order)).max();
            last.map_or(0, |last| *last as usize + 1)
        }
        Likelihood::MeanField => 1,
        Likelihood::Coupled { pairs: count } | Likelihood::Bound { draws: count } if count == 0 => {
            return Err(Error::invalid(format!("masked policy: {likelihood:?}")));
        }
        Likelihood::Coupled { pairs } => 2 * pairs,
        Likelihood::Bound { draws } => draws,
    };
    let mut layout = Layout { documents: vec![0], ..Layout::default() };
    let context = model.config().max_position_embeddings;
    for round in 0..rounds {
        layout.rounds.push(Vec::new());
        for one in batch {
            let masked = masks(one, likelihood, diffusion.block, round, seed);
            // What was set after the end was seen by the tokens that were set later.
            let seen = if likelihood == Likelihood::Trajectory { round } else { 0 };
            // A canvas as long as the context has no blocks to complete.
            let block = Some(diffusion.block).filter(|block| *block < context);
            layout.push(one, &masked, seen, block, diffusion.mask_id);
        }
    }
    let copies = Copies::new(diffusion, &layout.noised, &layout.clean, &layout.documents)?;
    let (logprob, entropy) = model.masked_logprob(&copies, &layout.places, temperature)?;
    Ok((layout.collect(&logprob, true)?, layout.collect(&entropy, false)?))
}

fn steps_of(order: Option<&Order>) -> &[u32] {
    order.map_or(&[], |order| &order.step)
}

/// What happens to a token of the completion in one round.
#[derive(Clone, Copy)]
struct Place {
    masked: bool,
    /// Its share in the log-prob; 0: not scored.
    factor: f32,
}

fn masks(
    one: &Scored<'_>,
    likelihood: Likelihood,
    block: usize,
    round: usize,
    seed: u64,
) -> Vec<Place> {
    let tokens = one.completion.len();
    match likelihood {
        Likelihood::Trajectory => {
            let at = |step: &u32| Place {
                masked: *step as usize >= round,
                factor: f32::from(*step as usize == round),
            };
            steps_of(one.order).iter().map(at).collect()
        }
        Likelihood::MeanField => vec![Place { masked: true, factor: 1.0 }; tokens],
        Likelihood::Coupled { pairs } => {
            let mut draws = Sequence::new(seed ^ (round / 2) as u64, Stream::Noise, one.number);
            let second = round % 2 == 1;
            let factor = 1.0 / pairs as f32;
            let place = |masked: bool| Place { masked, factor: if masked { factor } else { 0.0 } };
            (0..tokens).map(|_| place((draws.next_u32() & 1 == 1) != second)).collect()
        }
        Likelihood::Bound { draws: count } => {
            let mut draws = Sequence::new(seed ^ round as u64, Stream::Noise, one.number);
            let mut places = vec![Place { masked: false, factor: 0.0 }; tokens];
            let mut from = 0;
            while from < places.len() {
                let end = ((one.prompt.len() + from) / block + 1) * block - one.prompt.len();
                let mut order: Vec<usize> = (from..end.min(places.len())).collect();
                let n = order.len();
                let k = draws.below(n as u32) as usize + 1;
                draws.shuffle(&mut order);
                let factor = n as f32 / (k * count) as f32;
                order[..k].iter().for_each(|i| places[*i] = Place { masked: true, factor });
                from = end;
            }
            places
        }
    }
}

impl Layout {
    /// One document: prompt, completion and what follows it to the end of its block, of which the first `seen` passes are
    /// known.
    fn push(
        &mut self,
        one: &Scored<'_>,
        places: &[Place],
        seen: usize,
        block: Option<usize>,
        mask_id: i32,
    ) {
        let base = self.clean.len();
        self.clean.extend_from_slice(one.prompt);
        self.noised.extend_from_slice(one.prompt);
        let Some(round) = self.rounds.len().checked_sub(1) else { return };
        for (i, (token, place)) in one.completion.iter().zip(places).enumerate() {
            self.clean.push(*token);
            self.noised.push(if place.masked { mask_id } else { *token });
            let row = if place.factor != 0.0 {
                self.places.push(base + one.prompt.len() + i);
                self.places.len() - 1
            } else {
                0
            };
            self.rounds[round].push((row, place.factor));
        }
        let dropped = one.order.map_or(&[][..], |order| &order.dropped);
        for (token, step) in dropped {
            self.clean.push(*token);
            self.noised.push(if (*step as usize) < seen { *token } else { mask_id });
        }
        // A completion that was not drawn here may end anywhere in its block.
        if let Some(block) = block
            && dropped.is_empty()
        {
            let whole = base + (self.clean.len() - base).div_ceil(block) * block;
            self.clean.resize(whole, mask_id);
            self.noised.resize(whole, mask_id);
        }
        self.documents.push(self.clean.len());
    }

    /// The rounds of every token added up; the mean of those that score it where `sum` is false.
    fn collect(&self, values: &Tensor, sum: bool) -> Result<Tensor> {
        let tokens = self.rounds.first().map_or(0, Vec::len);
        let count = |token: usize| {
            self.rounds.iter().filter(|round| round[token].1 != 0.0).count().max(1) as f32
        };
        if values.is_empty() || tokens == 0 {
            return Tensor::zeros(&[tokens], values.dtype())?.to_device(&values.device());
        }
        let mut total: Option<Tensor> = None;
        for round in &self.rounds {
            let rows: Vec<usize> = round.iter().map(|(row, _)| *row).collect();
            let factor = |(token, (_, factor)): (usize, &(usize, f32))| match sum {
                true => *factor,
                false => f32::from(*factor != 0.0) / count(token),
            };
            let factors: Vec<f32> = round.iter().enumerate().map(factor).collect();
            let gathered = ops::reshape(values, &[values.len(), 1])?;
            let gathered = ops::reshape(&ops::gather(&gathered, &rows)?, &[tokens])?;
            let part = if factors.iter().all(|factor| *factor == 1.0) {
                gathered
            } else {
                let factors = Tensor::from_f32(factors, &[tokens])?.to_device(&values.device())?;
                ops::mul(&gathered, &factors)?
            };
            total = Some(match total {
                Some(total) => ops::add(&total, &part)?,
                None => part,
            });
        }
        total.ok_or_else(|| Error::state("masked policy: no round"))
    }
}
