//! Log-prob and entropy from logits, with the gradient of the logits: in two passes and in one.

use crate::case::{Case, Outcome};
use gradstone::dtype::{FloatSlice, FloatSliceMut};
use gradstone::kernels::logprob::{
    Backward, Forward, ForwardBackward, Outputs, Softmax, Temperature, Upstream, backward, forward,
    forward_backward,
};

pub fn run(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    let temperature = case.config.need("temperature")? as f32;
    let given = case.tensor("in.logits")?;
    let [rows, vocab] = given.matrix()?;
    case.config.always("N", rows as f64)?;
    case.config.always("V", vocab as f64)?;
    let targets = case.tensor("in.targets")?.i32();
    let (dlogprob, dentropy) = (case.tensor("in.dlogp")?.f32(), case.tensor("in.dentropy")?.f32());
    let (dlogprob, dentropy) = (Some(&dlogprob[..]), Some(&dentropy[..]));

    let softmax =
        Softmax { temperature: Temperature::Same(temperature), softcap: None, banned: &[] };
    let mut statistics = [vec![0f32; rows], vec![0f32; rows], vec![0f32; rows]];
    let [logprob, entropy, logsumexp] = &mut statistics;
    let mut logits = given.f32();
    let args =
        Forward { logits: FloatSlice::F32(&logits), targets: &targets, rows, vocab, softmax };
    let out = Outputs { logprob, entropy: Some(entropy), logsumexp, argmax: None };
    forward(&args, out).map_err(|e| e.to_string())?;
    case.compare("out.logp", &statistics[0])?;
    case.compare("out.entropy", &statistics[1])?;

    let args = Backward {
        logits: FloatSliceMut::F32(&mut logits),
        targets: &targets,
        rows,
        vocab,
        softmax,
        logsumexp: &statistics[2],
        entropy: Some(&statistics[1]),
        dlogprob,
        dentropy,
    };
    backward(args).map_err(|e| e.to_string())?;
    case.compare("out.dlogits", &logits)?;

    let mut logits = given.f32();
    let [logprob, entropy, logsumexp] = &mut statistics;
    let args = ForwardBackward {
        logits: FloatSliceMut::F32(&mut logits),
        targets: &targets,
        rows,
        vocab,
        softmax,
        upstream: Upstream::Known { dlogprob, dentropy },
    };
    let out = Outputs { logprob, entropy: Some(entropy), logsumexp, argmax: None };
    forward_backward(args, out).map_err(|e| e.to_string())?;
    case.compare("out.logp", &statistics[0])?;
    case.compare("out.entropy", &statistics[1])?;
    case.compare("out.dlogits", &logits)?;
    Ok(Outcome::Passed)
}
