//! What the peers' settings ask for, in the library's words.

use crate::case::Case;
use crate::policy_loss::Batch;
use crate::rollout_correction;
use gradstone::kernels::policy_loss::{
    Aggregation, Clamp, ImportanceLevel, Kl, KlEstimator, LogRatio, Objective, Rows, Surrogate,
    Totals,
};
use gradstone::kernels::rollout_correction::Inputs;
use gradstone::kernels::token_selection::Selection;

/// What a peer's config asks for, in the library's words.
pub struct Ask {
    pub objective: Objective,
    pub totals: Totals,
    pub counts: Counts,
}

/// How a peer counts what is clipped.
#[derive(Clone, Copy, PartialEq)]
pub enum Counts {
    /// Of tokens.
    Tokens,
    /// Of rows, empty ones too: TRL's ratios of sequences.
    Rows,
    /// `clipfrac` is of positive advantages: GMPO (and `clipfrac_lower` of negative ones), CISPO of TRL and Liger.
    Positive,
    /// `clipfrac` is the share of tokens that Clip-Cov picked.
    Dropped,
}

fn ppo_clip(case: &mut Case) -> Result<Surrogate, String> {
    Ok(Surrogate::PpoClip {
        clip_low: case.config.need("clip_low")? as f32,
        clip_high: case.config.need("clip_high")? as f32,
        dual_clip: case.config.number("clip_c")?.map(|c| c as f32),
        delta: case.config.number("delta")?.map(|delta| delta as f32),
    })
}

fn penalty(case: &mut Case, clamp: Clamp, bias_correction: bool) -> Result<Option<Kl>, String> {
    let coefficient = case.config.number("kl_coef")?.unwrap_or(0.0) as f32;
    let name = case.config.text("kl_estimator")?.unwrap_or_else(|| "k3".to_string());
    let estimator = match name.trim_end_matches('+') {
        "k1" | "kl" => KlEstimator::K1,
        "k2" | "mse" => KlEstimator::K2,
        "k3" | "low_var_kl" => KlEstimator::K3,
        "abs" => KlEstimator::Abs,
        _ => return Err(format!("config field `kl_estimator` has the unknown value `{name}`")),
    };
    let straight_through = name.ends_with('+');
    let referred = ["in.ref_logp", "in.ref_hidden"].iter().any(|name| case.has(name));
    let kl = Kl { clamp, bias_correction, straight_through, ..Kl::new(estimator, coefficient) };
    Ok((coefficient != 0.0 || referred).then_some(kl))
}

