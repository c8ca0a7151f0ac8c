//! Log-probs and entropies from logits, and their gradient.

use super::reference::worst;
use super::sizes::Sizes;
use super::{Amount, Case, Give, Work, inputs};
use crate::DType;
use crate::device::Device;
use crate::device::gpu::{DeviceBuffer, Gpu};
use crate::error::{Error, Result};
use crate::kernels::logprob::{self, launch};
use crate::tensor::Storage;
use std::sync::Arc;

/// What of the family is run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Forward,
    Backward,
    Both,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Forward => "forward",
            Part::Backward => "backward",
            Part::Both => "forward_backward",
        }
    }
}

/// Rows of logits with different numbers; more rows repeat them with other targets.
const DISTINCT: usize = 64;

/// Rows whose output is compared.
pub(super) const COMPARED: usize = 8;

/// What a row should give, in f64.
pub(super) struct Truth {
    pub(super) logprob: f64,
    entropy: f64,
    logsumexp: f64,
    pub(super) probabilities: Vec<f64>,
}

impl Truth {
    pub(super) fn of(logits: &[f32], target: usize) -> Truth {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = logits.iter().map(|z| f64::from(*z - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let logsumexp = f64::from(most) + sum.ln();
        let probabilities: Vec<f64> = weights.iter().map(|w| w / sum).collect();
        let mean: f64 = probabilities.iter().zip(logits).map(|(p, z)| p * f64::from(*z)).sum();
        let logprob = f64::from(logits[target]) - logsumexp;
        Truth { logprob, entropy: logsumexp - mean, logsumexp, probabilities }
    }

    /// The gradient by each logit: `dlogprob (1[v = t] - p_v) - dentropy p_v (log p_v + H)`.
    pub(super) fn gradient(
        &self,
        target: usize,
        dlogprob: f32,
        dentropy: f32,
    ) -> impl Iterator<Item = f64> {
        let (by_logprob, by_entropy) = (f64::from(dlogprob), f64::from(dentropy));
        self.probabilities.iter().enumerate().map(move |(v, p)| {
            let surprise = if *p > 0.0 { p * (p.ln() + self.entropy) } else { 0.0 };
            by_logprob * (f64::from(u8::from(v == target)) - p) - by_entropy * surprise
        })
    }
}

/// Everything of a case but where the numbers are.
struct Problem {
    part: Part,
    dtype: DType,
    rows: usize,
    vocab: usize,
    /// `[min(rows, DISTINCT), vocab]`, as the storage type holds them.
    logits: Vec<f32>,
    targets: Vec<i32>,
    dlogprob: Vec<f32>,
    dentropy: Vec<f32>,
}

impl Problem {
    fn new(part: Part, dtype: DType, rows: usize, vocab: usize) -> Problem {
        let logits: Vec<f32> =
            inputs::normal(rows.min(DISTINCT) * vocab, 1).iter().map(|z| 2.0 * z).collect();
        Problem {
            part,
            dtype,
            rows,
            vocab,
            logits: inputs::rounded(dtype, &logits),
            targets: (0..rows).map(|row| ((row * 7919) % vocab) as i32).collect(),
            dlogprob: inputs::normal(rows, 5),
            dentropy: inputs::normal(rows, 6),
        }
    }

    fn row(&self, row: usize) -> &[f32] {
        let at = row % DISTINCT.min(self.rows) * self.vocab;
        &self.logits[at..at + self.vocab]
    }

    /// The worst error of some rows. `statistics(row)` is log-prob, entropy and logsumexp, `gradient(row)` the row's
    /// gradient as its storage type holds it.
    fn error(
        &self,
        statistics: impl Fn(usize) -> [f32; 3],
        mut gradient: impl FnMut(usize) -> Result<Vec<f32>>,
    ) -> Result<f64> {
        let step = (self.rows / COMPARED).max(1);
        let mut largest = 0f64;
        for row in (0..self.rows).step_by(step) {
            let target = self.targets[row] as usize;
            let truth = Truth::of(self.row(row), target);
            let want = [truth.logprob, truth.entropy, truth.logsumexp];
            let got = statistics(row).map(f64::from);
            largest = largest.max(worst(got.into_iter().zip(want), 1e-4, 1e-5));
            if self.part == Part::Forward {
                continue;
            }
            let want = truth.gradient(target, self.dlogprob[row], self.dentropy[row]);
            let half = if self.dtype == DType::F32 { 1e-4 } else { 1e-2 };
            let got = gradient(row)?.into_iter().map(f64::from);
            largest = largest.max(worst(got.zip(want), 1e-7, half));
        }
        Ok(largest)
    }
}

/// On the CPU, where the gradient takes the logits' place.
struct OnCpu {
    problem: Problem,
    fresh: Storage,
    logits: Storage,
    logprob: Vec<f32>,
    entropy: Vec<f32>,
    logsumexp: Vec<f32>,
}

/// On a device, where it goes beside them.
struct OnGpu {
    problem: Problem,
    logits: DeviceBuffer,
    dlogits: DeviceBuffer,
    targets: DeviceBuffer,
    dlogprob: DeviceBuffer,
    dentropy: DeviceBuffer,
    logprob: DeviceBuffer,
    entropy: DeviceBuffer,
    logsumexp: DeviceBuffer,
}

pub(super) fn cases(device: &Device, sizes: &Sizes, give: &mut Give<'_>) -> Result<()> {
    let own: &[[usize; 2]] = match (sizes.quick, device.gpu()) {
        (true, _) => &[[7, 1003]],
        (false, None) => &[[256, 32_000], [256, 151_936]],
        (false, Some(_)) => &[[8192, 32_000], [8192, 151_936]],
    };
    for [rows, vocab] in sizes.shapes(own) {
        for dtype in sizes.dtypes(&[DType::F32, DType::Bf16]) {
            for part in [Part::Forward, Part::Backward, Part::Both] {
                let problem = Problem::new(part, dtype, rows, vocab);
                let passes = if part == Part::Forward { 1 } else { 2 };
                let mut work: Box<dyn Work> = match device.gpu() {
                    None => Box::new(OnCpu::new(problem)?),
                    Some(gpu) => Box::new(OnGpu::new(gpu, problem)?),
                };
                work.refresh()?;
                give(Case {
                    part: part.name(),
                    shape: vec![rows, vocab],
                    dtype,
                    amount: Amount::Bytes((passes * rows * vocab * dtype.size()) as f64),
                    work,
                })?;
            }
        }
    }
    Ok(())
}

fn mutable(storage: &mut Storage) -> Result<crate::dtype::FloatSliceMut<'_>> {
    storage.floats_mut().ok_or_else(|| Error::dtype("logits of integers"))
}

impl OnCpu {
    fn new(problem: Problem) -> Result<OnCpu> {
        let Problem { dtype, rows, vocab, .. } = problem;
        let mut fresh = Storage::recycled(dtype, rows * vocab);
        let bytes = inputs::bytes(dtype, &problem.logits)?;
        for part in fresh.bytes_mut().chunks_mut(bytes.len().max(1)) {
            part.copy_from_slice(&bytes[..part.len()]);
        }
        let zeros = || vec![0f32; rows];
        let mut work = OnCpu {
            problem,
            logits: Storage::recycled(dtype, rows * vocab),
            fresh,
            logprob: zeros(),
            entropy: zeros(),
            logsumexp: zeros(),
        };
        // A backward pass needs what a forward pass saves.
        work.refresh()?;
        work.run_part(Part::Forward)?;
        Ok(work)
    }

