//! The mixed loss of fresh and replayed tokens (LUFFY, ExGRPO), and the weights of ExGRPO's buckets.

use crate::case::{Case, Outcome};
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Gradients, Inputs, LogRatio, Metrics, Objective, RatioShape, Replay,
    ReplayRatio, ReplayShape, Surrogate, forward_backward,
};
use gradstone::rl::replay::BucketLaw;

struct Batch {
    rows: usize,
    length: usize,
    logprob: Vec<f32>,
    old_logprob: Vec<f32>,
    advantage: Vec<f32>,
    mask: Vec<u8>,
    off_policy: Vec<u8>,
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
        })
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

fn objective(case: &mut Case, length: usize) -> Result<Objective, String> {
    let width = case.config.need("cliprange")?;
    let upper = case.config.need("clip_upper_bound")?.max(1.0 + width);
    let surrogate = if case.config.flag("loss_remove_clip")?.unwrap_or(false) {
        Surrogate::Ratio {}
    } else {
        Surrogate::clip(width as f32, (upper - 1.0) as f32)
    };
    let shapes = ["no_reshape", "logp", "square_root", "pow", "p_div_p_0.1", "p_div_p_0.5"];
    let ratio_shape = match case.config.one_of("on_policy_reshape", &shapes)?.as_str() {
        "logp" => RatioShape::Logarithm {},
        "square_root" => RatioShape::Power { exponent: 0.5 },
        "p_div_p_0.1" => RatioShape::Probability { offset: 0.1 },
        "p_div_p_0.5" => RatioShape::Probability { offset: 0.5 },
        _ => RatioShape::Plain,
    };
    let weight = case.config.number("off_policy_reshape_weight")?.unwrap_or(1.0) as f32;
    let exponent = case.config.number("off_policy_reshape_pow_exp")?.unwrap_or(0.5) as f32;
    let shape = match case.config.one_of("off_policy_reshape", &shapes)?.as_str() {
        "logp" => ReplayShape::Logprob { weight },
        "square_root" => ReplayShape::Power { exponent: 0.5 },
        "pow" => ReplayShape::Power { exponent },
        "p_div_p_0.1" => ReplayShape::Sigmoid { beta: 0.1, gain: 1.0 },
        "p_div_p_0.5" => ReplayShape::Sigmoid { beta: 0.5, gain: 1.0 },
        _ => ReplayShape::Plain {},
    };
    let ratio = match case.config.one_of("variant", &["exgrpo", "luffy"])?.as_str() {
        "luffy" => ReplayRatio::Probability,
        _ => ReplayRatio::Recorded,
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
            Aggregation::TokenSum { length: length as f32 }
        } else {
            Aggregation::TokenMean {}
        },
        ..Objective::default()
    })
}

pub fn loss(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    // How the inputs were made; they say it themselves.
    case.config.one_of("prefix", &["rows", "prefix", "none"])?;
    let batch = Batch::read(case)?;
    let objective = objective(case, batch.length)?;
    let (m, dlogprob) = batch.evaluate(&objective)?;
    case.compare("out.loss", &[m.loss])?;
    case.compare("out.dlogp", &dlogprob)?;
    case.compare("out.on_pg_loss", &[m.fresh_loss])?;
    case.compare("out.off_pg_loss", &[m.replay.loss])?;
    case.compare("out.ppo_kl", &[m.approx_kl])?;
    case.compare("out.on_ratio_mean", &[m.ratio_mean])?;
    case.compare("out.off_ratio_mean", &[m.replay.shaped_mean])?;
    case.compare("out.on_policy_prob", &[m.replay.fresh_probability])?;
    case.compare("out.off_policy_prob", &[m.replay.probability])?;
    case.compare("out.off_ratio_max_clip_frac", &[m.replay.clip_fraction_high])?;
    case.compare("out.off_ratio_min_clip_frac", &[m.replay.clip_fraction_low])?;
    // The peer counts clips of replayed tokens too, as if they were fresh.
    let fresh = Objective { replay: None, ..objective.clone() };
    case.compare("out.on_pg_clipfrac", &[batch.evaluate(&fresh)?.0.clip_fraction])?;
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
