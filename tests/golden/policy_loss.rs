//! Policy losses on padded `[B, T]` tensors, which are packed sequences with a mask here.

use crate::case::{Array, Case, Outcome};
use crate::rollout_correction;
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Clamp, Gradients, ImportanceLevel, Inputs, Kl, KlEstimator, LogRatio,
    Metrics, Objective, Rows, Surrogate, Totals, forward_backward,
};
use gradstone::kernels::rollout_correction::Inputs as CorrectionInputs;
use gradstone::kernels::token_selection::{self, Selection};

/// Every field that a case of this operation may have.
const FIELDS: &[&str] = &[
    "aggregation",
    "batch_num_tokens",
    "clip_c",
    "clip_cov_lb",
    "clip_cov_ratio",
    "clip_cov_ub",
    "clip_high",
    "clip_low",
    "compute_dtype",
    "delta",
    "dp_size",
    "entropy_coef",
    "full_masked",
    "fully_masked_row",
    "global_batch_size",
    "grad_accum_steps",
    "holes",
    "importance_sampling_level",
    "kind",
    "kl_coef",
    "kl_cov_ratio",
    "kl_estimator",
    "loss_scale_factor",
    "mask_holes",
    "max_completion_length",
    "num_items_in_batch",
    "off_policy_mask_threshold",
    "peer",
    "ppo_kl_coef",
    "rollout_correction",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "scale",
    "surrogate",
    "tau_neg",
    "tau_pos",
    "top_entropy_quantile",
    "use_bias_correction_kl",
    "vespo_k_neg",
    "vespo_k_pos",
    "vespo_lambda_neg",
    "vespo_lambda_pos",
];

/// What a peer's config asks for, in the library's words.
struct Ask {
    objective: Objective,
    totals: Totals,
    counts: Counts,
}

/// How a peer counts what is clipped.
#[derive(Clone, Copy, PartialEq)]
enum Counts {
    /// Of tokens.
    Tokens,
    /// Of rows, empty ones too: TRL's ratios of sequences.
    Rows,
    /// `clipfrac` is of positive advantages: GMPO (and `clipfrac_lower` of negative ones), CISPO of TRL and Liger.
    Positive,
    /// `clipfrac` is the share of tokens that Clip-Cov picked.
    Dropped,
}

pub fn run(case: &mut Case) -> Result<Outcome, String> {
    case.config.check_names(FIELDS)?;
    let surrogate = case.config.text("surrogate")?.ok_or("no surrogate is named")?;
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    case.config.one_of("kind", &["normal", "extreme", "onpolicy"])?;
    // How the inputs were made; the inputs themselves say the same.
    for name in ["fully_masked_row", "full_masked", "mask_holes", "holes"] {
        case.config.flag(name)?;
    }
    case.config.number("scale")?;
    case.config.one_of("importance_sampling_level", &["token", "sequence"])?;

    let mut batch = Batch::read(case)?;
    let peer = case.config.text("peer")?.ok_or("no peer is named")?;
    let ask = match (peer.as_str(), surrogate.as_str()) {
        ("verl", surrogate) => verl(case, surrogate, &mut batch)?,
        ("trl" | "liger", surrogate) => trl(case, &peer, surrogate, batch.rows)?,
        ("faithrl", "ppo_clip") => faithrl(case)?,
        _ => return Err(format!("unknown surrogate `{surrogate}` of peer `{peer}`")),
    };
    batch.select(&ask.objective)?;
    compare(case, &batch, &ask)?;
    Ok(Outcome::Passed)
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
    let known = ["k3", "low_var_kl", "k2", "mse", "k1", "kl", "abs"];
    let estimator = match case.config.one_of("kl_estimator", &known)?.as_str() {
        "k1" | "kl" => KlEstimator::K1,
        "k2" | "mse" => KlEstimator::K2,
        "abs" => KlEstimator::Abs,
        _ => KlEstimator::K3,
    };
    let wanted = coefficient != 0.0 || case.optional("in.ref_logp").is_some();
    Ok(wanted.then_some(Kl { clamp, bias_correction, ..Kl::new(estimator, coefficient) }))
}

