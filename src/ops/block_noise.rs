//! The corruption of block diffusion, on tensors.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::error::{Error, Result};
use crate::kernels::block_noise::{self as kernel, Forward, Noise};
use crate::tensor::{Storage, Tensor};

/// What [`block_noise`] returns.
#[derive(Clone, Debug)]
pub struct Noised {
    /// `[sequences, length]` i32: the ids, masked ones replaced by the mask id.
    pub ids: Tensor,
    /// `[sequences, length]` u8: 1 where masked.
    pub mask: Tensor,
    /// `[sequences, length]` f32: weight of a masked token in the loss, 0 of others.
    pub weight: Tensor,
    /// `[sequences, length / block]` f32: the masking rate of each block, 0 where no token is eligible.
    pub rate: Tensor,
}

/// Masks tokens of every block by `noise`; not differentiable.
///
/// # Shapes
/// `ids [sequences, length]` i32; `eligible` as many bytes, 0 where a token is never masked; `sequences [sequences]`
/// numbers that the noise follows (see [`Forward::sequences`]).
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit, [`Error::is_dtype`] for ids that are no i32,
/// [`Error::is_index`] for a mask id outside the vocabulary, [`Error::is_invalid`] for a description that makes no
/// sense.
pub fn block_noise(
    ids: &Tensor,
    eligible: Option<&[u8]>,
    sequences: &[u64],
    noise: &Noise,
) -> Result<Noised> {
    let [rows, length] = *ids.shape() else {
        return Err(Error::shape(format!(
            "block_noise: ids {:?} are not [sequences, length]",
            ids.shape()
        )));
    };
    if rows != sequences.len() {
        return Err(Error::shape(format!(
            "block_noise: {} sequence numbers for ids {:?}",
            sequences.len(),
            ids.shape()
        )));
    }
    let blocks = length.checked_div(noise.block).unwrap_or(0);
    let mut noised = Buffer::recycled(ids.len());
    let mut mask = Storage::recycled(DType::U8, ids.len());
    let mut weight = Buffer::recycled(ids.len());
    let mut rate = Buffer::recycled(rows * blocks);
    kernel::forward(
        noise,
        Forward {
            ids: ids.i32s()?,
            eligible,
            sequences,
            length,
            given: None,
            noised: &mut noised,
            mask: mask.bytes_mut(),
            weight: &mut weight,
            rate: &mut rate,
        },
    )?;
    Ok(Noised {
        ids: Tensor::new(Storage::I32(noised), ids.shape())?,
        mask: Tensor::new(mask, ids.shape())?,
        weight: Tensor::from_buffer(weight, ids.shape(), DType::F32)?,
        rate: Tensor::from_buffer(rate, &[rows, blocks], DType::F32)?,
    })
}
