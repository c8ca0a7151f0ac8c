//! The policy loss on a device: checks and launches of `kernels/policy_loss.cu`.
//!
//! The loss and its metrics stay on the device until somebody reads them.

use super::aggregation::Totals;
use super::metrics::{Metrics, ReplayMetrics};
use super::objective::Objective;
use super::rule;
use super::value::{ValueLoss, ValueMetrics};
use crate::DType::I64;
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceElement, DeviceSlice, DeviceSliceMut};
use crate::error::{Error, Result};
use crate::kernels::args::{self, ObjectiveRule, PolicyLossArgs};
use std::ptr::{null, null_mut};

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
    /// f32 `[tokens]`; read by the off-policy mask, `None`: `old_logprob`.
    pub sampler_logprob: Option<DeviceSlice<'a>>,
    /// u8 `[tokens]`: non-zero where replayed.
    pub off_policy: Option<DeviceSlice<'a>>,
    /// u8 `[tokens]`: non-zero where picked by the objective's selection.
    pub selected: Option<DeviceSlice<'a>>,
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

/// Words of the metrics, 64 bits each: numbers, then counts.
const WORDS: usize = 30;
/// How many of them are counts.
const COUNTS: usize = 3;
const _: () = assert!(size_of::<args::PolicyLossMetrics>() == 8 * WORDS);

impl DeviceMetrics {
    /// The metrics: waits for all that was launched before.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self) -> Result<Metrics> {
        let mut words = [0u64; WORDS];
        self.0.download(0..WORDS, bytemuck::cast_slice_mut(&mut words))?;
        let (numbers, counts) = words.split_at(WORDS - COUNTS);
        // In the order of the struct.
        let mut numbers = numbers.iter().map(|bits| f64::from_bits(*bits));
        let mut counts = counts.iter().copied();
        let mut next = || numbers.next().unwrap_or(f64::NAN);
        let mut count = || counts.next().unwrap_or(0);
        let mut metrics = Metrics {
            loss: next(),
            policy_loss: next(),
            kl_loss: next(),
            entropy_loss: next(),
            drift_loss: next(),
            clip_fraction: next(),
            clip_fraction_high: next(),
            clip_fraction_low: next(),
            dual_clip_fraction: next(),
            dropped_fraction: next(),
            selected_fraction: next(),
            approx_kl: next(),
            absolute_log_ratio: next(),
            kl: next(),
            ratio_mean: next(),
            ratio_variance: next(),
            ratio_max: next(),
            entropy: next(),
            fresh_loss: next(),
            ..Metrics::default()
        };
        metrics.replay = ReplayMetrics {
            loss: next(),
            shaped_mean: next(),
            shaped_variance: next(),
            clip_fraction_high: next(),
            clip_fraction_low: next(),
            ratio_max: next(),
            probability: next(),
            fresh_probability: next(),
            tokens: count(),
        };
        (metrics.live_tokens, metrics.live_sequences) = (count(), count());
        Ok(metrics)
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
    Launches::of(objective, inputs, &gradients)?.all(inputs, gradients)
}

/// [`ValueMetrics`] on the device.
pub struct DeviceValueMetrics(DeviceMetrics);

impl DeviceValueMetrics {
    /// The metrics: waits for all that was launched before.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self) -> Result<ValueMetrics> {
        self.0.read().map(|metrics| ValueMetrics::of(&metrics))
    }
}

/// What [`value_loss`] reads: [`ValueInputs`](super::ValueInputs) in device memory.
#[derive(Clone, Copy)]
pub struct ValueInputs<'a> {
    /// f32 `[tokens]`: the values now.
    pub value: DeviceSlice<'a>,
    /// f32 `[tokens]`: the values when the tokens were sampled.
    pub old_value: DeviceSlice<'a>,
    /// f32 `[tokens]`: the returns.
    pub target: DeviceSlice<'a>,
    /// u8 `[tokens]`.
    pub mask: DeviceSlice<'a>,
    /// i64 `[sequences + 1]`.
    pub offsets: DeviceSlice<'a>,
    /// What this call must know of the whole batch.
    pub totals: Totals,
}

