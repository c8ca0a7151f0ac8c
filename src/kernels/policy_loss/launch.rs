//! The policy loss on a device: checks and launches of `kernels/policy_loss.cu`.
//!
//! The loss and its metrics stay on the device until somebody reads them.

use super::aggregation::{Aggregation, Rows, Totals};
use super::formula::Bounds;
use super::kl::Estimator;
use super::metrics::Metrics;
use super::objective::Objective;
use crate::DType::{I32, I64};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceElement, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{self, AggregationRule, ClipBounds, ObjectiveRule, PolicyLossArgs};
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// Threads of a block.
const BLOCK: u32 = 256;
/// Sequences of a block, one a warp.
const SEQUENCES: usize = 8;

/// The advantages: one a token, or one a sequence.
#[derive(Clone, Copy)]
pub enum Advantages<'a> {
    /// f32 `[tokens]`.
    PerToken(DeviceSlice<'a>),
    /// f32 `[sequences]`.
    PerSequence(DeviceSlice<'a>),
}

/// What [`forward_backward`] reads: [`Inputs`](super::Inputs) in device memory.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// f32 `[tokens]`.
    pub logprob: DeviceSlice<'a>,
    /// f32 `[tokens]`.
    pub old_logprob: DeviceSlice<'a>,
    /// No gradient.
    pub advantage: Advantages<'a>,
    /// u8 `[tokens]`.
    pub mask: DeviceSlice<'a>,
    /// i64 `[sequences + 1]`, from 0 to `tokens`, never falling: a sequence that they do not place inside the tokens
    /// counts as masked and raises a status bit.
    pub offsets: DeviceSlice<'a>,
    /// f32 `[tokens]`; needed when the objective has a `kl`.
    pub reference_logprob: Option<DeviceSlice<'a>>,
    /// f32 `[tokens]`; needed when the objective has an entropy coefficient.
    pub entropy: Option<DeviceSlice<'a>>,
    /// f32 `[tokens]`.
    pub weight: Option<DeviceSlice<'a>>,
    /// What this call must know of the whole batch.
    pub totals: Totals,
}

/// Where [`forward_backward`] writes: f32 `[tokens]`.
pub struct Gradients<'a> {
    /// The loss's derivative by each log-prob.
    pub logprob: DeviceSliceMut<'a>,
    /// The loss's derivative by each entropy; `None`: not wanted.
    pub entropy: Option<DeviceSliceMut<'a>>,
}

/// [`Metrics`] on the device.
pub struct DeviceMetrics(DeviceBuffer);

/// Words of the metrics, 64 bits each.
const WORDS: usize = 15;
const _: () = assert!(size_of::<args::PolicyLossMetrics>() == 8 * WORDS);

impl DeviceMetrics {
    /// The metrics: waits for all that was launched before.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self) -> Result<Metrics> {
        let mut words = [0u64; WORDS];
        self.0.download(0..WORDS, bytemuck::cast_slice_mut(&mut words))?;
        let [loss, policy_loss, kl_loss, entropy_loss, clip, high, low, dual, rest @ ..] = words;
        let [approx_kl, kl, ratio_mean, ratio_max, entropy, live_tokens, live_sequences] = rest;
        let value = f64::from_bits;
        Ok(Metrics {
            loss: value(loss),
            policy_loss: value(policy_loss),
            kl_loss: value(kl_loss),
            entropy_loss: value(entropy_loss),
            clip_fraction: value(clip),
            clip_fraction_high: value(high),
            clip_fraction_low: value(low),
            dual_clip_fraction: value(dual),
            approx_kl: value(approx_kl),
            kl: value(kl),
            ratio_mean: value(ratio_mean),
            ratio_max: value(ratio_max),
            entropy: value(entropy),
            live_tokens,
            live_sequences,
            ..Metrics::default()
        })
    }
}

