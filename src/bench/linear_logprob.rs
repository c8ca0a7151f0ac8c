//! Log-probs from hidden states and a head, with all gradients and without the matrix of logits.

use super::logprob::{COMPARED, Truth};
use super::{Amount, Case, Work, inputs, worst};
use crate::DType;
use crate::device::Device;
use crate::device::cpu::pool;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::dtype::FloatSlice;
use crate::error::Result;
use crate::kernels::linear_logprob::{self, Head, launch};
use crate::kernels::logprob;
use crate::kernels::logprob::launch as logits;
use std::sync::Arc;

struct LinearLogprob {
    dtype: DType,
    rows: usize,
    width: usize,
    vocab: usize,
    /// Hidden states and head as the storage type holds them.
    hidden: Vec<f32>,
    weight: Vec<f32>,
    targets: Vec<i32>,
    dlogprob: Vec<f32>,
    place: Place,
}

enum Place {
    Cpu { outputs: [Vec<f32>; 2], dhidden: Vec<f32>, dweight: Vec<f32> },
    Gpu(Box<OnGpu>),
}

struct OnGpu {
    hidden: DeviceBuffer,
    weight: DeviceBuffer,
    targets: DeviceBuffer,
    dlogprob: DeviceBuffer,
    logprob: DeviceBuffer,
    logsumexp: DeviceBuffer,
    dhidden: DeviceBuffer,
    dweight: DeviceBuffer,
}

pub(super) fn cases(
    device: &Device,
    quick: bool,
    give: &mut dyn FnMut(Case) -> Result<()>,
) -> Result<()> {
    let ([rows, width, vocab], dtypes): (_, &[DType]) = match (quick, device.gpu()) {
        (true, _) => ([5, 16, 103], &[DType::F32]),
        (false, None) => ([512, 512, 32_000], &[DType::F32]),
        (false, Some(_)) => ([8192, 4096, 151_936], &[DType::Bf16]),
    };
    for dtype in dtypes.iter().copied() {
        let scale = 2.0 * (width as f32).sqrt().recip();
        let weight: Vec<f32> = inputs::normal(vocab * width, 2).iter().map(|w| scale * w).collect();
        let mut work = LinearLogprob {
            dtype,
            rows,
            width,
            vocab,
            hidden: inputs::rounded(dtype, &inputs::normal(rows * width, 1)),
            weight: inputs::rounded(dtype, &weight),
            targets: (0..rows).map(|row| ((row * 7919) % vocab) as i32).collect(),
            dlogprob: inputs::normal(rows, 3),
            place: Place::Cpu {
                outputs: [vec![0.0; rows], vec![0.0; rows]],
                dhidden: Vec::new(),
                dweight: Vec::new(),
            },
        };
        match device.gpu() {
            Some(gpu) => work.place = Place::Gpu(Box::new(OnGpu::new(gpu, &work)?)),
            None => {
                if let Place::Cpu { dhidden, dweight, .. } = &mut work.place {
                    (*dhidden, *dweight) = (vec![0.0; rows * width], vec![0.0; vocab * width]);
                }
            }
        }
        give(Case {
            part: "forward_backward",
            shape: vec![rows, width, vocab],
            dtype,
            amount: Amount::Flops(6.0 * rows as f64 * (width * vocab) as f64),
            work: Box::new(work),
        })?;
    }
    Ok(())
}

impl OnGpu {
    fn new(gpu: &Arc<Gpu>, work: &LinearLogprob) -> Result<OnGpu> {
        let LinearLogprob { dtype, rows, width, vocab, .. } = *work;
        let stored =
            |values: &[f32]| DeviceBuffer::upload(gpu, dtype, &inputs::bytes(dtype, values)?);
        let zeros = |len: usize| DeviceBuffer::zeros(gpu, DType::F32, len);
        let (targets, dlogprob) = (&work.targets, &work.dlogprob);
        Ok(OnGpu {
            hidden: stored(&work.hidden)?,
            weight: stored(&work.weight)?,
            targets: DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(targets))?,
            dlogprob: DeviceBuffer::upload(gpu, DType::F32, bytemuck::cast_slice(dlogprob))?,
            logprob: zeros(rows)?,
            logsumexp: zeros(rows)?,
            dhidden: zeros(rows * width)?,
            dweight: zeros(vocab * width)?,
        })
    }

    fn run(&mut self, rows: usize, width: usize, vocab: usize) -> Result<()> {
        let head = launch::Head {
            hidden: self.hidden.whole(),
            weight: self.weight.whole(),
            bias: None,
            targets: self.targets.whole(),
            rows,
            width,
            vocab,
            softmax: logits::Softmax::default(),
            live: Some(rows),
            workspace: 0,
        };
        let upstream = logits::Upstream { dlogprob: Some(self.dlogprob.whole()), dentropy: None };
        let outputs = logits::Outputs {
            logprob: self.logprob.whole_mut(),
            entropy: None,
            logsumexp: self.logsumexp.whole_mut(),
            argmax: None,
        };
        let gradients = launch::Gradients {
            dhidden: Some(self.dhidden.whole_mut()),
            dweight: Some(self.dweight.whole_mut()),
            dbias: None,
        };
        launch::forward_backward(&head, upstream, outputs, gradients)
    }
}