    fn run_part(&mut self, part: Part) -> Result<()> {
        let Problem { rows, vocab, targets, dlogprob, dentropy, .. } = &self.problem;
        let (rows, vocab, targets) = (*rows, *vocab, &targets[..]);
        let softmax = logprob::Softmax::default();
        let outputs = logprob::Outputs {
            logprob: &mut self.logprob,
            entropy: Some(&mut self.entropy),
            logsumexp: &mut self.logsumexp,
            argmax: None,
        };
        match part {
            Part::Forward => {
                let logits = self.logits.floats().ok_or_else(|| Error::dtype("logits"))?;
                logprob::forward(
                    &logprob::Forward { logits, targets, rows, vocab, softmax },
                    outputs,
                )
            }
            Part::Backward => logprob::backward(logprob::Backward {
                logits: mutable(&mut self.logits)?,
                targets,
                rows,
                vocab,
                softmax,
                logsumexp: &self.logsumexp,
                entropy: Some(&self.entropy),
                dlogprob: Some(dlogprob),
                dentropy: Some(dentropy),
            }),
            Part::Both => {
                let upstream =
                    logprob::Upstream::Known { dlogprob: Some(dlogprob), dentropy: Some(dentropy) };
                let logits = mutable(&mut self.logits)?;
                let args =
                    logprob::ForwardBackward { logits, targets, rows, vocab, softmax, upstream };
                logprob::forward_backward(args, outputs)
            }
        }
    }
}

impl Work for OnCpu {
    fn refresh(&mut self) -> Result<()> {
        self.logits.bytes_mut().copy_from_slice(self.fresh.bytes());
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        self.run_part(self.problem.part)
    }

