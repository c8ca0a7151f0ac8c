//! Step credit on a device: checks and launches of `kernels/step_credit.cu`.

use super::credit::{Counts, StepCredit, check_lengths};
use super::shaping::{Shaping, Window};
use super::span::Span;
use crate::DType::{F32, I32, I64};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{
    self, STEP_CREDIT_COUNTS, StepCreditArgs, StepPaintArgs, StepShapingArgs,
};
use crate::kernels::policy_loss::launch::Advantages;
use std::ptr::null_mut;
use std::sync::Arc;

/// Threads of a block.
const BLOCK: u32 = 256;
/// Spans of a block, one a warp.
const SPANS: usize = 8;
/// Words of the counts, 64 bits each.
const WORDS: usize = STEP_CREDIT_COUNTS as usize;

/// Spans in device memory.
pub struct DeviceSpans {
    sequence: DeviceBuffer,
    start: DeviceBuffer,
    end: DeviceBuffer,
    label: DeviceBuffer,
}

impl DeviceSpans {
    /// Copies spans to the device. Whether they lie inside their sequences is for the kernel to see.
    ///
    /// # Errors
    /// [`Error::is_index`] for a sequence, or a number of spans, beyond i32, and what the device reports.
    pub fn upload(gpu: &Arc<Gpu>, spans: &[Span]) -> Result<DeviceSpans> {
        if i32::try_from(spans.len()).is_err() {
            return Err(Error::index(format!("step_credit: {} spans are too many", spans.len())));
        }
        let sequence = spans
            .iter()
            .enumerate()
            .map(|(i, span)| {
                i32::try_from(span.sequence).map_err(|_| {
                    Error::index(format!("step_credit: span {i} is of sequence {}", span.sequence))
                })
            })
            .collect::<Result<Vec<i32>>>()?;
        let place = |of: fn(&Span) -> usize| -> Vec<i64> {
            spans.iter().map(|span| i64::try_from(of(span)).unwrap_or(i64::MAX)).collect()
        };
        let (start, end) = (place(|span| span.start), place(|span| span.end));
        let label: Vec<f32> = spans.iter().map(|span| span.label).collect();
        Ok(DeviceSpans {
            sequence: DeviceBuffer::upload(gpu, I32, bytemuck::cast_slice(&sequence))?,
            start: DeviceBuffer::upload(gpu, I64, bytemuck::cast_slice(&start))?,
            end: DeviceBuffer::upload(gpu, I64, bytemuck::cast_slice(&end))?,
            label: DeviceBuffer::upload(gpu, F32, bytemuck::cast_slice(&label))?,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.label.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.label.is_empty()
    }
}

/// [`paint`](super::paint) on a device: `offsets` i64 `[sequences + 1]`, `labels` f32 `[tokens]`. A span outside its
/// sequence paints nothing there and raises a status bit.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], and what the device reports.
pub fn paint(
    spans: &DeviceSpans,
    offsets: DeviceSlice<'_>,
    background: f32,
    mut labels: DeviceSliceMut<'_>,
) -> Result<()> {
    let tokens = labels.len();
    let sequences = sequences(offsets, tokens)?;
    let gpu = Arc::clone(labels.gpu());
    let mut owner = DeviceBuffer::recycled(&gpu, I32, tokens)?;
    owner.fill_bytes(0xff)?; // -1
    let args = StepPaintArgs {
        sequence: spans.sequence.whole().typed::<i32>()?,
        start: spans.start.whole().typed::<i64>()?,
        end: spans.end.whole().typed::<i64>()?,
        label: spans.label.whole().typed::<f32>()?,
        offsets: offsets.typed::<i64>()?,
        owner: owner.whole_mut().typed::<i32>()?,
        labels: labels.typed::<f32>()?,
        status: gpu.status(),
        spans: spans.len() as i64,
        sequences: sequences as i64,
        tokens: tokens as i64,
        background,
        unused: 0,
    };
    launch(&gpu, "step_paint_owners", gpu.item_grid(spans.len().div_ceil(SPANS)), &args)?;
    launch(&gpu, "step_paint_labels", gpu.stride_grid(tokens, BLOCK), &args)
}

/// What [`forward`] reads: [`Inputs`](super::Inputs) in device memory.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The advantages.
    pub advantage: Advantages<'a>,
    /// f32 `[tokens]`.
    pub labels: DeviceSlice<'a>,
    /// u8 `[tokens]`.
    pub mask: DeviceSlice<'a>,
    /// i64 `[sequences + 1]`: a sequence that they do not place inside the tokens counts as masked and raises a status bit.
    pub offsets: DeviceSlice<'a>,
}

/// Where [`forward`] writes.
pub struct Outputs<'a> {
    /// f32 `[tokens]`.
    pub advantage: DeviceSliceMut<'a>,
    /// u8 `[tokens]`; `None`: not wanted.
    pub kept: Option<DeviceSliceMut<'a>>,
}

/// [`Counts`] on the device.
pub struct DeviceCounts(DeviceBuffer);

