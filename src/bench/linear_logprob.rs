//! Log-probs from hidden states and a head, with all gradients and without the matrix of logits.

use super::logprob::{COMPARED, Truth};
use super::reference::{worst, worst_of};
use super::sizes::Sizes;
use super::{Case, Give, Work, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::device::cpu::pool;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::{Error, Result};
use crate::kernels::linear_logprob::{self, launch};
use crate::kernels::logprob;
use crate::kernels::logprob::launch as logits;
use crate::tensor::Storage;
use std::sync::Arc;

/// Hidden states, a head and targets, as the storage type holds them.
pub(super) struct Head {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) vocab: usize,
    pub(super) hidden: Vec<f32>,
    pub(super) weight: Vec<f32>,
    /// Negative: the row is left out.
    pub(super) targets: Vec<i32>,
    /// Hidden states and head for the CPU's kernel, in their type; none where a device has them.
    stored: Option<[Storage; 2]>,
}

/// What came out, in host memory.
pub(super) struct Computed {
    pub(super) logprob: Vec<f32>,
    pub(super) dhidden: Vec<f32>,
    /// Row [`Head::looked_at`] of the head's gradient.
    pub(super) dweight: Vec<f32>,
}

impl Head {
    pub(super) fn new(
        device: &Device,
        dtype: DType,
        [rows, width, vocab]: [usize; 3],
    ) -> Result<Head> {
        let scale = 2.0 * (width as f32).sqrt().recip();
        let weight: Vec<f32> = inputs::normal(vocab * width, 2).iter().map(|w| scale * w).collect();
        let hidden = inputs::rounded(dtype, &inputs::normal(rows * width, 1));
        let weight = inputs::rounded(dtype, &weight);
        let stored = match device.gpu() {
            None => Some([inputs::stored(dtype, &hidden)?, inputs::stored(dtype, &weight)?]),
            Some(_) => None,
        };
        let targets = (0..rows).map(|row| ((row * 7919) % vocab) as i32).collect();
        Ok(Head { dtype, rows, width, vocab, hidden, weight, targets, stored })
    }

    pub(super) fn shape(&self) -> [usize; 3] {
        [self.rows, self.width, self.vocab]
    }

    /// On the CPU.
    pub(super) fn args(&self) -> Result<linear_logprob::Head<'_>> {
        let floats = |which: usize| {
            let stored = self.stored.as_ref().and_then(|stored| stored[which].floats());
            stored.ok_or_else(|| Error::state("bench: a head that is not on the CPU"))
        };
        Ok(linear_logprob::Head {
            hidden: floats(0)?,
            weight: floats(1)?,
            bias: None,
            targets: &self.targets,
            rows: self.rows,
            width: self.width,
            vocab: self.vocab,
            softmax: logprob::Softmax::default(),
            workspace: 0,
        })
    }

    /// A row of the head that is a target.
    pub(super) fn looked_at(&self) -> usize {
        self.targets.first().map_or(0, |target| *target as usize)
    }

    fn hidden(&self, row: usize) -> &[f32] {
        &self.hidden[row * self.width..(row + 1) * self.width]
    }

    fn logit(&self, hidden: &[f32], v: usize) -> f64 {
        let weight = &self.weight[v * self.width..(v + 1) * self.width];
        weight.iter().zip(hidden).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum()
    }

    /// The target of a row that is not left out.
    fn target(&self, row: usize) -> Option<usize> {
        usize::try_from(self.targets[row]).ok()
    }

    /// Log-prob and hidden gradient of some rows, and one row of the head's gradient over the whole batch.
    pub(super) fn error(&self, dlogprob: &[f32], got: &Computed) -> f64 {
        let width = self.width;
        // dlogits are rounded to a 16-bit head's type before the products.
        let relative = if self.dtype == DType::F32 { 1e-4 } else { 1e-2 };
        let upstream: f32 = dlogprob.iter().map(|d| d.abs()).sum();
        let absolute = relative * f64::from(upstream) / self.rows as f64;
        let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let mut largest = 0f64;
        for row in (0..self.rows).step_by((self.rows / COMPARED).max(1)) {
            let mut want = (0.0, vec![0f64; width]);
            if let Some(target) = self.target(row) {
                let hidden = self.hidden(row);
                let mut logits = vec![0f32; self.vocab];
                pool::each(logits.iter_mut(), 64, |v, logit| *logit = self.logit(hidden, v) as f32);
                let truth = Truth::of(&logits, target);
                want.0 = truth.logprob;
                for (v, dlogit) in truth.gradient(target, dlogprob[row], 0.0).enumerate() {
                    let weights = &self.weight[v * width..(v + 1) * width];
                    let sums = want.1.iter_mut().zip(weights);
                    sums.for_each(|(sum, w)| *sum += dlogit * f64::from(*w));
                }
            }
            let dhidden = wide(&got.dhidden[row * width..(row + 1) * width]);
            largest = largest.max(worst_of(&dhidden, &want.1, absolute, relative));
            largest = largest.max(worst([(f64::from(got.logprob[row]), want.0)], 1e-3, 1e-5));
        }
        let at = self.looked_at();
        let mut want = vec![0f64; width];
        for row in 0..self.rows {
            let Some(target) = self.target(row) else { continue };
            let hidden = self.hidden(row);
            let logsumexp = self.logit(hidden, target) - f64::from(got.logprob[row]);
            let p = (self.logit(hidden, at) - logsumexp).exp();
            let dlogit = f64::from(dlogprob[row]) * (f64::from(u8::from(target == at)) - p);
            want.iter_mut().zip(hidden).for_each(|(sum, h)| *sum += dlogit * f64::from(*h));
        }
        largest.max(worst_of(&wide(&got.dweight), &want, absolute, relative))
    }
}

