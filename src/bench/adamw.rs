//! The optimizer step.

use super::reference::worst;
use super::{Case, Give, Work, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::Result;
use crate::kernels::adamw::{self, Hyper, launch};
use std::sync::Arc;

/// Elements of the parameter that are compared.
const COMPARED: usize = 4096;

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

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let len = size(device, quick, [1001, 1 << 23, 1 << 26]);
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
    let work = Box::new(AdamW { place, start, gradient, steps: 0 });
    give(Case::bytes("step", &[len], DType::F32, bytes * len, work))
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