fn verl(case: &mut Case, surrogate: &str, batch: &mut Batch) -> Result<Ask, String> {
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
    let base = Objective { kl, aggregation: aggregation.clone(), ..Objective::default() };
    let means = Aggregation::SequenceMeanTokenMean { rows };
    let unclamped = LogRatio::Unclamped;
    let mut counts = Counts::Tokens;
    let objective = match surrogate {
        "vanilla" => Objective { surrogate: ppo_clip(case)?, ..base },
        "bypass_mode" => {
            let mut bounds = ppo_clip(case)?;
            let asked = rollout_correction::read(case)?;
            // The old policy is the sampler.
            let found = asked.apply(&CorrectionInputs {
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
        // Whatever aggregation is asked for.
        "gspo" => Objective {
            surrogate: ppo_clip(case)?,
            importance_level: ImportanceLevel::Sequence,
            aggregation: means,
            ..base
        },
        "sapo" => Objective {
            surrogate: Surrogate::Sapo {
                temperature_positive: case.config.need("tau_pos")? as f32,
                temperature_negative: case.config.need("tau_neg")? as f32,
            },
            aggregation: means,
            ..base
        },
        "gpg" => Objective { surrogate: Surrogate::Reinforce {}, ..base },
        "cispo" => {
            let (low, high) = (case.config.need("clip_low")?, case.config.need("clip_high")?);
            let least = Some(1.0 - low as f32);
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
                // A mean over all rows; the penalty beside it is aggregated as asked.
                aggregation: Aggregation::SequenceMeanTokenMean { rows: Rows::All },
                kl: base.kl.clone().map(|kl| Kl { aggregation: Some(aggregation), ..kl }),
                ..base
            }
        }
        "clip_cov" => {
            counts = Counts::Dropped;
            let selection = Selection::ClipCov {
                ratio: case.config.need("clip_cov_ratio")? as f32,
                least: case.config.need("clip_cov_lb")? as f32,
                most: case.config.need("clip_cov_ub")? as f32,
            };
            let (surrogate, selection) = (ppo_clip(case)?, Some(selection));
            Objective { surrogate, log_ratio: unclamped, selection, ..base }
        }
        "kl_cov" => {
            let selection = Some(Selection::KlCov {
                ratio: case.config.need("kl_cov_ratio")? as f32,
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
fn trl(case: &mut Case, peer: &str, loss: &str, batch: usize) -> Result<Ask, String> {
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
    if entropy_coefficient != 0.0 && (steps != 1.0 || items.is_some()) {
        return Err("an entropy bonus with gradient accumulation is not known".to_string());
    }
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
            lambda_positive: number("vespo_lambda_pos", 3.0)?,
            k_negative: number("vespo_k_neg", 3.0)?,
            lambda_negative: number("vespo_lambda_neg", 2.0)?,
        },
        // The upper bound alone, of the ratio itself.
        "cispo" => Surrogate::Cispo { least: None, most: number("clip_high", 0.0)? },
        _ => ppo_clip(case)?,
    };
    // What these losses do not read is there all the same.
    for name in ["clip_low", "clip_high"] {
        case.config.number(name)?;
    }
    let fraction = case.config.number("top_entropy_quantile")?.unwrap_or(1.0) as f32;
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

fn faithrl(case: &mut Case) -> Result<Ask, String> {
    case.config.one_of("aggregation", &["token-mean"])?;
    let objective = Objective {
        surrogate: ppo_clip(case)?,
        log_ratio: LogRatio::Unclamped,
        ..Objective::default()
    };
    Ok(Ask { objective, totals: Totals::default(), counts: Counts::Tokens })
}

/// The padded inputs of a case.
#[derive(Clone)]
struct Batch {
    rows: usize,
    length: usize,
    logprob: Vec<f32>,
    old_logprob: Vec<f32>,
    advantage: Array,
    mask: Vec<u8>,
    reference: Option<Vec<f32>>,
    entropy: Option<Vec<f32>>,
    weight: Option<Vec<f32>>,
    selected: Option<Vec<u8>>,
}

impl Batch {
    fn read(case: &mut Case) -> Result<Batch, String> {
        let logprob = case.tensor("in.logp")?;
        let [rows, length] = logprob.matrix()?;
        let mask = case.tensor("in.mask")?;
        Ok(Batch {
            rows,
            length,
            logprob: logprob.f32(),
            old_logprob: case.tensor("in.old_logp")?.f32(),
            advantage: case.tensor("in.advantages")?,
            mask: mask.values.iter().map(|m| u8::from(*m != 0.0)).collect(),
            reference: case.optional("in.ref_logp").map(|x| x.f32()),
            entropy: case.optional("in.entropy").map(|x| x.f32()),
            weight: case.optional("in.rollout_is_weights").map(|x| x.f32()),
            selected: None,
        })
    }

    fn offsets(&self) -> Vec<i64> {
        (0..=self.rows).map(|row| (row * self.length) as i64).collect()
    }

    /// The step before the loss, where the objective has one.
    fn select(&mut self, objective: &Objective) -> Result<(), String> {
        let Some(selection) = &objective.selection else { return Ok(()) };
        let advantage = self.advantage.f32();
        let per_token: Vec<f32> = match self.advantage.shape.len() {
            1 => advantage.iter().flat_map(|a| vec![*a; self.length]).collect(),
            _ => advantage,
        };
        let clip = match &objective.surrogate {
            Surrogate::PpoClip { clip_low, clip_high, .. } => (1.0 - clip_low, 1.0 + clip_high),
            _ => (0.0, f32::INFINITY),
        };
        let inputs = token_selection::Inputs {
            logprob: &self.logprob,
            old_logprob: &self.old_logprob,
            advantage: &per_token,
            entropy: self.entropy.as_deref().unwrap_or_default(),
            mask: &self.mask,
            clip,
            draw: (1, 0),
        };
        let mut selected = vec![7; self.mask.len()];
        token_selection::select(selection, &inputs, &mut selected).map_err(|e| e.to_string())?;
        self.selected = Some(selected);
        Ok(())
    }

    /// One row alone.
    fn row(&self, row: usize) -> Batch {
        let range = row * self.length..(row + 1) * self.length;
        let cut = |values: &[f32]| values[range.clone()].to_vec();
        let advantage = match self.advantage.shape.len() {
            1 => Array { shape: vec![1], values: vec![self.advantage.values[row]] },
            _ => Array {
                shape: vec![1, self.length],
                values: self.advantage.values[range.clone()].to_vec(),
            },
        };
        Batch {
            rows: 1,
            length: self.length,
            logprob: cut(&self.logprob),
            old_logprob: cut(&self.old_logprob),
            advantage,
            mask: self.mask[range.clone()].to_vec(),
            reference: self.reference.as_deref().map(cut),
            entropy: self.entropy.as_deref().map(cut),
            weight: self.weight.as_deref().map(cut),
            selected: self.selected.as_ref().map(|selected| selected[range.clone()].to_vec()),
        }
    }

    /// The mean over rows of a metric of each, `empty` for rows without a token.
    fn mean_of_rows(
        &self,
        ask: &Ask,
        empty: f64,
        of: impl Fn(&Metrics) -> f64,
    ) -> Result<f64, String> {
        let mut sum = 0.0;
        for row in 0..self.rows {
            let (metrics, _) = self.row(row).evaluate(ask)?;
            sum += if metrics.live_tokens > 0 { of(&metrics) } else { empty };
        }
        Ok(sum / self.rows as f64)
    }

    fn evaluate(&self, ask: &Ask) -> Result<(Metrics, Vec<f32>), String> {
        let offsets = self.offsets();
        let advantage = self.advantage.f32();
        let mut dlogprob = vec![f32::NAN; self.logprob.len()];
        let inputs = Inputs {
            logprob: &self.logprob,
            old_logprob: &self.old_logprob,
            advantage: if self.advantage.shape.len() == 1 {
                Advantages::PerSequence(&advantage)
            } else {
                Advantages::PerToken(&advantage)
            },
            mask: &self.mask,
            offsets: &offsets,
            reference_logprob: self.reference.as_deref(),
            entropy: self.entropy.as_deref(),
            weight: self.weight.as_deref(),
            sampler_logprob: None,
            off_policy: None,
            selected: self.selected.as_deref(),
            totals: ask.totals,
        };
        let gradients = Gradients { logprob: &mut dlogprob, entropy: None };
        let metrics =
            forward_backward(&ask.objective, &inputs, gradients).map_err(|e| e.to_string())?;
        Ok((metrics, dlogprob))
    }

    /// The KL estimate of every token, masked ones too: each is a batch of its own.
    fn kl_of_each_token(&self, ask: &Ask) -> Result<Vec<f64>, String> {
        let reference = self.reference.as_ref().ok_or("out.kl_token without in.ref_logp")?;
        let one = |i: usize| Batch {
            rows: 1,
            length: 1,
            logprob: vec![self.logprob[i]],
            old_logprob: vec![self.old_logprob[i]],
            advantage: Array { shape: vec![1], values: vec![0.0] },
            mask: vec![1],
            reference: Some(vec![reference[i]]),
            entropy: None,
            weight: None,
            selected: self.selected.as_ref().map(|_| vec![0]),
        };
        (0..self.logprob.len()).map(|i| Ok(one(i).evaluate(ask)?.0.kl)).collect()
    }
}

fn compare(case: &mut Case, batch: &Batch, ask: &Ask) -> Result<(), String> {
    let (metrics, dlogprob) = batch.evaluate(ask)?;
    case.compare("out.loss", &[metrics.loss])?;
    case.compare("out.dlogp", &dlogprob)?;
    case.compare("out.pg_loss", &[metrics.policy_loss])?;
    case.compare("out.policy_loss", &[metrics.policy_loss])?;
    case.compare("out.kl_loss", &[metrics.kl_loss])?;
    case.compare("out.kl_mean", &[metrics.kl])?;
    let of_kl_cov = matches!(ask.objective.selection, Some(Selection::KlCov { .. }));
    let ppo_kl = if of_kl_cov { metrics.absolute_log_ratio } else { metrics.approx_kl };
    case.compare("out.ppo_kl", &[ppo_kl])?;
    let mut counted = metrics;
    if ask.counts == Counts::Rows {
        counted.clip_fraction = batch.mean_of_rows(ask, 0.0, |m| m.clip_fraction)?;
        counted.clip_fraction_high = batch.mean_of_rows(ask, 0.0, |m| m.clip_fraction_high)?;
        counted.clip_fraction_low = batch.mean_of_rows(ask, 0.0, |m| m.clip_fraction_low)?;
    }
    let clipped = match ask.counts {
        Counts::Tokens | Counts::Rows => counted.clip_fraction,
        Counts::Positive => counted.clip_fraction_high,
        Counts::Dropped => counted.dropped_fraction,
    };
    let of_gmpo = matches!(ask.objective.surrogate, Surrogate::Gmpo { .. });
    let lower = if of_gmpo { counted.clip_fraction_low } else { counted.dual_clip_fraction };
    case.compare("out.clipfrac", &[clipped])?;
    case.compare("out.clipfrac_high", &[counted.clip_fraction_high])?;
    case.compare("out.clipfrac_low", &[counted.clip_fraction_low])?;
    case.compare("out.clipfrac_lower", &[lower])?;
    if case.optional("out.phi_seq_mean").is_some() {
        // An empty row's ratio is 1, and so is its phi.
        let phi = batch.mean_of_rows(ask, 1.0, |m| m.ratio_mean)?;
        case.compare("out.phi_seq_mean", &[phi])?;
    }
    if case.optional("out.kl_token").is_some() {
        case.compare("out.kl_token", &batch.kl_of_each_token(ask)?)?;
    }
    Ok(())
}
