//! Corrections for a sampler that is not the policy being trained: importance weights, rejection, and what to watch.
//!
//! `rho = exp(clamp(logprob - sampler_logprob, ±20))` of a token, or of a sequence the product. Weights go into a policy
//! loss as [`Inputs::weight`](crate::kernels::policy_loss::Inputs::weight); rejection makes a smaller mask.
//!
//! Source: verl `rollout_corr_helper.py`, TRL's `vllm_importance_sampling_mode`.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The bound on a log ratio.
const LIMIT: f64 = 20.0;

/// What a ratio is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// One token.
    #[default]
    Token,
    /// A whole sequence: the product of its tokens' ratios, for each of its tokens.
    Sequence,
    /// The geometric mean over a sequence, for each of its tokens.
    Geometric,
}

/// What becomes of a ratio outside the bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outside {
    /// It is set to the bound: truncated importance sampling.
    #[default]
    Truncate,
    /// Its weight is 0, while the token still counts: masked importance sampling (TRL).
    Mask,
}

/// Importance weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    /// What a ratio is of.
    pub level: Level,
    /// What becomes of those outside.
    pub outside: Outside,
    /// Smallest ratio; `None`: any (verl).
    pub least: Option<f64>,
    /// Largest ratio (verl 2, TRL 3).
    pub most: f64,
    /// Divides the weights by their mean over tokens, or over sequences at a level of sequences (verl).
    pub normalise: bool,
}

impl Default for Weights {
    fn default() -> Weights {
        let (level, outside) = (Level::Token, Outside::Truncate);
        Weights { level, outside, least: None, most: 2.0, normalise: false }
    }
}

/// A divergence of a token from `d = clamp(logprob - sampler_logprob, ±20)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Divergence {
    /// `-d`.
    K1,
    /// `d² / 2`.
    K2,
    /// `e^d - 1 - d`.
    K3,
}

/// Over what divergences are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// Each token: tokens are rejected one by one.
    Token,
    /// Their sum over a sequence: whole sequences are rejected.
    SequenceSum,
    /// Their mean (with [`Divergence::K1`], the geometric mean of ratios).
    SequenceMean,
    /// Their largest.
    SequenceMax,
}

/// A trust region: what lies outside is taken out of the mask, and so out of every count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejection {
    /// Of what.
    pub divergence: Divergence,
    /// Over what.
    pub over: Over,
    /// The largest divergence. For k1 a bound of the *ratio*, whose logarithm is compared.
    pub most: f64,
    /// k1: the smallest ratio; `None`: `1 / most`.
    ///
    /// verl compares these bounds with `-log rho`, so that they are mirrored: a ratio is kept in
    /// `1 / most ..= 1 / least`. It is so here, to give its numbers; with `least = 1 / most` nobody can tell.
    #[serde(default)]
    pub least: Option<f64>,
}

/// How far sampler and policy are apart, over live tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Diagnostics {
    /// Mean of `sampler_logprob - logprob`.
    pub kl: f64,
    /// Mean of `e^d - 1 - d`.
    pub k3: f64,
    /// Mean of `rho² - 1`.
    pub chi_squared: f64,
    /// `1 / mean((rho / mean rho)²)`, in 0..=1.
    pub effective_sample_size: f64,
    /// Largest `rho`.
    pub ratio_max: f64,
    /// Live tokens.
    pub tokens: u64,
}

/// Tokens in packed sequences.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// `[tokens]` log-prob under the policy that the loss starts from.
    pub logprob: &'a [f32],
    /// `[tokens]` under the sampler. NaN: the token has weight 0 and is rejected.
    pub sampler_logprob: &'a [f32],
    /// `[tokens]` non-zero: the token counts.
    pub mask: &'a [u8],
    /// `[sequences + 1]`.
    pub offsets: &'a [i64],
}

