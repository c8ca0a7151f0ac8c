//! Objectives by name, each with its source, and the reading of an objective from a settings file.

use super::aggregation::{Aggregation, Rows};
use super::kl::{Clamp, Estimator, Kl};
use super::objective::Objective;
use super::replay::{Replay, ReplayShape};
use super::surrogate::{Drift, ImportanceLevel, LogRatio, RatioShape, Surrogate};
use crate::error::{Error, Result};
use crate::kernels::token_selection::Selection;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// An objective with a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What a settings file calls it.
    pub name: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// Where its form and its numbers come from.
    pub source: &'static str,
    make: fn() -> Objective,
}

impl Preset {
    /// The objective.
    pub fn objective(&self) -> Objective {
        (self.make)()
    }
}

const TRL_ROWS: Aggregation = Aggregation::SequenceMeanTokenMean { rows: Rows::All };
const VERL_ROWS: Aggregation = Aggregation::SequenceMeanTokenMean { rows: Rows::NonEmpty };

fn of(surrogate: Surrogate, aggregation: Aggregation) -> Objective {
    Objective { surrogate, aggregation, ..Objective::default() }
}

fn exgrpo(shape: ReplayShape) -> Objective {
    Objective {
        // Mixed batches drop the clip of fresh tokens (`loss_remove_clip`).
        surrogate: Surrogate::Ratio {},
        replay: Some(Replay { shape, ..Replay::default() }),
        entropy_coefficient: 0.001,
        aggregation: Aggregation::TokenSum { length: 8192.0 },
        ..Objective::default()
    }
}

