//! Drawing one token from each row of logits, with its log-prob, in one read of them.
//!
//! A draw is a function of the row and of `(seed, stream, sequence, position)` alone: neither what is batched beside
//! it nor the number of threads can change it. The random number is 53 bits of Philox; the token is where the
//! cumulative probability passes it, in the order of the ids, added in f64 over the fixed pieces of `kernels::logprob`, or
//! where there is a truncation in the order of the logits, added as integers. So there is one random number a token and no noise a logit.
//!
//! The log-prob reported is that of the whole tempered distribution: what training computes from the same logits, to
//! the bit, because it is the same pass. Truncation and ban change what can be drawn and not what is reported. The mass that
//! a truncation keeps is reported beside it: the log-prob less its logarithm is that of the draw.
//!
#![doc = include_str!("../../../docs/kernels/sample.md")]

mod choice;
pub mod launch;
mod likely;

use super::logprob::{Outputs, Softmax, Temperature, forward_choosing};
use crate::dtype::FloatSlice;
use crate::error::{Error, Result};
use crate::rng::Stream;
use choice::{BROKEN, Choice};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU32, Ordering};

/// Which part of the distribution is drawn from. The default is all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Truncation {
    /// The `top_k` most likely ids; of equal ones the lower.
    pub top_k: Option<u32>,
    /// The fewest most likely ids whose probabilities, among those that `top_k` leaves, reach `top_p`.
    pub top_p: Option<f32>,
    /// Ids that are at least `min_p` times as likely as the likeliest one (Nguyen et al. 2024), of those that the others
    /// leave.
    pub min_p: Option<f32>,
}

impl Truncation {
    /// True where it cuts nothing off.
    pub fn is_none(&self) -> bool {
        self.top_k.is_none()
            && self.top_p.is_none_or(|p| p >= 1.0)
            && self.min_p.is_none_or(|p| p == 0.0)
    }

    /// How far below the largest logit an id may lie, at most 0; -inf: as far as it likes.
    fn depth(&self, temperature: f32) -> f32 {
        self.min_p
            .map_or(f32::NEG_INFINITY, |p| (f64::from(p).ln() * f64::from(temperature)) as f32)
    }
}

/// Arguments of [`tokens`].
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// `[rows, vocab]`, f32, bf16 or f16.
    pub logits: FloatSlice<'a>,
    /// Rows.
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// Logits are divided by it. 0 takes the largest logit, of equal ones the lowest id, and reports log-probs at
    /// temperature 1.
    pub temperature: f32,
    /// `logits := cap · tanh(logits / cap)` before the temperature.
    pub softcap: Option<f32>,
    /// What may be drawn.
    pub truncation: Truncation,
    /// Ids that are never drawn, in any order.
    pub banned: &'a [i32],
    /// The seed of every draw.
    pub seed: u64,
    /// What the draws are for.
    pub stream: Stream,
    /// `[rows]`: a number of the sequence that a row belongs to.
    pub sequences: &'a [u64],
    /// `[rows]`: the place of the token in its sequence.
    pub positions: &'a [u32],
}

/// Draws a token from every row into `tokens [rows]`, and its statistics (log-prob, entropy, …) where wanted. `kept_mass
/// [rows]`: the share of the distribution that the truncation left to be drawn from, 1 where there is none.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit; [`Error::is_index`] for a banned id outside the vocabulary;
/// [`Error::is_invalid`] for a temperature below 0, `top_k` 0, `top_p` outside `(0, 1]`, `min_p` outside `[0, 1]` or a softcap that is not
/// positive; [`Error::is_numeric`], naming the row, for a NaN or +inf logit and where no id can be drawn.
pub fn tokens(
    args: &Sample<'_>,
    tokens: &mut [i32],
    out: Option<Outputs<'_>>,
    kept_mass: Option<&mut [f32]>,
) -> Result<()> {
    args.check()?;
    if let Some(len) = kept_mass.as_ref().map(|mass| mass.len()).filter(|len| *len != args.rows) {
        return Err(Error::shape(format!("{OP}: {len} kept masses for {} rows", args.rows)));
    }
    // Each row writes its own, on whichever thread it is drawn.
    let masses: Vec<AtomicU32> = match &kept_mass {
        Some(_) => (0..args.rows).map(|_| AtomicU32::new(1f32.to_bits())).collect(),
        None => Vec::new(),
    };
    let mut excluded: Vec<usize> = args.banned.iter().map(|id| *id as usize).collect();
    excluded.sort_unstable();
    excluded.dedup();
    let greedy = args.temperature == 0.0;
    let temperature = if greedy { Temperature::One } else { Temperature::Same(args.temperature) };
    let softmax = Softmax { temperature, softcap: args.softcap, banned: &[] };
    let choice = Choice { args, greedy, kept_mass: &masses };
    let shape = [args.rows, args.vocab];
    forward_choosing(OP, args.logits, shape, softmax, &excluded, &choice, tokens, out)?;
    for (mass, bits) in kept_mass.into_iter().flatten().zip(&masses) {
        *mass = f32::from_bits(bits.load(Ordering::Relaxed));
    }
    match tokens.iter().position(|token| *token < 0) {
        None => Ok(()),
        Some(row) => Err(Error::numeric(match tokens[row] {
            BROKEN => format!("{OP}: row {row} of the logits holds NaN or +inf"),
            _ => format!("{OP}: row {row} has no token to draw: all are -inf or banned"),
        })),
    }
}

const OP: &str = "sample";

impl Sample<'_> {
    fn check(&self) -> Result<()> {
        for (name, len) in
            [("sequences", self.sequences.len()), ("positions", self.positions.len())]
        {
            if len != self.rows {
                let rows = self.rows;
                return Err(Error::shape(format!("{OP}: {len} {name} for {rows} rows")));
            }
        }
        check_draw(self.temperature, &self.truncation)?;
        let vocab = self.vocab;
        match self.banned.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
            Some(id) => Err(Error::index(format!(
                "{OP}: banned id {id} is outside the vocabulary of {vocab}"
            ))),
            None => Ok(()),
        }
    }
}

fn check_draw(temperature: f32, truncation: &Truncation) -> Result<()> {
    let bad = |what: String| Err(Error::invalid(format!("{OP}: {what}")));
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return bad(format!("temperature {temperature} is not finite and at least 0"));
    }
    if truncation.top_k == Some(0) {
        return bad("top_k is 0".to_string());
    }
    if let Some(p) = truncation.min_p.filter(|p| !(0.0..=1.0).contains(p)) {
        return bad(format!("min_p {p} is not from 0 to 1"));
    }
    match truncation.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
        Some(p) => bad(format!("top_p {p} is not above 0 and at most 1")),
        None => Ok(()),
    }
}
