//! What verl's bypass mode asks for between the sampler and the policy.

use crate::case::Case;
use gradstone::rl::rollout_correction::{
    Divergence, Level, Over, Rejection, Tokens, Weights, kept_by_all,
};

/// The settings of a case.
pub struct Asked {
    /// REINFORCE with weights; else PPO's clip without.
    pub is_reinforce: bool,
    weights: Option<Weights>,
    rejections: Vec<Rejection>,
}

/// What they give.
pub struct Found {
    pub mask: Vec<u8>,
    pub weight: Option<Vec<f32>>,
}

impl Asked {
    pub fn apply(&self, tokens: &Tokens<'_>) -> Result<Found, String> {
        let weights = self.weights.filter(|_| self.is_reinforce);
        let weight = weights.map(|weights| weights.weights(tokens)).transpose();
        let mask = kept_by_all(&self.rejections, tokens);
        Ok(Found {
            mask: mask.map_err(|e| e.to_string())?,
            weight: weight.map_err(|e| e.to_string())?,
        })
    }
}

pub fn read(case: &mut Case) -> Result<Asked, String> {
    let settings = case.config.object("rollout_correction")?.ok_or("no rollout_correction")?;
    let mut asked = Asked { is_reinforce: false, weights: None, rejections: Vec::new() };
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
                asked.weights = Some(Weights { level, most, ..Weights::default() });
            }
            "rollout_rs" => {
                let (modes, bounds) = (text(name), text("rollout_rs_threshold"));
                let (modes, bounds) = modes.zip(bounds).ok_or("rollout_rs without threshold")?;
                for (mode, bound) in modes.split(',').zip(bounds.split(',')) {
                    asked.rejections.push(rejection(mode, bound)?);
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
    let divergence = match divergence {
        "k1" => Divergence::K1,
        "k2" => Divergence::K2,
        "k3" => Divergence::K3,
        _ => return Err(format!("unknown rollout_rs `{mode}`")),
    };
    let number = |text: &str| text.parse::<f64>().map_err(|e| format!("{text}: {e}"));
    let (least, most) = match bound.split_once('_') {
        Some((least, most)) => (Some(number(least)?), number(most)?),
        None => (None, number(bound)?),
    };
    Ok(Rejection { divergence, over, most, least })
}
