//! Image tokens: codebook vectors in the layout of an image, and the nearest codes of vectors.

use super::operation::operation;
use super::reference::{host, host_ids, part, places, row, worst};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::kernels::token_decode::Layout;
use crate::ops;
use crate::tensor::Tensor;

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    // Images, positions of each, codes, channels.
    let [images, positions, codes, channels] =
        size(device, quick, [[2, 36, 50, 8], [512, 576, 16_384, 8], [8192, 576, 16_384, 8]]);
    let ids = inputs::ids(images * positions, codes, 1);
    let ids = Tensor::from_i32(ids, &[images, positions])?.to_device(device)?;
    let codebook = inputs::tensor(device, DType::F32, &[codes, channels], 2)?;
    let (read, known) = ((ids.clone(), codebook.clone()), codebook.clone());
    let error = move |out: &Tensor| lookup_error(&ids, &known, out);
    let lookup = move || ops::vq_lookup(&read.0, &read.1, true, Layout::ChannelFirst);
    let work = operation(lookup, error);
    // Ids in, vectors out; the codebook once.
    let bytes = 4 * (images * positions * (1 + channels) + codes * channels);
    let shape = [images, positions, codes, channels];
    give(Case::bytes("vq_lookup", &shape, DType::F32, bytes, work))?;

    // As many images as an encoder makes at a time.
    let images = size(device, quick, [2, 4, 128]);
    let z = inputs::tensor(device, DType::F32, &[images, positions, channels], 3)?;
    let read = (z.clone(), codebook.clone());
    let error = move |out: &Tensor| quantize_error(&z, &codebook, out);
    let quantize = move || ops::vq_quantize(&read.0, &read.1, false, Layout::ChannelLast);
    let work = operation(quantize, error);
    let flops = 2.0 * (images * positions) as f64 * (codes * channels) as f64;
    let shape = [images, positions, codes, channels];
    give(Case::flops("vq_quantize", &shape, DType::F32, flops, work))
}

/// Some images: every vector divided by its length, `[channels, positions]`.
fn lookup_error(ids: &Tensor, codebook: &Tensor, out: &Tensor) -> Result<f64> {
    let (codebook, channels) = (host(codebook)?, codebook.last_dim());
    let positions = ids.last_dim();
    places(ids.leading()).into_iter().try_fold(0f64, |largest, image| {
        let ids = host_ids(&ids.rows(image..image + 1)?)?;
        let mut want = vec![0f64; channels * positions];
        for (position, id) in ids.iter().enumerate() {
            let code = &codebook[*id as usize * channels..][..channels];
            let length = code.iter().map(|c| f64::from(*c).powi(2)).sum::<f64>().sqrt();
            for (channel, value) in code.iter().enumerate() {
                want[channel * positions + position] = f64::from(*value) / length;
            }
        }
        Ok(largest.max(worst(row(out, image)?.into_iter().zip(want), 1e-6, 1e-5)))
    })
}

/// Some vectors: the code that was taken is no farther than the nearest.
fn quantize_error(z: &Tensor, codebook: &Tensor, ids: &Tensor) -> Result<f64> {
    let channels = codebook.last_dim();
    let (ids, flat) = (host_ids(ids)?, z.view(&[ids.len(), channels])?);
    let codebook = part(codebook, 0..codebook.leading())?;
    places(ids.len()).into_iter().try_fold(0f64, |largest, at| {
        let z = row(&flat, at)?;
        let distance =
            |code: &[f64]| -> f64 { code.iter().zip(&z).map(|(c, z)| (c - z).powi(2)).sum() };
        let distances: Vec<f64> = codebook.chunks(channels).map(distance).collect();
        let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
        let taken = usize::try_from(ids[at]).ok().and_then(|id| distances.get(id).copied());
        Ok(largest.max(worst([(taken.unwrap_or(f64::NAN), least)], 1e-5, 1e-5)))
    })
}
