//! The device for kernel tests and memory of it: tensors as carriers of device memory.
#![allow(dead_code)]

use crate::devices;
use gradstone::device::Device;
use gradstone::rng::{self, Stream};
use gradstone::{DType, Tensor};
use gradstone_host::{Order, with_order};

pub const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

pub fn device() -> Device {
    devices::emulated()
}

pub fn normal(len: usize, seed: u64) -> Vec<f32> {
    let draw = |i: usize| {
        let [a, b, ..] = rng::bits(seed, Stream::Free, i as u64, 0);
        rng::normal_pair(a, b).0
    };
    (0..len).map(draw).collect()
}

/// Values on the device, rounded to `dtype`.
pub fn placed(on: &Device, values: &[f32], shape: &[usize], dtype: DType) -> Tensor {
    let host = Tensor::from_buffer(values.to_vec().into(), shape, dtype).unwrap();
    host.to_device(on).unwrap()
}

/// The same values at an address that is no multiple of 16.
pub fn shifted(on: &Device, values: &[f32], shape: &[usize], dtype: DType) -> Tensor {
    let mut more = vec![f32::NAN];
    more.extend(values);
    let whole = placed(on, &more, &[more.len()], dtype).rows(1..more.len()).unwrap();
    gradstone::ops::reshape(&whole, shape).unwrap()
}

/// Memory to be written: NaN until then.
pub fn blank(on: &Device, shape: &[usize], dtype: DType) -> Tensor {
    placed(on, &vec![f32::NAN; shape.iter().product()], shape, dtype)
}

/// The copy on the host.
pub fn back(tensor: &Tensor) -> Tensor {
    tensor.to_device(&Device::Cpu).unwrap()
}

pub fn wide(tensor: &Tensor) -> Vec<f64> {
    back(tensor).to_f32s().unwrap().iter().map(|x| f64::from(*x)).collect()
}

pub fn bits(tensor: &Tensor) -> Vec<u8> {
    tensor.bytes().unwrap().to_vec()
}

/// Runs the kernels in every order of threads and requires equal bits.
pub fn in_every_order(run: impl Fn() -> Vec<Tensor>) -> Vec<Tensor> {
    let first = run();
    for order in Order::ALL {
        let again = with_order(order, &run);
        for (i, (a, b)) in first.iter().zip(&again).enumerate() {
            assert!(bits(a) == bits(b), "output {i} differs in order {order:?}");
        }
    }
    first
}