pub fn verl(case: &mut Case, surrogate: &str, batch: &mut Batch) -> Result<Ask, String> {
    let rows = Rows::NonEmpty;
    let known =
        ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"];
    let mode = case.config.one_of("aggregation", &known)?;
    let constant = case.config.number("loss_scale_factor")?.unwrap_or(batch.length as f64) as f32;
    let aggregation = match mode.as_str() {
        "token-mean" => Aggregation::TokenMean {},
        "seq-mean-token-sum" => Aggregation::SequenceMeanTokenSum { rows, length: 1.0 },
        "seq-mean-token-mean" => Aggregation::SequenceMeanTokenMean { rows },
        _ => Aggregation::TokenSum { length: constant },
    };
    let ranks = case.config.number("dp_size")?.unwrap_or(1.0);
    let totals = Totals {
        tokens: case.config.number("batch_num_tokens")?,
        sequences: case.config.number("global_batch_size")?,
        // The peer divides the sum by the constant alone.
        scale: if mode == "seq-mean-token-sum-norm" { 1.0 } else { ranks },
    };
    let kl = penalty(case, Clamp::Clamped, false)?;
    // Some losses have an aggregation of their own; the penalty beside them is aggregated as asked.
    let kl_as_asked = kl.clone().map(|kl| Kl { aggregation: Some(aggregation.clone()), ..kl });
    let base = Objective { kl, aggregation, ..Objective::default() };
    let means = Aggregation::SequenceMeanTokenMean { rows };
    let unclamped = LogRatio::Unclamped;
    let mut counts = Counts::Tokens;
    let objective = match surrogate {
        "vanilla" => Objective { surrogate: ppo_clip(case)?, ..base },
        "bypass_mode" => {
            let mut bounds = ppo_clip(case)?;
            let asked = rollout_correction::read(case)?;
            // The old policy is the sampler.
            let found = asked.apply(&Inputs {
                policy_logprob: &batch.logprob,
                sampler_logprob: Some(&batch.old_logprob),
                mask: &batch.mask,
                offsets: &batch.offsets(),
            })?;
            (batch.mask, batch.weight) = (found.mask, found.weight);
            if asked.is_reinforce {
                bounds = Surrogate::Reinforce {};
            }
            // The peer's metric of REINFORCE is not clamped.
            let log_ratio = if asked.is_reinforce { unclamped } else { base.log_ratio };
            Objective { surrogate: bounds, log_ratio, ..base }
        }
        "gspo" => Objective {
            surrogate: ppo_clip(case)?,
            // The gradient of each token, with its own weight and advantage.
            importance_level: ImportanceLevel::SequenceToken,
            aggregation: means,
            kl: kl_as_asked,
            ..base
        },
        "sapo" => Objective {
            surrogate: Surrogate::Sapo {
                temperature_positive: case.config.need("tau_pos")? as f32,
                temperature_negative: case.config.need("tau_neg")? as f32,
            },
            aggregation: means,
            kl: kl_as_asked,
            ..base
        },
        "gpg" => Objective { surrogate: Surrogate::Reinforce {}, ..base },
        "cispo" => {
            let (low, high) = (case.config.need("clip_low")?, case.config.need("clip_high")?);
            // No ratio is below 0.
            let least = Some((1.0 - low as f32).max(0.0));
            let surrogate = Surrogate::Cispo { least, most: 1.0 + high as f32 };
            Objective { surrogate, ..base }
        }
        "geo_mean" => {
            counts = Counts::Positive;
            Objective {
                surrogate: Surrogate::Gmpo {
                    clip_low: case.config.need("clip_low")? as f32,
                    clip_high: case.config.need("clip_high")? as f32,
                },
                log_ratio: unclamped,
                aggregation: Aggregation::SequenceMeanTokenMean { rows: Rows::All },
                kl: kl_as_asked,
                ..base
            }
        }
        "clip_cov" => {
            counts = Counts::Dropped;
            let selection = Selection::ClipCov {
                ratio: case.config.need("clip_cov_ratio")?,
                least: case.config.need("clip_cov_lb")? as f32,
                most: case.config.need("clip_cov_ub")? as f32,
            };
            let (surrogate, selection) = (ppo_clip(case)?, Some(selection));
            Objective { surrogate, log_ratio: unclamped, selection, ..base }
        }
        "kl_cov" => {
            let selection = Some(Selection::KlCov {
                ratio: case.config.need("kl_cov_ratio")?,
                coefficient: case.config.need("ppo_kl_coef")? as f32,
            });
            let surrogate = Surrogate::Ratio {};
            Objective { surrogate, log_ratio: unclamped, selection, ..base }
        }
        _ => return Err(format!("unknown surrogate `{surrogate}` of verl")),
    };
    Ok(Ask { objective, totals, counts })
}