impl DeviceCounts {
    /// The counts: waits for all that was launched before.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self) -> Result<Counts> {
        let mut words = [0u64; WORDS];
        self.0.download(0..WORDS, bytemuck::cast_slice_mut(&mut words))?;
        let at = |place: u32| words[place as usize];
        Ok(Counts {
            live: at(args::STEP_CREDIT_LIVE),
            positive_valid: at(args::STEP_CREDIT_POSITIVE_VALID),
            positive_invalid: at(args::STEP_CREDIT_POSITIVE_INVALID),
            negative_valid: at(args::STEP_CREDIT_NEGATIVE_VALID),
            negative_invalid: at(args::STEP_CREDIT_NEGATIVE_INVALID),
            zero: at(args::STEP_CREDIT_ZERO),
            zeroed: at(args::STEP_CREDIT_ZEROED),
        })
    }
}

/// [`forward`](super::forward) on a device. A live label that is not finite raises a status bit, and its token counts as
/// masked.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] for a parameter, and what the device reports.
pub fn forward(rule: &StepCredit, inputs: &Inputs<'_>, out: Outputs<'_>) -> Result<DeviceCounts> {
    rule.check()?;
    let tokens = inputs.labels.len();
    let sequences = sequences(inputs.offsets, tokens)?;
    let (advantage, per_token) = match inputs.advantage {
        Advantages::PerToken(values) => (values, true),
        Advantages::PerSequence(values) => (values, false),
    };
    let Outputs { advantage: mut credited, mut kept } = out;
    let lengths = [
        ("advantage", Some(advantage.len()), if per_token { tokens } else { sequences }),
        ("mask", Some(inputs.mask.len()), tokens),
        ("output `advantage`", Some(credited.len()), tokens),
        ("output `kept`", kept.as_ref().map(DeviceSliceMut::len), tokens),
    ];
    check_lengths(lengths, tokens, sequences)?;
    let gpu = inputs.labels.gpu();
    credited.fill_bytes(0)?;
    if let Some(kept) = &mut kept {
        kept.fill_bytes(0)?;
    }
    let mut counts = DeviceBuffer::zeros(gpu, I64, WORDS)?;
    let (name, alpha, alpha_failed, other) = match *rule {
        StepCredit::Modulate { alpha, alpha_failed } => {
            (args::STEP_CREDIT_MODULATE, alpha, alpha_failed.unwrap_or(alpha), 0.0)
        }
        StepCredit::Mask { threshold } => (args::STEP_CREDIT_MASK, 0.0, 0.0, threshold),
        StepCredit::Scale {} => (args::STEP_CREDIT_SCALE, 0.0, 0.0, 0.0),
        StepCredit::Add { weight } => (args::STEP_CREDIT_ADD, 0.0, 0.0, weight),
        StepCredit::Replace {} => (args::STEP_CREDIT_REPLACE, 0.0, 0.0, 0.0),
    };
    let args = StepCreditArgs {
        labels: inputs.labels.typed::<f32>()?,
        advantage: advantage.typed::<f32>()?,
        mask: inputs.mask.typed::<u8>()?,
        offsets: inputs.offsets.typed::<i64>()?,
        credited: credited.typed::<f32>()?,
        kept: kept.as_mut().map_or(Ok(null_mut()), DeviceSliceMut::typed::<u8>)?,
        counts: counts.whole_mut().typed::<i64>()?.cast(),
        status: gpu.status(),
        tokens: tokens as i64,
        sequences: sequences as i64,
        alpha,
        alpha_failed,
        threshold: other,
        weight: other,
        rule: name,
        advantage_per_token: u32::from(per_token),
    };
    launch(gpu, "step_credit", gpu.item_grid(sequences), &args)?;
    Ok(DeviceCounts(counts))
}

/// [`shape`](super::shape) on a device: `labels` and `out` f32 `[tokens]`, `mask` u8 `[tokens]`, `offsets` i64
/// `[sequences + 1]`.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] for a parameter, and what the device reports.
pub fn shape(
    shaping: &Shaping,
    labels: DeviceSlice<'_>,
    mask: DeviceSlice<'_>,
    offsets: DeviceSlice<'_>,
    mut out: DeviceSliceMut<'_>,
) -> Result<()> {
    shaping.check()?;
    let tokens = labels.len();
    let sequences = sequences(offsets, tokens)?;
    let lengths = [("mask", Some(mask.len()), tokens), ("output", Some(out.len()), tokens)];
    check_lengths(lengths, tokens, sequences)?;
    out.fill_bytes(0)?;
    let gpu = labels.gpu();
    let args = StepShapingArgs {
        labels: labels.typed::<f32>()?,
        mask: mask.typed::<u8>()?,
        offsets: offsets.typed::<i64>()?,
        shaping: out.typed::<f32>()?,
        status: gpu.status(),
        tokens: tokens as i64,
        sequences: sequences as i64,
        reach: (shaping.window / 2) as i64,
        gamma: shaping.gamma,
        alpha: shaping.alpha,
        clip: shaping.clip,
        reads_masked: u32::from(shaping.reads == Window::Literal),
    };
    launch(gpu, "step_shaping", gpu.item_grid(sequences), &args)
}

fn sequences(offsets: DeviceSlice<'_>, tokens: usize) -> Result<usize> {
    match offsets.len().saturating_sub(1) {
        0 if tokens > 0 => {
            Err(Error::shape(format!("step_credit: no sequence offsets for {tokens} tokens")))
        }
        sequences => Ok(sequences),
    }
}

fn launch<A: Copy>(gpu: &Arc<Gpu>, name: &'static str, grid: [u32; 3], args: &A) -> Result<()> {
    let kernel = Kernel::new("step_credit", name);
    // SAFETY: types and lengths were checked; spans and offsets are checked by the kernels.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, args) }
}
