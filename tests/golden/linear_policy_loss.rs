//! Policy losses straight from hidden states and an output head.

use crate::case::{Case, Outcome};
use gradstone::dtype::FloatSlice;
use gradstone::kernels::linear_logprob::{self, Gradients, Head};
use gradstone::kernels::linear_policy_loss::{Loss, Workspace, forward_backward};
use gradstone::kernels::logprob::{Outputs, Softmax, Temperature};
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Clamp, Kl, KlEstimator, LogRatio, Objective, Rows, Surrogate, Totals,
};

pub fn run(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    case.config.one_of("importance_sampling_level", &["token"])?;
    case.config.one_of("kl_estimator", &["k3"])?;
    let temperature = case.config.need("temperature")? as f32;
    let coefficient = case.config.need("kl_coef")? as f32;
    let aggregation = match case.config.one_of("surrogate", &["grpo", "dapo"])?.as_str() {
        "dapo" => Aggregation::TokenMean {},
        _ => Aggregation::SequenceMeanTokenMean { rows: Rows::All },
    };
    let (low, high) = (case.config.need("clip_low")?, case.config.need("clip_high")?);
    let objective = Objective {
        surrogate: Surrogate::clip(low as f32, high as f32),
        log_ratio: LogRatio::Unclamped,
        kl: Some(Kl { clamp: Clamp::Unclamped, ..Kl::new(KlEstimator::K3, coefficient) }),
        aggregation,
        ..Objective::default()
    };

    let hidden = case.tensor("in.hidden")?;
    let [batch, length, width] = hidden.shape[..] else { return Err("hidden".to_string()) };
    let weight = case.tensor("in.weight")?;
    let [vocab, _] = weight.matrix()?;
    let rows = batch * length;
    let targets = case.tensor("in.targets")?.i32();
    let mask: Vec<u8> =
        case.tensor("in.mask")?.values.iter().map(|m| u8::from(*m != 0.0)).collect();
    let offsets: Vec<i64> = (0..=batch).map(|row| (row * length) as i64).collect();
    let softmax =
        Softmax { temperature: Temperature::Same(temperature), softcap: None, banned: &[] };

    let (ref_hidden, ref_weight) =
        (case.tensor("in.ref_hidden")?.f32(), case.tensor("in.ref_weight")?.f32());
    let head = |hidden, weight, targets| Head {
        hidden: FloatSlice::F32(hidden),
        weight: FloatSlice::F32(weight),
        bias: None,
        targets,
        rows,
        width,
        vocab,
        softmax,
        workspace: 0,
    };
    let mut reference = vec![0f32; rows];
    let mut logsumexp = vec![0f32; rows];
    let outputs =
        Outputs { logprob: &mut reference, entropy: None, logsumexp: &mut logsumexp, argmax: None };
    linear_logprob::forward(&head(&ref_hidden, &ref_weight, &targets), outputs)
        .map_err(|e| e.to_string())?;

    let (hidden, weight) = (hidden.f32(), weight.f32());
    let old_logprob = case.tensor("in.old_logp")?.f32();
    let advantage = case.tensor("in.advantages")?.f32();
    let loss = Loss {
        objective: &objective,
        old_logprob: Some(&old_logprob),
        advantage: Advantages::PerSequence(&advantage),
        mask: &mask,
        offsets: &offsets,
        reference_logprob: Some(&reference),
        weight: None,
        sampler_logprob: None,
        off_policy: None,
        selected: None,
        totals: Totals::default(),
    };
    let (mut dhidden, mut dweight) = (vec![7f32; rows * width], vec![0f32; vocab * width]);
    let mut workspace = Workspace::default();
    let into = Gradients { dhidden: Some(&mut dhidden), dweight: Some(&mut dweight), dbias: None };
    let metrics = forward_backward(&head(&hidden, &weight, &targets), &loss, &mut workspace, into)
        .map_err(|e| e.to_string())?;
    case.compare("out.loss", &[metrics.loss])?;
    case.compare("out.kl_mean", &[metrics.kl])?;
    case.compare("out.clipfrac", &[metrics.clip_fraction])?;
    case.compare("out.dhidden", &dhidden)?;
    case.compare("out.dweight", &dweight)?;
    Ok(Outcome::Passed)
}
