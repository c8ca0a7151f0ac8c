//! The ops `logprob` and `linear_logprob` on the emulated device, against themselves on the CPU.

use crate::device_memory::{gpu, uniform};
use crate::softmax_oracle::assert_near;
use gradstone::device::Device;
use gradstone::dtype::DType;
use gradstone::ops::{self, SoftmaxOptions};
use gradstone::tensor::Tensor;
use gradstone::tensor::autograd::{Gradients, ParamId, backward};

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

fn random(shape: &[usize], dtype: DType, seed: u64, size: f32) -> Tensor {
    let mut next = uniform(seed);
    let values = (0..shape.iter().product()).map(|_| next() * size).collect();
    ops::cast(&Tensor::from_f32(values, shape).unwrap(), dtype).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_device(&Device::Cpu).unwrap().to_f32s().unwrap().to_vec()
}

fn options() -> SoftmaxOptions {
    SoftmaxOptions { temperature: 0.8, softcap: Some(6.0), banned: vec![3, 1] }
}

/// Outputs and gradients of `op` of inputs on a device, as numbers.
fn run(
    inputs: &[Tensor],
    device: &Device,
    op: impl Fn(&[Tensor]) -> gradstone::Result<(Tensor, Tensor)>,
) -> Vec<Vec<f32>> {
    let ids: Vec<ParamId> = inputs.iter().map(|_| ParamId::fresh()).collect();
    let tracked: Vec<Tensor> = inputs
        .iter()
        .zip(&ids)
        .map(|(input, id)| input.to_device(device).unwrap().tracked(*id))
        .collect();
    let (logprob, entropy) = op(&tracked).unwrap();
    let loss = ops::add(
        &ops::sum(&logprob).unwrap(),
        &ops::scale(&ops::sum(&entropy).unwrap(), 0.3).unwrap(),
    );
    let mut gradients = Gradients::new();
    backward(&loss.unwrap(), &mut gradients).unwrap();
    let mut results = vec![values(&logprob), values(&entropy)];
    results.extend(ids.iter().map(|id| values(gradients.get(*id).unwrap())));
    results
}

fn compare(got: &[Vec<f32>], want: &[Vec<f32>], absolute: f64, relative: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert_near(&format!("result {i}"), *got, f64::from(*want), absolute, relative);
        }
    }
}

#[test]
fn logprob_is_the_cpus() {
    let device = Device::Gpu(gpu());
    for dtype in DTYPES {
        let inputs = [random(&[6, 517], dtype, 1, 12.0)];
        let targets = [5, -1, 0, 516, 77, 3];
        let op = |x: &[Tensor]| ops::logprob(&x[0], &targets, &options());
        compare(&run(&inputs, &device, op), &run(&inputs, &Device::Cpu, op), 3e-6, 2e-5);
    }
}

#[test]
fn linear_logprob_is_the_cpus() {
    let device = Device::Gpu(gpu());
    for dtype in DTYPES {
        let inputs = [
            random(&[21, 24], dtype, 2, 2.0),
            random(&[131, 24], dtype, 3, 2.0),
            random(&[131], dtype, 4, 1.0),
        ];
        let mut targets: Vec<i32> = (0..21).map(|i| i * 6).collect();
        targets[7] = -1;
        let op = |x: &[Tensor]| ops::linear_logprob(&x[0], &x[1], x.get(2), &targets, &options());
        // The products of a 16-bit head take dlogits rounded to its type.
        let rounding = match dtype {
            DType::F32 => 2e-6,
            DType::Bf16 => 8e-3,
            _ => 1e-3,
        };
        for inputs in [&inputs[..], &inputs[..2]] {
            let (got, want) = (run(inputs, &device, op), run(inputs, &Device::Cpu, op));
            compare(&got[..2], &want[..2], 3e-6, 2e-5);
            compare(&got[2..], &want[2..], rounding, 2e-5 + rounding);
        }
    }
}

#[test]
fn what_the_host_sees_is_an_error() {
    let device = Device::Gpu(gpu());
    let x = random(&[2, 8], DType::F32, 5, 1.0).to_device(&device).unwrap();
    let default = SoftmaxOptions::default();
    assert!(ops::logprob(&x, &[0, 8], &default).unwrap_err().is_index());
    assert!(ops::logprob(&x, &[0], &default).unwrap_err().is_shape());
    let cold = SoftmaxOptions { temperature: 0.0, ..SoftmaxOptions::default() };
    assert!(ops::logprob(&x, &[0, 1], &cold).unwrap_err().is_invalid());
    let head = random(&[9, 8], DType::F32, 6, 1.0);
    let apart = ops::linear_logprob(&x, &head, None, &[0, 1], &default).unwrap_err();
    assert!(apart.is_unsupported(), "{apart}");
    let head = head.to_device(&device).unwrap();
    assert!(ops::linear_logprob(&x, &head, None, &[0, 9], &default).unwrap_err().is_index());
    let narrow = random(&[9, 8], DType::Bf16, 6, 1.0).to_device(&device).unwrap();
    assert!(ops::linear_logprob(&x, &narrow, None, &[0, 1], &default).unwrap_err().is_dtype());
    let (logprob, _) = ops::linear_logprob(&x, &head, None, &[-1, -1], &default).unwrap();
    assert_eq!(values(&logprob), [0.0, 0.0]);
}
