//! The mixed loss of fresh and replayed tokens (LUFFY, ExGRPO), and the weights of ExGRPO's buckets.

use crate::case::{Case, Outcome};
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Gradients, Inputs, LogRatio, Metrics, Objective, RatioShape, Replay,
    ReplayRatio, ReplayShape, Surrogate, forward_backward,
};
use gradstone::rl::replay::BucketLaw;

#[derive(Clone)]
struct Batch {
    rows: usize,
    length: usize,
    logprob: Vec<f32>,
    old_logprob: Vec<f32>,
    advantage: Vec<f32>,
    mask: Vec<u8>,
    off_policy: Vec<u8>,
    /// What the writer of replayed tokens is known to have given them.
    target_probability: Option<Vec<f32>>,
}

impl Batch {
    fn read(case: &mut Case) -> Result<Batch, String> {
        let logprob = case.tensor("in.logp")?;
        let [rows, length] = logprob.matrix()?;
        let mut mask = |name: &str| -> Result<Vec<u8>, String> {
            Ok(case.tensor(name)?.values.iter().map(|m| u8::from(*m != 0.0)).collect())
        };
        let (off_policy, mask) = (mask("in.prefix_mask")?, mask("in.mask")?);
        Ok(Batch {
            rows,
            length,
            logprob: logprob.f32(),
            old_logprob: case.tensor("in.old_logp")?.f32(),
            advantage: case.tensor("in.advantages")?.f32(),
            mask,
            off_policy,
            target_probability: case.optional("in.target_probs").map(|x| x.f32()),
        })
    }

    /// The writer's log-probs in the place of the old policy's, on replayed tokens.
    fn recorded(&self) -> Batch {
        let mut recorded = self.clone();
        if let Some(target) = &self.target_probability {
            for token in (0..target.len()).filter(|token| self.off_policy[*token] != 0) {
                recorded.old_logprob[token] = Replay::recorded_logprob(target[token]);
            }
        }
        recorded
    }

    fn evaluate(&self, objective: &Objective) -> Result<(Metrics, Vec<f32>), String> {
        let offsets: Vec<i64> = (0..=self.rows).map(|row| (row * self.length) as i64).collect();
        let mut dlogprob = vec![f32::NAN; self.logprob.len()];
        let advantage = Advantages::PerToken(&self.advantage);
        let base = Inputs::new(&self.logprob, &self.old_logprob, advantage, &self.mask, &offsets);
        let off_policy = objective.replay.is_some().then_some(&self.off_policy[..]);
        let inputs = Inputs { off_policy, ..base };
        let gradients = Gradients { logprob: &mut dlogprob, entropy: None };
        let metrics = forward_backward(objective, &inputs, gradients).map_err(|e| e.to_string())?;
        Ok((metrics, dlogprob))
    }

    fn row(&self, row: usize) -> Batch {
        let range = row * self.length..(row + 1) * self.length;
        let cut = |values: &[f32]| values[range.clone()].to_vec();
        Batch {
            rows: 1,
            length: self.length,
            logprob: cut(&self.logprob),
            old_logprob: cut(&self.old_logprob),
            advantage: cut(&self.advantage),
            mask: self.mask[range.clone()].to_vec(),
            off_policy: self.off_policy[range.clone()].to_vec(),
            target_probability: self.target_probability.as_deref().map(cut),
        }
    }

    /// The mean over rows of a variance, of the rows that have one.
    fn mean_variance(
        &self,
        objective: &Objective,
        of: impl Fn(&Metrics) -> (u64, f64),
    ) -> Result<f64, String> {
        let mut variances = Vec::new();
        for row in 0..self.rows {
            let (count, variance) = of(&self.row(row).evaluate(objective)?.0);
            if count > 1 {
                variances.push(variance);
            }
        }
        Ok(variances.iter().sum::<f64>() / variances.len().max(1) as f64)
    }
}

/// X of `p_div_p_X`.
fn offset_of(name: &str) -> Result<f32, String> {
    let number = name.strip_prefix("p_div_p_").and_then(|number| number.parse().ok());
    number.ok_or_else(|| format!("unknown reshape `{name}`"))
}

fn ratio_shape(case: &mut Case) -> Result<RatioShape, String> {
    let weight = case.config.number("on_policy_reshape_weight")?.unwrap_or(1.0) as f32;
    let exponent = case.config.number("on_policy_reshape_pow_exp")?.unwrap_or(0.5) as f32;
    let name = case.config.text("on_policy_reshape")?;
    Ok(match name.as_deref().unwrap_or("no_reshape") {
        "no_reshape" => RatioShape::Plain,
        "logp" => RatioShape::Logarithm {},
        "p_logp" => RatioShape::RatioPlusLogarithm { weight },
        "square_root" => RatioShape::Power { exponent: 0.5 },
        "pow" => RatioShape::Power { exponent },
        name => RatioShape::Probability { offset: offset_of(name)? },
    })
}

