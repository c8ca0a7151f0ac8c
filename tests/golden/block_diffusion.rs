//! Block diffusion: the attention masks, read off what the attention kernel does; the schedules; the loss of given
//! noise, with its gradient, put together from the log-prob kernel and the weights of a schedule.

use crate::case::{Case, Outcome};
use gradstone::dtype::{FloatSlice, FloatSliceMut};
use gradstone::kernels::attention::{self, Attention, Mask};
use gradstone::kernels::block_noise::Curve;
use gradstone::kernels::logprob::{
    ForwardBackward, Outputs, Softmax, Temperature, Upstream, forward_backward,
};

const CURVES: [(&str, Curve); 5] = [
    ("loglinear", Curve::Loglinear),
    ("square", Curve::Square),
    ("square_root", Curve::SquareRoot),
    ("log", Curve::Log),
    ("cosine", Curve::Cosine),
];

pub fn mask(case: &mut Case) -> Result<Outcome, String> {
    let block = case.config.need("block_size")? as usize;
    let n = case.config.need("seq_len")? as usize;
    case.compare("out.mask", &seen(Mask::BlockDiffusion { block }, 2 * n)?)?;
    case.compare("out.sample_mask", &seen(Mask::BlockCausal { block }, n)?)?;
    Ok(Outcome::Passed)
}

/// With equal scores and the identity as values, the output of a query is above 0 where it sees a key.
fn seen(mask: Mask, n: usize) -> Result<Vec<f32>, String> {
    let spec = Attention { mask, ..Attention::causal(1, 1, n) };
    let zeros = vec![0f32; n * n];
    let identity: Vec<f32> = (0..n * n).map(|i| f32::from(i % (n + 1) == 0)).collect();
    let mut out = zeros.clone();
    let args = attention::Forward {
        q: FloatSlice::F32(&zeros),
        k: FloatSlice::F32(&zeros),
        v: FloatSlice::F32(&identity),
        segments: &[0, n],
        out: FloatSliceMut::F32(&mut out),
        logsumexp: None,
    };
    attention::forward(&spec, args).map_err(|e| e.to_string())?;
    Ok(out.iter().map(|p| f32::from(*p > 0.0)).collect())
}

