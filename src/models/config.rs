//! What a decoder is, read from the `config.json` that published models come with.
//!
//! One table says which architectures there are and how they differ; everything else is read from the file. A field
//! that is neither used nor known to be harmless is an error that names it: a model that loads is the model that was
//! published.

use super::block_diffusion::Diffusion;
use super::llada;
use super::rope_scaling::Rope;
use crate::dtype::DType;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// The architectures that the decoder covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1 to 3 and everything of its shape.
    Llama,
    /// Qwen 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3: RMSNorm on each query and key head.
    Qwen3,
    /// Gemma 2: norms before and after each block, softcaps, alternating windows, scaled embedding.
    Gemma2,
    /// LLaDA: Llama under other names, every token seeing every other.
    Llada,
    /// SDAR: Qwen 3 that fills masked blocks.
    Sdar,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 6] = [
        Architecture::Llama,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Gemma2,
        Architecture::Llada,
        Architecture::Sdar,
    ];

    /// The `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma2 => "gemma2",
            Architecture::Llada => "llada",
            Architecture::Sdar => "sdar",
        }
    }

    /// What published models it reads and writes, in a line for a list.
    pub fn summary(self) -> &'static str {
        match self {
            Architecture::Llama => "Llama 1 to 3, with their RoPE scalings",
            Architecture::Qwen2 => "Qwen 2 and 2.5",
            Architecture::Qwen3 => "Qwen 3 (dense), with QK-norm",
            Architecture::Gemma2 => "Gemma 2, with softcaps and sliding windows",
            Architecture::Llada => "LLaDA: masked diffusion, every token sees every other",
            Architecture::Sdar => "SDAR: Qwen 3 that fills masked blocks",
        }
    }

    /// Queries and keys are normed head by head.
    pub(super) fn norms_heads(self) -> bool {
        matches!(self, Architecture::Qwen3 | Architecture::Sdar)
    }

    /// The class that its files name.
    fn class(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
            Architecture::Gemma2 => "Gemma2ForCausalLM",
            Architecture::Llada => "LLaDAModelLM",
            Architecture::Sdar => "SDARForCausalLM",
        }
    }
}

/// The gate's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// GELU with the error function.
    Gelu,
}

/// The shape of a decoder.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// Its family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Rotary frequencies.
    pub rope: Rope,
    /// The head is the embedding.
    pub tied: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// A bias on the attention's output.
    pub output_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// The gate's activation.
    pub activation: Activation,
    /// What scores are multiplied by.
    pub attention_scale: f32,
    /// Softcap of the attention scores.
    pub attention_softcap: Option<f32>,
    /// Softcap of the logits.
    pub final_softcap: Option<f32>,
    /// The sliding window of each layer, in tokens.
    pub windows: Vec<Option<usize>>,
    /// Ids that end a sequence.
    pub eos: Vec<i32>,
    /// The element type named in the file.
    pub dtype: Option<DType>,
    /// What it needs to fill masked blocks; `None` where the file names no mask token.
    pub diffusion: Option<Diffusion>,
    raw: Map<String, Value>,
}

/// Fields that change nothing here, whatever their value.
const HARMLESS: &[&str] = &[
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "_name_or_path",
    "use_cache",
    "initializer_range",
    "pretraining_tp",
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "_attn_implementation",
    "cache_implementation",
    "is_decoder",
    "name",
    "max_window_layers",
    "id2label",
    "label2id",
    "unk_token_id",
    "attn_implementation",
    "_attn_implementation_autoset",
    // Names Python files that compute what is computed here: the tensors must fit all the same.
    "auto_map",
    "fuse_cross_entropy",
];

/// Fields that are used, or checked, below.
const USED: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "hidden_activation",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "attention_dropout",
    "mask_token_id",
    "block_size",
    "logit_shift",
];

/// Fields that are taken only at the value that changes nothing.
const NEUTRAL: &[(&str, Value)] = &[("use_bidirectional_attention", Value::Bool(false))];