/// Every preset, in the order in which they are listed.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "ppo",
        summary: "clipped ratio, dual clip at 3, mean over tokens",
        source: "arXiv 1707.06347, dual clip arXiv 1912.09729; verl's defaults",
        make: || {
            let (clip_low, clip_high) = (0.2, 0.2);
            let dual_clip = Some(3.0);
            of(
                Surrogate::PpoClip { clip_low, clip_high, dual_clip, delta: None },
                Aggregation::TokenMean {},
            )
        },
    },
    Preset {
        name: "grpo",
        summary: "clipped ratio, mean of sequence means, k3 to a reference at 0.04",
        source: "arXiv 2402.03300; TRL loss_type grpo",
        make: || Objective {
            log_ratio: LogRatio::Unclamped,
            kl: Some(Kl { clamp: Clamp::Unclamped, ..Kl::new(Estimator::K3, 0.04) }),
            ..of(Surrogate::clip(0.2, 0.2), TRL_ROWS)
        },
    },
    Preset {
        name: "dr_grpo",
        summary: "clipped ratio, sums over a constant length (set aggregation.length)",
        source: "arXiv 2503.20783; TRL loss_type dr_grpo",
        make: || {
            let aggregation = Aggregation::SequenceMeanTokenSum { rows: Rows::All, length: 256.0 };
            Objective {
                log_ratio: LogRatio::Unclamped,
                ..of(Surrogate::clip(0.2, 0.2), aggregation)
            }
        },
    },
    Preset {
        name: "dapo",
        summary: "clip-higher 0.2 / 0.28, mean over the batch's tokens, no reference",
        source: "arXiv 2503.14476; TRL loss_type dapo",
        make: || Objective {
            log_ratio: LogRatio::Unclamped,
            ..of(Surrogate::clip(0.2, 0.28), Aggregation::TokenMean {})
        },
    },
    Preset {
        name: "gspo",
        summary: "clipped ratio of a sequence, 3e-4 / 4e-4",
        source: "arXiv 2507.18071; verl gspo, TRL importance_sampling_level sequence",
        make: || Objective {
            importance_level: ImportanceLevel::Sequence,
            ..of(Surrogate::clip(3e-4, 4e-4), VERL_ROWS)
        },
    },
    Preset {
        name: "gspo_token",
        summary: "gspo with the gradient of tokens: an advantage a token is allowed",
        source: "arXiv 2507.18071, section 4.3",
        make: || Objective {
            importance_level: ImportanceLevel::SequenceToken,
            ..of(Surrogate::clip(3e-4, 4e-4), VERL_ROWS)
        },
    },
    Preset {
        name: "cispo",
        summary: "clipped importance weight in 0.8..=1.2 on every token's log-prob",
        source: "arXiv 2506.13585; verl cispo",
        make: || of(Surrogate::Cispo { least: Some(0.8), most: 1.2 }, Aggregation::TokenMean {}),
    },
    Preset {
        name: "cispo_minimax",
        summary: "importance weight of at most 5, no lower bound",
        source: "arXiv 2506.13585; TRL loss_type cispo with epsilon_high 5",
        make: || Objective {
            log_ratio: LogRatio::Unclamped,
            ..of(Surrogate::Cispo { least: None, most: 5.0 }, Aggregation::TokenMean {})
        },
    },
    Preset {
        name: "gmpo",
        summary: "geometric mean of ratios clipped in log space at 0.4",
        source: "arXiv 2507.20673; verl geo_mean",
        make: || Objective {
            log_ratio: LogRatio::Unclamped,
            ..of(Surrogate::Gmpo { clip_low: 0.4, clip_high: 0.4 }, TRL_ROWS)
        },
    },
    Preset {
        name: "sapo",
        summary: "sigmoid gate of the ratio in place of the clip, temperatures 1 / 1.05",
        source: "arXiv 2511.20347; verl sapo, TRL loss_type sapo",
        make: || {
            let gate = Surrogate::Sapo { temperature_positive: 1.0, temperature_negative: 1.05 };
            of(gate, VERL_ROWS)
        },
    },
    Preset {
        name: "gpg",
        summary: "plain policy gradient, mean over tokens",
        source: "arXiv 2504.02546; verl gpg",
        make: || of(Surrogate::Reinforce {}, Aggregation::TokenMean {}),
    },
    Preset {
        name: "reinforce",
        summary: "plain policy gradient, sums of tokens over sequences",
        source: "Williams 1992; verl's bypass mode with loss_type reinforce",
        make: || {
            let rows = Rows::NonEmpty;
            of(Surrogate::Reinforce {}, Aggregation::SequenceMeanTokenSum { rows, length: 1.0 })
        },
    },
    Preset {
        name: "cpgd",
        summary: "clipped log-prob without a ratio, policy drift at 0.001",
        source: "arXiv 2505.12504; siiRL cpgd",
        make: || Objective {
            drift: Some(Drift::default()),
            ..of(Surrogate::Cpgd { clip_low: 0.2, clip_high: 0.2 }, Aggregation::TokenMean {})
        },
    },
    Preset {
        name: "clip_cov",
        summary: "ppo-clip; a random few of the tokens of high covariance lose their gradient",
        source: "arXiv 2505.22617; verl clip_cov",
        make: || Objective {
            log_ratio: LogRatio::Unclamped,
            selection: Some(Selection::ClipCov { ratio: 2e-4, least: 1.0, most: 5.0 }),
            ..of(Surrogate::clip(0.2, 0.2), Aggregation::TokenMean {})
        },
    },
    Preset {
        name: "kl_cov",
        summary: "unclipped ratio; the tokens of highest covariance pay |log ratio|",
        source: "arXiv 2505.22617; verl kl_cov",
        make: || Objective {
            log_ratio: LogRatio::Unclamped,
            selection: Some(Selection::KlCov { ratio: 2e-4, coefficient: 1.0 }),
            ..of(Surrogate::Ratio {}, Aggregation::TokenMean {})
        },
    },
    Preset {
        name: "vespo",
        summary: "log-prob weighed by a gamma shape of the whole sequence's ratio",
        source: "arXiv 2602.10693; TRL loss_type vespo: k 2 / 3, lambda 3 / 2",
        make: || Objective {
            ..of(
                Surrogate::Vespo {
                    k_positive: 2.0,
                    lambda_positive: 3.0,
                    k_negative: 3.0,
                    lambda_negative: 2.0,
                },
                Aggregation::TokenMean {},
            )
        },
    },
    Preset {
        name: "luspo",
        summary: "gspo whose sequences weigh by their length",
        source: "arXiv 2602.05261, section 5.1; TRL loss_type luspo",
        make: || Objective {
            importance_level: ImportanceLevel::Sequence,
            log_ratio: LogRatio::Unclamped,
            ..of(Surrogate::clip(2e-3, 2.5e-3), Aggregation::SequenceLength { rows: Rows::All })
        },
    },
    Preset {
        name: "exgrpo",
        summary: "unclipped ratio; replayed tokens by w / (w + 0.1); sums over a constant length",
        source: "arXiv 2510.02245; the release's run_exgrpo.sh",
        make: || exgrpo(ReplayShape::Sigmoid { beta: 0.1, gain: 1.0 }),
    },
    Preset {
        name: "exgrpo_balanced",
        summary: "exgrpo with gain (1 + beta)^2 / beta: a replayed token at ratio 1 counts as a fresh one",
        source: "exgrpo; the gain is ours",
        make: || exgrpo(ReplayShape::balanced(0.1)),
    },
    Preset {
        name: "luffy",
        summary: "clipped ratio; replayed tokens by p / (p + 0.1) of their probability",
        source: "arXiv 2504.14945; the release's defaults",
        make: || Objective {
            replay: Some(Replay { ratio: super::ReplayRatio::Probability, ..Replay::default() }),
            ..of(Surrogate::clip(0.2, 0.2), Aggregation::TokenMean {})
        },
    },
];

