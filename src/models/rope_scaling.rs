//! Rotary frequencies from a model's config: plain, linear, Llama 3, YaRN and LongRoPE scaling.
//!
//! The rotation itself is a kernel. Sources: Su et al. 2021 (RoPE); the Llama 3 herd of models, 2024 (piecewise
//! scaling); Peng et al. 2023 (YaRN, "NTK by parts" with its attention factor); Ding et al. 2024 (LongRoPE).

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
    /// LongRoPE, for sequences up to the pre-training length. Beyond it, published models change the factors of a whole
    /// sequence, the tokens that were there before included: a sequence that grows past it while it is drawn would be
    /// another one when it is scored.
    LongRope {
        /// The divisor of each pair's frequency.
        short_factor: Vec<f64>,
        /// The pre-training context length.
        original_max_position_embeddings: f64,
        /// What cos and sin are multiplied by.
        attention_factor: f64,
    },
}

/// Fields of a rotary embedding that decide something where transformers computes with them, which is not done here.
const REFUSED: &[(&str, &str)] = &[
    ("mrope_section", "positions have three parts, for time, row and column of pictures"),
    ("mrope_interleaved", "positions have three parts, for time, row and column of pictures"),
    ("short_mscale", "cos and sin have a factor for each length"),
    ("long_mscale", "cos and sin have a factor for each length"),
    ("llama_4_scaling_beta", "queries grow with their position"),
];

/// The rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the geometric series of wavelengths.
    pub theta: f64,
    /// Its scaling.
    pub scaling: RopeScaling,
    /// The share of a head that is rotated, where its own block of the config says so.
    pub partial: Option<f64>,
}

impl Rope {
    /// Reads `rope_theta` with `rope_scaling` (configs of transformers 4) or `rope_parameters` (5); `theta` is the base
    /// where the file names none.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] naming a type or field that is not handled, [`Error::is_format`] for one that is
    /// missing or of the wrong kind.
    pub fn from_config(config: &Map<String, Value>, theta: f64) -> Result<Rope> {
        let theta = number(config, "", "rope_theta")?.unwrap_or(theta);
        match block(config, &["rope_parameters", "rope_scaling"])? {
            None => Ok(Rope { theta, scaling: RopeScaling::Plain, partial: None }),
            Some((key, fields)) => Rope::from_block(config, key, fields, theta),
        }
    }