impl DecoderConfig {
    /// Reads the parsed `config.json`.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] naming the `model_type` or field that is not handled, [`Error::is_format`] for a field
    /// that is missing or of the wrong kind, [`Error::is_invalid`] for sizes that cannot be.
    pub fn from_json(original: Map<String, Value>) -> Result<DecoderConfig> {
        let model_type = match original.get("model_type") {
            Some(Value::String(name)) => name.as_str(),
            _ => return Err(Error::format("config.json: model_type is missing")),
        };
        let Some(architecture) =
            Architecture::ALL.into_iter().find(|a| a.model_type() == model_type)
        else {
            let known: Vec<_> = Architecture::ALL.iter().map(|a| a.model_type()).collect();
            return Err(Error::unsupported(format!(
                "config.json: model_type `{model_type}` (known: {})",
                known.join(", ")
            )));
        };
        // What follows reads one set of names.
        let raw = match architecture {
            Architecture::Llada => llada::renamed(&original)?,
            _ => original.clone(),
        };
        for (name, value) in &raw {
            let name = name.as_str();
            let neutral = NEUTRAL.iter().any(|(field, at)| *field == name && at == value);
            if !(value.is_null() || neutral || HARMLESS.contains(&name) || USED.contains(&name)) {
                return Err(Error::unsupported(format!(
                    "config.json: {name} = {value} of a {model_type} model"
                )));
            }
        }
        let fields = Fields(&raw);
        let gemma = architecture == Architecture::Gemma2;
        if fields.number("attention_dropout")?.unwrap_or(0.0) != 0.0 {
            return Err(Error::unsupported("config.json: attention_dropout other than 0"));
        }
        let hidden_size = fields.size("hidden_size")?;
        let layers = fields.size("num_hidden_layers")?;
        let heads = fields.size("num_attention_heads")?;
        let kv_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(heads);
        let default_head_dim = match architecture {
            Architecture::Qwen3 | Architecture::Sdar => 128,
            Architecture::Gemma2 => 256,
            _ => hidden_size / heads,
        };
        let head_dim = fields.optional_size("head_dim")?.unwrap_or(default_head_dim);
        if heads % kv_heads != 0 || head_dim % 2 != 0 {
            return Err(Error::invalid(format!(
                "config.json: {heads} heads over {kv_heads} key-value heads of width {head_dim}: the heads must \
                 divide and the width be even"
            )));
        }
        let activation = fields
            .text("hidden_activation")?
            .or(fields.text("hidden_act")?)
            .unwrap_or(if gemma { "gelu_pytorch_tanh" } else { "silu" });
        let activation = match activation {
            "silu" | "swish" => Activation::Silu,
            "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
            // Gemma's first configs said `gelu` for what the models were trained with: the tanh form.
            "gelu" if gemma && fields.text("hidden_activation")?.is_none() => Activation::GeluTanh,
            "gelu" => Activation::Gelu,
            other => return Err(Error::unsupported(format!("config.json: hidden_act `{other}`"))),
        };
        let scalar = match fields.number("query_pre_attn_scalar")? {
            Some(scalar) => scalar,
            None if gemma => 256.0,
            None => head_dim as f64,
        };
        let bias = fields.flag("attention_bias")?.unwrap_or(false);
        let softcap = |name: &str, default: f64| -> Result<Option<f32>> {
            match raw.get(name) {
                Some(Value::Null) => Ok(None),
                _ if !gemma => match fields.number(name)? {
                    None => Ok(None),
                    Some(_) => Err(Error::unsupported(format!(
                        "config.json: {name} of a {model_type} model"
                    ))),
                },
                _ => Ok(Some(fields.number(name)?.unwrap_or(default) as f32)),
            }
        };
        let attention_softcap = softcap("attn_logit_softcapping", 50.0)?;
        let final_softcap = softcap("final_logit_softcapping", 30.0)?;
        Ok(DecoderConfig {
            architecture,
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            max_position_embeddings: fields
                .optional_size("max_position_embeddings")?
                .unwrap_or(2048),
            rope: Rope::from_config(&raw)?,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(gemma),
            qkv_bias: bias || architecture == Architecture::Qwen2,
            output_bias: bias && !matches!(architecture, Architecture::Qwen2 | Architecture::Llada),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            activation,
            attention_scale: scalar.powf(-0.5) as f32,
            attention_softcap,
            final_softcap,
            windows: windows(architecture, &fields, layers)?,
            eos: ids(raw.get("eos_token_id"))?,
            dtype: match fields.text("dtype")?.or(fields.text("torch_dtype")?) {
                Some(name) => Some(name.parse().map_err(|e: Error| e.at("config.json"))?),
                None => None,
            },
            diffusion: Diffusion::from_config(architecture, &fields)?,
            raw: original,
        })
    }

