//! Image tokens as vectors and back; not differentiable.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::token_decode::vq_launch::{self, Vectors};
use crate::kernels::token_decode::{
    Layout, VqLookup, VqQuantize, vq_lookup as lookup, vq_quantize as quantize,
};
use crate::tensor::{Storage, Tensor};

fn width(codebook: &Tensor) -> Result<usize> {
    match *codebook.shape() {
        [_, channels] if codebook.dtype() == DType::F32 => Ok(channels),
        [_, _] => Err(Error::dtype(format!("vq: a codebook of {}", codebook.dtype()))),
        _ => Err(Error::shape(format!("vq: a codebook {:?}", codebook.shape()))),
    }
}

/// The codebook vectors of images, divided by their lengths where `normalize`.
///
/// # Shapes
/// `ids [images, positions]` i32, `codebook [codes, channels]` f32; the result is `[images, channels, positions]` or
/// `[images, positions, channels]` f32.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`]; [`Error::is_index`] for an id outside the codebook (a device gives zeros and
/// sets a status bit).
pub fn vq_lookup(
    ids: &Tensor,
    codebook: &Tensor,
    normalize: bool,
    layout: Layout,
) -> Result<Tensor> {
    let [images, positions] = *ids.shape() else {
        return Err(Error::shape(format!("vq: ids {:?} are not [images, positions]", ids.shape())));
    };
    let channels = width(codebook)?;
    let shape = match layout {
        Layout::ChannelFirst => [images, channels, positions],
        Layout::ChannelLast => [images, positions, channels],
    };
    match Tensor::common_gpu("vq_lookup", &[ids, codebook])? {
        None => {
            let (ids, codebook) = (ids.i32s()?, codebook.f32s()?);
            let mut out = Buffer::recycled(ids.len() * channels);
            lookup(VqLookup {
                ids,
                codebook,
                positions,
                channels,
                normalize,
                layout,
                out: &mut out,
            })?;
            Tensor::from_buffer(out, &shape, DType::F32)
        }
        Some(gpu) => {
            let mut out = Tensor::recycled_on(&shape, DType::F32, gpu)?;
            let spec = Vectors { positions, channels, normalize, layout };
            let (ids, codebook) = (ids.device_slice()?, codebook.device_slice()?);
            vq_launch::lookup(&spec, ids, codebook, out.device_slice_mut()?)?;
            Ok(out)
        }
    }
}

/// The nearest code of each vector of images.
///
/// # Shapes
/// `z [images, channels, positions]` or `[images, positions, channels]` f32, `codebook [codes, channels]` f32; the
/// result is `[images, positions]` i32.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`].
pub fn vq_quantize(
    z: &Tensor,
    codebook: &Tensor,
    normalize: bool,
    layout: Layout,
) -> Result<Tensor> {
    let channels = width(codebook)?;
    let (images, positions) = match (layout, z.shape()) {
        (Layout::ChannelFirst, [images, c, positions]) if *c == channels => (*images, *positions),
        (Layout::ChannelLast, [images, positions, c]) if *c == channels => (*images, *positions),
        _ => {
            return Err(Error::shape(format!(
                "vq: {layout:?} {:?} for codes of {channels} channels",
                z.shape()
            )));
        }
    };
    let shape = [images, positions];
    match Tensor::common_gpu("vq_quantize", &[z, codebook])? {
        None => {
            let mut ids = Buffer::recycled(images * positions);
            let (z, codebook) = (z.f32s()?, codebook.f32s()?);
            quantize(VqQuantize {
                z,
                codebook,
                positions,
                channels,
                normalize,
                layout,
                ids: &mut ids,
            })?;
            Tensor::new(Storage::I32(ids), &shape)
        }
        Some(gpu) => {
            let mut ids = Tensor::recycled_on(&shape, DType::I32, gpu)?;
            let spec = Vectors { positions, channels, normalize, layout };
            let (z, codebook) = (z.device_slice()?, codebook.device_slice()?);
            vq_launch::quantize(&spec, z, codebook, ids.device_slice_mut()?)?;
            Ok(ids)
        }
    }
}
