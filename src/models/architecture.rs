//! The published families that the decoder covers, one row each: names, defaults, and how they differ from Llama.
//!
//! A family of the decoder's kind is added by a row here and a case in `tests/golden-data`.

use super::llada;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// A published family.
#[derive(Debug)]
pub struct Architecture {
    /// The `model_type` in `config.json`, by which it is chosen too.
    pub model_type: &'static str,
    /// The class that its files name.
    pub class: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// A family of transformers whose fields it has, where transformers does not know it.
    pub(super) kin: &'static str,
    pub(super) norms: Norms,
    pub(super) query_key_norm: Option<NormOver>,
    /// The factor of a norm is `1 + weight`.
    pub(super) unit_offset: bool,
    /// The embedding is multiplied by the root of its width.
    pub(super) scaled_embedding: bool,
    pub(super) biases: Biases,
    pub(super) windows: Windows,
    pub(super) rotary: Rotary,
    /// Embedding, scores, both halves of a block and logits have factors of their own.
    pub(super) multipliers: bool,
    /// Layers have mixtures of experts in place of an MLP.
    pub(super) experts: bool,
    /// Tensors of its files that hold several parameters, one above the other.
    pub(super) stacked: &'static [Stacked],
    /// Every token sees every other: where it fills masked blocks, its context is one block.
    pub(super) one_block: bool,
    pub(super) defaults: Defaults,
    pub(super) names: Option<Names>,
}

/// Where the two halves of a block, attention and MLP, are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norms {
    /// What goes in.
    Before,
    /// What goes in and what comes out.
    Around,
    /// What comes out.
    After,
}

/// What a norm on queries and keys goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormOver {
    /// Each head.
    Head,
    /// All heads together.
    Projection,
}

/// Biases of the attention's projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Biases {
    /// None.
    Never,
    /// On q, k, v and the output, where `attention_bias` says so.
    Configured,
    /// On q, k and v, where `attention_bias` says so.
    ConfiguredInputs,
    /// On q, k and v.
    Inputs,
}

/// Which layers have a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    /// None.
    Never,
    /// All.
    Every,
    /// All, where `use_sliding_window` is set.
    Switched,
    /// Every other one, from the first, unless `layer_types` says otherwise.
    Alternating,
    /// All but each sixth (`sliding_window_pattern`), unless `layer_types` says otherwise.
    Pattern,
    /// Where `use_sliding_window` is set: those that `layer_types` names, or from `max_window_layers` on.
    Configured,
    /// Where `use_sliding_window` is set: those that `layer_types` names, or those without rotary positions.
    Unrotated,
}

/// Which rotary positions a layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rotary {
    /// The same in all.
    Every,
    /// The same in those that `no_rope_layers` marks, or in all but each fourth; none in the others.
    Listed,
    /// Those of full attention, or those of a sliding window.
    OfTheWindow,
}

/// A tensor that holds several parameters, one above the other: of a name with `.part_proj`, the parts in their order.
#[derive(Debug)]
pub(super) struct Stacked {
    /// Its name after that of the layer.
    pub tensor: &'static str,
    /// The parameters' names after that of the layer.
    pub parts: &'static [&'static str],
}

/// What a field is taken to be where a file does not have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    /// `None`: the width divided by the heads.
    pub head_dim: Option<usize>,
    /// `None`: as many as heads.
    pub kv_heads: Option<usize>,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub context: usize,
    pub tied: bool,
    pub activation: &'static str,
    /// `None`: the width of a head.
    pub query_pre_attn_scalar: Option<f64>,
    /// Of the attention's scores and of the logits.
    pub softcaps: Option<[f64; 2]>,
    pub window: Option<usize>,
}

/// A config under other names.
type Renamed = fn(&Map<String, Value>) -> Result<Map<String, Value>>;

/// Names of its own, for fields and tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// A config under Llama's names.
    pub read: Renamed,
    /// A config with its own names, from one with Llama's.
    pub written: fn(Map<String, Value>) -> Map<String, Value>,
    /// Its own name of a tensor.
    pub tensor: fn(&str) -> Cow<'_, str>,
}

const LLAMA: Architecture = Architecture {
    model_type: "llama",
    class: "LlamaForCausalLM",
    about: "Llama 1 to 3 and everything of its shape, with their RoPE scalings",
    kin: "llama",
    norms: Norms::Before,
    query_key_norm: None,
    unit_offset: false,
    scaled_embedding: false,
    biases: Biases::Configured,
    windows: Windows::Never,
    rotary: Rotary::Every,
    multipliers: false,
    experts: false,
    stacked: &[],
    one_block: false,
    defaults: Defaults {
        head_dim: None,
        kv_heads: None,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        context: 2048,
        tied: false,
        activation: "silu",
        query_pre_attn_scalar: None,
        softcaps: None,
        window: None,
    },
    names: None,
};

const QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    about: "Qwen 3 (dense): RMSNorm on each query and key head",
    kin: "qwen3",
    query_key_norm: Some(NormOver::Head),
    windows: Windows::Configured,
    defaults: Defaults {
        head_dim: Some(128),
        kv_heads: Some(32),
        context: 32_768,
        window: Some(4096),
        ..LLAMA.defaults
    },
    ..LLAMA
};

