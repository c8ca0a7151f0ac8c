//! What a decoder is, read from the `config.json` that published models come with.
//!
//! A [table](super::ARCHITECTURES) says which families there are and how they differ; everything else is read from the file.
//! A field that is neither used nor known to be harmless is an error that names it: a model that loads is the model that
//! was published.

use super::architecture::{Architecture, Biases, Windows};
use super::diffusion::Diffusion;
use super::fields::Fields;
use super::rope_scaling::Rope;
use crate::dtype::DType;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

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
    pub architecture: &'static Architecture,
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
        let architecture = Architecture::named(model_type).map_err(|e| e.at("config.json"))?;
        // What follows reads one set of names.
        let raw = match architecture.names {
            Some(names) => (names.read)(&original)?,
            None => original.clone(),
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
        let defaults = &architecture.defaults;
        if fields.number("attention_dropout")?.unwrap_or(0.0) != 0.0 {
            return Err(Error::unsupported("config.json: attention_dropout other than 0"));
        }
        let hidden_size = fields.size("hidden_size")?;
        let layers = fields.size("num_hidden_layers")?;
        let heads = fields.size("num_attention_heads")?;
        let kv_heads = match raw.get("num_key_value_heads") {
            None => defaults.kv_heads,
            Some(_) => fields.optional_size("num_key_value_heads")?,
        };
        let kv_heads = kv_heads.unwrap_or(heads);
        let head_dim = fields.optional_size("head_dim")?.or(defaults.head_dim);
        let head_dim = head_dim.unwrap_or(hidden_size / heads);
        if heads % kv_heads != 0 || head_dim % 2 != 0 {
            return Err(Error::invalid(format!(
                "config.json: {heads} heads over {kv_heads} key-value heads of width {head_dim}: the heads must \
                 divide and the width be even"
            )));
        }
        let scalar = fields.number("query_pre_attn_scalar")?;
        let scalar = scalar.or(defaults.query_pre_attn_scalar).unwrap_or(head_dim as f64);
        let softcap = |name: &str, which: usize| -> Result<Option<f32>> {
            match (raw.get(name), defaults.softcaps) {
                (None, Some(softcaps)) => Ok(Some(softcaps[which] as f32)),
                (None | Some(Value::Null), _) => Ok(None),
                (Some(_), Some(_)) => Ok(fields.number(name)?.map(|cap| cap as f32)),
                (Some(_), None) => {
                    Err(Error::unsupported(format!("config.json: {name} of a {model_type} model")))
                }
            }
        };
        let bias = fields.flag("attention_bias")?.unwrap_or(false);
        let (qkv_bias, output_bias) = match architecture.biases {
            Biases::Never if bias => {
                return Err(Error::unsupported(format!(
                    "config.json: attention_bias of a {model_type} model"
                )));
            }
            Biases::Never => (false, false),
            Biases::Configured => (bias, bias),
            Biases::ConfiguredInputs => (bias, false),
            Biases::Inputs => (true, false),
        };
        let max_position_embeddings =
            fields.optional_size("max_position_embeddings")?.unwrap_or(defaults.context);
        let one_block = architecture.one_block.then_some(max_position_embeddings);
        Ok(DecoderConfig {
            architecture,
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps) as f32,
            max_position_embeddings,
            rope: Rope::from_config(&raw)?,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
            qkv_bias,
            output_bias,
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            activation: activation(architecture, &fields)?,
            attention_scale: scalar.powf(-0.5) as f32,
            attention_softcap: softcap("attn_logit_softcapping", 0)?,
            final_softcap: softcap("final_logit_softcapping", 1)?,
            windows: windows(architecture, &fields, layers)?,
            eos: fields.ids("eos_token_id")?,
            dtype: match fields.text("dtype")?.or(fields.text("torch_dtype")?) {
                Some(name) => Some(name.parse().map_err(|e: Error| e.at("config.json"))?),
                None => None,
            },
            diffusion: Diffusion::from_config(&fields, one_block)?,
            raw: original,
        })
    }

    /// The config of a new small model of the family with this `model_type`: `head_dim` is `hidden_size / heads`, the head
    /// is tied.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] for a family that is not known, [`Error::is_invalid`] for sizes that cannot be.
    pub fn small(
        model_type: &str,
        vocab_size: usize,
        hidden_size: usize,
        layers: usize,
        heads: usize,
        max_position_embeddings: usize,
    ) -> Result<DecoderConfig> {
        let architecture = Architecture::named(model_type)?;
        let value = json!({
            "architectures": [architecture.class],
            "model_type": model_type,
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
        match (value, architecture.names) {
            (Value::Object(raw), Some(names)) => DecoderConfig::from_json((names.written)(raw)),
            (Value::Object(raw), None) => DecoderConfig::from_json(raw),
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

fn activation(architecture: &Architecture, fields: &Fields<'_>) -> Result<Activation> {
    let usual = architecture.defaults.activation;
    let newer = fields.text("hidden_activation")?;
    Ok(match newer.or(fields.text("hidden_act")?).unwrap_or(usual) {
        "silu" | "swish" => Activation::Silu,
        "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
        // Gemma's first configs said `gelu` for what the models were trained with: the tanh form.
        "gelu" if usual == "gelu_pytorch_tanh" && newer.is_none() => Activation::GeluTanh,
        "gelu" => Activation::Gelu,
        other => return Err(Error::unsupported(format!("config.json: hidden_act `{other}`"))),
    })
}

/// The sliding window of each layer.
fn windows(
    architecture: &Architecture,
    fields: &Fields<'_>,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let named = fields.optional_size("sliding_window")?;
    let window = match fields.0.get("sliding_window") {
        None => architecture.defaults.window,
        Some(_) => named,
    };
    let sliding = |usual: &dyn Fn(usize) -> bool| -> Result<Vec<bool>> {
        match fields.0.get("layer_types") {
            None | Some(Value::Null) => Ok((0..layers).map(usual).collect()),
            Some(Value::Array(types)) if types.len() == layers => types
                .iter()
                .map(|kind| match kind.as_str() {
                    Some("sliding_attention") => Ok(true),
                    Some("full_attention") => Ok(false),
                    _ => Err(Error::unsupported(format!("config.json: layer_types entry {kind}"))),
                })
                .collect(),
            Some(other) => {
                Err(Error::format(format!("config.json: layer_types {other} for {layers} layers")))
            }
        }
    };
    let used = match architecture.windows {
        Windows::Never => {
            let none = sliding(&|_| false)?;
            if named.is_some() || none.contains(&true) {
                return Err(Error::unsupported(format!(
                    "config.json: sliding_window of a {} model",
                    architecture.model_type
                )));
            }
            none
        }
        Windows::Every => {
            let all = sliding(&|_| window.is_some())?;
            if all.contains(&window.is_none()) {
                return Err(Error::unsupported(format!(
                    "config.json: layer_types other than its one sliding_window in a {} model",
                    architecture.model_type
                )));
            }
            all
        }
        Windows::Alternating => sliding(&|layer| layer.is_multiple_of(2))?,
        Windows::Configured => {
            let used = fields.flag("use_sliding_window")?.unwrap_or(false);
            let from = fields.optional_size("max_window_layers")?.unwrap_or(28);
            let all = sliding(&|layer| layer >= from)?;
            all.into_iter().map(|sliding| sliding && used).collect()
        }
    };
    Ok(used.into_iter().map(|sliding| window.filter(|_| sliding)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama(change: impl FnOnce(&mut Map<String, Value>)) -> Result<DecoderConfig> {
        let mut raw = DecoderConfig::small("llama", 10, 8, 2, 2, 16).unwrap().raw;
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

    fn read(model_type: &str, more: Value) -> Result<DecoderConfig> {
        let mut raw = DecoderConfig::small(model_type, 10, 32, 3, 4, 16).unwrap().raw;
        for (name, value) in more.as_object().unwrap() {
            match value {
                Value::String(absent) if absent == "absent" => drop(raw.remove(name)),
                _ => drop(raw.insert(name.clone(), value.clone())),
            }
        }
        DecoderConfig::from_json(raw)
    }

    /// What transformers takes a field to be that a file does not have.
    #[test]
    fn an_absent_field_has_the_default_of_its_family() {
        let absent = json!({"num_key_value_heads": "absent", "num_attention_heads": 32,
            "head_dim": "absent", "hidden_size": 128, "rms_norm_eps": "absent",
            "max_position_embeddings": "absent", "tie_word_embeddings": "absent"});
        for (model_type, kv_heads, head_dim, eps, context, tied) in [
            ("llama", 32, 4, 1e-6, 2048, false),
            ("mistral", 8, 4, 1e-6, 131_072, false),
            ("qwen2", 32, 4, 1e-6, 32_768, false),
            ("qwen3", 32, 128, 1e-6, 32_768, false),
            ("olmo2", 32, 4, 1e-5, 2048, false),
            ("gemma2", 4, 256, 1e-6, 8192, true),
        ] {
            let c = read(model_type, absent.clone()).unwrap();
            assert_eq!((c.kv_heads, c.head_dim), (kv_heads, head_dim), "{model_type}");
            assert_eq!((c.rms_norm_eps, c.max_position_embeddings), (eps, context), "{model_type}");
            assert_eq!(c.tied, tied, "{model_type}");
        }
        // Null is not absent.
        assert_eq!(read("mistral", json!({"num_key_value_heads": null})).unwrap().kv_heads, 4);
    }

    #[test]
    fn windows_are_where_the_family_has_them() {
        let windows = |model_type, more| read(model_type, more).map(|config| config.windows);
        let (some, none) = (Some(7), None);
        assert_eq!(windows("mistral", json!({})).unwrap(), [Some(4096); 3]);
        assert_eq!(windows("mistral", json!({"sliding_window": 7})).unwrap(), [some; 3]);
        assert_eq!(windows("mistral", json!({"sliding_window": null})).unwrap(), [none; 3]);
        let mixed = json!(["sliding_attention", "full_attention", "sliding_attention"]);
        let refused = windows("mistral", json!({"sliding_window": 7, "layer_types": mixed}));
        assert!(refused.unwrap_err().is_unsupported());
        assert_eq!(windows("qwen2", json!({"sliding_window": 7})).unwrap(), [none; 3]);
        let from_1 =
            json!({"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 1});
        assert_eq!(windows("qwen3", from_1).unwrap(), [none, some, some]);
        let layers = json!({"sliding_window": 7, "use_sliding_window": true, "layer_types": mixed});
        assert_eq!(windows("qwen2", layers).unwrap(), [some, none, some]);
        assert!(windows("olmo2", json!({"sliding_window": 7})).unwrap_err().is_unsupported());
        assert!(windows("llama", json!({"layer_types": null})).is_ok());
        let odd = json!({"layer_types": vec!["chunked_attention"; 3]});
        assert!(windows("gemma2", odd).unwrap_err().is_unsupported());
    }

    #[test]
    fn biases_are_where_the_family_has_them() {
        let biases = |model_type| {
            let name = if model_type == "llada" { "include_qkv_bias" } else { "attention_bias" };
            let config = read(model_type, json!({name: true}))?;
            Ok::<_, Error>((config.qkv_bias, config.output_bias))
        };
        assert_eq!(biases("llama").unwrap(), (true, true));
        assert_eq!(biases("olmo2").unwrap(), (true, true));
        assert_eq!(biases("llada").unwrap(), (true, false));
        assert_eq!(biases("qwen2").unwrap(), (true, false));
        assert!(read("qwen2", json!({})).unwrap().qkv_bias);
        assert!(biases("mistral").unwrap_err().is_unsupported());
    }

    #[test]
    fn gemma_alternates_its_window() {
        let config = DecoderConfig::small("gemma2", 10, 8, 3, 2, 16).unwrap();
        assert_eq!(config.windows, [Some(4096), None, Some(4096)]);
        assert_eq!((config.attention_softcap, config.final_softcap), (Some(50.0), Some(30.0)));
    }
}