impl Objective {
    /// The objective of a name in [`PRESETS`].
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a name that is none, with the names there are.
    pub fn preset(name: &str) -> Result<Objective> {
        match PRESETS.iter().find(|preset| preset.name == name) {
            Some(preset) => Ok(preset.objective()),
            None => {
                let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
                Err(Error::invalid(format!(
                    "no objective is called `{name}`; there are {}",
                    names.join(", ")
                )))
            }
        }
    }
}

/// The fields of an objective as a settings file has them.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    preset: Option<String>,
    surrogate: Option<Surrogate>,
    importance_level: Option<ImportanceLevel>,
    ratio_shape: Option<RatioShape>,
    log_ratio: Option<LogRatio>,
    replay: Option<Replay>,
    selection: Option<Selection>,
    off_policy_threshold: Option<f32>,
    drift: Option<Drift>,
    kl: Option<Kl>,
    entropy_coefficient: Option<f32>,
    aggregation: Option<Aggregation>,
    entropy_aggregation: Option<Aggregation>,
}

impl Fields {
    fn objective(self) -> Result<Objective> {
        let base = match &self.preset {
            Some(name) => Objective::preset(name)?,
            None => Objective::default(),
        };
        Ok(Objective {
            surrogate: self.surrogate.unwrap_or(base.surrogate),
            importance_level: self.importance_level.unwrap_or(base.importance_level),
            ratio_shape: self.ratio_shape.unwrap_or(base.ratio_shape),
            log_ratio: self.log_ratio.unwrap_or(base.log_ratio),
            replay: self.replay.or(base.replay),
            selection: self.selection.or(base.selection),
            off_policy_threshold: self.off_policy_threshold.or(base.off_policy_threshold),
            drift: self.drift.or(base.drift),
            kl: self.kl.or(base.kl),
            entropy_coefficient: self.entropy_coefficient.unwrap_or(base.entropy_coefficient),
            aggregation: self.aggregation.unwrap_or(base.aggregation),
            entropy_aggregation: self.entropy_aggregation.or(base.entropy_aggregation),
        })
    }
}

impl<'de> Deserialize<'de> for Objective {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Objective, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = Objective;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of an objective or a table of its fields")
            }

            fn visit_str<E: serde::de::Error>(
                self,
                name: &str,
            ) -> std::result::Result<Objective, E> {
                Objective::preset(name).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                map: A,
            ) -> std::result::Result<Objective, A::Error> {
                let fields = Fields::deserialize(MapAccessDeserializer::new(map))?;
                fields.objective().map_err(A::Error::custom)
            }
        }
        from.deserialize_any(NameOrTable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_sound_and_reads_back() {
        for (i, preset) in PRESETS.iter().enumerate() {
            let objective = Objective::preset(preset.name).unwrap();
            objective.check().unwrap();
            assert!(PRESETS[..i].iter().all(|other| other.name != preset.name));
            let text = toml::to_string(&objective).unwrap();
            assert_eq!(toml::from_str::<Objective>(&text).unwrap(), objective, "{text}");
        }
        let error = Objective::preset("gpro").unwrap_err().to_string();
        assert!(error.contains("`gpro`") && error.contains("grpo, dr_grpo"), "{error}");
    }

    #[test]
    fn a_name_a_table_or_both() {
        #[derive(Deserialize)]
        struct Holder {
            objective: Objective,
        }
        let read = |text: &str| toml::from_str::<Holder>(text).map(|holder| holder.objective);
        assert_eq!(read("objective = 'gspo'").unwrap(), Objective::preset("gspo").unwrap());
        let mixed = read("[objective]\npreset = 'grpo'\nentropy_coefficient = 0.5").unwrap();
        let want = Objective { entropy_coefficient: 0.5, ..Objective::preset("grpo").unwrap() };
        assert_eq!(mixed, want);
        assert_eq!(read("objective = {}").unwrap(), Objective::default());
        assert!(read("objective = 'gpro'").unwrap_err().to_string().contains("dr_grpo"));
        assert!(read("[objective]\npreset = 'gspo'\nclip = 1").is_err());
        assert!(read("objective = 3").unwrap_err().to_string().contains("name of an objective"));
    }
}