impl Tokens<'_> {
    fn sequences(&self) -> Result<Vec<std::ops::Range<usize>>> {
        let tokens = self.logprob.len();
        let lengths = [("sampler_logprob", self.sampler_logprob.len()), ("mask", self.mask.len())];
        for (name, got) in lengths {
            if got != tokens {
                return Err(Error::shape(format!(
                    "rollout_correction: {name} has {got} elements, not {tokens}"
                )));
            }
        }
        let bad = || {
            let offsets = self.offsets;
            Error::shape(format!("rollout_correction: offsets {offsets:?} of {tokens} tokens"))
        };
        let place = |offset: i64| usize::try_from(offset).ok().filter(|at| *at <= tokens);
        let at: Vec<usize> =
            self.offsets.iter().map(|o| place(*o)).collect::<Option<_>>().ok_or_else(bad)?;
        let ordered = at.is_sorted() && at.first() == Some(&0) && at.last() == Some(&tokens);
        if !ordered {
            return Err(bad());
        }
        Ok(at.windows(2).map(|pair| pair[0]..pair[1]).collect())
    }

    fn is_live(&self, token: usize) -> bool {
        self.mask[token] != 0
    }

    fn log_ratio(&self, token: usize) -> f64 {
        f64::from(self.logprob[token]) - f64::from(self.sampler_logprob[token])
    }

    fn clamped(&self, token: usize) -> f64 {
        self.log_ratio(token).clamp(-LIMIT, LIMIT)
    }

    fn live(&self, of: std::ops::Range<usize>) -> impl Iterator<Item = usize> + '_ {
        of.filter(|token| self.is_live(*token))
    }
}

impl Weights {
    /// A weight for every token, 0 where masked; no gradient.
    ///
    /// # Errors
    /// [`Error::is_shape`] for a length or offsets that do not fit, [`Error::is_invalid`] for bounds that are none.
    pub fn weights(&self, tokens: &Tokens<'_>) -> Result<Vec<f32>> {
        let least = self.least.unwrap_or(0.0);
        if !(self.most > 0.0 && least >= 0.0 && least <= self.most) {
            let most = self.most;
            return Err(Error::invalid(format!(
                "rollout_correction: weights in {least}..={most}; bounds must be ordered and above 0"
            )));
        }
        let bounded = |log_ratio: f64| {
            let ratio = log_ratio.clamp(-LIMIT, LIMIT).exp();
            let is_outside = ratio < least || ratio > self.most;
            match self.outside {
                _ if ratio.is_nan() => 0.0,
                Outside::Mask if is_outside => 0.0,
                Outside::Mask => ratio,
                Outside::Truncate => ratio.clamp(least, self.most),
            }
        };
        let mut weights = vec![0f64; tokens.logprob.len()];
        let (mut total, mut count) = (0f64, 0f64);
        for sequence in tokens.sequences()? {
            let live = tokens.live(sequence.clone()).count();
            let sum: f64 = tokens.live(sequence.clone()).map(|t| tokens.log_ratio(t)).sum();
            let of_sequence = match self.level {
                Level::Token => None,
                Level::Sequence => Some(bounded(sum)),
                Level::Geometric => Some(bounded(sum / live.max(1) as f64)),
            };
            for token in tokens.live(sequence) {
                weights[token] = of_sequence.unwrap_or_else(|| bounded(tokens.log_ratio(token)));
                if of_sequence.is_none() {
                    (total, count) = (total + weights[token], count + 1.0);
                }
            }
            if let Some(weight) = of_sequence.filter(|_| live > 0) {
                (total, count) = (total + weight, count + 1.0);
            }
        }
        let mean = if count > 0.0 { total / count } else { 0.0 };
        let scale = if self.normalise && mean > 1e-8 { 1.0 / mean } else { 1.0 };
        Ok(weights.iter().map(|weight| (weight * scale) as f32).collect())
    }
}

