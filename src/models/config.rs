//! What a decoder is, read from the `config.json` that published models come with.
//!
//! A [table](super::ARCHITECTURES) says which families there are and how they differ; everything else is read from the file.
//! What the family's class in transformers reads is implemented or refused (`models::config_fields`): a model that loads is
//! the model that was published.

use super::architecture::{Architecture, Biases};
use super::config_fields::Deciding;
use super::diffusion::Diffusion;
use super::fields::Fields;
use super::layer_kinds;
use super::rope_scaling::Rope;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{Activation, ExpertSizes};
use serde_json::{Map, Value, json};

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
    /// Rotary embeddings, of which each layer has one or none.
    pub ropes: Vec<Rope>,
    /// Which of `ropes` each layer has.
    pub rotary: Vec<Option<usize>>,
    /// The first dimensions of a head, which are rotated; the others pass.
    pub rotary_dim: usize,
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
    /// The mixture of experts that a layer has in place of its MLP.
    pub experts: Vec<Option<ExpertSizes>>,
    /// What the embedding is multiplied by.
    pub embedding_multiplier: f32,
    /// What comes out of each half of a block is multiplied by this before it joins the residual stream.
    pub residual_multiplier: f32,
    /// What logits are divided by.
    pub logits_scaling: f32,
    /// Fields of the file that the family's class does not read: they change nothing.
    pub ignored: Vec<String>,
    /// Ids that end a sequence.
    pub eos: Vec<i32>,
    /// The element type named in the file.
    pub dtype: Option<DType>,
    /// What it needs to fill masked blocks; `None` where the file names no mask token.
    pub diffusion: Option<Diffusion>,
    raw: Map<String, Value>,
}

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
        let renamed = match architecture.names {
            Some(names) => (names.read)(&original)?,
            None => original.clone(),
        };
        let Deciding { fields: raw, ignored } = Deciding::of(&renamed, architecture)?;
        let fields = Fields(&raw);
        let defaults = &architecture.defaults;
        let hidden_size = fields.size("hidden_size")?;
        let layers = layer_kinds::layers(&fields)?;
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
            match raw.get(name) {
                None => Ok(defaults.softcaps.map(|softcaps| softcaps[which] as f32)),
                Some(_) => Ok(fields.number(name)?.map(|cap| cap as f32)),
            }
        };
        let multiplier = |name: &str| Ok::<_, Error>(fields.number(name)?.unwrap_or(1.0) as f32);
        let attention_scale = match architecture.multipliers {
            true => multiplier("attention_multiplier")?,
            false => scalar.powf(-0.5) as f32,
        };
        let logits_scaling = multiplier("logits_scaling")?;
        if !(logits_scaling > 0.0 && logits_scaling.is_finite()) {
            return Err(Error::invalid(format!("config.json: logits_scaling is {logits_scaling}")));
        }
        let bias = fields.flag("attention_bias")?.unwrap_or(false);
        let (qkv_bias, output_bias) = match architecture.biases {
            Biases::Never => (false, false),
            Biases::Configured => (bias, bias),
            Biases::ConfiguredInputs => (bias, false),
            Biases::Inputs => (true, false),
        };
        let max_position_embeddings =
            fields.optional_size("max_position_embeddings")?.unwrap_or(defaults.context);
        let windows = layer_kinds::windows(architecture, &fields, layers)?;
        let (ropes, rotary) = layer_kinds::rotary(architecture, &fields, &windows)?;
        let longest = ropes.iter().filter_map(Rope::longest).min();
        let max_position_embeddings =
            longest.map_or(max_position_embeddings, |longest| longest.min(max_position_embeddings));
        let partial = fields.number("partial_rotary_factor")?;
        let partial = ropes.iter().find_map(|rope| rope.partial).or(partial).unwrap_or(1.0);
        let rotary_dim = (head_dim as f64 * partial) as usize;
        if !(2..=head_dim).contains(&rotary_dim) || !rotary_dim.is_multiple_of(2) {
            return Err(Error::invalid(format!(
                "config.json: partial_rotary_factor {partial} of heads of width {head_dim}"
            )));
        }
        for rope in &ropes {
            rope.check(rotary_dim)?;
        }
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
            ropes,
            rotary,
            rotary_dim,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
            qkv_bias,
            output_bias,
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            activation: activation(architecture, &fields)?,
            attention_scale,
            attention_softcap: softcap("attn_logit_softcapping", 0)?,
            final_softcap: softcap("final_logit_softcapping", 1)?,
            windows,
            experts: layer_kinds::experts(architecture, &fields, layers)?,
            embedding_multiplier: multiplier("embedding_multiplier")?,
            residual_multiplier: multiplier("residual_multiplier")?,
            logits_scaling,
            ignored,
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
        let mut value = value;
        if architecture.experts {
            value["num_experts"] = json!(4);
            value["num_experts_per_tok"] = json!(2);
            value["moe_intermediate_size"] = json!((hidden_size * 4 / 3).div_ceil(32) * 32);
            value["norm_topk_prob"] = json!(true);
        }
        if architecture.multipliers {
            value["attention_multiplier"] = json!(((hidden_size / heads.max(1)) as f64).powf(-0.5));
        }
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
    let named = fields.text("hidden_activation")?.or(fields.text("hidden_act")?);
    Ok(match named.unwrap_or(usual) {
        "silu" | "swish" => Activation::Silu,
        "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
        "gelu" => Activation::Gelu,
        other => {
            return Err(Error::unsupported(format!(
                "config.json: hidden_act `{other}` is no activation of this decoder's gate (silu, gelu, gelu_pytorch_tanh are)"
            )));
        }
    })
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
    fn what_a_class_reads_and_is_not_implemented_is_refused() {
        for (name, value) in [
            ("quantization_config", json!({"bits": 4})),
            ("attention_dropout", json!(0.1)),
            ("hidden_act", json!("relu")),
            ("use_mrope", json!(true)),
            ("rope_interleaved", json!(true)),
            ("partial_rotary_factor", json!(0.5)),
            ("is_encoder_decoder", json!(true)),
            ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0})),
            ("rope_scaling", json!({"rope_type": "default", "mrope_section": [1, 1, 2]})),
            ("rope_scaling", json!({"rope_type": "linear", "factor": 2.0, "long_mscale": 3})),
            ("model_type", json!("mamba")),
        ] {
            let error = llama(|raw| drop(raw.insert(name.into(), value.clone()))).unwrap_err();
            assert!(error.is_unsupported() && error.to_string().contains(name), "{name}: {error}");
            // It says more than the name.
            assert!(error.to_string().len() > name.len() + 40, "{error}");
        }
        assert!(llama(|raw| drop(raw.remove("vocab_size"))).unwrap_err().is_format());
        assert!(
            llama(|raw| drop(raw.insert("hidden_size".into(), json!(-4)))).unwrap_err().is_format()
        );
        for (name, value) in [("num_key_value_heads", 3), ("num_hidden_layers", 150_000_000)] {
            assert!(
                llama(|raw| drop(raw.insert(name.into(), json!(value)))).unwrap_err().is_invalid()
            );
        }
        assert!(llama(|raw| drop(raw.insert("num_attention_heads".into(), json!(0)))).is_err());
    }

    #[test]
    fn what_no_class_reads_changes_nothing_and_is_named() {
        let plain = llama(|_| {}).unwrap();
        for (name, value) in [
            ("unsloth_fixed", json!(true)),
            ("temperature", json!(0.6)),
            ("sliding_window", json!(128)),
            ("final_logit_softcapping", json!(30.0)),
            ("layer_types", json!(["sliding_attention"])),
            ("use_deepep", json!({"a": 1})),
        ] {
            let config = llama(|raw| drop(raw.insert(name.into(), value))).unwrap();
            assert_eq!(config.ignored, [name]);
            assert_eq!((config.windows, config.final_softcap), (plain.windows.clone(), None));
        }
        // What says that a thing is not there is not worth a word.
        for (name, value) in [
            ("use_mrope", json!(false)),
            ("rope_interleaved", json!(false)),
            ("pruned_heads", json!({})),
            ("cross_attention_hidden_size", json!(null)),
            ("partial_rotary_factor", json!(1)),
            ("auto_map", json!({})),
        ] {
            let config = llama(|raw| drop(raw.insert(name.into(), value))).unwrap();
            assert!(config.ignored.is_empty(), "{name}");
        }
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
            ("gemma3_text", 4, 256, 1e-6, 131_072, true),
            ("qwen3_moe", 4, 4, 1e-6, 32_768, false),
            ("phi3", 32, 4, 1e-5, 4096, false),
            ("smollm3", 4, 4, 1e-6, 32_768, true),
            ("granite", 32, 4, 1e-6, 2048, false),
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
        // Mistral's class does not read the list.
        let given = windows("mistral", json!({"sliding_window": 7, "layer_types": mixed}));
        assert_eq!(given.unwrap(), [some; 3]);
        assert_eq!(windows("qwen2", json!({"sliding_window": 7})).unwrap(), [none; 3]);
        let from_1 =
            json!({"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 1});
        assert_eq!(windows("qwen3", from_1).unwrap(), [none, some, some]);
        let layers = json!({"sliding_window": 7, "use_sliding_window": true, "layer_types": mixed});
        assert_eq!(windows("qwen2", layers).unwrap(), [some, none, some]);
        assert_eq!(windows("olmo2", json!({"sliding_window": 7})).unwrap(), [none; 3]);
        let pattern = json!({"sliding_window": 7, "sliding_window_pattern": 2});
        assert_eq!(windows("gemma3_text", pattern).unwrap(), [some, none, some]);
        assert_eq!(windows("qwen3_moe", json!({"sliding_window": 7})).unwrap(), [none; 3]);
        let used = json!({"sliding_window": 7, "use_sliding_window": true});
        assert_eq!(windows("qwen3_moe", used).unwrap(), [some; 3]);
        let used =
            json!({"sliding_window": 7, "use_sliding_window": true, "no_rope_layers": [1, 0, 1]});
        assert_eq!(windows("smollm3", used).unwrap(), [none, some, none]);
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
        assert_eq!(biases("mistral").unwrap(), (false, false));
    }

    #[test]
    fn gemma_alternates_its_window() {
        let config = DecoderConfig::small("gemma2", 10, 8, 3, 2, 16).unwrap();
        assert_eq!(config.windows, [Some(4096), None, Some(4096)]);
        assert_eq!((config.attention_softcap, config.final_softcap), (Some(50.0), Some(30.0)));
    }
}
