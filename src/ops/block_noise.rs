//! The corruption of block diffusion, on tensors.

use crate::DType;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::{Error, Result};
use crate::kernels::block_noise::{self as kernel, Forward, Noise};
use crate::tensor::{Storage, Tensor};
use std::sync::Arc;

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

/// Masks tokens of every block by `noise`; not differentiable. The same bits on every device.
///
/// # Shapes
/// `ids [sequences, length]` i32; `eligible` of the same shape, u8, 0 where a token is never masked; `sequences
/// [sequences]` numbers that the noise follows (see [`Forward::sequences`]).
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit, [`Error::is_dtype`] for ids that are no i32,
/// [`Error::is_index`] for a mask id outside the vocabulary, [`Error::is_invalid`] for a description that makes no
/// sense, [`Error::is_unsupported`] for tensors on different devices.
pub fn block_noise(
    ids: &Tensor,
    eligible: Option<&Tensor>,
    sequences: &[u64],
    noise: &Noise,
) -> Result<Noised> {
    let [rows, length] = *ids.shape() else {
        return Err(Error::shape(format!(
            "block_noise: ids {:?} are not [sequences, length]",
            ids.shape()
        )));
    };
    if rows != sequences.len() || eligible.is_some_and(|e| e.shape() != ids.shape()) {
        return Err(Error::shape(format!(
            "block_noise: {} sequence numbers and eligible {:?} for ids {:?}",
            sequences.len(),
            eligible.map(Tensor::shape),
            ids.shape()
        )));
    }
    let blocks = length.checked_div(noise.block).unwrap_or(0);
    let shapes = (ids.shape(), &[rows, blocks][..]);
    let all: Vec<&Tensor> = std::iter::once(ids).chain(eligible).collect();
    match Tensor::common_gpu("block_noise", &all)? {
        None => on_cpu(ids, eligible, sequences, noise, shapes),
        Some(gpu) => on_device(ids, eligible, sequences, noise, shapes, gpu),
    }
}

fn on_cpu(
    ids: &Tensor,
    eligible: Option<&Tensor>,
    sequences: &[u64],
    noise: &Noise,
    (tokens, blocks): (&[usize], &[usize]),
) -> Result<Noised> {
    let eligible = match eligible {
        Some(eligible) if eligible.dtype() != DType::U8 => {
            return Err(Error::dtype(format!("block_noise: eligible is {}", eligible.dtype())));
        }
        eligible => eligible.map(Tensor::bytes).transpose()?,
    };
    let mut noised = Buffer::recycled(ids.len());
    let mut mask = Storage::recycled(DType::U8, ids.len());
    let mut weight = Buffer::recycled(ids.len());
    let mut rate = Buffer::recycled(blocks.iter().product());
    kernel::forward(
        noise,
        Forward {
            ids: ids.i32s()?,
            eligible,
            sequences,
            length: tokens[1],
            given: None,
            noised: &mut noised,
            mask: mask.bytes_mut(),
            weight: &mut weight,
            rate: &mut rate,
        },
    )?;
    Ok(Noised {
        ids: Tensor::new(Storage::I32(noised), tokens)?,
        mask: Tensor::new(mask, tokens)?,
        weight: Tensor::from_buffer(weight, tokens, DType::F32)?,
        rate: Tensor::from_buffer(rate, blocks, DType::F32)?,
    })
}

fn on_device(
    ids: &Tensor,
    eligible: Option<&Tensor>,
    sequences: &[u64],
    noise: &Noise,
    (tokens, blocks): (&[usize], &[usize]),
    gpu: &Arc<Gpu>,
) -> Result<Noised> {
    let numbers = DeviceBuffer::upload(gpu, DType::I64, bytemuck::cast_slice(sequences))?;
    let mut out = Noised {
        ids: Tensor::recycled_on(tokens, DType::I32, gpu)?,
        mask: Tensor::recycled_on(tokens, DType::U8, gpu)?,
        weight: Tensor::recycled_on(tokens, DType::F32, gpu)?,
        rate: Tensor::recycled_on(blocks, DType::F32, gpu)?,
    };
    kernel::launch::forward(
        noise,
        kernel::launch::Forward {
            ids: ids.device_slice()?,
            eligible: eligible.map(Tensor::device_slice).transpose()?,
            sequences: numbers.whole(),
            length: tokens[1],
            given: None,
            noised: out.ids.device_slice_mut()?,
            mask: out.mask.device_slice_mut()?,
            weight: out.weight.device_slice_mut()?,
            rate: out.rate.device_slice_mut()?,
        },
    )?;
    Ok(out)
}
