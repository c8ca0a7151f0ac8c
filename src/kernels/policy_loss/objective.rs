//! The objective as data: what a recipe names, checked before it is used. No arithmetic on tokens here.

use super::aggregation::Aggregation;
use super::kl::Kl;
use super::replay::Replay;
use super::surrogate::{Drift, ImportanceLevel, LogRatio, RatioShape, Surrogate, together};
use super::within;
use crate::error::Result;
use crate::kernels::token_selection::Selection;
use serde::Serialize;

/// A policy-gradient objective: everything about the loss that does not change from step to step.
///
/// `loss = Σ c_i (surrogate_it · weight_it + drift.coefficient · drift_it + kl.coefficient · kl_it)
/// - entropy_coefficient Σ e_i · entropy_it` over the live tokens `t` of the sequences `i`, where an [`Aggregation`]
/// each gives the `c_i` and the `e_i`.
///
/// In a settings file it is the name of a preset (`objective = "gspo"`), or a table of its fields, or both: a table with
/// `preset = "gspo"` whose other fields replace the preset's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Objective {
    /// The per-token loss.
    pub surrogate: Surrogate,
    /// What a ratio compares.
    pub importance_level: ImportanceLevel,
    /// What stands for the ratio.
    pub ratio_shape: RatioShape,
    /// What keeps `exp` of the log ratio finite.
    pub log_ratio: LogRatio,
    /// What replayed tokens have in place of the surrogate; needed when a call marks such tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Tokens that a step before the loss picks; `None`: all are treated alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selection: Option<Selection>,
    /// Sequences whose mean of `sampler - logprob` exceeds it lose the surrogate of their tokens with `A < 0`
    /// (TRL `off_policy_mask_threshold`, DeepSeek-V3.2). They still count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off_policy_threshold: Option<f32>,
    /// CPGD's policy drift.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// Penalty for leaving a reference policy; `None`: the reference is not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<Kl>,
    /// Weight of the entropy bonus; 0: entropies are only reported.
    pub entropy_coefficient: f32,
    /// How token losses become one number.
    pub aggregation: Aggregation,
    /// How entropies become one number; `None`: as losses do (verl). TRL always takes their mean over tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_aggregation: Option<Aggregation>,
}

impl Objective {
    /// Checks every number in it, and that its parts go together.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::error::Error::is_invalid): naming the field, for a value that is not finite or
    /// outside its range; naming both, for two parts that make no sense together.
    pub fn check(&self) -> Result<()> {
        self.surrogate.check()?;
        self.ratio_shape.check()?;
        self.replay.as_ref().map_or(Ok(()), Replay::check)?;
        self.selection.as_ref().map_or(Ok(()), Selection::check)?;
        self.drift.map_or(Ok(()), Drift::check)?;
        if let Some(threshold) = self.off_policy_threshold {
            within("off_policy_threshold", threshold, -f32::MAX, f32::MAX)?;
        }
        if let Some(kl) = &self.kl {
            within("kl.coefficient", kl.coefficient, 0.0, f32::MAX)?;
        }
        within("entropy_coefficient", self.entropy_coefficient, -f32::MAX, f32::MAX)?;
        let of_kl = self.kl.as_ref().and_then(|kl| kl.aggregation.as_ref());
        let of_entropy = self.entropy_aggregation.as_ref();
        for aggregation in [Some(&self.aggregation), of_entropy, of_kl] {
            if let Some(length) = aggregation.and_then(Aggregation::length) {
                within("aggregation.length", length, f32::MIN_POSITIVE, f32::MAX)?;
            }
        }
        self.check_levels()?;
        self.check_selection()?;
        self.check_kl()
    }

    /// A token's gradient depends on its own log-prob and entropy, and beside them only on what is known before any log-prob:
    /// masks, marks, advantages, old log-probs. Then a loss straight from hidden states can turn the logits of some rows into
    /// gradients before it has seen the next rows. Ratios of sequences and the off-policy mask need all log-probs first.
    pub fn is_token_by_token(&self) -> bool {
        self.is_of_tokens() && self.off_policy_threshold.is_none()
    }