    /// The rotary embedding of layers with full attention, and that of layers with a sliding window (Gemma 3).
    ///
    /// # Errors
    /// As [`Rope::from_config`].
    pub fn by_window(config: &Map<String, Value>, theta: f64) -> Result<[Rope; 2]> {
        let theta = number(config, "", "rope_theta")?.unwrap_or(theta);
        let local = number(config, "", "rope_local_base_freq")?.unwrap_or(10_000.0);
        let plain = |theta| Rope { theta, scaling: RopeScaling::Plain, partial: None };
        let parts = block(config, &["rope_parameters"])?;
        let own = |name: &'static str, theta: f64| match parts {
            None => Ok(plain(theta)),
            Some((_, fields)) => match block(fields, &[name])? {
                None => Ok(plain(theta)),
                Some((key, fields)) => Rope::from_block(config, key, fields, theta),
            },
        };
        let mut full = own("full_attention", theta)?;
        // A file of transformers 4 scales the layers with full attention.
        if let Some((key, fields)) = block(config, &["rope_scaling"])? {
            full = Rope::from_block(config, key, fields, full.theta)?;
        }
        Ok([full, own("sliding_attention", local)?])
    }

    fn from_block(
        config: &Map<String, Value>,
        key: &str,
        fields: &Map<String, Value>,
        theta: f64,
    ) -> Result<Rope> {
        let theta = number(fields, key, "rope_theta")?.unwrap_or(theta);
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(Error::invalid(format!("config.json: rope_theta is {theta}")));
        }
        let kind = match fields.get("rope_type").or_else(|| fields.get("type")) {
            None | Some(Value::Null) => "default",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => {
                return Err(Error::format(format!("config.json: {key}.rope_type is {other}")));
            }
        };
        for (name, says) in REFUSED {
            if fields.get(*name).is_some_and(|value| !value.is_null()) {
                return Err(Error::unsupported(format!(
                    "config.json: {key}.{name}: {says}, which is not implemented here"
                )));
            }
        }
        let partial = number(fields, key, "partial_rotary_factor")?;
        let need = |name: &str| {
            number(fields, key, name)?
                .ok_or_else(|| Error::format(format!("config.json: {key}.{name} is missing")))
        };
        let length = |name: &str| number(config, "", name);
        // A length beside the block goes before the one in it, as in transformers.
        let trained = || -> Result<f64> {
            let within = number(fields, key, "original_max_position_embeddings")?;
            let found = match length("original_max_position_embeddings")?.or(within) {
                Some(found) => found,
                None => length("max_position_embeddings")?.ok_or_else(|| {
                    Error::format("config.json: max_position_embeddings is missing")
                })?,
            };
            match found > 1.0 && found.is_finite() {
                true => Ok(found),
                false => Err(Error::format(format!(
                    "config.json: original_max_position_embeddings is {found}"
                ))),
            }
        };
        let scaling = match kind {
            "linear" => RopeScaling::Linear { factor: need("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: trained()?,
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
            // Phi 3's first files called it by other names.
            "longrope" | "su" => {
                let trained = trained()?;
                let factor = match number(fields, key, "factor")? {
                    Some(factor) => factor,
                    None => length("max_position_embeddings")?.unwrap_or(trained) / trained,
                };
                let usual =
                    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / trained.ln()).sqrt() };
                RopeScaling::LongRope {
                    short_factor: divisors(fields, key)?,
                    original_max_position_embeddings: trained,
                    attention_factor: number(fields, key, "attention_factor")?.unwrap_or(usual),
                }
            }
            "default" => RopeScaling::Plain,
            other => {
                return Err(Error::unsupported(format!(
                    "config.json: {key}.rope_type `{other}` is not implemented (default, linear, llama3, yarn and longrope \
                     are). Where the model was published without it, leave {key} out"
                )));
            }
        };
        Ok(Rope { theta, scaling, partial })
    }

    /// The longest sequence for which the frequencies are these.
    pub(super) fn longest(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::LongRope { original_max_position_embeddings, .. } => {
                Some(*original_max_position_embeddings as usize)
            }
            _ => None,
        }
    }

    /// Refuses factors that are not one per pair of `rotary_dim` dimensions.
    pub(super) fn check(&self, rotary_dim: usize) -> Result<()> {
        match &self.scaling {
            RopeScaling::LongRope { short_factor, .. } if short_factor.len() != rotary_dim / 2 => {
                Err(Error::invalid(format!(
                    "config.json: short_factor has {} entries for {} rotary pairs",
                    short_factor.len(),
                    rotary_dim / 2
                )))
            }
            _ => Ok(()),
        }
    }

    /// The angular frequency of each of the `head_dim / 2` rotary pairs (radians per position), and the factor on cos and
    /// sin. `head_dim` counts the dimensions that are rotated.
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
            RopeScaling::LongRope { short_factor, attention_factor, .. } => {
                // In f32, as transformers computes it: 1 / (factor · theta^(2i/d)).
                let base = self.theta as f32;
                let scaled = |(i, factor): (usize, &f64)| {
                    1.0 / (*factor as f32 * base.powf((2 * i) as f32 / head_dim as f32))
                };
                let frequencies = short_factor.iter().enumerate().map(scaled).take(half).collect();
                (frequencies, *attention_factor as f32)
            }
        }
    }
}

/// The first of these that is there, as an object.
fn block<'a>(
    config: &'a Map<String, Value>,
    keys: &[&'static str],
) -> Result<Option<(&'static str, &'a Map<String, Value>)>> {
    match keys.iter().find_map(|key| config.get(*key).filter(|v| !v.is_null()).map(|v| (key, v))) {
        None => Ok(None),
        Some((key, Value::Object(fields))) => Ok(Some((key, fields))),
        Some((key, _)) => Err(Error::format(format!("config.json: {key} is no object"))),
    }
}

/// The divisors of LongRoPE's frequencies, all positive.
fn divisors(fields: &Map<String, Value>, key: &str) -> Result<Vec<f64>> {
    let wrong =
        || Error::format(format!("config.json: {key}.short_factor is no list of positive numbers"));
    let Some(Value::Array(list)) = fields.get("short_factor") else { return Err(wrong()) };
    let positive = |value: &Value| value.as_f64().filter(|f| *f > 0.0 && f.is_finite());
    list.iter().map(|value| positive(value).ok_or_else(wrong)).collect()
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
