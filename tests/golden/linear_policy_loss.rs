//! Policy losses straight from hidden states and an output head.

use crate::case::{Array, Case, Outcome};
use crate::peer_objective::{Ask, trl};
use gradstone::dtype::FloatSlice;
use gradstone::kernels::linear_logprob::{self, Gradients, Head};
use gradstone::kernels::linear_policy_loss::{Loss, Workspace, forward_backward};
use gradstone::kernels::logprob::{IGNORE, Outputs, Softmax, Temperature};
use gradstone::kernels::policy_loss::Advantages;

/// What the policy's head and the reference's have in common.
struct Rows {
    targets: Vec<i32>,
    width: usize,
    vocab: usize,
    temperature: f32,
}

impl Rows {
    fn head<'a>(
        &'a self,
        hidden: &'a [f32],
        weight: &'a [f32],
        bias: Option<&'a [f32]>,
    ) -> Head<'a> {
        Head {
            hidden: FloatSlice::F32(hidden),
            weight: FloatSlice::F32(weight),
            bias: bias.map(FloatSlice::F32),
            targets: &self.targets,
            rows: self.targets.len(),
            width: self.width,
            vocab: self.vocab,
            softmax: Softmax {
                temperature: Temperature::Same(self.temperature),
                softcap: None,
                banned: &[],
            },
            workspace: 0,
        }
    }
}

pub fn run(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f32", "f64"])?;
    let temperature = case.config.need("temperature")? as f32;
    let surrogate = case.config.text("surrogate")?.ok_or("no surrogate is named")?;
    let hidden = case.tensor("in.hidden")?;
    let [batch, length, width] = hidden.shape[..] else { return Err("hidden".to_string()) };
    let Ask { objective, totals, .. } = trl(case, "liger", &surrogate, batch)?;

    let weight = case.tensor("in.weight")?;
    let [vocab, _] = weight.matrix()?;
    let tokens = batch * length;
    let targets = case.tensor("in.targets")?.i32();
    let mask: Vec<u8> =
        case.tensor("in.mask")?.values.iter().map(|m| u8::from(*m != 0.0)).collect();
    let offsets: Vec<i64> = (0..=batch).map(|row| (row * length) as i64).collect();
    let bias = case.optional("in.bias").map(|bias| bias.f32());
    // A masked token's target need not be an id.
    let marked = targets.iter().zip(&mask);
    let targets = marked.map(|(target, mask)| if *mask != 0 { *target } else { IGNORE }).collect();
    let rows = Rows { targets, width, vocab, temperature };
    let reference = match case.optional("in.ref_hidden") {
        Some(hidden) => {
            let (hidden, weight) = (hidden.f32(), case.tensor("in.ref_weight")?.f32());
            let bias = case.optional("in.ref_bias").map(|bias| bias.f32());
            let (mut logprob, mut logsumexp) = (vec![0f32; tokens], vec![0f32; tokens]);
            let outputs = Outputs {
                logprob: &mut logprob,
                entropy: None,
                logsumexp: &mut logsumexp,
                argmax: None,
            };
            linear_logprob::forward(&rows.head(&hidden, &weight, bias.as_deref()), outputs)
                .map_err(|e| e.to_string())?;
            Some(logprob)
        }
        None => case.optional("in.ref_logp").map(|x| x.f32()),
    };

    let (hidden, weight) = (hidden.f32(), weight.f32());
    let old_logprob = case.optional("in.old_logp").map(|x| x.f32());
    let advantage = case.tensor("in.advantages")?.f32();
    let per_token = |of: Array| match of.values.len() == batch && length != 1 {
        true => of.f32().iter().flat_map(|w| vec![*w; length]).collect(),
        false => of.f32(),
    };
    let importance: Option<Vec<f32>> = case.optional("in.rollout_is_weights").map(per_token);
    let loss = Loss {
        objective: &objective,
        old_logprob: old_logprob.as_deref(),
        advantage: Advantages::PerSequence(&advantage),
        mask: &mask,
        offsets: &offsets,
        reference_logprob: reference.as_deref(),
        weight: importance.as_deref(),
        sampler_logprob: None,
        off_policy: None,
        selected: None,
        totals,
    };
    let (mut dhidden, mut dweight) = (vec![7f32; tokens * width], vec![0f32; vocab * width]);
    let mut dbias = bias.as_ref().map(|_| vec![0f32; vocab]);
    let mut workspace = Workspace::default();
    let into = Gradients {
        dhidden: Some(&mut dhidden),
        dweight: Some(&mut dweight),
        dbias: dbias.as_deref_mut(),
    };
    let head = rows.head(&hidden, &weight, bias.as_deref());
    let metrics =
        forward_backward(&head, &loss, &mut workspace, into).map_err(|e| e.to_string())?;
    case.compare("out.loss", &[metrics.loss])?;
    case.compare("out.kl_mean", &[metrics.kl])?;
    case.compare("out.clipfrac", &[metrics.clip_fraction])?;
    case.compare("out.dhidden", &dhidden)?;
    case.compare("out.dweight", &dweight)?;
    case.compare("out.dbias", &dbias.unwrap_or_default())?;
    Ok(Outcome::Passed)
}
