//! What a token's label does to its advantage.

use super::span::ANSWER;
use crate::error::{Error, Result};
use crate::kernels::offsets;
use crate::kernels::policy_loss::Advantages;
use serde::{Deserialize, Serialize};

/// A rule that makes the advantage `A'` of a token from the advantage `A` and the token's label `s`.
///
/// Any objective takes the result: it is an advantage a token, and for [`StepCredit::Mask`] a mask too.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StepCredit {
    /// Faithfulness-aware modulation: `A' = A M` with `M = alpha` where the verdict speaks against the sign of `A`
    /// (`A > 0` and `s < 1/2`, or `A <= 0` and `s > 1/2`) and 1 elsewhere. An answer ([`ANSWER`]) always has `M = 1`.
    Modulate {
        /// 0 takes the credit of unsupported steps away whole; 1 changes nothing; negative turns it over.
        alpha: f32,
        /// The same for supported steps of responses with `A <= 0`: negative credits valid partial derivations.
        /// `None`: `alpha`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alpha_failed: Option<f32>,
    },
    /// `A' = A` and the token stays in the mask where `s > threshold`; else `A' = 0` and it leaves the mask.
    Mask {
        /// One half for verdicts.
        #[serde(default = "half")]
        threshold: f32,
    },
    /// `A' = A s`.
    Scale {},
    /// `A' = A + weight s`: a reward of the step beside that of the response.
    Add {
        /// What a label of 1 is worth.
        weight: f32,
    },
    /// `A' = s`: labels that are step advantages already.
    Replace {},
}

fn half() -> f32 {
    0.5
}

/// What [`forward`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The advantages `A`.
    pub advantage: Advantages<'a>,
    /// The labels `s`, `[tokens]`.
    pub labels: &'a [f32],
    /// `[tokens]`, non-zero: live. Nothing else of a token that is not is read.
    pub mask: &'a [u8],
    /// `[sequences + 1]`, from 0 to `tokens`.
    pub offsets: &'a [i64],
}

/// Where [`forward`] writes, `[tokens]`.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// `A'`; 0 where masked.
    pub advantage: &'a mut [f32],
    /// The mask (0 or 1) without the tokens that [`StepCredit::Mask`] drops; `None`: not wanted.
    pub kept: Option<&'a mut [u8]>,
}

/// Live tokens by the sign of `A` and the verdict, and how many are left without credit. A label of exactly one half
/// has no verdict; an answer's is that of the sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Live tokens.
    pub live: u64,
    /// `A > 0`, supported.
    pub positive_valid: u64,
    /// `A > 0`, not supported.
    pub positive_invalid: u64,
    /// `A <= 0`, supported.
    pub negative_valid: u64,
    /// `A <= 0`, not supported.
    pub negative_invalid: u64,
    /// `A' = 0`.
    pub zero: u64,
    /// `A' = 0` and `A` was not: what the rule took away.
    pub zeroed: u64,
}

impl Counts {
    /// The share of live tokens with `A' = 0`; 0 when none is live.
    pub fn zero_share(&self) -> f64 {
        self.zero as f64 / self.live.max(1) as f64
    }
}

impl StepCredit {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for one that is not finite.
    pub fn check(&self) -> Result<()> {
        let (name, value) = match *self {
            StepCredit::Modulate { alpha, alpha_failed } if alpha.is_finite() => {
                ("alpha_failed", alpha_failed.unwrap_or(0.0))
            }
            StepCredit::Modulate { alpha, .. } => ("alpha", alpha),
            StepCredit::Mask { threshold } => ("threshold", threshold),
            StepCredit::Add { weight } => ("weight", weight),
            StepCredit::Scale {} | StepCredit::Replace {} => return Ok(()),
        };
        if !value.is_finite() {
            return Err(Error::invalid(format!(
                "step_credit: {name} is {value}; it must be finite"
            )));
        }
        Ok(())
    }