/// A head in device memory, and its gradients.
pub(super) struct HeadOnGpu {
    hidden: DeviceBuffer,
    weight: DeviceBuffer,
    targets: DeviceBuffer,
    shape: [usize; 3],
    /// Rows that are not left out.
    live: usize,
}

impl HeadOnGpu {
    pub(super) fn new(gpu: &Arc<Gpu>, head: &Head) -> Result<HeadOnGpu> {
        let dtype = head.dtype;
        let stored =
            |values: &[f32]| DeviceBuffer::upload(gpu, dtype, &inputs::bytes(dtype, values)?);
        Ok(HeadOnGpu {
            hidden: stored(&head.hidden)?,
            weight: stored(&head.weight)?,
            targets: DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(&head.targets))?,
            shape: head.shape(),
            live: (0..head.rows).filter(|row| head.target(*row).is_some()).count(),
        })
    }

    pub(super) fn args(&self) -> launch::Head<'_> {
        let [rows, width, vocab] = self.shape;
        launch::Head {
            hidden: self.hidden.whole(),
            weight: self.weight.whole(),
            bias: None,
            targets: self.targets.whole(),
            rows,
            width,
            vocab,
            softmax: logits::Softmax::default(),
            live: Some(self.live),
            workspace: 0,
        }
    }
}

/// Gradients of hidden states and head, which is added to.
pub(super) enum HeadGradients {
    Cpu { dhidden: Vec<f32>, dweight: Vec<f32> },
    Gpu { dhidden: DeviceBuffer, dweight: DeviceBuffer },
}

impl HeadGradients {
    pub(super) fn new(device: &Device, head: &Head) -> Result<HeadGradients> {
        let [hidden, weight] = [head.hidden.len(), head.weight.len()];
        let Some(gpu) = device.gpu() else {
            return Ok(HeadGradients::Cpu {
                dhidden: vec![0.0; hidden],
                dweight: vec![0.0; weight],
            });
        };
        let zeros = |len| DeviceBuffer::zeros(gpu, DType::F32, len);
        Ok(HeadGradients::Gpu { dhidden: zeros(hidden)?, dweight: zeros(weight)? })
    }

    pub(super) fn clear(&mut self) -> Result<()> {
        match self {
            HeadGradients::Cpu { dweight, .. } => dweight.fill(0.0),
            HeadGradients::Gpu { dweight, .. } => dweight.fill_bytes(0)?,
        }
        Ok(())
    }

    /// With the log-probs, what is compared.
    pub(super) fn computed(&self, head: &Head, logprob: Vec<f32>) -> Result<Computed> {
        let (at, width) = (head.looked_at(), head.width);
        let row = at * width..(at + 1) * width;
        let (dhidden, dweight) = match self {
            HeadGradients::Cpu { dhidden, dweight } => (dhidden.clone(), dweight[row].to_vec()),
            HeadGradients::Gpu { dhidden, dweight } => {
                let mut of_head = vec![0f32; width];
                dweight.download(row, bytemuck::cast_slice_mut(&mut of_head))?;
                (inputs::downloaded(dhidden)?, of_head)
            }
        };
        Ok(Computed { logprob, dhidden, dweight })
    }
}