/// TRL, and Liger which follows it without naming the aggregation.
pub fn trl(case: &mut Case, peer: &str, loss: &str, batch: usize) -> Result<Ask, String> {
    let rows = Rows::All;
    let steps = case.config.number("grad_accum_steps")?.unwrap_or(1.0);
    let items = case.config.number("num_items_in_batch")?;
    let longest = case.config.number("max_completion_length")?;
    let over_items = matches!(loss, "dapo" | "cispo" | "vespo");
    let means = Aggregation::SequenceMeanTokenMean { rows };
    let (name, aggregation) = match loss {
        "grpo" => ("seq-mean-token-mean over all B rows (a fully masked row counts in B)", means),
        "sapo" => ("seq-mean-token-mean over all B rows", means),
        "bnpo" => ("token-mean", Aggregation::TokenMean {}),
        "luspo" => ("mean over elements of loss*seq_len", Aggregation::SequenceLength { rows }),
        "dr_grpo" => {
            let length = longest.ok_or("dr_grpo without max_completion_length")? as f32;
            let aggregation = Aggregation::SequenceMeanTokenSum { rows, length };
            ("sum/(B*max_completion_length)", aggregation)
        }
        _ if over_items => ("sum/num_items_in_batch", Aggregation::TokenMean {}),
        _ => return Err(format!("unknown surrogate `{loss}` of peer `{peer}`")),
    };
    let stated = case.config.text("aggregation")?;
    if stated.as_deref().is_some_and(|stated| stated != name) || (peer == "trl" && stated.is_none())
    {
        return Err(format!("aggregation {stated:?} is not the one of `{loss}`"));
    }
    let totals = Totals {
        tokens: items.filter(|_| over_items),
        sequences: Some(batch as f64),
        scale: if over_items { 1.0 } else { 1.0 / steps },
    };
    let entropy_coefficient = case.config.number("entropy_coef")?.unwrap_or(0.0) as f32;
    let bias_correction = case.config.flag("use_bias_correction_kl")?.unwrap_or(false);
    let level = case.config.one_of("importance_sampling_level", &["token", "sequence"])?;
    let of_sequences = level == "sequence";
    let mut number = |name: &str, default: f64| -> Result<f32, String> {
        Ok(case.config.number(name)?.unwrap_or(default) as f32)
    };
    let surrogate = match loss {
        "sapo" => Surrogate::Sapo {
            temperature_positive: number("sapo_temperature_pos", 1.0)?,
            temperature_negative: number("sapo_temperature_neg", 1.05)?,
        },
        "vespo" => Surrogate::Vespo {
            k_positive: number("vespo_k_pos", 2.0)?,
            lambda_positive: number("vespo_lambda_pos", 3.0)?.max(1e-4),
            k_negative: number("vespo_k_neg", 3.0)?,
            lambda_negative: number("vespo_lambda_neg", 2.0)?.max(1e-4),
        },
        // The upper bound alone, of the ratio itself.
        "cispo" => Surrogate::Cispo { least: None, most: number("clip_high", 0.0)? },
        _ => ppo_clip(case)?,
    };
    // What these losses do not read is there all the same.
    for name in ["clip_low", "clip_high"] {
        case.config.number(name)?;
    }
    let fraction = case.config.number("top_entropy_quantile")?.unwrap_or(1.0);
    let threshold = case.config.number("off_policy_mask_threshold")?;
    let objective = Objective {
        surrogate,
        importance_level: if of_sequences {
            ImportanceLevel::Sequence
        } else {
            ImportanceLevel::Token
        },
        log_ratio: LogRatio::Unclamped,
        selection: (fraction < 1.0).then_some(Selection::TopEntropy { fraction }),
        off_policy_threshold: threshold.map(|threshold| threshold as f32),
        kl: penalty(case, Clamp::Unclamped, bias_correction)?,
        entropy_coefficient,
        aggregation,
        // The peer's entropy is a mean over tokens, whatever its loss.
        entropy_aggregation: Some(Aggregation::TokenMean {}),
        ..Objective::default()
    };
    let counts = match loss {
        "cispo" => Counts::Positive,
        _ if of_sequences && peer == "trl" => Counts::Rows,
        _ => Counts::Tokens,
    };
    Ok(Ask { objective, totals, counts })
}

pub fn faithrl(case: &mut Case) -> Result<Ask, String> {
    case.config.one_of("aggregation", &["token-mean"])?;
    let objective = Objective {
        surrogate: ppo_clip(case)?,
        log_ratio: LogRatio::Unclamped,
        ..Objective::default()
    };
    Ok(Ask { objective, totals: Totals::default(), counts: Counts::Tokens })
}
