//! How token losses become one number: the weight of each sequence's tokens.
//!
//! Every mode is `loss = Σ_i c_i Σ_t loss_it` with one `c_i` a sequence, so the token pass knows no modes.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which sequences a mean over sequences counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rows {
    /// Those with a live token (verl).
    #[default]
    NonEmpty,
    /// All, fully masked ones too (TRL).
    All,
}

/// The weight `c_i` of the tokens of sequence `i`, which has `n_i` live ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Aggregation {
    /// `1 / Σ n_i`: verl `token-mean`; TRL `dapo` and `bnpo`.
    TokenMean {},
    /// `1 / (sequences · n_i)`: verl `seq-mean-token-mean`; TRL `grpo` with [`Rows::All`].
    SequenceMeanTokenMean {
        /// Which sequences count.
        #[serde(default)]
        rows: Rows,
    },
    /// `1 / (sequences · length)`: verl `seq-mean-token-sum` with length 1; TRL `dr_grpo` with [`Rows::All`] and
    /// the longest allowed completion.
    SequenceMeanTokenSum {
        /// Which sequences count.
        #[serde(default)]
        rows: Rows,
        /// A constant, usually 1 or the longest allowed completion.
        #[serde(default = "one")]
        length: f32,
    },
    /// `1 / sequences` on every token of a loss that is a sequence's, so that the sequence weighs `n_i`: LUSPO (arXiv 2602.05261; TRL
    /// `luspo` with [`Rows::All`]). Needs ratios of sequences. TRL with a penalty divides it by the padded length too;
    /// that is not offered.
    SequenceLength {
        /// Which sequences count.
        #[serde(default)]
        rows: Rows,
    },
    /// `1 / length`: verl `seq-mean-token-sum-norm`; ExGRPO with `loss_remove_token_mean`.
    TokenSum {
        /// A constant.
        #[serde(default = "one")]
        length: f32,
    },
}

fn one() -> f32 {
    1.0
}

impl Default for Aggregation {
    fn default() -> Aggregation {
        Aggregation::TokenMean {}
    }
}

/// What a micro-batch must know of the whole batch for its losses to add up to the batch's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Totals {
    /// Live tokens of the whole batch; `None`: those of this call.
    pub tokens: Option<f64>,
    /// Sequences of the whole batch, counted as [`Rows`] says; `None`: those of this call.
    pub sequences: Option<f64>,
    /// Multiplies loss and gradients: e.g. 1 / gradient accumulation steps where `tokens` is not given.
    pub scale: f64,
}

impl Default for Totals {
    fn default() -> Totals {
        Totals { tokens: None, sequences: None, scale: 1.0 }
    }
}

impl Totals {
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("tokens", self.tokens), ("sequences", self.sequences)] {
            if let Some(value) = value.filter(|v| !(v.is_finite() && *v >= 0.0)) {
                return Err(Error::invalid(format!("policy_loss: totals.{name} is {value}")));
            }
        }
        if !self.scale.is_finite() {
            return Err(Error::invalid(format!("policy_loss: totals.scale is {}", self.scale)));
        }
        Ok(())
    }
}

impl Aggregation {
    pub(super) fn length(&self) -> Option<f32> {
        match self {
            Aggregation::SequenceMeanTokenSum { length, .. } | Aggregation::TokenSum { length } => {
                Some(*length)
            }
            _ => None,
        }
    }

    /// `c_i` for every sequence, given its live tokens. 0 where a count that would divide is 0.
    pub(super) fn coefficients(&self, live: &[u32], totals: &Totals) -> Vec<f32> {
        let tokens = totals.tokens.unwrap_or_else(|| live.iter().map(|n| f64::from(*n)).sum());
        let sequences = |rows: &Rows| {
            totals.sequences.unwrap_or_else(|| match rows {
                Rows::NonEmpty => live.iter().filter(|n| **n > 0).count() as f64,
                Rows::All => live.len() as f64,
            })
        };
        let over = |divisor: f64| if divisor > 0.0 { (totals.scale / divisor) as f32 } else { 0.0 };
        match self {
            Aggregation::TokenMean {} => vec![over(tokens); live.len()],
            Aggregation::SequenceMeanTokenMean { rows } => {
                let count = sequences(rows);
                live.iter().map(|n| over(count * f64::from(*n))).collect()
            }
            Aggregation::SequenceMeanTokenSum { rows, length } => {
                vec![over(sequences(rows) * f64::from(*length)); live.len()]
            }
            Aggregation::SequenceLength { rows } => vec![over(sequences(rows)); live.len()],
            Aggregation::TokenSum { length } => vec![over(f64::from(*length)); live.len()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_weighs_as_written() {
        let live = [3, 0, 1];
        let weights = |mode: Aggregation| mode.coefficients(&live, &Totals::default());
        assert_eq!(weights(Aggregation::TokenMean {}), [0.25; 3]);
        let mean = |rows| weights(Aggregation::SequenceMeanTokenMean { rows });
        assert_eq!(mean(Rows::NonEmpty), [1.0 / 6.0, 0.0, 0.5]);
        assert_eq!(mean(Rows::All), [1.0 / 9.0, 0.0, 1.0 / 3.0]);
        let sum = |rows, length| weights(Aggregation::SequenceMeanTokenSum { rows, length });
        assert_eq!(sum(Rows::NonEmpty, 1.0), [0.5; 3]);
        assert_eq!(sum(Rows::All, 8.0), [1.0 / 24.0; 3]);
        assert_eq!(weights(Aggregation::TokenSum { length: 8.0 }), [0.125; 3]);
        assert_eq!(weights(Aggregation::SequenceLength { rows: Rows::NonEmpty }), [0.5; 3]);
    }

    #[test]
    fn micro_batches_add_up() {
        let totals = Totals { tokens: Some(8.0), sequences: Some(4.0), scale: 2.0 };
        let mode = Aggregation::TokenMean {};
        assert_eq!(mode.coefficients(&[3], &totals), [0.25]);
        let mode = Aggregation::SequenceMeanTokenMean { rows: Rows::All };
        assert_eq!(mode.coefficients(&[5], &totals), [0.1]);
    }
}