struct LinearLogprob {
    head: Head,
    dlogprob: Vec<f32>,
    gradients: HeadGradients,
    /// Log-prob and logsumexp.
    outputs: [Vec<f32>; 2],
    gpu: Option<OnGpu>,
}

struct OnGpu {
    head: HeadOnGpu,
    dlogprob: DeviceBuffer,
    logprob: DeviceBuffer,
    logsumexp: DeviceBuffer,
}

/// Rows, width and vocabulary, and the storage type.
pub(super) fn sizes(device: &Device, quick: bool) -> ([usize; 3], DType) {
    let tiny = ([12, 16, 103], DType::F32);
    let cpu = ([256, 512, 32_000], DType::F32);
    size(device, quick, [tiny, cpu, ([8192, 4096, 151_936], DType::Bf16)])
}

pub(super) fn cases(device: &Device, asked: &Sizes, give: &mut Give<'_>) -> Result<()> {
    let (own, dtype) = sizes(device, asked.quick);
    for shape in asked.shapes(&[own]) {
        for dtype in asked.dtypes(&[dtype]) {
            of_shape(device, shape, dtype, give)?;
        }
    }
    Ok(())
}

fn of_shape(device: &Device, shape: [usize; 3], dtype: DType, give: &mut Give<'_>) -> Result<()> {
    let [rows, width, vocab] = shape;
    let head = Head::new(device, dtype, shape)?;
    let dlogprob = inputs::normal(rows, 3);
    let on_gpu = |gpu| -> Result<OnGpu> {
        Ok(OnGpu {
            head: HeadOnGpu::new(gpu, &head)?,
            dlogprob: inputs::uploaded(gpu, &dlogprob)?,
            logprob: DeviceBuffer::zeros(gpu, DType::F32, rows)?,
            logsumexp: DeviceBuffer::zeros(gpu, DType::F32, rows)?,
        })
    };
    let work = LinearLogprob {
        gpu: device.gpu().map(on_gpu).transpose()?,
        gradients: HeadGradients::new(device, &head)?,
        outputs: [vec![0.0; rows], vec![0.0; rows]],
        head,
        dlogprob,
    };
    let flops = 6.0 * rows as f64 * (width * vocab) as f64;
    give(Case::flops("forward_backward", &shape, dtype, flops, Box::new(work)))
}

impl Work for LinearLogprob {
    fn refresh(&mut self) -> Result<()> {
        self.gradients.clear()
    }

    fn run(&mut self) -> Result<()> {
        match (&mut self.gradients, &mut self.gpu) {
            (HeadGradients::Gpu { dhidden, dweight }, Some(gpu)) => {
                let dlogprob = Some(gpu.dlogprob.whole());
                let upstream = logits::Upstream { dlogprob, dentropy: None };
                let outputs = logits::Outputs {
                    logprob: gpu.logprob.whole_mut(),
                    entropy: None,
                    logsumexp: gpu.logsumexp.whole_mut(),
                    argmax: None,
                };
                let gradients = launch::Gradients {
                    dhidden: Some(dhidden.whole_mut()),
                    dweight: Some(dweight.whole_mut()),
                    dbias: None,
                };
                launch::forward_backward(&gpu.head.args(), upstream, outputs, gradients)
            }
            (HeadGradients::Cpu { dhidden, dweight }, _) => {
                let dlogprob = Some(&self.dlogprob[..]);
                let upstream = logprob::Upstream::Known { dlogprob, dentropy: None };
                let [logprob, logsumexp] = &mut self.outputs;
                let outputs = logprob::Outputs { logprob, entropy: None, logsumexp, argmax: None };
                let (dhidden, dweight) = (Some(&mut dhidden[..]), Some(&mut dweight[..]));
                let gradients = linear_logprob::Gradients { dhidden, dweight, dbias: None };
                linear_logprob::forward_backward(&self.head.args()?, upstream, outputs, gradients)
            }
            _ => Ok(()),
        }
    }

    fn error(&mut self) -> Result<f64> {
        let logprob = match &self.gpu {
            Some(gpu) => inputs::downloaded(&gpu.logprob)?,
            None => self.outputs[0].clone(),
        };
        let computed = self.gradients.computed(&self.head, logprob)?;
        Ok(self.head.error(&self.dlogprob, &computed))
    }
}
