//! Row kernels that move bytes: RMSNorm, arithmetic by element, the optimizer step.

use super::{Amount, Case, Work, inputs, worst};
use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::Result;
use crate::kernels::adamw::{self, Hyper, launch};
use crate::ops;
use crate::tensor::Tensor;
use std::sync::Arc;

/// Elements of an output that are compared.
const COMPARED: usize = 4096;

fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_device(&Device::Cpu)?.to_f32s()?.to_vec())
}

/// What an output in a storage type may be off by, relatively.
fn allowed(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 1e-2 }
}

const EPSILON: f32 = 1e-6;

struct RmsNorm {
    x: Tensor,
    weight: Tensor,
    y: Option<Tensor>,
}

pub(super) fn rms_norm(
    device: &Device,
    quick: bool,
    give: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    let [rows, width] = match (quick, device.gpu()) {
        (true, _) => [5, 130],
        (false, None) => [4096, 4096],
        (false, Some(_)) => [32_768, 4096],
    };
    for dtype in [DType::F32, DType::Bf16] {
        let x = inputs::tensor(device, dtype, &[rows, width], 1)?;
        let weight = inputs::tensor(device, dtype, &[width], 2)?;
        give(Case {
            part: "forward",
            shape: vec![rows, width],
            dtype,
            amount: Amount::Bytes((2 * rows * width * dtype.size()) as f64),
            work: Box::new(RmsNorm { x, weight, y: None }),
        })?;
    }
    Ok(())
}

impl Work for RmsNorm {
    fn run(&mut self) -> Result<()> {
        self.y = Some(ops::rms_norm(&self.x, &self.weight, EPSILON, false)?);
        Ok(())
    }

    fn error(&mut self) -> Result<f64> {
        let Some(y) = &self.y else { return Ok(f64::INFINITY) };
        let (x, weight, y, width) =
            (host(&self.x)?, host(&self.weight)?, host(y)?, self.weight.len());
        let step = (x.len() / width / 8).max(1) * width;
        let mut largest = 0f64;
        for at in (0..x.len()).step_by(step) {
            let row = &x[at..at + width];
            let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
            let inverse = (squares / width as f64 + f64::from(EPSILON)).sqrt().recip();
            let want =
                row.iter().zip(&weight).map(|(x, w)| f64::from(*x) * inverse * f64::from(*w));
            let got = y[at..at + width].iter().map(|y| f64::from(*y));
            largest = largest.max(worst(got.zip(want), 1e-6, allowed(self.x.dtype())));
        }
        Ok(largest)
    }
}

struct Sum {
    a: Tensor,
    b: Tensor,
    out: Option<Tensor>,
}

pub(super) fn elementwise(
    device: &Device,
    quick: bool,
    give: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    let len = match (quick, device.gpu()) {
        (true, _) => 1001,
        (false, None) => 1 << 24,
        (false, Some(_)) => 1 << 28,
    };
    for dtype in [DType::F32, DType::Bf16] {
        let (a, b) =
            (inputs::tensor(device, dtype, &[len], 1)?, inputs::tensor(device, dtype, &[len], 2)?);
        give(Case {
            part: "add",
            shape: vec![len],
            dtype,
            amount: Amount::Bytes((3 * len * dtype.size()) as f64),
            work: Box::new(Sum { a, b, out: None }),
        })?;
    }
    Ok(())
}

impl Work for Sum {
    fn run(&mut self) -> Result<()> {
        self.out = Some(ops::add(&self.a, &self.b)?);
        Ok(())
    }

    fn error(&mut self) -> Result<f64> {
        let Some(out) = &self.out else { return Ok(f64::INFINITY) };
        let (a, b, out) = (host(&self.a)?, host(&self.b)?, host(out)?);
        let step = (out.len() / COMPARED).max(1);
        let pairs = (0..out.len()).step_by(step);
        let pairs = pairs.map(|i| (f64::from(out[i]), f64::from(a[i]) + f64::from(b[i])));
        Ok(worst(pairs, 1e-6, allowed(self.a.dtype())))
    }
}