impl LinearLogprob {
    /// Log-prob, logsumexp, dhidden and row `at` of dweight, in host memory.
    fn outputs(&self, at: usize) -> Result<[Vec<f32>; 4]> {
        let row = at * self.width..(at + 1) * self.width;
        match &self.place {
            Place::Cpu { outputs: [logprob, logsumexp], dhidden, dweight } => {
                Ok([logprob.clone(), logsumexp.clone(), dhidden.clone(), dweight[row].to_vec()])
            }
            Place::Gpu(gpu) => {
                let mut of_head = vec![0f32; self.width];
                gpu.dweight.download(row, bytemuck::cast_slice_mut(&mut of_head))?;
                let [logprob, logsumexp, dhidden] =
                    [&gpu.logprob, &gpu.logsumexp, &gpu.dhidden].map(inputs::downloaded);
                Ok([logprob?, logsumexp?, dhidden?, of_head])
            }
        }
    }

    fn hidden(&self, row: usize) -> &[f32] {
        &self.hidden[row * self.width..(row + 1) * self.width]
    }

    fn logit(&self, hidden: &[f32], v: usize) -> f64 {
        let weight = &self.weight[v * self.width..(v + 1) * self.width];
        weight.iter().zip(hidden).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum()
    }
}

impl Work for LinearLogprob {
    fn refresh(&mut self) -> Result<()> {
        // The head's gradient is added to.
        match &mut self.place {
            Place::Cpu { dweight, .. } => dweight.fill(0.0),
            Place::Gpu(gpu) => gpu.dweight.fill_bytes(0)?,
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let (rows, width, vocab) = (self.rows, self.width, self.vocab);
        let ([logprob, logsumexp], dhidden, dweight) = match &mut self.place {
            Place::Gpu(gpu) => return gpu.run(rows, width, vocab),
            Place::Cpu { outputs, dhidden, dweight } => (outputs, dhidden, dweight),
        };
        let head = Head {
            hidden: FloatSlice::F32(&self.hidden),
            weight: FloatSlice::F32(&self.weight),
            bias: None,
            targets: &self.targets,
            rows,
            width,
            vocab,
            softmax: logprob::Softmax::default(),
            workspace: 0,
        };
        let upstream = logprob::Upstream::Known { dlogprob: Some(&self.dlogprob), dentropy: None };
        let outputs = logprob::Outputs { logprob, entropy: None, logsumexp, argmax: None };
        let gradients = linear_logprob::Gradients {
            dhidden: Some(dhidden),
            dweight: Some(dweight),
            dbias: None,
        };
        linear_logprob::forward_backward(&head, upstream, outputs, gradients)
    }

    /// Log-prob and hidden gradient of some rows, and one row of the head's gradient over the whole batch.
    fn error(&mut self) -> Result<f64> {
        // A row of the head that is a target.
        let at = self.targets.first().map_or(0, |target| *target as usize);
        let [logprob, logsumexp, dhidden, of_head] = self.outputs(at)?;
        let width = self.width;
        // dlogits are rounded to a 16-bit head's type before the products.
        let allowed = if self.dtype == DType::F32 { 1e-4 } else { 1e-2 };
        let mut largest = 0f64;
        for row in (0..self.rows).step_by((self.rows / COMPARED).max(1)) {
            let hidden = self.hidden(row);
            let mut row_logits = vec![0f32; self.vocab];
            pool::each(row_logits.iter_mut(), 64, |v, logit| *logit = self.logit(hidden, v) as f32);
            let target = self.targets[row] as usize;
            let truth = Truth::of(&row_logits, target);
            let mut want = vec![0f64; width];
            for (v, dlogit) in truth.gradient(target, self.dlogprob[row], 0.0).enumerate() {
                let weights = &self.weight[v * width..(v + 1) * width];
                want.iter_mut().zip(weights).for_each(|(sum, w)| *sum += dlogit * f64::from(*w));
            }
            let got = dhidden[row * width..(row + 1) * width].iter().map(|g| f64::from(*g));
            largest = largest.max(worst(got.zip(want), allowed, allowed));
            largest = largest.max(worst([(f64::from(logprob[row]), truth.logprob)], 1e-3, 1e-5));
        }
        let mut want = vec![0f64; width];
        for row in 0..self.rows {
            let hidden = self.hidden(row);
            let p = (self.logit(hidden, at) - f64::from(logsumexp[row])).exp();
            let hit = f64::from(u8::from(self.targets[row] as usize == at));
            let dlogit = f64::from(self.dlogprob[row]) * (hit - p);
            want.iter_mut().zip(hidden).for_each(|(sum, h)| *sum += dlogit * f64::from(*h));
        }
        let got = of_head.into_iter().map(f64::from);
        Ok(largest.max(worst(got.zip(want), allowed, allowed)))
    }
}
