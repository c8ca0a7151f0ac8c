//! LLaDA's names: fields of its `config.json` and tensors of its files, and the ones of Llama that they stand for.
//!
//! LLaDA is a Llama whose code descends from OLMo, so its files say `d_model` and `transformer.blocks`. Every switch of
//! that code is taken only at the value at which it computes what a Llama does.

use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// LLaDA's field and the one that it stands for.
const RENAMED: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("n_kv_heads", "num_key_value_heads"),
    ("mlp_hidden_size", "intermediate_size"),
    ("max_sequence_length", "max_position_embeddings"),
    ("weight_tying", "tie_word_embeddings"),
    ("include_qkv_bias", "attention_bias"),
    ("activation_type", "hidden_act"),
];

/// Switches, each at the only value that is taken.
fn switches() -> [(&'static str, Value); 16] {
    [
        ("alibi", json!(false)),
        ("attention_layer_norm", json!(false)),
        ("bias_for_layer_norm", json!(false)),
        ("block_group_size", json!(1)),
        ("block_type", json!("llama")),
        ("clip_qkv", Value::Null),
        ("embedding_dropout", json!(0.0)),
        ("include_bias", json!(false)),
        ("input_emb_norm", json!(false)),
        ("layer_norm_type", json!("rms")),
        ("layer_norm_with_affine", json!(true)),
        ("multi_query_attention", json!(false)),
        ("residual_dropout", json!(0.0)),
        ("rope", json!(true)),
        ("rope_full_precision", json!(true)),
        ("scale_logits", json!(false)),
    ]
}

/// Fields that decide nothing in a model that is loaded.
const WITHOUT_EFFECT: &[&str] = &[
    "alibi_bias_max",
    "attention_layer_norm_with_affine",
    "embedding_size",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "init_std",
    "mlp_ratio",
    "precision",
];

/// LLaDA's config under Llama's names.
///
/// # Errors
/// [`Error::is_unsupported`] naming a switch that is set otherwise than in the published models, [`Error::is_format`]
/// where the embedding is smaller than the vocabulary.
pub(super) fn renamed(config: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut out = Map::new();
    for (name, value) in config {
        let name = name.as_str();
        if let Some((_, canonical)) = RENAMED.iter().find(|(own, _)| *own == name) {
            out.insert((*canonical).into(), value.clone());
            continue;
        }
        if WITHOUT_EFFECT.contains(&name) {
            continue;
        }
        match switches().iter().find(|(switch, _)| *switch == name) {
            Some((_, taken)) if value.is_null() || value == taken => {}
            // Numbers compare by value, not by how they are written.
            Some((_, taken)) if taken.is_number() && value.as_f64() == taken.as_f64() => {}
            Some(_) => {
                return Err(Error::unsupported(format!(
                    "config.json: {name} = {value} of a llada model"
                )));
            }
            None => drop(out.insert(name.into(), value.clone())),
        }
    }
    let whole = |name: &str| config.get(name).and_then(Value::as_u64);
    if out.get("intermediate_size").is_none_or(Value::is_null)
        && let (Some(ratio), Some(width)) = (whole("mlp_ratio"), whole("d_model"))
    {
        out.insert("intermediate_size".into(), ratio.saturating_mul(width).into());
    }
    // The table has rows beyond the vocabulary to make its size round; logits have them too.
    if let (Some(rows), Some(vocab)) = (whole("embedding_size"), whole("vocab_size")) {
        if rows < vocab {
            return Err(Error::format(format!(
                "config.json: embedding_size {rows} is smaller than vocab_size {vocab}"
            )));
        }
        out.insert("vocab_size".into(), rows.into());
    }
    Ok(out)
}

/// A config under Llama's names as LLaDA's files have it.
pub(super) fn published(config: Map<String, Value>) -> Map<String, Value> {
    let mut out: Map<String, Value> = config
        .into_iter()
        .filter(|(name, _)| name != "head_dim")
        .map(|(name, value)| match RENAMED.iter().find(|(_, canonical)| *canonical == name) {
            Some((own, _)) => ((*own).to_owned(), value),
            None => (name, value),
        })
        .collect();
    out.insert("activation_type".into(), "silu".into());
    let set = switches().into_iter().filter(|(_, value)| !value.is_null());
    out.extend(set.map(|(name, value)| (name.to_owned(), value)));
    out
}

/// LLaDA's name of a tensor that Llama calls `name`.
pub(super) fn tensor_name(name: &str) -> Cow<'_, str> {
    match name {
        "model.embed_tokens.weight" => return "model.transformer.wte.weight".into(),
        "model.norm.weight" => return "model.transformer.ln_f.weight".into(),
        "lm_head.weight" => return "model.transformer.ff_out.weight".into(),
        _ => {}
    }
    let Some((layer, rest)) = name.strip_prefix("model.layers.").and_then(|n| n.split_once('.'))
    else {
        return name.into();
    };
    let (part, kind) = rest.rsplit_once('.').unwrap_or((rest, "weight"));
    let own = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.o_proj" => "attn_out",
        "post_attention_layernorm" => "ff_norm",
        "mlp.gate_proj" => "ff_proj",
        "mlp.up_proj" => "up_proj",
        "mlp.down_proj" => "ff_out",
        part => part.strip_prefix("self_attn.").unwrap_or(part),
    };
    format!("model.transformer.blocks.{layer}.{own}.{kind}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tensors() {
        for (ours, theirs) in [
            ("model.layers.3.self_attn.q_proj.weight", "model.transformer.blocks.3.q_proj.weight"),
            ("model.layers.0.mlp.down_proj.weight", "model.transformer.blocks.0.ff_out.weight"),
            ("model.layers.11.self_attn.k_proj.bias", "model.transformer.blocks.11.k_proj.bias"),
            (
                "model.layers.1.input_layernorm.weight",
                "model.transformer.blocks.1.attn_norm.weight",
            ),
            ("model.norm.weight", "model.transformer.ln_f.weight"),
            ("lm_head.weight", "model.transformer.ff_out.weight"),
        ] {
            assert_eq!(tensor_name(ours), theirs);
        }
    }
}