const GEMMA2: Architecture = Architecture {
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    about: "Gemma 2: norms around each half of a block, softcaps, alternating windows, scaled embedding",
    norms: Norms::Around,
    unit_offset: true,
    scaled_embedding: true,
    windows: Windows::Alternating,
    defaults: Defaults {
        head_dim: Some(256),
        kv_heads: Some(4),
        context: 8192,
        tied: true,
        activation: "gelu_pytorch_tanh",
        query_pre_attn_scalar: Some(256.0),
        softcaps: Some([50.0, 30.0]),
        window: Some(4096),
        ..LLAMA.defaults
    },
    ..LLAMA
};

/// All of them.
pub static ARCHITECTURES: [Architecture; 13] = [
    LLAMA,
    Architecture {
        model_type: "mistral",
        class: "MistralForCausalLM",
        about: "Mistral: a sliding window in every layer, or none",
        biases: Biases::Never,
        windows: Windows::Every,
        defaults: Defaults {
            kv_heads: Some(8),
            context: 131_072,
            window: Some(4096),
            ..LLAMA.defaults
        },
        ..LLAMA
    },
    Architecture {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        about: "Qwen 2 and 2.5: biases on q, k and v",
        biases: Biases::Inputs,
        windows: Windows::Configured,
        defaults: Defaults {
            kv_heads: Some(32),
            context: 32_768,
            window: Some(4096),
            ..LLAMA.defaults
        },
        ..LLAMA
    },
    QWEN3,
    Architecture {
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        about: "OLMo 2: norms after each half of a block, RMSNorm over all queries and all keys",
        norms: Norms::After,
        query_key_norm: Some(NormOver::Projection),
        defaults: Defaults { rms_norm_eps: 1e-5, ..LLAMA.defaults },
        ..LLAMA
    },
    GEMMA2,
    Architecture {
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        about: "Gemma 3, text alone: RMSNorm on each query and key head, five windows to one full layer, a rotary base for each",
        query_key_norm: Some(NormOver::Head),
        windows: Windows::Pattern,
        rotary: Rotary::OfTheWindow,
        defaults: Defaults {
            rope_theta: 1_000_000.0,
            context: 131_072,
            softcaps: None,
            ..GEMMA2.defaults
        },
        ..GEMMA2
    },
    Architecture {
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        about: "Qwen 3 MoE: a mixture of experts in place of the MLP",
        windows: Windows::Switched,
        experts: true,
        defaults: Defaults { head_dim: None, kv_heads: Some(4), ..QWEN3.defaults },
        ..QWEN3
    },
    Architecture {
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        about: "Phi 3, 3.5 and 4 (mini): projections in one tensor, heads that may be rotated in part; sequences up to the length \
                before LongRoPE extends it",
        biases: Biases::Never,
        windows: Windows::Every,
        stacked: &[
            Stacked {
                tensor: "self_attn.qkv_proj",
                parts: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            },
            Stacked { tensor: "mlp.gate_up_proj", parts: &["mlp.gate_proj", "mlp.up_proj"] },
        ],
        defaults: Defaults { rms_norm_eps: 1e-5, context: 4096, ..LLAMA.defaults },
        ..LLAMA
    },
    Architecture {
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        about: "SmolLM 3: no positions in each fourth layer",
        windows: Windows::Unrotated,
        rotary: Rotary::Listed,
        defaults: Defaults {
            kv_heads: Some(4),
            rope_theta: 2_000_000.0,
            context: 32_768,
            tied: true,
            ..LLAMA.defaults
        },
        ..LLAMA
    },
    Architecture {
        model_type: "granite",
        class: "GraniteForCausalLM",
        about: "Granite 3: factors on embedding, scores, residual stream and logits",
        multipliers: true,
        ..LLAMA
    },
    Architecture {
        model_type: "llada",
        class: "LLaDAModelLM",
        about: "LLaDA: Llama under other names that fills masked tokens, every token seeing every other",
        biases: Biases::ConfiguredInputs,
        one_block: true,
        names: Some(Names {
            read: llada::renamed,
            written: llada::published,
            tensor: llada::tensor_name,
        }),
        ..LLAMA
    },
    Architecture {
        model_type: "sdar",
        class: "SDARForCausalLM",
        about: "SDAR: Qwen 3 that fills masked blocks",
        ..QWEN3
    },
];

impl Architecture {
    /// The family of this `model_type`.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] with the known ones.
    pub fn named(model_type: &str) -> Result<&'static Architecture> {
        ARCHITECTURES.iter().find(|known| known.model_type == model_type).ok_or_else(|| {
            let known: Vec<_> = ARCHITECTURES.iter().map(|known| known.model_type).collect();
            Error::unsupported(format!("model_type `{model_type}` (known: {})", known.join(", ")))
        })
    }

    /// What its files call the tensor that has this name in Llama's.
    pub(super) fn tensor_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match self.names {
            Some(names) => (names.tensor)(name),
            None => name.into(),
        }
    }
}