    fn error(&mut self) -> Result<f64> {
        let vocab = self.problem.vocab;
        let gradients = self.logits.floats().ok_or_else(|| Error::dtype("logits"))?;
        self.problem.error(
            |row| [self.logprob[row], self.entropy[row], self.logsumexp[row]],
            |row| Ok(gradients.slice(row * vocab..(row + 1) * vocab)?.to_f32().into_owned()),
        )
    }
}

impl OnGpu {
    fn new(gpu: &Arc<Gpu>, problem: Problem) -> Result<OnGpu> {
        let Problem { dtype, rows, vocab, .. } = problem;
        let bytes = inputs::bytes(dtype, &problem.logits)?;
        let f32s =
            |values: &[f32]| DeviceBuffer::upload(gpu, DType::F32, bytemuck::cast_slice(values));
        let empty = || DeviceBuffer::zeros(gpu, DType::F32, rows);
        let mut work = OnGpu {
            logits: inputs::repeated(gpu, dtype, &bytes, rows * vocab)?,
            dlogits: DeviceBuffer::recycled(gpu, dtype, rows * vocab)?,
            targets: DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(&problem.targets))?,
            dlogprob: f32s(&problem.dlogprob)?,
            dentropy: f32s(&problem.dentropy)?,
            logprob: empty()?,
            entropy: empty()?,
            logsumexp: empty()?,
            problem,
        };
        work.run_part(Part::Forward)?;
        Ok(work)
    }

    fn run_part(&mut self, part: Part) -> Result<()> {
        let rows = launch::Rows {
            targets: self.targets.whole(),
            row_of: None,
            rows: self.problem.rows,
            vocab: self.problem.vocab,
            softmax: launch::Softmax::default(),
        };
        let upstream = launch::Upstream {
            dlogprob: Some(self.dlogprob.whole()),
            dentropy: Some(self.dentropy.whole()),
        };
        let logits = launch::Logits::Apart {
            logits: self.logits.whole(),
            dlogits: self.dlogits.whole_mut(),
        };
        if part == Part::Backward {
            let (logsumexp, entropy) = (self.logsumexp.whole(), self.entropy.whole());
            return launch::backward(logits, &rows, logsumexp, Some(entropy), upstream);
        }
        let outputs = launch::Outputs {
            logprob: self.logprob.whole_mut(),
            entropy: Some(self.entropy.whole_mut()),
            logsumexp: self.logsumexp.whole_mut(),
            argmax: None,
        };
        match part {
            Part::Forward => launch::forward(self.logits.whole(), &rows, outputs),
            _ => launch::forward_backward(logits, &rows, outputs, upstream),
        }
    }
}

impl Work for OnGpu {
    fn run(&mut self) -> Result<()> {
        self.run_part(self.problem.part)
    }

    fn error(&mut self) -> Result<f64> {
        let [logprob, entropy, logsumexp] =
            [&self.logprob, &self.entropy, &self.logsumexp].map(inputs::downloaded);
        let (logprob, entropy, logsumexp) = (logprob?, entropy?, logsumexp?);
        let (vocab, dtype) = (self.problem.vocab, self.problem.dtype);
        self.problem.error(
            |row| [logprob[row], entropy[row], logsumexp[row]],
            |row| {
                let mut storage = Storage::recycled(dtype, vocab);
                self.dlogits.download(row * vocab..(row + 1) * vocab, storage.bytes_mut())?;
                let values = storage.floats().map(|values| values.to_f32().into_owned());
                values.ok_or_else(|| Error::dtype("a gradient of integers"))
            },
        )
    }
}