pub fn loss(case: &mut Case) -> Result<Outcome, String> {
    if case.config.text("mode")?.is_some_and(|mode| mode == "schedule_table") {
        return table(case);
    }
    for (name, only) in [("parameterization", "subs"), ("compute_dtype", "f64")] {
        case.config.one_of(name, &[only])?;
    }
    let names = CURVES.map(|(name, _)| name);
    let name = case.config.one_of("schedule", &names)?;
    let curve = CURVES.iter().find(|(n, _)| *n == name).map_or(Curve::Loglinear, |(_, c)| *c);
    let block = case.config.need("block_size")? as usize;
    let length = case.config.need("seq_len")? as usize;
    let mask_id = case.config.need("mask_id")? as i32;
    let [low, high] =
        [case.config.need("sampling_eps_min")?, case.config.need("sampling_eps_max")?];
    // Of the schedule; the other parameterization of `loglinear` may have another.
    let eps = case.config.number("eps")?.unwrap_or(1e-3);
    let redrawn = case.config.need("extra_mask_draws")? > 0.0;
    let [mdlm, keep_first, training, antithetic, _resample] =
        ["mdlm_loss_scale", "ignore_bos", "training", "antithetic", "resample"]
            .map(|name| case.config.flag(name).map(|flag| flag.unwrap_or(false)));
    let (mdlm, keep_first, training) = (mdlm?, keep_first?, training?);
    if eps != 1e-3 && !(mdlm && curve == Curve::Loglinear) {
        return Err(format!("eps {eps} of the schedule `{name}`: only 1e-3 is known"));
    }
    if mdlm && curve != Curve::Loglinear {
        return Err(format!("mdlm_loss_scale of `{name}`, which has no total noise"));
    }
    // A level for each block: as it is drawn, or (antithetic) one in each of as many equal parts as there are blocks.
    let antithetic = antithetic?;
    let uniform = case.tensor("in.block_uniform")?.values;
    let blocks = uniform.len() as f64;
    let levels: Vec<f64> = uniform
        .iter()
        .enumerate()
        .map(|(k, u)| if antithetic { (u / blocks + k as f64 / blocks) % 1.0 } else { *u })
        .flat_map(|spread| std::iter::repeat_n(spread * (high - low) + low, block))
        .collect();
    case.compare("in.t", &levels)?;
    // The other parameterization of the same curve never masks everything.
    let rate = |t: f64| if mdlm { (1.0 - eps) * t } else { curve.rate(t) };
    let rates: Vec<f64> = levels.iter().map(|t| rate(*t)).collect();
    case.compare("out.move_chance", &rates)?;

    let clean = case.tensor("in.x0")?.i32();
    let noised = case.tensor("in.xt")?.i32();
    let uniform = case.tensor("in.mask_uniform")?.values;
    let masked: Vec<bool> = noised.iter().map(|id| *id == mask_id).collect();
    for (i, masked) in masked.iter().enumerate() {
        let drawn = uniform[i] <= rates[i] && !(keep_first && i % length == 0);
        if *masked != drawn && !redrawn {
            return Err(format!("token {i} is masked: {masked}, by its draw {drawn}"));
        }
        if !masked && noised[i] != clean[i] {
            return Err(format!("token {i} changed without a mask"));
        }
    }

    let mut counted = case.tensor("in.attention_mask")?.f32();
    if keep_first && !training {
        counted.iter_mut().step_by(length).for_each(|mask| *mask = 0.0);
    }
    let tokens: f32 = counted.iter().sum();
    let weight = |t: f64| if low > 0.5 { 1.0 } else { curve.weight(t) };
    let weights: Vec<f64> = levels
        .iter()
        .zip(&masked)
        .map(|(t, masked)| if *masked { weight(*t) } else { 0.0 })
        .collect();

    let given = case.tensor("in.logits")?;
    let (rows, vocab) = (clean.len(), given.values.len() / clean.len());
    let mut logits = given.f32();
    let dlogprob: Vec<f32> =
        weights.iter().zip(&counted).map(|(w, m)| -(*w as f32) * m / tokens).collect();
    let (mut logprob, mut logsumexp) = (vec![0f32; rows], vec![0f32; rows]);
    // The model never predicts the mask.
    let softmax = Softmax { temperature: Temperature::One, softcap: None, banned: &[mask_id] };
    let args = ForwardBackward {
        logits: FloatSliceMut::F32(&mut logits),
        targets: &clean,
        rows,
        vocab,
        softmax,
        upstream: Upstream::Known { dlogprob: Some(&dlogprob), dentropy: None },
    };
    let out =
        Outputs { logprob: &mut logprob, entropy: None, logsumexp: &mut logsumexp, argmax: None };
    forward_backward(args, out).map_err(|e| e.to_string())?;
    let known: Vec<f32> =
        logprob.iter().zip(&masked).map(|(p, masked)| if *masked { *p } else { 0.0 }).collect();
    case.compare("out.log_p_x0", &known)?;
    // Padding is masked like the rest, and its loss is not counted.
    let losses: Vec<f64> = known
        .iter()
        .zip(&weights)
        .zip(&counted)
        .map(|((p, w), counted)| if *counted > 0.0 { -f64::from(*p) * w } else { 0.0 })
        .collect();
    case.compare("out.nlls", &losses)?;
    let sum: f64 = losses.iter().sum();
    case.compare("out.loss", &[sum / f64::from(tokens)])?;
    case.compare("out.dlogits", &logits)?;
    Ok(Outcome::Passed)
}

fn table(case: &mut Case) -> Result<Outcome, String> {
    case.config.always("eps", 1e-3)?;
    case.config.one_of("compute_dtype", &["f64"])?;
    let levels = case.tensor("in.t")?.values;
    for (name, curve) in CURVES {
        let rates: Vec<f64> = levels.iter().map(|t| curve.rate(*t)).collect();
        let weights: Vec<f64> = levels.iter().map(|t| -curve.weight(*t)).collect();
        case.compare(&format!("out.{name}.move_chance"), &rates)?;
        case.compare(&format!("out.{name}.loss_scale"), &weights)?;
    }
    Ok(Outcome::Passed)
}