/// [`value_loss`](super::value_loss) on a device; `gradient` is f32 `[tokens]`.
///
/// # Errors
/// As [`forward_backward`].
pub fn value_loss(
    loss: &ValueLoss,
    inputs: &ValueInputs<'_>,
    gradient: DeviceSliceMut<'_>,
) -> Result<DeviceValueMetrics> {
    loss.check()?;
    let advantage = Advantages::PerToken(inputs.target);
    let base = Inputs::new(inputs.value, inputs.old_value, advantage, inputs.mask, inputs.offsets);
    let base = Inputs { totals: inputs.totals, ..base };
    let gradients = Gradients { logprob: gradient, entropy: None };
    base.check(&loss.carrier(), &gradients)?;
    let launches = Launches::new(rule::of_value(loss), &base)?;
    launches.all(&base, gradients).map(DeviceValueMetrics)
}

/// The three launches of a loss, one by one: the sequences first, then the tokens, which may be repeated while log-probs
/// become known, then the metrics. All are given the same memory.
pub(in crate::kernels) struct Launches {
    objective: ObjectiveRule,
    /// Tokens and sequences.
    sizes: [usize; 2],
    factors: DeviceBuffer,
    counts: DeviceBuffer,
    sums: DeviceBuffer,
    replay_sums: Option<DeviceBuffer>,
    metrics: DeviceBuffer,
}

impl Launches {
    /// Checks a call of an objective.
    pub fn of(
        objective: &Objective,
        inputs: &Inputs<'_>,
        gradients: &Gradients<'_>,
    ) -> Result<Launches> {
        objective.check()?;
        inputs.check(objective, gradients)?;
        Launches::new(rule::of(objective), inputs)
    }

    fn new(objective: ObjectiveRule, inputs: &Inputs<'_>) -> Result<Launches> {
        inputs.totals.check()?;
        let gpu = inputs.logprob.gpu();
        let new = |count: usize, bytes: usize| {
            DeviceBuffer::recycled(gpu, I64, count * bytes / size_of::<i64>())
        };
        let (blocks, replays) = (inputs.blocks(), inputs.off_policy.is_some());
        let replay_sums =
            replays.then(|| new(blocks, size_of::<args::ReplaySums>())).transpose()?;
        Ok(Launches {
            objective,
            sizes: inputs.sizes(),
            factors: new(inputs.sequences(), size_of::<args::SequenceFactors>())?,
            counts: DeviceBuffer::zeros(gpu, I64, 2)?,
            sums: new(blocks, size_of::<args::PolicyLossSums>())?,
            replay_sums,
            metrics: new(1, size_of::<args::PolicyLossMetrics>())?,
        })
    }

    fn all(mut self, inputs: &Inputs<'_>, mut gradients: Gradients<'_>) -> Result<DeviceMetrics> {
        self.sequences(inputs, &mut gradients)?;
        self.tokens(inputs, &mut gradients)?;
        self.metrics(inputs, &mut gradients)
    }

    /// Live tokens, and what an objective needs of whole sequences. Log-probs are read only where it does.
    pub fn sequences(&mut self, inputs: &Inputs<'_>, gradients: &mut Gradients<'_>) -> Result<()> {
        let grid = inputs.logprob.gpu().item_grid(inputs.sequences().div_ceil(SEQUENCES));
        self.launch("policy_loss_sequences", grid, inputs, gradients)
    }

    /// The gradients of all tokens from the log-probs as they are now.
    pub fn tokens(&mut self, inputs: &Inputs<'_>, gradients: &mut Gradients<'_>) -> Result<()> {
        let grid = inputs.logprob.gpu().item_grid(inputs.blocks());
        self.launch("policy_loss_tokens", grid, inputs, gradients)
    }

    /// The metrics of the last pass over the tokens.
    pub fn metrics(
        mut self,
        inputs: &Inputs<'_>,
        gradients: &mut Gradients<'_>,
    ) -> Result<DeviceMetrics> {
        self.launch("policy_loss_metrics", [1, 1, 1], inputs, gradients)?;
        Ok(DeviceMetrics(self.metrics))
    }

