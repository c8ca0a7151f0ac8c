//! Log-prob and entropy from hidden states and an output head, with the gradients of both: in two calls and in one.

use crate::case::{Case, Outcome};
use gradstone::dtype::FloatSlice;
use gradstone::kernels::linear_logprob::{
    Gradients, Head, Saved, backward, forward, forward_backward,
};
use gradstone::kernels::logprob::{Outputs, Softmax, Temperature, Upstream};

/// Everything that the kernel computes.
struct Got {
    logprob: Vec<f32>,
    entropy: Vec<f32>,
    logsumexp: Vec<f32>,
    dhidden: Vec<f32>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

impl Got {
    fn new(rows: usize, width: usize, vocab: usize) -> Got {
        Got {
            logprob: vec![0.0; rows],
            entropy: vec![0.0; rows],
            logsumexp: vec![0.0; rows],
            dhidden: vec![0.0; rows * width],
            dweight: vec![0.0; vocab * width],
            dbias: vec![0.0; vocab],
        }
    }

    fn both(&mut self) -> (Outputs<'_>, Gradients<'_>) {
        let outputs = Outputs {
            logprob: &mut self.logprob,
            entropy: Some(&mut self.entropy),
            logsumexp: &mut self.logsumexp,
            argmax: None,
        };
        let gradients = Gradients {
            dhidden: Some(&mut self.dhidden),
            dweight: Some(&mut self.dweight),
            dbias: Some(&mut self.dbias),
        };
        (outputs, gradients)
    }

    fn compare(&self, case: &mut Case) -> Result<(), String> {
        case.compare("out.logp", &self.logprob)?;
        case.compare("out.entropy", &self.entropy)?;
        case.compare("out.dhidden", &self.dhidden)?;
        case.compare("out.dweight", &self.dweight)?;
        case.compare("out.dbias", &self.dbias)
    }
}

pub fn run(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    // How the peer computed it: which of its paths, and in which chunks.
    case.config.one_of("mode", &["compose", "fused"])?;
    case.config.number("vocab_chunk")?;
    let temperature = case.config.need("temperature")? as f32;
    let (hidden, weight) = (case.tensor("in.hidden")?, case.tensor("in.weight")?);
    let ([rows, width], [vocab, _]) = (hidden.matrix()?, weight.matrix()?);
    for (name, size) in [("N", rows), ("H", width), ("V", vocab)] {
        case.config.always(name, size as f64)?;
    }
    let bias = case.optional("in.bias").map(|bias| bias.f32());
    if case.config.flag("bias")?.is_some_and(|stated| stated != bias.is_some()) {
        return Err("config field `bias` and tensor `in.bias` disagree".to_string());
    }
    let targets = case.tensor("in.targets")?.i32();
    let dlogprob = case.tensor("in.dlogp")?.f32();
    let dentropy = case.optional("in.dentropy").map(|x| x.f32());
    let (dlogprob, dentropy) = (Some(&dlogprob[..]), dentropy.as_deref());
    let (hidden, weight) = (hidden.f32(), weight.f32());
    let head = |workspace| Head {
        hidden: FloatSlice::F32(&hidden),
        weight: FloatSlice::F32(&weight),
        bias: bias.as_deref().map(FloatSlice::F32),
        targets: &targets,
        rows,
        width,
        vocab,
        softmax: Softmax {
            temperature: Temperature::Same(temperature),
            softcap: None,
            banned: &[],
        },
        workspace,
    };

    // The default workspace, and the smallest.
    for workspace in [0, 1] {
        let head = head(workspace);
        let mut got = Got::new(rows, width, vocab);
        forward(&head, got.both().0).map_err(|e| e.to_string())?;
        let (logsumexp, entropy) = (got.logsumexp.clone(), got.entropy.clone());
        let saved = Saved { logsumexp: &logsumexp, entropy: Some(&entropy), dlogprob, dentropy };
        backward(&head, &saved, got.both().1).map_err(|e| e.to_string())?;
        got.compare(case)?;

        let mut got = Got::new(rows, width, vocab);
        let (outputs, gradients) = got.both();
        let upstream = Upstream::Known { dlogprob, dentropy };
        forward_backward(&head, upstream, outputs, gradients).map_err(|e| e.to_string())?;
        got.compare(case)?;
    }
    Ok(Outcome::Passed)
}
