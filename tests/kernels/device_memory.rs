//! The device for kernel tests, and values going to its memory and back.
#![allow(dead_code)]

use crate::devices;
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::{DType, Float};
use half::{bf16, f16};
use std::sync::Arc;

pub fn gpu() -> Arc<Gpu> {
    Arc::clone(devices::emulated().gpu().unwrap())
}

pub fn upload<T: bytemuck::NoUninit>(gpu: &Arc<Gpu>, dtype: DType, values: &[T]) -> DeviceBuffer {
    DeviceBuffer::upload(gpu, dtype, bytemuck::cast_slice(values)).unwrap()
}

pub fn download<T: bytemuck::Pod>(buffer: &DeviceBuffer) -> Vec<T> {
    let mut values = vec![T::zeroed(); buffer.len()];
    buffer.download(0..buffer.len(), bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

pub fn upload_floats(gpu: &Arc<Gpu>, dtype: DType, values: &[f32]) -> DeviceBuffer {
    match dtype {
        DType::Bf16 => {
            let narrow: Vec<bf16> = values.iter().map(|x| Float::from_f32(*x)).collect();
            upload(gpu, dtype, &narrow)
        }
        DType::F16 => {
            let narrow: Vec<f16> = values.iter().map(|x| Float::from_f32(*x)).collect();
            upload(gpu, dtype, &narrow)
        }
        _ => upload(gpu, dtype, values),
    }
}

pub fn floats(buffer: &DeviceBuffer) -> Vec<f32> {
    match buffer.dtype() {
        DType::Bf16 => download::<bf16>(buffer).into_iter().map(Float::to_f32).collect(),
        DType::F16 => download::<f16>(buffer).into_iter().map(Float::to_f32).collect(),
        _ => download(buffer),
    }
}

/// A stream of numbers in [-0.5, 0.5).
pub fn uniform(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed | 1;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
