//! Which fields of a `config.json` decide what a model computes.
//!
//! A field that the family's class in transformers does not read cannot change what was published, so it is left out and
//! named in [`Deciding::ignored`]. A field that the class reads, and one whose meaning is known from elsewhere, is either
//! implemented, or at a value that changes nothing, or refused.

use super::architecture::Architecture;
use super::published_fields::{READ, TRANSFORMERS};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// Fields that are read for every family, where its class has them or not: those of all configurations, and those of models
/// that fill masked blocks.
const OF_EVERY_FAMILY: &[&str] = &[
    "dtype",
    "torch_dtype",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "original_max_position_embeddings",
    "tie_word_embeddings",
    "eos_token_id",
    "mask_token_id",
    "block_size",
    "logit_shift",
];

/// Fields that a class reads and that change nothing here.
const HARMLESS: &[&str] = &[
    "architectures",
    "model_type",
    "transformers_version",
    "_name_or_path",
    "use_cache",
    "initializer_range",
    "return_dict",
    "bos_token_id",
    "pad_token_id",
    // How one sum was split over several machines.
    "pretraining_tp",
    // A loss that keeps experts busy while they are pre-trained.
    "output_router_logits",
    "router_aux_loss_coef",
];

/// Fields that are used: a class that reads one of them gets what it says.
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
    "rope_local_base_freq",
    "partial_rotary_factor",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "hidden_activation",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "sliding_window",
    "sliding_window_pattern",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "no_rope_layers",
    "no_rope_layer_interval",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
];

/// A field that is not implemented: what it means, which values change nothing, and what to do about another.
struct Refused {
    name: &'static str,
    passes: fn(&Value) -> bool,
    says: &'static str,
}

fn zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn truth(value: &Value) -> bool {
    value.as_bool() == Some(true)
}

fn nothing(_: &Value) -> bool {
    false
}

const DROPOUT: &str = "it drops activations at random while training, which this decoder does not do; only 0 passes. What a \
                       trained model answers does not depend on it: set it to 0 to go on without";

const REFUSED: &[Refused] = &[
    Refused { name: "attention_dropout", passes: zero, says: DROPOUT },
    Refused { name: "resid_pdrop", passes: zero, says: DROPOUT },
    Refused { name: "embd_pdrop", passes: zero, says: DROPOUT },
    Refused {
        name: "quantization_config",
        passes: nothing,
        says: "the weights are stored quantized, which is not read here in any format. Take the folder that it was made \
               from, with weights in bf16, f16 or f32",
    },
    Refused {
        name: "use_bidirectional_attention",
        passes: nothing,
        says: "every token sees those after it, so the model reads texts and does not write them; only false passes. Take a \
               causal model of the family",
    },
    Refused {
        name: "is_causal",
        passes: truth,
        says: "every token sees those after it, so the model reads texts and does not write them; only true passes. Take a \
               causal model of the family",
    },
    Refused {
        name: "is_encoder_decoder",
        passes: nothing,
        says: "the model has an encoder beside its decoder; only false passes. Take a model that is a decoder alone",
    },
    Refused {
        name: "add_cross_attention",
        passes: nothing,
        says: "its blocks look at an encoder's states; only false passes. Take a model that is a decoder alone",
    },
    Refused {
        name: "pruned_heads",
        passes: nothing,
        says: "heads were taken out of single layers; only an empty list passes. Take the model before it was pruned",
    },
    Refused {
        name: "use_mrope",
        passes: nothing,
        says: "positions have three parts, for time, row and column of pictures; only false passes. Take a model of the \
               family that is made for text alone",
    },
    Refused {
        name: "rope_interleaved",
        passes: nothing,
        says: "its rotary pairs are neighbours, and transformers turns pairs that are half a head apart; only false passes. \
               Permute the rows of its q and k projections, as conversion scripts to transformers do",
    },
    Refused {
        name: "alibi",
        passes: nothing,
        says: "scores fall with the distance in place of rotary positions; only false passes. Take a model with rotary \
               positions",
    },
    Refused {
        name: "partial_rotary_factor",
        passes: one,
        says: "only a part of each head is rotated, which transformers does not do in this family either; only 1 passes. See \
               whether model_type names the right family",
    },
];

/// A value that says that a thing is not there.
fn absent(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// The fields of a file that decide what its model computes.
pub(super) struct Deciding {
    /// Their values.
    pub fields: Map<String, Value>,
    /// Names of the others that no class is known to need.
    pub ignored: Vec<String>,
}

impl Deciding {
    /// Sorts the fields of a file under Llama's names.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] for a field that is read and not implemented, with what it means and what to do.
    pub fn of(raw: &Map<String, Value>, architecture: &Architecture) -> Result<Deciding> {
        let family = |name: &str| READ.iter().find(|(family, _)| *family == name);
        let read = family(architecture.model_type).or(family(architecture.kin));
        let read = read.map_or(&[][..], |(_, names)| names);
        let mut deciding = Deciding { fields: Map::new(), ignored: Vec::new() };
        for (name, value) in raw {
            let name = name.as_str();
            let is_read = read.contains(&name) || OF_EVERY_FAMILY.contains(&name);
            if is_read && (USED.contains(&name) || OF_EVERY_FAMILY.contains(&name)) {
                deciding.fields.insert(name.into(), value.clone());
            } else if let Some(refused) = REFUSED.iter().find(|refused| refused.name == name) {
                if !absent(value) && !(refused.passes)(value) {
                    let says = refused.says;
                    return Err(Error::unsupported(format!(
                        "config.json: {name} = {value}: {says}"
                    )));
                }
            } else if HARMLESS.contains(&name) || absent(value) {
            } else if is_read {
                let family = architecture.model_type;
                return Err(Error::unsupported(format!(
                    "config.json: {name} = {value}: the class of {family} models in transformers {TRANSFORMERS} reads it, \
                     and it is not implemented here; only an absent or false one passes"
                )));
            } else {
                deciding.ignored.push(name.into());
            }
        }
        Ok(deciding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_a_class_reads_is_used_or_explained() {
        for (family, names) in READ {
            for name in *names {
                let known =
                    [USED, HARMLESS, OF_EVERY_FAMILY].iter().any(|list| list.contains(name))
                        || REFUSED.iter().any(|refused| refused.name == *name);
                assert!(known, "{family}: {name}");
            }
        }
    }

    #[test]
    fn every_family_has_its_list() {
        for architecture in &super::super::ARCHITECTURES {
            let known = |name: &str| READ.iter().any(|(family, _)| *family == name);
            assert!(known(architecture.model_type) || known(architecture.kin));
        }
    }
}
