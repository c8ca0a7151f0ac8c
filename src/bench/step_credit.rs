//! Credit of steps: verdicts painted on tokens, advantages modulated by them, and shaping.

use super::operation::operation;
use super::packed::Packed;
use super::reference::{differs, host, part, places, worst};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::device::cpu::memory::Buffer;
use crate::error::Result;
use crate::kernels::policy_loss::{Advantages, launch as policy_loss};
use crate::kernels::step_credit::{
    ANSWER, FORCED, Inputs, NEUTRAL, Outputs, SUPPORTED, Shaping, Span, StepCredit, UNSUPPORTED,
    forward, launch, paint, shape,
};
use crate::tensor::Tensor;
use std::rc::Rc;

const BACKGROUND: f32 = UNSUPPORTED;
const LABELS: [f32; 5] = [SUPPORTED, UNSUPPORTED, FORCED, ANSWER, NEUTRAL];
/// Of steps that speak against a good response, and of those that speak for a bad one.
const ALPHA: f32 = 0.25;
const ALPHA_FAILED: f32 = -0.5;

struct Problem {
    packed: Packed,
    spans: Vec<Span>,
    spans_on_gpu: Option<launch::DeviceSpans>,
    /// `[tokens]`
    labels: Tensor,
    /// `[sequences]`
    advantage: Tensor,
}

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let sizes = size(device, quick, [[3, 50], [256, 4096], [2048, 8192]]);
    let of = Rc::new(Problem::new(device, sizes)?);
    let tokens = of.packed.tokens();
    let mut case = |part, bytes: usize, run: Run, error: CompareTo| {
        let (known, of) = (Rc::clone(&of), Rc::clone(&of));
        let work = operation(move || run(&of), move |out: &Tensor| error(&known, out));
        give(Case::bytes(part, &sizes, DType::F32, bytes, work))
    };
    // A span is a sequence, two places and a label.
    let of_spans = 24 * of.spans.len();
    case("paint", 4 * tokens + of_spans, Problem::painted, Problem::paint_error)?;
    // A label and a mask in, an advantage out.
    case("modulate", 9 * tokens, Problem::credited, Problem::credit_error)?;
    case("shape", 9 * tokens, Problem::shaped, Problem::shape_error)
}

type Run = fn(&Problem) -> Result<Tensor>;
type CompareTo = fn(&Problem, &Tensor) -> Result<f64>;

/// Steps of some tokens with gaps between them; every third reaches into the next, which is painted over it.
fn spans(sequences: usize, length: usize) -> Vec<Span> {
    let step = (length / 32).max(5);
    let of = |sequence: usize| {
        (0..length / step).map(move |i| {
            let start = i * step;
            let end = if i % 3 == 0 { start + step + 2 } else { start + step - 1 };
            let label = LABELS[(sequence + i) % LABELS.len()];
            Span { sequence, start, end: end.min(length), label }
        })
    };
    (0..sequences).flat_map(of).collect()
}

impl Problem {
    fn new(device: &Device, [sequences, length]: [usize; 2]) -> Result<Problem> {
        let packed = Packed::new(device, [sequences, length])?;
        let spans = spans(sequences, length);
        let label = |token: usize| LABELS[(token / 3 + token / length) % LABELS.len()];
        let labels =
            Tensor::from_f32((0..packed.tokens()).map(label).collect(), &[sequences * length])?;
        let upload = |gpu| launch::DeviceSpans::upload(gpu, &spans);
        Ok(Problem {
            spans_on_gpu: device.gpu().map(upload).transpose()?,
            labels: labels.to_device(device)?,
            advantage: inputs::tensor(device, DType::F32, &[sequences], 3)?,
            packed,
            spans,
        })
    }