/// Parameter and state as one step after another changes them.
enum Place {
    Cpu([Vec<f32>; 3]),
    Gpu { state: [DeviceBuffer; 3], gradient: DeviceBuffer, workspace: launch::Workspace },
}

struct AdamW {
    place: Place,
    start: [Vec<f32>; 3],
    gradient: Vec<f32>,
    steps: u64,
}

pub(super) fn adamw(
    device: &Device,
    quick: bool,
    give: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    let len = match (quick, device.gpu()) {
        (true, _) => 1001,
        (false, None) => 1 << 23,
        (false, Some(_)) => 1 << 26,
    };
    let squared = |values: Vec<f32>| values.iter().map(|x| x * x).collect();
    let start = [inputs::normal(len, 1), inputs::normal(len, 2), squared(inputs::normal(len, 3))];
    let gradient = inputs::normal(len, 4);
    let place = match device.gpu() {
        None => Place::Cpu(start.clone()),
        Some(gpu) => on_gpu(gpu, &start, &gradient)?,
    };
    // Gradient, weight and two moments in, all but the gradient out. On a device the step reads the gradient once more,
    // for its norm.
    let bytes = if device.gpu().is_some() { 32 } else { 28 };
    give(Case {
        part: "step",
        shape: vec![len],
        dtype: DType::F32,
        amount: Amount::Bytes((bytes * len) as f64),
        work: Box::new(AdamW { place, start, gradient, steps: 0 }),
    })
}

fn on_gpu(gpu: &Arc<Gpu>, start: &[Vec<f32>; 3], gradient: &[f32]) -> Result<Place> {
    let upload =
        |values: &[f32]| DeviceBuffer::upload(gpu, DType::F32, bytemuck::cast_slice(values));
    Ok(Place::Gpu {
        state: [upload(&start[0])?, upload(&start[1])?, upload(&start[2])?],
        gradient: upload(gradient)?,
        workspace: launch::Workspace::new(gpu)?,
    })
}

impl Work for AdamW {
    fn run(&mut self) -> Result<()> {
        self.steps += 1;
        match &mut self.place {
            Place::Cpu([weight, mean, variance]) => {
                let gradient = &self.gradient;
                let parameter = adamw::Parameter { weight, mean, variance, gradient, copy: None };
                adamw::step(&Hyper::default(), self.steps, 1.0, parameter)
            }
            Place::Gpu { state: [weight, mean, variance], gradient, workspace } => {
                let parameter = launch::Parameter {
                    weight: weight.whole_mut(),
                    mean: mean.whole_mut(),
                    variance: variance.whole_mut(),
                    gradient: gradient.whole(),
                    copy: None,
                    decays: true,
                };
                workspace.step(&Hyper::default(), self.steps, None, &mut [parameter])
            }
        }
    }

    /// All the steps that were made, for some elements, in f64.
    fn error(&mut self) -> Result<f64> {
        let Hyper { learning_rate, beta1, beta2, epsilon, weight_decay } = Hyper::default();
        let got = match &self.place {
            Place::Cpu([weight, ..]) => weight.clone(),
            Place::Gpu { state: [weight, ..], .. } => inputs::downloaded(weight)?,
        };
        let step = (got.len() / COMPARED).max(1);
        let want = |i: usize| {
            let g = f64::from(self.gradient[i]);
            let [mut w, mut m, mut v] = [0, 1, 2].map(|part| f64::from(self.start[part][i]));
            for t in 1..=self.steps as i32 {
                w *= 1.0 - learning_rate * weight_decay;
                m = beta1 * m + (1.0 - beta1) * g;
                v = beta2 * v + (1.0 - beta2) * g * g;
                let root = (v / (1.0 - beta2.powi(t))).sqrt() + epsilon;
                w -= learning_rate / (1.0 - beta1.powi(t)) * m / root;
            }
            w
        };
        let pairs = (0..got.len()).step_by(step).map(|i| (f64::from(got[i]), want(i)));
        // Rounding of each step adds up.
        Ok(worst(pairs, 1e-5 + 1e-7 * self.steps as f64, 1e-5))
    }
}