    /// `A'` of one token, and whether it stays in the mask.
    fn credit(&self, advantage: f32, label: f32) -> (f32, bool) {
        match *self {
            StepCredit::Modulate { alpha, alpha_failed } => {
                let verdict = verdict(advantage, label);
                let factor = match advantage > 0.0 {
                    true if verdict < 0.5 => alpha,
                    false if verdict > 0.5 => alpha_failed.unwrap_or(alpha),
                    _ => 1.0,
                };
                // + 0: alpha 0 times a negative advantage would be -0.
                (advantage * factor + 0.0, true)
            }
            StepCredit::Mask { threshold } => {
                let kept = label > threshold;
                (if kept { advantage } else { 0.0 }, kept)
            }
            StepCredit::Scale {} => (advantage * label + 0.0, true),
            StepCredit::Add { weight } => (advantage + weight * label, true),
            StepCredit::Replace {} => (label, true),
        }
    }
}

/// An answer has the verdict that keeps its advantage whole.
fn verdict(advantage: f32, label: f32) -> f32 {
    match label == ANSWER {
        true => f32::from(u8::from(advantage > 0.0)),
        false => label,
    }
}

/// The advantage of every token after its step has been judged.
///
/// # Shapes
/// As [`Inputs`] and [`Outputs`] say.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_index`] for lengths and offsets that do not fit, [`Error::is_invalid`] for a parameter
/// or a live label that is not finite. (On a device such a label raises a status bit and its token counts as masked.)
///
/// # Source
/// Modulation: FaithRL, arXiv 2602.03507, equation 10; `alpha` 0 is the paper's main setting, 0.75 its released script's.
pub fn forward(rule: &StepCredit, inputs: &Inputs<'_>, mut out: Outputs<'_>) -> Result<Counts> {
    rule.check()?;
    let tokens = inputs.labels.len();
    let offsets = offsets::checked("step_credit", "sequence", inputs.offsets, tokens)?;
    let (advantages, wanted) = match inputs.advantage {
        Advantages::PerToken(values) => (values.len(), tokens),
        Advantages::PerSequence(values) => (values.len(), offsets.len() - 1),
    };
    let lengths = [
        ("advantage", Some(advantages), wanted),
        ("mask", Some(inputs.mask.len()), tokens),
        ("output `advantage`", Some(out.advantage.len()), tokens),
        ("output `kept`", out.kept.as_ref().map(|kept| kept.len()), tokens),
    ];
    check_lengths(lengths, tokens, offsets.len() - 1)?;
    let live = |token: usize| inputs.mask[token] != 0;
    if let Some(token) = (0..tokens).find(|t| live(*t) && !inputs.labels[*t].is_finite()) {
        return Err(Error::invalid(format!(
            "step_credit: the label of token {token} is {}",
            inputs.labels[token]
        )));
    }
    let mut counts = Counts::default();
    for (sequence, bounds) in offsets.windows(2).enumerate() {
        for token in bounds[0]..bounds[1] {
            let mut credited = (0.0, false);
            if live(token) {
                let advantage = match inputs.advantage {
                    Advantages::PerToken(values) => values[token],
                    Advantages::PerSequence(values) => values[sequence],
                };
                credited = rule.credit(advantage, inputs.labels[token]);
                counts.add(advantage, verdict(advantage, inputs.labels[token]), credited.0);
            }
            out.advantage[token] = credited.0;
            if let Some(kept) = out.kept.as_deref_mut() {
                kept[token] = u8::from(credited.1);
            }
        }
    }
    Ok(counts)
}

impl Counts {
    fn add(&mut self, advantage: f32, verdict: f32, credited: f32) {
        let (good, bad) = (advantage > 0.0, advantage <= 0.0);
        self.live += 1;
        self.positive_valid += u64::from(good && verdict > 0.5);
        self.positive_invalid += u64::from(good && verdict < 0.5);
        self.negative_valid += u64::from(bad && verdict > 0.5);
        self.negative_invalid += u64::from(bad && verdict < 0.5);
        self.zero += u64::from(credited == 0.0);
        self.zeroed += u64::from(credited == 0.0 && advantage != 0.0);
    }
}

/// Compares lengths that are there with the wanted ones.
pub(super) fn check_lengths<const N: usize>(
    lengths: [(&str, Option<usize>, usize); N],
    tokens: usize,
    sequences: usize,
) -> Result<()> {
    for (name, got, want) in lengths {
        if let Some(got) = got.filter(|got| *got != want) {
            return Err(Error::shape(format!(
                "step_credit: {name} has {got} elements, not {want} ({tokens} tokens in {sequences} sequences)"
            )));
        }
    }
    Ok(())
}