    /// `[tokens]` f32 that a function of the host, or one of the device, writes.
    fn written(
        &self,
        on_cpu: impl FnOnce(&mut [f32]) -> Result<()>,
        on_gpu: impl FnOnce(&mut Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let tokens = [self.packed.tokens()];
        let Some(gpu) = self.labels.gpu() else {
            let mut out = Buffer::recycled(tokens[0]);
            on_cpu(&mut out)?;
            return Tensor::from_buffer(out, &tokens, DType::F32);
        };
        let mut out = Tensor::recycled_on(&tokens, DType::F32, gpu)?;
        on_gpu(&mut out)?;
        Ok(out)
    }

    fn painted(&self) -> Result<Tensor> {
        self.written(
            |labels| paint(&self.spans, &self.packed.offsets, BACKGROUND, labels),
            |labels| match (&self.spans_on_gpu, self.packed.on_gpu()) {
                (Some(spans), Some([_, offsets])) => {
                    launch::paint(spans, offsets, BACKGROUND, labels.device_slice_mut()?)
                }
                _ => Ok(()),
            },
        )
    }

    fn credited(&self) -> Result<Tensor> {
        let rule = StepCredit::Modulate { alpha: ALPHA, alpha_failed: Some(ALPHA_FAILED) };
        self.written(
            |advantage| {
                let read = Inputs {
                    advantage: Advantages::PerSequence(self.advantage.f32s()?),
                    labels: self.labels.f32s()?,
                    mask: &self.packed.mask,
                    offsets: &self.packed.offsets,
                };
                forward(&rule, &read, Outputs { advantage, kept: None }).map(|_| ())
            },
            |advantage| {
                let Some([mask, offsets]) = self.packed.on_gpu() else { return Ok(()) };
                let of_sequences = self.advantage.device_slice()?;
                let read = launch::Inputs {
                    advantage: policy_loss::Advantages::PerSequence(of_sequences),
                    labels: self.labels.device_slice()?,
                    mask,
                    offsets,
                };
                let advantage = advantage.device_slice_mut()?;
                let out = launch::Outputs { advantage, kept: None };
                launch::forward(&rule, &read, out).map(|_| ())
            },
        )
    }

    fn shaped(&self) -> Result<Tensor> {
        let Packed { mask, offsets, .. } = &self.packed;
        let shaping = Shaping::default();
        self.written(
            |out| shape(&shaping, self.labels.f32s()?, mask, offsets, out),
            |out| {
                let Some([mask, offsets]) = self.packed.on_gpu() else { return Ok(()) };
                let (labels, out) = (self.labels.device_slice()?, out.device_slice_mut()?);
                launch::shape(&shaping, labels, mask, offsets, out)
            },
        )
    }

    /// Some sequences: of each token the last span that covers it.
    fn paint_error(&self, labels: &Tensor) -> Result<f64> {
        let of_each = self.spans.len() / self.packed.sequences();
        places(self.packed.sequences()).into_iter().try_fold(0f64, |largest, row| {
            let spans = &self.spans[row * of_each..(row + 1) * of_each];
            let label = |token: usize| {
                let covers = |span: &&Span| span.start <= token && token < span.end;
                spans.iter().rev().find(covers).map_or(BACKGROUND, |span| span.label)
            };
            let want: Vec<f64> = (0..self.packed.length).map(|t| f64::from(label(t))).collect();
            Ok(largest.max(differs(&part(labels, self.packed.sequence(row))?, &want)))
        })
    }

    /// Every token, exactly: each factor is a power of two.
    fn credit_error(&self, credited: &Tensor) -> Result<f64> {
        let (labels, advantage) = (host(&self.labels)?, host(&self.advantage)?);
        let want = |token: usize| {
            let (a, label) = (advantage[token / self.packed.length], labels[token]);
            let factor = match (a > 0.0, label) {
                _ if !self.packed.is_live(token) => 0.0,
                (_, ANSWER | NEUTRAL) => 1.0,
                (true, UNSUPPORTED | FORCED) => ALPHA,
                (false, SUPPORTED) => ALPHA_FAILED,
                _ => 1.0,
            };
            a * factor
        };
        let want: Vec<f32> = (0..self.packed.tokens()).map(want).collect();
        Ok(differs(&host(credited)?, &want))
    }

    /// Some sequences: `p[t + 1] - p[t]` of a potential that is the mean of three labels, in f64.
    fn shape_error(&self, shaped: &Tensor) -> Result<f64> {
        let Shaping { gamma, alpha, clip, .. } = Shaping::default();
        places(self.packed.sequences()).into_iter().try_fold(0f64, |largest, row| {
            let tokens = self.packed.sequence(row);
            let labels = part(&self.labels, tokens.clone())?;
            let is_live = |t: usize| t < labels.len() && self.packed.is_live(tokens.start + t);
            let potential = |t: usize| {
                let seen = (t.saturating_sub(1)..=t + 1).filter(|t| is_live(*t));
                let (sum, count) = seen.fold((0.0, 0.0), |(s, n), t| (s + labels[t], n + 1.0));
                let mean: f64 = if is_live(t) { sum / count } else { 0.0 };
                f64::from(alpha) * mean.clamp(-f64::from(clip), f64::from(clip))
            };
            let want = (0..labels.len()).map(|t| match is_live(t) {
                true => f64::from(gamma) * potential(t + 1) - potential(t),
                false => 0.0,
            });
            let got = part(shaped, tokens.clone())?.into_iter();
            Ok(largest.max(worst(got.zip(want), 1e-7, 1e-5)))
        })
    }
}