    /// The config of a new small model of the given family: `head_dim` is `hidden_size / heads`, the head is tied.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for sizes that cannot be.
    pub fn small(
        architecture: Architecture,
        vocab_size: usize,
        hidden_size: usize,
        layers: usize,
        heads: usize,
        max_position_embeddings: usize,
    ) -> Result<DecoderConfig> {
        let value = json!({
            "architectures": [architecture.class()],
            "model_type": architecture.model_type(),
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            // 8/3 of the width, as in Llama, in multiples of 32
            "intermediate_size": (hidden_size * 8 / 3).div_ceil(32) * 32,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": hidden_size / heads.max(1),
            "max_position_embeddings": max_position_embeddings,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": true,
        });
        match value {
            Value::Object(raw) if architecture == Architecture::Llada => {
                DecoderConfig::from_json(llada::published(raw))
            }
            Value::Object(raw) => DecoderConfig::from_json(raw),
            _ => Err(Error::invalid("config")),
        }
    }

    /// The fields as they were read, for saving; `torch_dtype` set to `dtype`.
    pub fn to_json(&self, dtype: DType) -> Value {
        let mut raw = self.raw.clone();
        let name = match dtype {
            DType::Bf16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        let key = if raw.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        raw.insert(key.into(), name.into());
        Value::Object(raw)
    }

    /// Sets the ids that end a sequence, in the saved file too.
    pub fn set_eos(&mut self, eos: &[i32]) {
        self.eos = eos.to_vec();
        let value = if let [one] = eos { json!(one) } else { json!(eos) };
        self.raw.insert("eos_token_id".into(), value);
    }

    /// Makes it a model that fills masked blocks, in the saved file too.
    ///
    /// # Errors
    /// [`Error::is_index`] for a mask id outside the vocabulary, [`Error::is_invalid`] for blocks of 0 tokens.
    pub fn set_diffusion(&mut self, diffusion: Diffusion) -> Result<()> {
        diffusion.check(self.vocab_size)?;
        self.raw.insert("mask_token_id".into(), diffusion.mask_id.into());
        self.raw.insert("block_size".into(), diffusion.block.into());
        self.raw.insert("logit_shift".into(), diffusion.shift.into());
        self.diffusion = Some(diffusion);
        Ok(())
    }
}

/// The sliding window of each layer.
fn windows(
    architecture: Architecture,
    fields: &Fields<'_>,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let gemma = architecture == Architecture::Gemma2;
    let window = match fields.optional_size("sliding_window")? {
        Some(window) => Some(window),
        None if gemma => Some(4096),
        None => None,
    };
    let used = match architecture {
        Architecture::Gemma2 => true,
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Sdar => {
            fields.flag("use_sliding_window")?.unwrap_or(false)
        }
        Architecture::Llama | Architecture::Llada if window.is_some() => {
            let model = architecture.model_type();
            return Err(Error::unsupported(format!(
                "config.json: sliding_window of a {model} model"
            )));
        }
        Architecture::Llama | Architecture::Llada => false,
    };
    let sliding: Vec<bool> = match fields.0.get("layer_types") {
        None | Some(Value::Null) => {
            let from = fields.optional_size("max_window_layers")?.unwrap_or(28);
            (0..layers).map(|i| if gemma { i % 2 == 0 } else { i >= from }).collect()
        }
        Some(Value::Array(types)) if types.len() == layers => types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(Error::unsupported(format!("config.json: layer_types entry {kind}"))),
            })
            .collect::<Result<_>>()?,
        Some(other) => {
            return Err(Error::format(format!(
                "config.json: layer_types {other} for {layers} layers"
            )));
        }
    };
    Ok(sliding.into_iter().map(|sliding| window.filter(|_| sliding && used)).collect())
}