/// [`forward_backward`](super::forward_backward) on a device.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] as on the CPU for what the host sees, and what the
/// device reports.
pub fn forward_backward(
    objective: &Objective,
    inputs: &Inputs<'_>,
    gradients: Gradients<'_>,
) -> Result<DeviceMetrics> {
    objective.check()?;
    inputs.totals.check()?;
    inputs.check(objective, &gradients)?;
    let gpu = inputs.logprob.gpu();
    let (tokens, sequences) = (inputs.logprob.len(), inputs.sequences());
    let blocks = tokens.div_ceil(args::POLICY_LOSS_BLOCK as usize);
    let new = |bytes: usize| DeviceBuffer::recycled(gpu, I64, bytes / size_of::<i64>());
    let mut live = DeviceBuffer::recycled(gpu, I32, sequences)?;
    let mut counts = DeviceBuffer::zeros(gpu, I64, 2)?;
    let mut sums = new(blocks * size_of::<args::PolicyLossSums>())?;
    let mut metrics = new(size_of::<args::PolicyLossMetrics>())?;
    let (advantage, per_token) = match inputs.advantage {
        Advantages::PerToken(values) => (values, 1),
        Advantages::PerSequence(values) => (values, 0),
    };
    let Gradients { mut logprob, mut entropy } = gradients;
    let args = PolicyLossArgs {
        logprob: inputs.logprob.typed::<f32>()?,
        old_logprob: inputs.old_logprob.typed::<f32>()?,
        advantage: advantage.typed::<f32>()?,
        mask: inputs.mask.typed::<u8>()?,
        offsets: inputs.offsets.typed::<i64>()?,
        reference: optional(inputs.reference_logprob)?,
        entropy: optional(inputs.entropy)?,
        weight: optional(inputs.weight)?,
        dlogprob: logprob.typed::<f32>()?,
        dentropy: entropy.as_mut().map_or(Ok(null_mut()), DeviceSliceMut::typed::<f32>)?,
        live: live.whole_mut().typed::<i32>()?.cast(),
        counts: counts.whole_mut().typed::<i64>()?.cast(),
        sums: sums.whole_mut().ptr().cast(),
        metrics: metrics.whole_mut().ptr().cast(),
        status: gpu.status(),
        tokens: tokens as i64,
        sequences: sequences as i64,
        total_tokens: inputs.totals.tokens.unwrap_or(-1.0),
        total_sequences: inputs.totals.sequences.unwrap_or(-1.0),
        scale: inputs.totals.scale,
        advantage_per_token: per_token,
        unused: 0,
        objective: rule(objective),
    };
    let by_warps = gpu.item_grid(sequences.div_ceil(SEQUENCES));
    launch(gpu, "policy_loss_sequences", by_warps, &args)?;
    launch(gpu, "policy_loss_tokens", gpu.item_grid(blocks), &args)?;
    launch(gpu, "policy_loss_metrics", [1, 1, 1], &args)?;
    Ok(DeviceMetrics(metrics))
}

fn launch(gpu: &Arc<Gpu>, name: &'static str, grid: [u32; 3], args: &PolicyLossArgs) -> Result<()> {
    let kernel = Kernel::new("policy_loss", name);
    // SAFETY: types and lengths were checked; offsets are checked by the kernels.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, args) }
}

fn optional<T: DeviceElement>(of: Option<DeviceSlice<'_>>) -> Result<*const T> {
    of.map_or(Ok(null()), DeviceSlice::typed)
}