    fn launch(
        &mut self,
        name: &'static str,
        grid: [u32; 3],
        inputs: &Inputs<'_>,
        gradients: &mut Gradients<'_>,
    ) -> Result<()> {
        if inputs.sizes() != self.sizes {
            return Err(Error::state("policy_loss: another call between the launches of one"));
        }
        inputs.check_lengths(gradients)?;
        let gpu = inputs.logprob.gpu();
        let (advantage, per_token) = match inputs.advantage {
            Advantages::PerToken(values) => (values, 1),
            Advantages::PerSequence(values) => (values, 0),
        };
        let dentropy = gradients.entropy.as_mut();
        let replay_sums = self.replay_sums.as_mut();
        let args = PolicyLossArgs {
            logprob: inputs.logprob.typed::<f32>()?,
            old_logprob: inputs.old_logprob.typed::<f32>()?,
            advantage: advantage.typed::<f32>()?,
            mask: inputs.mask.typed::<u8>()?,
            offsets: inputs.offsets.typed::<i64>()?,
            reference: optional(inputs.reference_logprob)?,
            entropy: optional(inputs.entropy)?,
            weight: optional(inputs.weight)?,
            sampler: optional(inputs.sampler_logprob)?,
            off_policy: optional(inputs.off_policy)?,
            selected: optional(inputs.selected)?,
            dlogprob: gradients.logprob.typed::<f32>()?,
            dentropy: dentropy.map_or(Ok(null_mut()), DeviceSliceMut::typed::<f32>)?,
            factors: self.factors.whole_mut().ptr().cast(),
            counts: self.counts.whole_mut().typed::<i64>()?.cast(),
            sums: self.sums.whole_mut().ptr().cast(),
            replay_sums: replay_sums.map_or(null_mut(), |sums| sums.whole_mut().ptr().cast()),
            metrics: self.metrics.whole_mut().ptr().cast(),
            status: gpu.status(),
            tokens: inputs.logprob.len() as i64,
            sequences: inputs.sequences() as i64,
            total_tokens: inputs.totals.tokens.unwrap_or(-1.0),
            total_sequences: inputs.totals.sequences.unwrap_or(-1.0),
            scale: inputs.totals.scale,
            advantage_per_token: per_token,
            unused: 0,
            objective: self.objective,
        };
        let kernel = Kernel::new("policy_loss", name);
        // SAFETY: types and lengths were checked; offsets are checked by the kernels.
        unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, &args) }
    }
}

fn optional<T: DeviceElement>(of: Option<DeviceSlice<'_>>) -> Result<*const T> {
    of.map_or(Ok(null()), DeviceSlice::typed)
}

impl<'a> Inputs<'a> {
    /// What every objective needs; everything else is absent.
    pub fn new(
        logprob: DeviceSlice<'a>,
        old_logprob: DeviceSlice<'a>,
        advantage: Advantages<'a>,
        mask: DeviceSlice<'a>,
        offsets: DeviceSlice<'a>,
    ) -> Inputs<'a> {
        Inputs {
            logprob,
            old_logprob,
            advantage,
            mask,
            offsets,
            reference_logprob: None,
            entropy: None,
            weight: None,
            sampler_logprob: None,
            off_policy: None,
            selected: None,
            totals: Totals::default(),
        }
    }

    fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Records of sums.
    fn blocks(&self) -> usize {
        self.logprob.len().div_ceil(args::POLICY_LOSS_BLOCK as usize)
    }

    /// Tokens and sequences.
    fn sizes(&self) -> [usize; 2] {
        [self.logprob.len(), self.sequences()]
    }

    fn check_lengths(&self, gradients: &Gradients<'_>) -> Result<()> {
        let [tokens, sequences] = self.sizes();
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
            ("sampler_logprob", self.sampler_logprob.map(DeviceSlice::len), tokens),
            ("off_policy", self.off_policy.map(DeviceSlice::len), tokens),
            ("selected", self.selected.map(DeviceSlice::len), tokens),
            ("gradient of logprob", Some(gradients.logprob.len()), tokens),
            ("gradient of entropy", gradients.entropy.as_ref().map(DeviceSliceMut::len), tokens),
        ];
        super::check_each(&lengths, tokens, sequences)
    }

    fn check(&self, objective: &Objective, gradients: &Gradients<'_>) -> Result<()> {
        self.check_lengths(gradients)?;
        let given = super::Given {
            reference: self.reference_logprob.is_some(),
            entropy: self.entropy.is_some(),
            off_policy: self.off_policy.is_some(),
            selected: self.selected.is_some(),
            per_token_advantage: matches!(self.advantage, Advantages::PerToken(_)),
        };
        super::check_needs(objective, &given)
    }
}