    /// The part, as a message names it, that makes a sequence's loss have one advantage; `None`: it may have one a token.
    pub fn one_advantage_a_sequence(&self) -> Option<&'static str> {
        match (&self.surrogate, self.importance_level) {
            (Surrogate::Gmpo { .. }, _) => Some("surrogate `gmpo`"),
            (_, ImportanceLevel::Sequence) => Some("importance_level `sequence`"),
            _ => None,
        }
    }

    /// The ratio is a token's own.
    fn is_of_tokens(&self) -> bool {
        self.importance_level == ImportanceLevel::Token && !self.surrogate.is_of_sequences()
    }

    /// The part that makes ratios those of sequences, as a message names it.
    fn sequence_part(&self) -> String {
        if self.surrogate.is_of_sequences() {
            format!("surrogate `{}`", self.surrogate.name())
        } else {
            format!("importance_level `{}`", self.importance_level.name())
        }
    }

    fn check_levels(&self) -> Result<()> {
        let surrogate = format!("surrogate `{}`", self.surrogate.name());
        let has_level = matches!(
            self.surrogate,
            Surrogate::PpoClip { .. }
                | Surrogate::Ratio {}
                | Surrogate::Cispo { .. }
                | Surrogate::Sapo { .. }
        );
        if self.importance_level != ImportanceLevel::Token && !has_level {
            let level = format!("importance_level `{}`", self.importance_level.name());
            let why = "its loss has no ratio whose level could be chosen";
            return Err(together(&level, &surrogate, why));
        }
        let shaped = self.ratio_shape != RatioShape::Plain;
        if shaped && !matches!(self.surrogate, Surrogate::PpoClip { .. } | Surrogate::Ratio {}) {
            let why = "only `ppo-clip` and `ratio` have a ratio to reshape";
            return Err(together("ratio_shape", &surrogate, why));
        }
        if !self.is_of_tokens() {
            let of = self.sequence_part();
            let why = "it needs the ratio of each token";
            for (part, given) in [
                ("ratio_shape", shaped),
                ("replay", self.replay.is_some()),
                ("drift", self.drift.is_some()),
            ] {
                if given {
                    return Err(together(part, &of, why));
                }
            }
        }
        for (part, aggregation) in [
            ("aggregation", Some(&self.aggregation)),
            ("entropy_aggregation", self.entropy_aggregation.as_ref()),
            ("kl.aggregation", self.kl.as_ref().and_then(|kl| kl.aggregation.as_ref())),
        ] {
            if matches!(aggregation, Some(Aggregation::SequenceLength { .. }))
                && self.is_of_tokens()
            {
                let part = format!("{part} `sequence-length`");
                let level = "importance_level `token`";
                let why = "it weighs the loss of a whole sequence by its length (LUSPO)";
                return Err(together(&part, level, why));
            }
        }
        Ok(())
    }

    fn check_selection(&self) -> Result<()> {
        let Some(selection) = &self.selection else { return Ok(()) };
        let part = format!("selection `{}`", selection.name());
        let surrogate = format!("surrogate `{}`", self.surrogate.name());
        let is_clip = matches!(self.surrogate, Surrogate::PpoClip { .. });
        match selection {
            Selection::TopEntropy { .. } => {
                if matches!(self.surrogate, Surrogate::Gmpo { .. }) {
                    let why = "every token is in the sequence's geometric mean";
                    return Err(together(&part, &surrogate, why));
                }
                return Ok(());
            }
            Selection::ClipCov { .. } if !is_clip => {
                let why = "its candidates are the tokens that `ppo-clip` leaves alone";
                return Err(together(&part, &surrogate, why));
            }
            Selection::KlCov { .. } if !is_clip && self.surrogate != (Surrogate::Ratio {}) => {
                let why = "the penalty stands beside `ratio` or `ppo-clip`";
                return Err(together(&part, &surrogate, why));
            }
            _ => {}
        }
        if !self.is_of_tokens() {
            return Err(together(
                &part,
                &self.sequence_part(),
                "it picks tokens by their own ratio",
            ));
        }
        if self.ratio_shape != RatioShape::Plain {
            return Err(together(&part, "ratio_shape", "it picks tokens by their plain ratio"));
        }
        Ok(())
    }

    fn check_kl(&self) -> Result<()> {
        let Some(kl) = &self.kl else { return Ok(()) };
        if kl.bias_correction && !self.is_of_tokens() {
            let why = "the estimate is multiplied by the ratio of its token";
            return Err(together("kl.bias_correction", &self.sequence_part(), why));
        }
        if kl.bias_correction && kl.straight_through {
            let why = "one of the two must say what the gradient is";
            return Err(together("kl.bias_correction", "kl.straight_through", why));
        }
        Ok(())
    }
}