impl Divergence {
    fn of(self, log_ratio: f64) -> f64 {
        match self {
            Divergence::K1 => -log_ratio,
            Divergence::K2 => 0.5 * log_ratio * log_ratio,
            Divergence::K3 => log_ratio.exp() - 1.0 - log_ratio,
        }
    }
}

impl Rejection {
    fn bounds(&self) -> Result<(f64, f64)> {
        let bounds = match self.divergence {
            Divergence::K1 => (self.least.unwrap_or(1.0 / self.most).ln(), self.most.ln()),
            _ => (f64::NEG_INFINITY, self.most),
        };
        let is_unused = self.least.is_some() && self.divergence != Divergence::K1;
        let is_unheard_of = self.over == Over::SequenceMax && self.divergence == Divergence::K1;
        if bounds.0.is_nan() || bounds.1.is_nan() || bounds.0 > bounds.1 || self.most <= 0.0 {
            return Err(Error::invalid(format!("rollout_correction: bounds of {self:?}")));
        }
        if is_unused || is_unheard_of {
            let part = if is_unused { "least" } else { "over `sequence-max`" };
            return Err(Error::invalid(format!(
                "rollout_correction: {part} does not go with divergence {:?}",
                self.divergence
            )));
        }
        Ok(bounds)
    }

    /// The mask without what this trust region rejects: 1 or 0.
    ///
    /// # Errors
    /// As [`Weights::weights`]; [`Error::is_invalid`] for parts that do not go together.
    pub fn mask(&self, tokens: &Tokens<'_>) -> Result<Vec<u8>> {
        let (least, most) = self.bounds()?;
        let keeps = |value: f64| value >= least && value <= most;
        let mut mask = vec![0u8; tokens.logprob.len()];
        for sequence in tokens.sequences()? {
            let values =
                || tokens.live(sequence.clone()).map(|t| self.divergence.of(tokens.clamped(t)));
            let count = values().count() as f64;
            let of_sequence = match self.over {
                Over::Token => None,
                Over::SequenceSum => Some(values().sum()),
                Over::SequenceMean => Some(values().sum::<f64>() / count.max(1.0)),
                Over::SequenceMax => {
                    Some(values().fold(0.0, |a: f64, b| if a.is_nan() || a > b { a } else { b }))
                }
            };
            for token in tokens.live(sequence.clone()) {
                let value =
                    of_sequence.unwrap_or_else(|| self.divergence.of(tokens.clamped(token)));
                mask[token] = u8::from(keeps(value));
            }
        }
        Ok(mask)
    }
}

/// The mask that every trust region keeps, each measured on all live tokens.
///
/// # Errors
/// As [`Rejection::mask`].
pub fn kept_by_all(rejections: &[Rejection], tokens: &Tokens<'_>) -> Result<Vec<u8>> {
    let mut mask: Vec<u8> = tokens.mask.iter().map(|m| u8::from(*m != 0)).collect();
    for rejection in rejections {
        for (kept, by_this) in mask.iter_mut().zip(rejection.mask(tokens)?) {
            *kept &= by_this;
        }
    }
    Ok(mask)
}