impl Inputs<'_> {
    fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    fn check(&self, objective: &Objective, gradients: &Gradients<'_>) -> Result<()> {
        let (tokens, sequences) = (self.logprob.len(), self.sequences());
        if sequences == 0 && tokens > 0 {
            return Err(Error::shape(format!(
                "policy_loss: no sequence offsets for {tokens} tokens"
            )));
        }
        let (advantage, advantages) = match self.advantage {
            Advantages::PerToken(values) => (values.len(), tokens),
            Advantages::PerSequence(values) => (values.len(), sequences),
        };
        let lengths = [
            ("old_logprob", Some(self.old_logprob.len()), tokens),
            ("advantage", Some(advantage), advantages),
            ("mask", Some(self.mask.len()), tokens),
            ("reference_logprob", self.reference_logprob.map(DeviceSlice::len), tokens),
            ("entropy", self.entropy.map(DeviceSlice::len), tokens),
            ("weight", self.weight.map(DeviceSlice::len), tokens),
            ("gradient of logprob", Some(gradients.logprob.len()), tokens),
            ("gradient of entropy", gradients.entropy.as_ref().map(DeviceSliceMut::len), tokens),
        ];
        super::check_each(&lengths, tokens, sequences)?;
        let given = super::Given {
            reference: self.reference_logprob.is_some(),
            entropy: self.entropy.is_some(),
            off_policy: false,
            selected: false,
            per_token_advantage: matches!(self.advantage, Advantages::PerToken(_)),
        };
        super::check_needs(objective, &given)?;
        let only = Objective {
            surrogate: objective.surrogate.clone(),
            log_ratio: objective.log_ratio,
            kl: objective.kl.clone().map(|kl| super::Kl { straight_through: false, ..kl }),
            entropy_coefficient: objective.entropy_coefficient,
            aggregation: objective.aggregation.clone(),
            entropy_aggregation: objective.entropy_aggregation.clone(),
            ..Objective::default()
        };
        let clips = matches!(objective.surrogate, super::Surrogate::PpoClip { .. });
        if !clips || only != *objective {
            return Err(Error::invalid(
                "policy_loss: the device computes `ppo-clip` of tokens only",
            ));
        }
        Ok(())
    }
}

/// The objective as the kernels read it.
fn rule(objective: &Objective) -> ObjectiveRule {
    let bounds = Bounds::of(&objective.surrogate);
    let kl = objective.kl.as_ref();
    let limits = kl.map_or((0.0, 0.0), |kl| kl.clamp.bounds());
    let of_loss = aggregation(&objective.aggregation);
    ObjectiveRule {
        clip: ClipBounds {
            high_positive: bounds.high_positive,
            low_negative: bounds.low_negative,
            high_negative: bounds.high_negative,
            report_high: bounds.report_high,
            report_low: bounds.report_low,
            unused: 0,
        },
        of_loss,
        of_entropy: objective.entropy_aggregation.as_ref().map_or(of_loss, aggregation),
        log_ratio_limit: objective.log_ratio.limit(),
        kl_coefficient: kl.map_or(0.0, |kl| kl.coefficient),
        kl_argument_limit: limits.0,
        kl_value_limit: limits.1,
        entropy_coefficient: objective.entropy_coefficient,
        surrogate: args::SURROGATE_PPO_CLIP,
        kl: kl.map_or(args::KL_NONE, |kl| match kl.estimator {
            Estimator::K1 => args::KL_K1,
            Estimator::K2 => args::KL_K2,
            Estimator::K3 => args::KL_K3,
            Estimator::Abs => args::KL_ABS,
        }),
        kl_bias_correction: u32::from(kl.is_some_and(|kl| kl.bias_correction)),
    }
}

fn aggregation(of: &Aggregation) -> AggregationRule {
    let (mode, rows) = match of {
        Aggregation::TokenMean {} => (args::AGGREGATION_TOKEN_MEAN, Rows::NonEmpty),
        Aggregation::SequenceMeanTokenMean { rows } => {
            (args::AGGREGATION_SEQUENCE_MEAN_TOKEN_MEAN, *rows)
        }
        Aggregation::SequenceMeanTokenSum { rows, .. } => {
            (args::AGGREGATION_SEQUENCE_MEAN_TOKEN_SUM, *rows)
        }
        Aggregation::SequenceLength { rows } => (args::AGGREGATION_SEQUENCE_MEAN_TOKEN_SUM, *rows),
        Aggregation::TokenSum { .. } => (args::AGGREGATION_TOKEN_SUM, Rows::NonEmpty),
    };
    let length = f64::from(of.length().unwrap_or(1.0));
    AggregationRule { length, mode, all_rows: u32::from(rows == Rows::All) }
}
