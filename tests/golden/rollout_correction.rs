//! What verl's bypass mode asks for between the sampler and the policy.

use crate::case::Case;
use gradstone::kernels::rollout_correction::{
    Bound, Inputs, Level, Outputs, Over, Rejection, RolloutCorrection, Statistic, Weight, forward,
};

/// The settings of a case.
pub struct Asked {
    /// REINFORCE with weights; else PPO's clip without.
    pub is_reinforce: bool,
    correction: RolloutCorrection,
}

/// What they give.
pub struct Found {
    pub mask: Vec<u8>,
    pub weight: Option<Vec<f32>>,
}

impl Asked {
    pub fn apply(&self, inputs: &Inputs<'_>) -> Result<Found, String> {
        let weight = self.correction.weight.filter(|_| self.is_reinforce);
        let correction = RolloutCorrection { weight, ..self.correction.clone() };
        let tokens = inputs.policy_logprob.len();
        let (mut weights, mut mask) = (vec![0f32; tokens], vec![0u8; tokens]);
        let out = Outputs { weight: &mut weights, mask: &mut mask };
        forward(&correction, inputs, out).map_err(|e| e.to_string())?;
        Ok(Found { mask, weight: weight.map(|_| weights) })
    }
}

pub fn read(case: &mut Case) -> Result<Asked, String> {
    let settings = case.config.object("rollout_correction")?.ok_or("no rollout_correction")?;
    let mut asked = Asked { is_reinforce: false, correction: RolloutCorrection::default() };
    let text = |name: &str| settings.get(name).and_then(serde_json::Value::as_str);
    for name in settings.keys() {
        match name.as_str() {
            "loss_type" => asked.is_reinforce = text(name) == Some("reinforce"),
            "rollout_is" => {
                let level = match text(name) {
                    Some("token") => Level::Token,
                    Some("sequence") => Level::Sequence,
                    other => return Err(format!("unknown rollout_is {other:?}")),
                };
                let most = settings.get("rollout_is_threshold").and_then(|most| most.as_f64());
                let most = most.ok_or("rollout_is without its threshold")?;
                let bound = Bound::Truncate { max: most, min: None };
                asked.correction.weight = Some(Weight { level, bound, normalize: false });
            }
            "rollout_rs" => {
                let (modes, bounds) = (text(name), text("rollout_rs_threshold"));
                let (modes, bounds) = modes.zip(bounds).ok_or("rollout_rs without threshold")?;
                for (mode, bound) in modes.split(',').zip(bounds.split(',')) {
                    asked.correction.reject.push(rejection(mode, bound)?);
                }
            }
            "rollout_is_threshold" | "rollout_rs_threshold" => {}
            _ => return Err(format!("unknown setting `{name}` of rollout_correction")),
        }
    }
    Ok(asked)
}

fn rejection(mode: &str, bound: &str) -> Result<Rejection, String> {
    let (over, divergence) = mode.rsplit_once('_').ok_or("a mode without a divergence")?;
    let over = match over {
        "token" => Over::Token,
        "seq_sum" => Over::SequenceSum,
        "seq_mean" => Over::SequenceMean,
        "seq_max" => Over::SequenceMax,
        _ => return Err(format!("unknown rollout_rs `{mode}`")),
    };
    let number = |text: &str| text.parse::<f64>().map_err(|e| format!("{text}: {e}"));
    let (low, high) = match bound.split_once('_') {
        Some((low, high)) => (Some(number(low)?), number(high)?),
        None => (None, number(bound)?),
    };
    let statistic = match divergence {
        "k1" => Statistic::K1 { low, high, mirrored: true },
        "k2" => Statistic::K2 { high },
        "k3" => Statistic::K3 { high },
        _ => return Err(format!("unknown rollout_rs `{mode}`")),
    };
    Ok(Rejection { over, statistic })
}