impl Diagnostics {
    /// Over the live tokens whose sampler log-prob is no NaN.
    ///
    /// # Errors
    /// As [`Weights::weights`] for lengths.
    pub fn of(tokens: &Tokens<'_>) -> Result<Diagnostics> {
        tokens.sequences()?;
        let live = || {
            tokens.live(0..tokens.logprob.len()).map(|t| tokens.clamped(t)).filter(|d| !d.is_nan())
        };
        let count = live().count();
        if count == 0 {
            return Ok(Diagnostics::default());
        }
        let mean = |of: &dyn Fn(f64) -> f64| live().map(of).sum::<f64>() / count as f64;
        let squares = mean(&|d| (2.0 * d).exp());
        Ok(Diagnostics {
            kl: mean(&|d| -d),
            k3: mean(&|d| Divergence::K3.of(d)),
            chi_squared: squares - 1.0,
            effective_sample_size: mean(&f64::exp).powi(2) / squares,
            ratio_max: live().fold(0.0, |largest, d| largest.max(d.exp())),
            tokens: count as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGPROB: [f32; 8] = [-0.7, -0.9, -1.0, -0.1, -1.0, -0.9, -0.2, 0.0];
    const SAMPLER: [f32; 8] = [-0.8, -0.9, -2.2, -0.1, -1.0, -2.5, -0.2, f32::NAN];

    fn tokens() -> Tokens<'static> {
        let (mask, offsets) = (&[1, 1, 1, 1, 1, 1, 1, 0], &[0, 4, 8]);
        Tokens { logprob: &LOGPROB, sampler_logprob: &SAMPLER, mask, offsets }
    }

    fn close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn weights_computed_by_hand() {
        let by_token = Weights::default().weights(&tokens()).unwrap();
        close(&by_token, &[1.105171, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 0.0]);
        let free = Weights { level: Level::Sequence, most: 100.0, ..Weights::default() };
        let (a, b) = (3.669_296_67, 4.953_032_42);
        close(&free.weights(&tokens()).unwrap(), &[a, a, a, a, b, b, b, 0.0]);
        let masked = Weights { outside: Outside::Mask, most: 3.0, ..free };
        close(&masked.weights(&tokens()).unwrap(), &[0.0; 8]);
        let mean = Weights { level: Level::Geometric, normalise: true, ..free };
        let sum: f32 = mean.weights(&tokens()).unwrap().iter().step_by(4).sum();
        assert!((sum - 2.0).abs() < 1e-5, "sequences have mean weight 1");
    }

    #[test]
    fn a_sampler_that_is_missing_or_infinitely_wrong() {
        let sampler = [f32::NEG_INFINITY, f32::NAN, -2.2, -0.1, -1.0, -2.5, -0.2, 0.0];
        let tokens = Tokens { sampler_logprob: &sampler, ..tokens() };
        let weights = Weights::default().weights(&tokens).unwrap();
        assert_eq!(weights[..2], [2.0, 0.0]);
        let (divergence, over) = (Divergence::K2, Over::Token);
        let rejection = Rejection { divergence, over, most: 1.0, least: None };
        assert_eq!(rejection.mask(&tokens).unwrap()[..2], [0, 0]);
        assert_eq!(Diagnostics::of(&tokens).unwrap().tokens, 6);
    }

    #[test]
    fn on_the_policy_nothing_happens() {
        let same = Tokens { sampler_logprob: &LOGPROB, ..tokens() };
        let d = Diagnostics::of(&same).unwrap();
        assert_eq!((d.kl, d.k3, d.chi_squared, d.effective_sample_size), (0.0, 0.0, 0.0, 1.0));
        let (divergence, over) = (Divergence::K1, Over::SequenceMean);
        let rejection = Rejection { divergence, over, most: 1.001, least: None };
        assert_eq!(kept_by_all(&[rejection], &same).unwrap(), same.mask);
        let none = Tokens { mask: &[0; 8], ..same };
        assert_eq!(Diagnostics::of(&none).unwrap(), Diagnostics::default());
        assert_eq!(Weights::default().weights(&none).unwrap(), [0.0; 8]);
    }

    #[test]
    fn bad_bounds_are_named() {
        let weights = Weights { least: Some(3.0), ..Weights::default() };
        assert!(weights.weights(&tokens()).unwrap_err().is_invalid());
        let (divergence, over) = (Divergence::K1, Over::SequenceMax);
        let rejection = Rejection { divergence, over, most: 2.0, least: None };
        assert!(rejection.mask(&tokens()).unwrap_err().to_string().contains("sequence-max"));
        let short = Tokens { mask: &[1; 3], ..tokens() };
        assert!(Weights::default().weights(&short).unwrap_err().is_shape());
    }
}
