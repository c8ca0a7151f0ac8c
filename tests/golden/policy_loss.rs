//! Policy losses on padded `[B, T]` tensors, which are packed sequences with a mask here.

use crate::case::{Array, Case, Outcome};
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Clamp, Gradients, Inputs, Kl, KlEstimator, LogRatio, Metrics,
    Objective, Rows, Surrogate, Totals, forward_backward,
};

/// Surrogates that the library does not have yet.
const NOT_COVERED: &[&str] = &[
    "bypass_mode",
    "cispo",
    "clip_cov",
    "geo_mean",
    "gpg",
    "gspo",
    "kl_cov",
    "luspo",
    "sapo",
    "vespo",
];

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
}

pub fn run(case: &mut Case) -> Result<Outcome, String> {
    case.config.check_names(FIELDS)?;
    let surrogate = case.config.text("surrogate")?.ok_or("no surrogate is named")?;
    if NOT_COVERED.contains(&surrogate.as_str()) {
        return Ok(Outcome::Skipped(format!("surrogate `{surrogate}` is not covered yet")));
    }
    if let Some(why) = feature_not_covered(case)? {
        return Ok(Outcome::Skipped(why));
    }
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    case.config.one_of("kind", &["normal", "extreme", "onpolicy"])?;
    // How the inputs were made; the inputs themselves say the same.
    for name in ["fully_masked_row", "full_masked", "mask_holes", "holes"] {
        case.config.flag(name)?;
    }
    case.config.number("scale")?;

    let batch = Batch::read(case)?;
    let peer = case.config.text("peer")?.ok_or("no peer is named")?;
    let ask = match (peer.as_str(), surrogate.as_str()) {
        ("verl", "vanilla") => verl(case, batch.length)?,
        ("trl" | "liger", "grpo" | "bnpo" | "dapo" | "dr_grpo") => {
            trl(case, &peer, &surrogate, batch.rows)?
        }
        ("faithrl", "ppo_clip") => faithrl(case)?,
        _ => return Err(format!("unknown surrogate `{surrogate}` of peer `{peer}`")),
    };
    compare(case, &batch, &ask)?;
    Ok(Outcome::Passed)
}

/// Parts of an objective that are not covered yet, whatever its surrogate.
fn feature_not_covered(case: &mut Case) -> Result<Option<String>, String> {
    let level = case.config.one_of("importance_sampling_level", &["token", "sequence"])?;
    if level == "sequence" {
        return Ok(Some("importance sampling level `sequence` is not covered yet".to_string()));
    }
    if case.config.number("off_policy_mask_threshold")?.is_some() {
        return Ok(Some("the off-policy mask is not covered yet".to_string()));
    }
    if case.config.number("top_entropy_quantile")?.is_some_and(|quantile| quantile != 1.0) {
        return Ok(Some("the top-entropy mask is not covered yet".to_string()));
    }
    Ok(None)
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
    Ok(wanted.then_some(Kl {
        estimator,
        coefficient,
        clamp,
        bias_correction,
        straight_through: false,
    }))
}

fn verl(case: &mut Case, length: usize) -> Result<Ask, String> {
    let rows = Rows::NonEmpty;
    let known =
        ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"];
    let mode = case.config.one_of("aggregation", &known)?;
    let constant = case.config.number("loss_scale_factor")?.unwrap_or(length as f64) as f32;
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
    let objective = Objective {
        surrogate: ppo_clip(case)?,
        kl: penalty(case, Clamp::Clamped, false)?,
        aggregation,
        ..Objective::default()
    };
    Ok(Ask { objective, totals })
}

/// TRL, and Liger which follows it without naming the aggregation.
fn trl(case: &mut Case, peer: &str, loss: &str, batch: usize) -> Result<Ask, String> {
    let rows = Rows::All;
    let steps = case.config.number("grad_accum_steps")?.unwrap_or(1.0);
    let items = case.config.number("num_items_in_batch")?;
    let longest = case.config.number("max_completion_length")?;
    let (name, aggregation, scale) = match loss {
        "grpo" => (
            "seq-mean-token-mean over all B rows (a fully masked row counts in B)",
            Aggregation::SequenceMeanTokenMean { rows },
            1.0 / steps,
        ),
        "bnpo" => ("token-mean", Aggregation::TokenMean {}, 1.0 / steps),
        "dapo" => ("sum/num_items_in_batch", Aggregation::TokenMean {}, 1.0),
        _ => {
            let length = longest.ok_or("dr_grpo without max_completion_length")? as f32;
            let aggregation = Aggregation::SequenceMeanTokenSum { rows, length };
            ("sum/(B*max_completion_length)", aggregation, 1.0 / steps)
        }
    };
    let stated = case.config.text("aggregation")?;
    if stated.as_deref().is_some_and(|stated| stated != name) || (peer == "trl" && stated.is_none())
    {
        return Err(format!("aggregation {stated:?} is not the one of `{loss}`"));
    }
    let totals = Totals {
        tokens: if loss == "dapo" { items } else { None },
        sequences: Some(batch as f64),
        scale,
    };
    let entropy_coefficient = case.config.number("entropy_coef")?.unwrap_or(0.0) as f32;
    if entropy_coefficient != 0.0 && (steps != 1.0 || items.is_some()) {
        return Err("an entropy bonus with gradient accumulation is not known".to_string());
    }
    let bias_correction = case.config.flag("use_bias_correction_kl")?.unwrap_or(false);
    let objective = Objective {
        surrogate: ppo_clip(case)?,
        log_ratio: LogRatio::Unclamped,
        kl: penalty(case, Clamp::Unclamped, bias_correction)?,
        entropy_coefficient,
        aggregation,
        // The peer's entropy is a mean over tokens, whatever its loss.
        entropy_aggregation: Some(Aggregation::TokenMean {}),
        ..Objective::default()
    };
    Ok(Ask { objective, totals })
}

fn faithrl(case: &mut Case) -> Result<Ask, String> {
    case.config.one_of("aggregation", &["token-mean"])?;
    let objective = Objective {
        surrogate: ppo_clip(case)?,
        log_ratio: LogRatio::Unclamped,
        ..Objective::default()
    };
    Ok(Ask { objective, totals: Totals::default() })
}

/// The padded inputs of a case.
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
        })
    }

    fn evaluate(&self, ask: &Ask) -> Result<(Metrics, Vec<f32>), String> {
        let offsets: Vec<i64> = (0..=self.rows).map(|row| (row * self.length) as i64).collect();
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
            selected: None,
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
    case.compare("out.ppo_kl", &[metrics.approx_kl])?;
    case.compare("out.clipfrac", &[metrics.clip_fraction])?;
    case.compare("out.clipfrac_high", &[metrics.clip_fraction_high])?;
    case.compare("out.clipfrac_low", &[metrics.clip_fraction_low])?;
    case.compare("out.clipfrac_lower", &[metrics.dual_clip_fraction])?;
    if case.optional("out.kl_token").is_some() {
        case.compare("out.kl_token", &batch.kl_of_each_token(ask)?)?;
    }
    Ok(())
}