/// A token id, several, or none.
pub(crate) fn ids(value: Option<&Value>) -> Result<Vec<i32>> {
    let bad = |value: &Value| Error::format(format!("eos_token_id {value} is no token id"));
    let one = |value: &Value| {
        value
            .as_i64()
            .and_then(|id| i32::try_from(id).ok())
            .filter(|id| *id >= 0)
            .ok_or_else(|| bad(value))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

/// Typed access to the fields, with errors that name them.
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn wrong(name: &str, value: &Value) -> Error {
        Error::format(format!("config.json: {name} is {value}"))
    }

    pub fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            // 2^31: beyond it no dimension is meant, and products of two fit an address.
            Some(value) => match value.as_u64().filter(|n| *n < 1 << 31) {
                Some(0) if name != "max_window_layers" => Err(Fields::wrong(name, value)),
                Some(n) => Ok(Some(n as usize)),
                None => Err(Fields::wrong(name, value)),
            },
        }
    }

    pub fn size(&self, name: &str) -> Result<usize> {
        self.optional_size(name)?
            .ok_or_else(|| Error::format(format!("config.json: {name} is missing")))
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| Fields::wrong(name, value)),
        }
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_bool().map(Some).ok_or_else(|| Fields::wrong(name, value)),
        }
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| Fields::wrong(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama(change: impl FnOnce(&mut Map<String, Value>)) -> Result<DecoderConfig> {
        let mut raw = DecoderConfig::small(Architecture::Llama, 10, 8, 2, 2, 16).unwrap().raw;
        change(&mut raw);
        DecoderConfig::from_json(raw)
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (name, value) in [
            ("quantization_config", json!({"bits": 4})),
            ("sliding_window", json!(128)),
            ("attention_dropout", json!(0.1)),
            ("final_logit_softcapping", json!(30.0)),
            ("hidden_act", json!("relu")),
            ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0})),
            ("rope_scaling", json!({"rope_type": "linear", "factor": 2.0, "odd_factor": 3})),
            ("model_type", json!("mamba")),
        ] {
            let error = llama(|raw| drop(raw.insert(name.into(), value.clone()))).unwrap_err();
            assert!(error.is_unsupported(), "{name}: {error}");
            let told = value.get("odd_factor").map_or(name, |_| "odd_factor");
            assert!(error.to_string().contains(told), "{error}");
        }
        assert!(llama(|raw| drop(raw.remove("vocab_size"))).unwrap_err().is_format());
        assert!(
            llama(|raw| drop(raw.insert("hidden_size".into(), json!(-4)))).unwrap_err().is_format()
        );
        assert!(
            llama(|raw| drop(raw.insert("num_key_value_heads".into(), json!(3))))
                .unwrap_err()
                .is_invalid()
        );
        assert!(llama(|raw| drop(raw.insert("num_attention_heads".into(), json!(0)))).is_err());
    }

    #[test]
    fn eos_may_be_a_list() {
        let config = llama(|raw| drop(raw.insert("eos_token_id".into(), json!([3, 5])))).unwrap();
        assert_eq!(config.eos, [3, 5]);
        assert!(llama(|raw| drop(raw.insert("eos_token_id".into(), json!("x")))).is_err());
    }

    #[test]
    fn gemma_alternates_its_window() {
        let config = DecoderConfig::small(Architecture::Gemma2, 10, 8, 3, 2, 16).unwrap();
        assert_eq!(config.windows, [Some(4096), None, Some(4096)]);
        assert_eq!((config.attention_softcap, config.final_softcap), (Some(50.0), Some(30.0)));
    }
}
