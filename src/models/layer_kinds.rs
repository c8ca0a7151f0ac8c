//! What differs from layer to layer: the sliding window, the rotary positions, and whether the MLP is a mixture of experts.

use super::architecture::{Architecture, Rotary, Windows};
use super::fields::Fields;
use super::rope_scaling::Rope;
use crate::error::{Error, Result};
use crate::nn::ExpertSizes;
use serde_json::Value;

/// The most layers that are taken for a model. The largest published one has some hundred.
const MOST_LAYERS: usize = 4096;

/// The number of layers.
///
/// # Errors
/// [`Error::is_invalid`] for more than any model has.
pub(super) fn layers(fields: &Fields<'_>) -> Result<usize> {
    let layers = fields.size("num_hidden_layers")?;
    if layers > MOST_LAYERS {
        return Err(Error::invalid(format!(
            "config.json: num_hidden_layers is {layers}, more than {MOST_LAYERS}"
        )));
    }
    Ok(layers)
}

/// The sliding window of each layer, in tokens.
pub(super) fn windows(
    architecture: &Architecture,
    fields: &Fields<'_>,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let window = match fields.0.get("sliding_window") {
        None => architecture.defaults.window,
        Some(_) => fields.optional_size("sliding_window")?,
    };
    let sliding = |usual: &dyn Fn(usize) -> bool| -> Result<Vec<bool>> {
        match fields.0.get("layer_types") {
            None | Some(Value::Null) => Ok((0..layers).map(usual).collect()),
            Some(Value::Array(types)) if types.len() == layers => types
                .iter()
                .map(|kind| match kind.as_str() {
                    Some("sliding_attention") => Ok(true),
                    Some("full_attention") => Ok(false),
                    _ => Err(Error::unsupported(format!(
                        "config.json: layer_types has {kind}: only sliding_attention and full_attention are layers of this \
                         decoder"
                    ))),
                })
                .collect(),
            Some(other) => {
                Err(Error::format(format!("config.json: layer_types {other} for {layers} layers")))
            }
        }
    };
    let switched = || Ok::<_, Error>(fields.flag("use_sliding_window")?.unwrap_or(false));
    let used = match architecture.windows {
        Windows::Never => vec![false; layers],
        Windows::Every => vec![true; layers],
        Windows::Switched => vec![switched()?; layers],
        Windows::Alternating => sliding(&|layer| layer.is_multiple_of(2))?,
        Windows::Pattern => {
            let pattern = fields.optional_size("sliding_window_pattern")?.unwrap_or(6);
            sliding(&|layer| !(layer + 1).is_multiple_of(pattern))?
        }
        Windows::Configured => {
            let from = fields.optional_size("max_window_layers")?.unwrap_or(28);
            let (used, all) = (switched()?, sliding(&|layer| layer >= from)?);
            all.into_iter().map(|sliding| sliding && used).collect()
        }
        Windows::Unrotated => {
            let (used, rotated) = (switched()?, rotated(fields, layers)?);
            let all = sliding(&|layer| !rotated[layer])?;
            all.into_iter().map(|sliding| sliding && used).collect()
        }
    };
    Ok(used.into_iter().map(|sliding| window.filter(|_| sliding)).collect())
}

/// Which layers of SmolLM3 have rotary positions: all but every fourth, or as a list says.
fn rotated(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>> {
    match fields.0.get("no_rope_layers") {
        None | Some(Value::Null) => {
            let interval = fields.optional_size("no_rope_layer_interval")?.unwrap_or(4);
            Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect())
        }
        // The list says 1 where there are positions, whatever its name says.
        Some(Value::Array(list)) if list.len() >= layers => list[..layers]
            .iter()
            .map(|entry| match entry.as_u64() {
                Some(0) => Ok(false),
                Some(1) => Ok(true),
                _ => Err(Error::format(format!("config.json: no_rope_layers has {entry}"))),
            })
            .collect(),
        Some(other) => {
            Err(Error::format(format!("config.json: no_rope_layers {other} for {layers} layers")))
        }
    }
}

/// The rotary embeddings of a model, and which of them each layer has.
pub(super) fn rotary(
    architecture: &Architecture,
    fields: &Fields<'_>,
    windows: &[Option<usize>],
) -> Result<(Vec<Rope>, Vec<Option<usize>>)> {
    let theta = architecture.defaults.rope_theta;
    Ok(match architecture.rotary {
        Rotary::Every => (vec![Rope::from_config(fields.0, theta)?], vec![Some(0); windows.len()]),
        Rotary::Listed => {
            let rotated = rotated(fields, windows.len())?;
            let which = rotated.into_iter().map(|rotated| rotated.then_some(0)).collect();
            (vec![Rope::from_config(fields.0, theta)?], which)
        }
        Rotary::OfTheWindow => {
            let which = windows.iter().map(|window| Some(usize::from(window.is_some()))).collect();
            (Rope::by_window(fields.0, theta)?.into(), which)
        }
    })
}

/// The mixture of experts of each layer, where it has one.
pub(super) fn experts(
    architecture: &Architecture,
    fields: &Fields<'_>,
    layers: usize,
) -> Result<Vec<Option<ExpertSizes>>> {
    if !architecture.experts {
        return Ok(vec![None; layers]);
    }
    // What transformers takes a field to be that a file does not have.
    let sizes = ExpertSizes {
        experts: fields.optional_size("num_experts")?.unwrap_or(128),
        per_token: fields.optional_size("num_experts_per_tok")?.unwrap_or(8),
        inner: fields.optional_size("moe_intermediate_size")?.unwrap_or(768),
        normalized: fields.flag("norm_topk_prob")?.unwrap_or(false),
    };
    if sizes.per_token > sizes.experts || sizes.experts > 1 << 16 {
        return Err(Error::invalid(format!(
            "config.json: num_experts_per_tok {} of num_experts {}",
            sizes.per_token, sizes.experts
        )));
    }
    let step = fields.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let dense = fields.ids("mlp_only_layers")?;
    Ok((0..layers)
        .map(|layer| {
            let sparse = (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as i32));
            sparse.then_some(sizes)
        })
        .collect())
}
