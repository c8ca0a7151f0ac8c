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
    let known = [
        "loss_type",
        "rollout_is",
        "rollout_is_batch_normalize",
        "rollout_is_threshold",
        "rollout_rs",
        "rollout_rs_threshold",
    ];
    if let Some(name) = settings.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("unknown setting `{name}` of rollout_correction"));
    }
    let of = |name: &str| settings.get(name).filter(|value| !value.is_null());
    let text = |name: &str| of(name).and_then(serde_json::Value::as_str);
    let is_reinforce = match text("loss_type") {
        None | Some("ppo_clip") => false,
        Some("reinforce") => true,
        Some(other) => return Err(format!("unknown loss_type `{other}`")),
    };
    let mut correction = RolloutCorrection::default();
    if let Some(level) = of("rollout_is") {
        let level = match level.as_str() {
            Some("token") => Level::Token,
            Some("sequence") => Level::Sequence,
            _ => return Err(format!("unknown rollout_is {level}")),
        };
        let max = of("rollout_is_threshold").and_then(|most| most.as_f64()).unwrap_or(2.0);
        let normalize = of("rollout_is_batch_normalize").is_some_and(|yes| yes == true);
        correction.weight =
            Some(Weight { level, bound: Bound::Truncate { max, min: None }, normalize });
    }
    if let Some(modes) = text("rollout_rs") {
        let mut wanted: Vec<&str> = Vec::new();
        for mode in modes.split(',').map(str::trim).filter(|mode| !mode.is_empty()) {
            if !wanted.contains(&mode) {
                wanted.push(mode);
            }
        }
        let bounds = match of("rollout_rs_threshold") {
            Some(serde_json::Value::String(bounds)) => bounds.clone(),
            Some(number) => number.to_string(),
            None => return Err("rollout_rs without its threshold".to_string()),
        };
        let bounds: Vec<&str> = bounds.split(',').map(str::trim).collect();
        if bounds.len() != 1 && bounds.len() != wanted.len() {
            return Err(format!("{} thresholds for {} modes", bounds.len(), wanted.len()));
        }
        for (i, mode) in wanted.iter().enumerate() {
            // One threshold is that of every mode.
            correction.reject.push(rejection(mode, bounds[i.min(bounds.len() - 1)])?);
        }
    }
    Ok(Asked { is_reinforce, correction })
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