fn replay_shape(case: &mut Case) -> Result<ReplayShape, String> {
    let weight = case.config.number("off_policy_reshape_weight")?.unwrap_or(1.0) as f32;
    let exponent = case.config.number("off_policy_reshape_pow_exp")?.unwrap_or(0.5) as f32;
    let name = case.config.text("off_policy_reshape")?;
    Ok(match name.as_deref().unwrap_or("no_reshape") {
        "no_reshape" => ReplayShape::Plain {},
        "logp" => ReplayShape::Logprob { weight },
        "p_logp" => ReplayShape::RatioPlusLogprob { weight },
        "square_root" => ReplayShape::Power { exponent: 0.5 },
        "pow" => ReplayShape::Power { exponent },
        name => ReplayShape::Sigmoid { beta: offset_of(name)?, gain: 1.0 },
    })
}

fn objective(case: &mut Case, batch: &Batch) -> Result<Objective, String> {
    let width = case.config.need("cliprange")?;
    let upper = case.config.need("clip_upper_bound")?.max(1.0 + width);
    let surrogate = if case.config.flag("loss_remove_clip")?.unwrap_or(false) {
        Surrogate::Ratio {}
    } else {
        Surrogate::clip(width as f32, (upper - 1.0) as f32)
    };
    let (ratio_shape, shape) = (ratio_shape(case)?, replay_shape(case)?);
    let of_sampler = case.config.one_of("variant", &["exgrpo", "luffy"])? == "exgrpo";
    // A ratio to given probabilities is not reshaped.
    let (ratio, shape) = match batch.target_probability {
        Some(_) => (ReplayRatio::Recorded, ReplayShape::Plain {}),
        None if of_sampler => (ReplayRatio::Recorded, shape),
        None => (ReplayRatio::Probability, shape),
    };
    let least = case.config.number("off_min_clip")?.map(|bound| bound as f32);
    let most = case.config.number("off_max_clip")?.map(|bound| bound as f32);
    let is_sum = case.config.flag("loss_remove_token_mean")?.unwrap_or(false);
    Ok(Objective {
        surrogate,
        ratio_shape,
        log_ratio: LogRatio::Unclamped,
        replay: Some(Replay { ratio, shape, least, most }),
        aggregation: if is_sum {
            Aggregation::TokenSum { length: batch.length as f32 }
        } else {
            Aggregation::TokenMean {}
        },
        ..Objective::default()
    })
}

pub fn loss(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    case.config.labels(&["prefix"]);
    let given = Batch::read(case)?;
    let objective = objective(case, &given)?;
    let batch = given.recorded();
    // The peer's `all_max_clip` is a mask: it leaves tokens out that are more probable than this.
    let most = case.config.number("all_max_clip")?.unwrap_or(f64::INFINITY);
    let mut counted = batch.clone();
    for (live, logprob) in counted.mask.iter_mut().zip(&batch.logprob) {
        *live &= u8::from(f64::from(*logprob).exp() <= most);
    }
    let (m, dlogprob) = counted.evaluate(&objective)?;
    case.compare("out.loss", &[m.loss])?;
    case.compare("out.dlogp", &dlogprob)?;
    // What is reported beside the loss is of all tokens.
    let m = batch.evaluate(&objective)?.0;
    case.compare("out.on_pg_loss", &[m.fresh_loss])?;
    case.compare("out.off_pg_loss", &[m.replay.loss])?;
    case.compare("out.on_ratio_mean", &[m.ratio_mean])?;
    case.compare("out.off_ratio_mean", &[m.replay.shaped_mean])?;
    case.compare("out.on_policy_prob", &[m.replay.fresh_probability])?;
    case.compare("out.off_policy_prob", &[m.replay.probability])?;
    case.compare("out.off_ratio_max_clip_frac", &[m.replay.clip_fraction_high])?;
    case.compare("out.off_ratio_min_clip_frac", &[m.replay.clip_fraction_low])?;
    // The peer measures the distance of all tokens from the old policy, and counts clips of replayed ones too.
    let fresh = Objective { replay: None, ..objective.clone() };
    let of_all = given.evaluate(&fresh)?.0;
    case.compare("out.ppo_kl", &[of_all.approx_kl])?;
    case.compare("out.on_pg_clipfrac", &[of_all.clip_fraction])?;
    let of_fresh = |m: &Metrics| (m.live_tokens - m.replay.tokens, m.ratio_variance);
    case.compare("out.on_ratio_var_m", &[batch.mean_variance(&objective, of_fresh)?])?;
    let of_replayed = |m: &Metrics| (m.replay.tokens, m.replay.shaped_variance);
    case.compare("out.off_ratio_var_m", &[batch.mean_variance(&objective, of_replayed)?])?;
    Ok(Outcome::Passed)
}

pub fn bucket_weights(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f64", "f32"])?;
    let known = ["normal", "linear", "linear_clip", "sqrt"];
    let law = match case.config.one_of("method", &known)?.as_str() {
        "linear" => BucketLaw::Linear {},
        "linear_clip" => BucketLaw::LinearClip {},
        "sqrt" => BucketLaw::SquareRoot {},
        _ => BucketLaw::Normal { center: None, deviation: 1.0 },
    };
    let rollouts = case.config.need("n_rollout")? as u32;
    let successes = case.tensor("in.num_success")?.values;
    let successes: Vec<u32> = successes.iter().map(|k| *k as u32).collect();
    let sizes = case.tensor("in.bucket_size")?.values;
    let sizes: Vec<usize> = sizes.iter().map(|size| *size as usize).collect();
    let got = law.probabilities(&successes, &sizes, rollouts).map_err(|e| e.to_string())?;
    case.compare("out.probability", &got)?;
    Ok(Outcome::Passed)
}
