//! Numbers that go into what is measured: normal ones, since their bits decide a GPU's power and with it its rate, and
//! the same in every run.

use crate::device::Device;
use crate::device::cpu::pool;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::dtype::{DType, Float};
use crate::error::{Error, Result};
use crate::tensor::{Storage, Tensor};
use half::{bf16, f16};
use std::sync::Arc;

/// 64 bits that look random, number `i` of a sequence.
fn mixed(seed: u64, i: usize) -> u64 {
    let mut state = (i as u64 ^ seed.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Number `i` of a sequence: the sum of four uniform ones, scaled to variance 1.
fn normal_at(seed: u64, i: usize) -> f32 {
    let state = mixed(seed, i);
    let uniform = |part: u32| ((state >> (16 * part)) & 0xffff) as f32 / 65_536.0 - 0.5;
    (0..4).map(uniform).sum::<f32>() * 1.732
}

/// Ids of a vocabulary, low ones more often, as those of a text: half of them lie in its first eighth.
pub(super) fn ids(len: usize, vocab: usize, seed: u64) -> Vec<i32> {
    let id = |i| {
        let unit = (mixed(seed, i) >> 11) as f64 / (1u64 << 53) as f64;
        (unit.powi(3) * vocab as f64) as i32
    };
    (0..len).map(id).collect()
}

/// Log-probs of tokens under a policy, and under another that differs by normal numbers times `spread`.
pub(super) fn two_logprobs(len: usize, spread: f32) -> [Vec<f32>; 2] {
    let logprob: Vec<f32> = normal(len, 1).iter().map(|x| -1.0 - x.abs()).collect();
    let other = logprob.iter().zip(normal(len, 2)).map(|(l, n)| l + spread * n).collect();
    [logprob, other]
}

/// Standard normal numbers.
pub(super) fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut values = vec![0f32; len];
    pool::blocks(&mut values, 1 << 14, |part, values| {
        for (i, value) in values.iter_mut().enumerate() {
            *value = normal_at(seed, (part << 14) + i);
        }
    });
    values
}

/// The same rounded to a storage type, as its bytes.
pub(super) fn bytes(dtype: DType, values: &[f32]) -> Result<Vec<u8>> {
    fn stored<T: Float>(values: &[f32]) -> Vec<u8> {
        let values: Vec<T> = values.iter().map(|value| T::from_f32(*value)).collect();
        bytemuck::cast_slice(&values).to_vec()
    }
    match dtype {
        DType::F32 => Ok(stored::<f32>(values)),
        DType::Bf16 => Ok(stored::<bf16>(values)),
        DType::F16 => Ok(stored::<f16>(values)),
        other => Err(Error::dtype(format!("numbers as {other}"))),
    }
}

/// The same in host memory of the type.
pub(super) fn stored(dtype: DType, values: &[f32]) -> Result<Storage> {
    let mut storage = Storage::recycled(dtype, values.len());
    storage.bytes_mut().copy_from_slice(&bytes(dtype, values)?);
    Ok(storage)
}

/// What is left of values in a storage type.
pub(super) fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    let round = |value: &f32| match dtype {
        DType::Bf16 => Float::to_f32(<bf16 as Float>::from_f32(*value)),
        DType::F16 => Float::to_f32(<f16 as Float>::from_f32(*value)),
        _ => *value,
    };
    values.iter().map(round).collect()
}

/// A tensor of standard normal numbers on a device.
pub(super) fn tensor(device: &Device, dtype: DType, shape: &[usize], seed: u64) -> Result<Tensor> {
    let values = Tensor::from_f32(normal(shape.iter().product(), seed), shape)?;
    crate::ops::cast(&values, dtype)?.to_device(device)
}

/// f32 values in device memory.
pub(super) fn uploaded(gpu: &Arc<Gpu>, values: &[f32]) -> Result<DeviceBuffer> {
    DeviceBuffer::upload(gpu, DType::F32, bytemuck::cast_slice(values))
}

/// Device memory of `len` elements that holds `bytes` again and again, the last time as much of them as there is room for.
pub(super) fn repeated(
    gpu: &Arc<Gpu>,
    dtype: DType,
    bytes: &[u8],
    len: usize,
) -> Result<DeviceBuffer> {
    let once = (bytes.len() / dtype.size()).max(1);
    let mut buffer = DeviceBuffer::recycled(gpu, dtype, len)?;
    for start in (0..len).step_by(once) {
        let here = once.min(len - start);
        let part = &bytes[..here * dtype.size()];
        buffer.whole_mut().slice_mut(start..start + here)?.upload_from(part)?;
    }
    Ok(buffer)
}

/// f32 values of device memory.
pub(super) fn downloaded(buffer: &DeviceBuffer) -> Result<Vec<f32>> {
    let mut values = vec![0f32; buffer.len()];
    buffer.download(0..buffer.len(), bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}
