//! Image tokens: ids to codebook vectors in the layout of an image, and back.
//!
//! With normalisation a vector is `e / max(|e|, 1e-12)`, computed where it is gathered. The other choice is a normalised
//! copy of the codebook, made once: it costs a launch and `K·C` floats that must be kept in step with a codebook in
//! training, to save the eight or so multiply-adds of a vector that is read anyway.

use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::error::{Error, Result};

/// Where the channels of an image stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[images, channels, positions]`.
    ChannelFirst,
    /// `[images, positions, channels]`.
    ChannelLast,
}

/// Arguments of [`vq_lookup`].
pub struct VqLookup<'a> {
    /// `[images, positions]`, positions row by row.
    pub ids: &'a [i32],
    /// `[codes, channels]`.
    pub codebook: &'a [f32],
    /// Positions of an image.
    pub positions: usize,
    /// Width of a code.
    pub channels: usize,
    /// Divide each vector by its length.
    pub normalize: bool,
    /// Of `out`.
    pub layout: Layout,
    /// In the layout; overwritten.
    pub out: &'a mut [f32],
}

/// Arguments of [`vq_quantize`].
pub struct VqQuantize<'a> {
    /// The vectors, in the layout.
    pub z: &'a [f32],
    /// `[codes, channels]`, at least one code.
    pub codebook: &'a [f32],
    /// Positions of an image.
    pub positions: usize,
    /// Width of a code.
    pub channels: usize,
    /// Divide vectors and codes by their lengths before they are compared.
    pub normalize: bool,
    /// Of `z`.
    pub layout: Layout,
    /// `[images, positions]`; overwritten.
    pub ids: &'a mut [i32],
}

const OP: &str = "vq";

pub(super) fn check_shapes(
    ids: usize,
    vectors: usize,
    codebook: usize,
    positions: usize,
    channels: usize,
) -> Result<()> {
    let whole = |total: usize, part: usize| part > 0 && total.is_multiple_of(part);
    let fits = ids.checked_mul(channels) == Some(vectors);
    if whole(ids, positions) && whole(codebook, channels) && fits {
        return Ok(());
    }
    Err(Error::shape(format!(
        "{OP}: {ids} ids in images of {positions}, {vectors} values, a codebook of {codebook} values, {channels} channels"
    )))
}

/// The codebook vectors of images, `out[i, :, p] = codebook[ids[i, p]]`.
///
/// Sums are in the order of the channels, each step rounded by itself, so every device gives the same bits.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit, [`Error::is_index`] naming an id outside the codebook.
///
/// # Source
/// LlamaGen, `VectorQuantizer.get_codebook_entry`.
pub fn vq_lookup(args: VqLookup<'_>) -> Result<()> {
    let VqLookup { ids, codebook, positions, channels, normalize, layout, out } = args;
    check_shapes(ids.len(), out.len(), codebook.len(), positions, channels)?;
    let codes = codebook.len() / channels;
    if let Some(at) = ids.iter().position(|id| usize::try_from(*id).map_or(true, |id| id >= codes))
    {
        return Err(Error::index(format!(
            "{OP}: id {} at place {at}; the codebook has {codes} codes",
            ids[at]
        )));
    }
    pool::blocks(out, positions * channels, |image, out| {
        let ids = &ids[image * positions..][..positions];
        for (position, id) in ids.iter().enumerate() {
            let code = &codebook[*id as usize * channels..][..channels];
            let length = if normalize { length(code) } else { 1.0 };
            for (channel, value) in code.iter().enumerate() {
                let place = match layout {
                    Layout::ChannelFirst => channel * positions + position,
                    Layout::ChannelLast => position * channels + channel,
                };
                out[place] = if normalize { value / length } else { *value };
            }
        }
    });
    Ok(())
}

/// `max(|x|, 1e-12)`.
fn length(x: &[f32]) -> f32 {
    let squares = x.iter().fold(0.0, |sum, x| sum + x * x);
    squares.sqrt().max(1e-12)
}

/// The id of the nearest code of each vector, by squared distance; of equally near ones the lowest.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit or there is no code.
///
/// # Source
/// LlamaGen, `VectorQuantizer.forward`; there the distance is expanded, here it is the sum of squared differences, which
/// does not cancel.
pub fn vq_quantize(args: VqQuantize<'_>) -> Result<()> {
    let VqQuantize { z, codebook, positions, channels, normalize, layout, ids } = args;
    check_shapes(ids.len(), z.len(), codebook.len(), positions, channels)?;
    let codes = codebook.len() / channels;
    if codes == 0 || codes > i32::MAX as usize {
        return Err(Error::shape(format!("{OP}: a codebook of {codes} codes")));
    }
    // [channels][codes]: a lane is a code.
    let mut transposed = vec![0f32; codebook.len()];
    for (id, code) in codebook.chunks_exact(channels).enumerate() {
        let length = if normalize { length(code) } else { 1.0 };
        for (channel, value) in code.iter().enumerate() {
            transposed[channel * codes + id] = if normalize { value / length } else { *value };
        }
    }
    let memory = || (vec![0f32; channels], vec![0f32; codes]);
    pool::each_with(ids.iter_mut(), 16, memory, |(vector, distances), at, id| {
        let (image, position) = (at / positions, at % positions);
        for (channel, value) in vector.iter_mut().enumerate() {
            *value = z[match layout {
                Layout::ChannelFirst => (image * channels + channel) * positions + position,
                Layout::ChannelLast => at * channels + channel,
            }];
        }
        if normalize {
            let length = length(vector);
            vector.iter_mut().for_each(|x| *x /= length);
        }
        squared_distances(vector, &transposed, distances);
        let mut best = (0, f32::INFINITY);
        for (id, distance) in distances.iter().enumerate() {
            best = if *distance < best.1 { (id, *distance) } else { best };
        }
        *id = best.0 as i32;
    });
    Ok(())
}

simd_fn! {
    /// To every code, a lane each; channels in order, products and sums rounded one by one.
    fn squared_distances(vector: &[f32], transposed: &[f32], distances: &mut [f32]) {
        distances.fill(0.0);
        for (value, codes) in vector.iter().zip(transposed.chunks_exact(distances.len())) {
            for (distance, code) in distances.iter_mut().zip(codes) {
                let difference = value - code;
                *distance += difference * difference;
            }
        }
    }
}
