//! Codebook lookup and nearest codes.

use crate::case::{Case, Outcome};
use gradstone::kernels::token_decode::{Layout, VqLookup, VqQuantize, vq_lookup, vq_quantize};

/// The vectors of ids `[images, positions]`, channels first.
fn lookup(
    ids: &[i32],
    codebook: &[f32],
    shape: [usize; 2],
    normalize: bool,
) -> Result<Vec<f32>, String> {
    let [positions, channels] = shape;
    let mut out = vec![0f32; ids.len() * channels];
    let layout = Layout::ChannelFirst;
    vq_lookup(VqLookup { ids, codebook, positions, channels, normalize, layout, out: &mut out })
        .map_err(|e| e.to_string())?;
    Ok(out)
}

fn four(shape: &[usize]) -> Result<[usize; 4], String> {
    shape.try_into().map_err(|_| format!("shape {shape:?} where an image is wanted"))
}

pub fn quantize(case: &mut Case) -> Result<Outcome, String> {
    case.config.one_of("compute_dtype", &["f64", "f32"])?;
    let normalize = case.config.flag("codebook_l2_norm")?.unwrap_or(false);
    let z = case.tensor("in.z")?;
    let [images, channels, height, width] = four(&z.shape)?;
    case.config.always("codebook_embed_dim", channels as f64)?;
    let codebook = case.tensor("in.codebook")?;
    case.config.always("codebook_size", codebook.shape[0] as f64)?;
    let (positions, codebook) = (height * width, codebook.f32());
    let mut ids = vec![0; images * positions];
    let args = VqQuantize {
        z: &z.f32(),
        codebook: &codebook,
        positions,
        channels,
        normalize,
        layout: Layout::ChannelFirst,
        ids: &mut ids,
    };
    vq_quantize(args).map_err(|e| e.to_string())?;
    case.compare("out.ids", &ids)?;
    let z_q = lookup(&ids, &codebook, [positions, channels], normalize)?;
    case.compare("out.z_q", &z_q)?;
    Ok(Outcome::Passed)
}

/// The lookup is compared; the convolutions that make an image of it are not built.
pub fn decode(case: &mut Case) -> Result<Outcome, String> {
    let normalize = case.config.flag("codebook_l2_norm")?.unwrap_or(false);
    let ids = case.tensor("in.ids")?;
    let codebook = case.tensor("in.w.quantize.embedding.weight")?;
    let positions = ids.shape.iter().skip(1).product();
    let shape = [positions, codebook.shape[1]];
    let z_q = lookup(&ids.i32(), &codebook.f32(), shape, normalize)?;
    case.compare("out.z_q", &z_q)?;
    Ok(Outcome::Skipped("the lookup agrees; the convolutional decoder is not built".to_string()))
}
