//! Rollout correction on a device: checks and launches of `kernels/rollout_correction.cu`.

use super::diagnostics::Sums;
use super::{Bound, Diagnostics, Level, Over, RolloutCorrection, Statistic, check_lengths};
use crate::DType::I64;
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{self, RolloutCorrectionArgs, RolloutCorrectionSums, RolloutRejection};
use std::ptr::null;
use std::sync::Arc;

/// Threads of a block.
const BLOCK: u32 = 256;
/// Words of the sums, 64 bits each.
const WORDS: usize = 17;
const _: () = assert!(size_of::<RolloutCorrectionSums>() == 8 * WORDS);
const _: () = assert!(super::MAX_REJECTIONS == args::ROLLOUT_REJECTIONS as usize);

/// What [`forward`] reads: [`Inputs`](super::Inputs) in device memory.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// f32 `[tokens]`.
    pub policy_logprob: DeviceSlice<'a>,
    /// f32 `[tokens]`.
    pub sampler_logprob: Option<DeviceSlice<'a>>,
    /// u8 `[tokens]`.
    pub mask: DeviceSlice<'a>,
    /// i64 `[sequences + 1]`: a sequence that they do not place inside the tokens counts as masked and raises a status bit.
    pub offsets: DeviceSlice<'a>,
}

/// Where [`forward`] writes.
pub struct Outputs<'a> {
    /// f32 `[tokens]`.
    pub weight: DeviceSliceMut<'a>,
    /// u8 `[tokens]`.
    pub mask: DeviceSliceMut<'a>,
}

/// [`Diagnostics`] on the device.
pub struct DeviceDiagnostics(DeviceBuffer);

impl DeviceDiagnostics {
    /// The diagnostics: waits for all that was launched before.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self) -> Result<Diagnostics> {
        let mut words = [0u64; WORDS];
        self.0.download(0..WORDS, bytemuck::cast_slice_mut(&mut words))?;
        let [divergence, k3, ratio, ratio_squared, weight, weight_squared, weight_max, rest @ ..] =
            words;
        let [sequence_weight, perplexity, chi_squared, tokens, sequences, dropped, rest @ ..] =
            rest;
        let [high, low, rejected, rejected_sequences] = rest;
        let value = f64::from_bits;
        let sums = Sums {
            divergence: value(divergence),
            k3: value(k3),
            ratio: value(ratio),
            ratio_squared: value(ratio_squared),
            weight: value(weight),
            weight_squared: value(weight_squared),
            weight_max: value(weight_max),
            sequence_weight: value(sequence_weight),
            perplexity: value(perplexity),
            chi_squared: value(chi_squared),
            tokens,
            sequences,
            dropped,
            high,
            low,
            rejected,
            rejected_sequences,
        };
        Ok(sums.diagnostics())
    }
}

/// [`forward`](super::forward) on a device.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] for an option, and what the device reports.
pub fn forward(
    correction: &RolloutCorrection,
    inputs: &Inputs<'_>,
    out: Outputs<'_>,
) -> Result<DeviceDiagnostics> {
    correction.check()?;
    let Outputs { mut weight, mut mask } = out;
    let tokens = inputs.policy_logprob.len();
    check_lengths(
        tokens,
        &[
            ("sampler_logprob", inputs.sampler_logprob.map(DeviceSlice::len)),
            ("mask", Some(inputs.mask.len())),
            ("output `weight`", Some(weight.len())),
            ("output `mask`", Some(mask.len())),
        ],
    )?;
    let sequences = inputs.offsets.len().saturating_sub(1);
    if sequences == 0 && tokens > 0 {
        return Err(Error::shape(format!(
            "rollout_correction: no sequence offsets for {tokens} tokens"
        )));
    }
    let gpu = inputs.policy_logprob.gpu();
    weight.fill_bytes(0)?;
    mask.fill_bytes(0)?;
    let mut sums = DeviceBuffer::recycled(gpu, I64, sequences * WORDS)?;
    let mut total = DeviceBuffer::recycled(gpu, I64, WORDS)?;
    let (least, most) = correction.weight.map_or((0.0, f64::INFINITY), |w| w.bound.limits());
    let mut args = RolloutCorrectionArgs {
        policy: inputs.policy_logprob.typed::<f32>()?,
        sampler: inputs.sampler_logprob.map_or(Ok(null()), DeviceSlice::typed::<f32>)?,
        mask: inputs.mask.typed::<u8>()?,
        offsets: inputs.offsets.typed::<i64>()?,
        weight: weight.typed::<f32>()?,
        kept: mask.typed::<u8>()?,
        sums: sums.whole_mut().ptr().cast(),
        total: total.whole_mut().ptr().cast(),
        status: gpu.status(),
        tokens: tokens as i64,
        sequences: sequences as i64,
        least,
        most,
        level: correction.weight.map_or(args::ROLLOUT_LEVEL_NONE, |weight| match weight.level {
            Level::Token => args::ROLLOUT_LEVEL_TOKEN,
            Level::Sequence => args::ROLLOUT_LEVEL_SEQUENCE,
            Level::Geometric => args::ROLLOUT_LEVEL_GEOMETRIC,
        }),
        masks: u32::from(correction.weight.is_some_and(|w| matches!(w.bound, Bound::Mask { .. }))),
        rejections: correction.reject.len() as u32,
        unused: 0,
        reject: [RolloutRejection { low: 0.0, high: 0.0, over: 0, statistic: 0 };
            super::MAX_REJECTIONS],
    };
    for (to, rule) in args.reject.iter_mut().zip(&correction.reject) {
        let (low, high) = rule.interval();
        let over = match rule.over {
            Over::Token => args::ROLLOUT_OVER_TOKEN,
            Over::SequenceSum => args::ROLLOUT_OVER_SUM,
            Over::SequenceMean => args::ROLLOUT_OVER_MEAN,
            Over::SequenceMax => args::ROLLOUT_OVER_MAX,
        };
        let statistic = match rule.statistic {
            Statistic::K1 { .. } => args::ROLLOUT_K1,
            Statistic::K2 { .. } => args::ROLLOUT_K2,
            Statistic::K3 { .. } => args::ROLLOUT_K3,
        };
        *to = RolloutRejection { low, high, over, statistic };
    }
    launch(gpu, "rollout_correction_sequences", gpu.item_grid(sequences), &args)?;
    launch(gpu, "rollout_correction_total", [1, 1, 1], &args)?;
    if correction.weight.is_some_and(|weight| weight.normalize) {
        launch(gpu, "rollout_correction_normalize", gpu.stride_grid(tokens, BLOCK), &args)?;
    }
    Ok(DeviceDiagnostics(total))
}

fn launch(
    gpu: &Arc<Gpu>,
    name: &'static str,
    grid: [u32; 3],
    args: &RolloutCorrectionArgs,
) -> Result<()> {
    let kernel = Kernel::new("rollout_correction", name);
    // SAFETY: types and lengths were checked; offsets are checked by the kernels.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, args) }
}
