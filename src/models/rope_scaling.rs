//! Rotary frequencies from a model's config: plain, linear, Llama 3 and YaRN scaling.
//!
//! The rotation itself is a kernel. Sources: Su et al. 2021 (RoPE); the Llama 3 herd of models, 2024 (piecewise
//! scaling); Peng et al. 2023 (YaRN, "NTK by parts" with its attention factor).

use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// How frequencies are changed for contexts beyond the pre-training length.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Plain,
    /// Positions divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Long wavelengths divided by a factor, short ones kept, a ramp between.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// The pre-training context length.
        original_max_position_embeddings: f64,
    },
    /// YaRN: a ramp over dimensions, and cos and sin multiplied by an attention factor.
    Yarn {
        /// The divisor.
        factor: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// The pre-training context length.
        original_max_position_embeddings: f64,
        /// What cos and sin are multiplied by.
        attention_factor: f64,
        /// Whether the ramp's ends are rounded outward to whole dimensions.
        truncate: bool,
    },
}

/// The rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the geometric series of wavelengths.
    pub theta: f64,
    /// Its scaling.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Reads `rope_theta` with `rope_scaling` (configs of transformers 4) or `rope_parameters` (5).
    ///
    /// # Errors
    /// [`Error::is_unsupported`] naming a type or field that is not handled, [`Error::is_format`] for one that is
    /// missing or of the wrong kind.
    pub fn from_config(config: &Map<String, Value>) -> Result<Rope> {
        let block = ["rope_parameters", "rope_scaling"]
            .into_iter()
            .find_map(|key| config.get(key).filter(|v| !v.is_null()).map(|v| (key, v)));
        let mut theta = number(config, "", "rope_theta")?.unwrap_or(10_000.0);
        let Some((key, block)) = block else {
            return Ok(Rope { theta, scaling: RopeScaling::Plain });
        };
        let Value::Object(fields) = block else {
            return Err(Error::format(format!("config.json: {key} is no object")));
        };
        if let Some(own) = number(fields, key, "rope_theta")? {
            theta = own;
        }
        let kind = match fields.get("rope_type").or_else(|| fields.get("type")) {
            None => "default",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => {
                return Err(Error::format(format!("config.json: {key}.rope_type is {other}")));
            }
        };
        let allowed: &[&str] = match kind {
            "default" => &[],
            "linear" => &["factor"],
            "llama3" => &[
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ],
            "yarn" => &[
                "factor",
                "beta_fast",
                "beta_slow",
                "original_max_position_embeddings",
                "attention_factor",
                "truncate",
                "mscale",
                "mscale_all_dim",
            ],
            other => {
                return Err(Error::unsupported(format!(
                    "config.json: {key}.rope_type `{other}` (default, linear, llama3 and yarn are)"
                )));
            }
        };
        for name in fields.iter().filter(|(_, v)| !v.is_null()).map(|(name, _)| name) {
            if !allowed.contains(&name.as_str())
                && !["rope_type", "type", "rope_theta"].contains(&name.as_str())
            {
                let partial = name == "partial_rotary_factor" && fields[name].as_f64() == Some(1.0);
                if !partial {
                    return Err(Error::unsupported(format!(
                        "config.json: {key}.{name} with rope_type `{kind}`"
                    )));
                }
            }
        }
        let need = |name: &str| {
            number(fields, key, name)?
                .ok_or_else(|| Error::format(format!("config.json: {key}.{name} is missing")))
        };
        let trained = || -> Result<f64> {
            match number(fields, key, "original_max_position_embeddings")? {
                Some(length) => Ok(length),
                None => number(config, "", "max_position_embeddings")?.ok_or_else(|| {
                    Error::format("config.json: max_position_embeddings is missing")
                }),
            }
        };
        let scaling = match kind {
            "linear" => RopeScaling::Linear { factor: need("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: need("original_max_position_embeddings")?,
            },
            "yarn" => {
                let factor = need("factor")?;
                RopeScaling::Yarn {
                    factor,
                    beta_fast: number(fields, key, "beta_fast")?.unwrap_or(32.0),
                    beta_slow: number(fields, key, "beta_slow")?.unwrap_or(1.0),
                    original_max_position_embeddings: trained()?,
                    attention_factor: yarn_attention_factor(fields, key, factor)?,
                    truncate: fields.get("truncate").and_then(Value::as_bool).unwrap_or(true),
                }
            }
            _ => RopeScaling::Plain,
        };
        Ok(Rope { theta, scaling })
    }

    /// The angular frequency of each of the `head_dim / 2` rotary pairs (radians a position), and the factor on cos and
    /// sin.
    pub fn frequencies(&self, head_dim: usize) -> (Vec<f32>, f32) {
        let half = head_dim / 2;
        // In f32, as published models were trained: theta^(2i/d) and its reciprocal.
        let plain = |i: usize| 1.0 / (self.theta as f32).powf((2 * i) as f32 / head_dim as f32);
        let all = |change: &dyn Fn(usize, f64) -> f64| -> Vec<f32> {
            (0..half).map(|i| change(i, f64::from(plain(i))) as f32).collect()
        };
        match &self.scaling {
            RopeScaling::Plain => ((0..half).map(plain).collect(), 1.0),
            RopeScaling::Linear { factor } => (all(&|_, f| f / factor), 1.0),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let change = |_: usize, f: f64| {
                    let turns = original_max_position_embeddings * f / std::f64::consts::TAU;
                    let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let keep = ramp.clamp(0.0, 1.0);
                    (1.0 - keep) * f / factor + keep * f
                };
                (all(&change), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                attention_factor,
                truncate,
            } => {
                let dimension = |turns: f64| {
                    head_dim as f64
                        * (original_max_position_embeddings / (turns * std::f64::consts::TAU)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let low = low.max(0.0);
                let high = high.min(head_dim as f64 - 1.0);
                let width = if high == low { 0.001 } else { high - low };
                let change = |i: usize, f: f64| {
                    let divide = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    f / factor * divide + f * (1.0 - divide)
                };
                (all(&change), *attention_factor as f32)
            }
        }
    }
}

fn yarn_attention_factor(fields: &Map<String, Value>, key: &str, factor: f64) -> Result<f64> {
    let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    if let Some(given) = number(fields, key, "attention_factor")? {
        return Ok(given);
    }
    match (number(fields, key, "mscale")?, number(fields, key, "mscale_all_dim")?) {
        (Some(m), Some(all)) if m != 0.0 && all != 0.0 => Ok(mscale(m) / mscale(all)),
        _ => Ok(mscale(1.0)),
    }
}

fn number(fields: &Map<String, Value>, within: &str, name: &str) -> Result<Option<f64>> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => {
                let dot = if within.is_empty() { "" } else { "." };
                Err(Error::format(format!(
                    "config.json: {within}{dot}{name} is {value}, no number"
                )))
            }
        },
    }
}
