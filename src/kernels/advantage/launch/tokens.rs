//! Advantages of tokens on a device.

use super::super::prime::{LEAVE_ONE_OUT, check_outcomes};
use super::super::scan::{WHITEN_EPSILON, check_token_lengths, reinforce_options};
use super::super::token_baseline::Options;
use super::super::{Estimator, Gae, Holes, Masked, Positions};
use super::{BLOCK, DeviceGroups, Outputs, forward, optional, optional_mut};
use crate::DType::{F32, I32, I64};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{
    ADVANTAGE_BLOCK, AdvantageMeansArgs, AdvantageMoments, AdvantageScanArgs,
    AdvantageTokenBaselineArgs, AdvantageWhitenArgs,
};
use std::sync::Arc;

/// Sequences of a block, one a warp.
const SEQUENCES: usize = 8;

/// [`Tokens`](super::super::Tokens) in device memory.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    /// u8 `[tokens]`.
    pub mask: DeviceSlice<'a>,
    /// i64 `[sequences + 1]`: a sequence that they do not place inside the tokens has advantage 0 and raises a status bit.
    pub offsets: DeviceSlice<'a>,
}

/// Where a scan writes: f32 `[tokens]`.
pub struct TokenOutputs<'a> {
    /// The advantage of each token.
    pub advantage: DeviceSliceMut<'a>,
    /// The return of each token; `None`: not wanted.
    pub returns: Option<DeviceSliceMut<'a>>,
}

/// [`gae`](super::super::gae) on a device: `rewards` and `values` f32 `[tokens]`.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] for an option, and what the device reports.
pub fn gae(
    settings: &Gae,
    rewards: DeviceSlice<'_>,
    values: DeviceSlice<'_>,
    of: Tokens<'_>,
    mut out: TokenOutputs<'_>,
) -> Result<()> {
    scan(settings, Holes::Pass, rewards, Some(values), Shifts::default(), of, &mut out)?;
    match settings.whiten {
        true => whiten(out.advantage, of.mask, WHITEN_EPSILON, settings.masked),
        false => Ok(()),
    }
}

/// [`returns`](super::super::returns) on a device: `rewards` and `out` f32 `[tokens]`.
///
/// # Errors
/// As [`gae`].
pub fn returns(
    gamma: f64,
    holes: Holes,
    rewards: DeviceSlice<'_>,
    of: Tokens<'_>,
    out: DeviceSliceMut<'_>,
) -> Result<()> {
    let settings = Gae { gamma, whiten: false, ..Gae::default() };
    let mut out = TokenOutputs { advantage: out, returns: None };
    scan(&settings, holes, rewards, None, Shifts::default(), of, &mut out)
}

/// [`reinforce_plus_plus`](super::super::reinforce_plus_plus) on a device: `rewards` f32 `[tokens]`.
///
/// # Errors
/// As [`gae`], and for another estimator as on the CPU.
pub fn reinforce_plus_plus(
    estimator: &Estimator,
    holes: Holes,
    rewards: DeviceSlice<'_>,
    of: Tokens<'_>,
    mut out: TokenOutputs<'_>,
) -> Result<()> {
    let (gamma, epsilon) = reinforce_options(estimator)?;
    returns(gamma, holes, rewards, of, out.advantage.reborrow())?;
    if let Some(returns) = &mut out.returns {
        returns.copy_from(out.advantage.as_slice())?;
    }
    whiten(out.advantage, of.mask, epsilon, Masked::Zero)
}

/// What is the same for all tokens of a sequence, f32 `[sequences]`.
#[derive(Clone, Copy, Default)]
struct Shifts<'a> {
    means: Option<DeviceSlice<'a>>,
    relative: Option<DeviceSlice<'a>>,
    bonus: Option<DeviceSlice<'a>>,
}

fn scan(
    settings: &Gae,
    holes: Holes,
    rewards: DeviceSlice<'_>,
    values: Option<DeviceSlice<'_>>,
    shifts: Shifts<'_>,
    of: Tokens<'_>,
    out: &mut TokenOutputs<'_>,
) -> Result<()> {
    settings.check()?;
    let tokens = rewards.len();
    let lengths = [
        ("values", values.map(DeviceSlice::len)),
        ("output `advantage`", Some(out.advantage.len())),
        ("output `returns`", out.returns.as_ref().map(DeviceSliceMut::len)),
    ];
    check_token_lengths(tokens, of.mask.len(), &lengths)?;
    let sequences = of.sequences(tokens)?;
    out.advantage.fill_bytes(0)?;
    if let Some(returns) = &mut out.returns {
        returns.fill_bytes(0)?;
    }
    let gpu = rewards.gpu();
    let args = AdvantageScanArgs {
        rewards: rewards.typed::<f32>()?,
        values: optional(values)?,
        mask: of.mask.typed::<u8>()?,
        offsets: of.offsets.typed::<i64>()?,
        advantage: out.advantage.typed::<f32>()?,
        returns: optional_mut(&mut out.returns)?,
        means: optional(shifts.means)?,
        relative: optional(shifts.relative)?,
        bonus: optional(shifts.bonus)?,
        status: gpu.status(),
        tokens: tokens as i64,
        sequences: sequences as i64,
        gamma: settings.gamma,
        lambda: settings.lambda,
        critic_lambda: settings.critic_lambda.unwrap_or(-1.0),
        length_alpha: settings.length_alpha.unwrap_or(0.0),
        reset: u32::from(holes == Holes::Reset),
        carried: u32::from(settings.masked == Masked::Carried),
    };
    launch(gpu, "advantage_scan", gpu.item_grid(sequences.div_ceil(SEQUENCES)), &args)
}

/// [`Prime`](super::super::Prime) in device memory.
#[derive(Clone, Copy)]
pub struct Prime<'a> {
    /// f32 `[sequences]`.
    pub outcome: DeviceSlice<'a>,
    /// f32 `[tokens]`.
    pub process: DeviceSlice<'a>,
    /// The discount of process rewards.
    pub gamma: f64,
}

/// [`prime`](super::super::prime) on a device; `groups` are groups of sequences, `advantage` f32 `[tokens]`.
///
/// # Errors
/// As [`gae`].
pub fn prime(
    of: &Prime<'_>,
    tokens: Tokens<'_>,
    groups: &DeviceGroups,
    advantage: DeviceSliceMut<'_>,
) -> Result<()> {
    let count = of.process.len();
    check_token_lengths(count, tokens.mask.len(), &[])?;
    let sequences = tokens.sequences(count)?;
    check_outcomes(of.outcome.len(), sequences)?;
    let gpu = of.process.gpu();
    let new = || DeviceBuffer::recycled(gpu, F32, sequences);
    let (mut means, mut relative, mut bonus) = (new()?, new()?, new()?);
    let args = AdvantageMeansArgs {
        values: of.process.typed::<f32>()?,
        mask: tokens.mask.typed::<u8>()?,
        offsets: tokens.offsets.typed::<i64>()?,
        means: means.whole_mut().typed::<f32>()?,
        status: gpu.status(),
        tokens: count as i64,
        sequences: sequences as i64,
    };
    launch(gpu, "advantage_means", gpu.item_grid(sequences.div_ceil(SEQUENCES)), &args)?;
    for (rewards, to) in [(means.whole(), &mut relative), (of.outcome, &mut bonus)] {
        let advantage = to.whole_mut();
        let to = Outputs { advantage, mean: None, std: None, flags: None, counts: None };
        forward(&LEAVE_ONE_OUT, rewards, groups, to)?;
    }
    let shifts = Shifts {
        means: Some(means.whole()),
        relative: Some(relative.whole()),
        bonus: Some(bonus.whole()),
    };
    let settings = Gae { gamma: of.gamma, whiten: false, ..Gae::default() };
    let mut out = TokenOutputs { advantage, returns: None };
    scan(&settings, Holes::Pass, of.process, None, shifts, tokens, &mut out)
}

/// [`whiten`](super::super::whiten) on a device: `values` f32 `[tokens]` in place, `mask` u8 `[tokens]`.
///
/// # Errors
/// As [`gae`].
pub fn whiten(
    mut values: DeviceSliceMut<'_>,
    mask: DeviceSlice<'_>,
    epsilon: f64,
    masked: Masked,
) -> Result<()> {
    super::super::whiten::check(values.len(), mask.len(), epsilon)?;
    let gpu = mask.gpu();
    let blocks = values.len().div_ceil(ADVANTAGE_BLOCK as usize);
    let words = size_of::<AdvantageMoments>() / size_of::<i64>();
    let mut moments = DeviceBuffer::recycled(gpu, I64, blocks * words)?;
    let args = AdvantageWhitenArgs {
        mask: mask.typed::<u8>()?,
        values: values.typed::<f32>()?,
        moments: moments.whole_mut().ptr().cast(),
        tokens: values.len() as i64,
        epsilon,
        carried: u32::from(masked == Masked::Carried),
        unused: 0,
    };
    launch(gpu, "advantage_moments", gpu.item_grid(blocks), &args)?;
    launch(gpu, "advantage_whiten", gpu.stride_grid(values.len(), BLOCK), &args)
}

/// [`TokenBaseline`](super::super::TokenBaseline) in device memory: f32 `[tokens]` each.
#[derive(Clone, Copy)]
pub struct TokenBaseline<'a> {
    /// Rewards of the tokens.
    pub rewards: DeviceSlice<'a>,
    /// Log-probs under the policy that sampled, nats.
    pub logprob: DeviceSlice<'a>,
    /// Sum of the squared probabilities of the vocabulary at each place.
    pub sum_squares: DeviceSlice<'a>,
    /// Importance weights; `None`: 1.
    pub weight: Option<DeviceSlice<'a>>,
}

/// [`token_baseline`](super::super::token_baseline) on a device; `groups` are groups of sequences.
///
/// # Errors
/// As [`gae`], and for another estimator as on the CPU; [`Error::is_shape`] for 2³¹ tokens or more.
pub fn token_baseline(
    estimator: &Estimator,
    of: &TokenBaseline<'_>,
    tokens: Tokens<'_>,
    groups: &DeviceGroups,
    masked: Masked,
    mut out: TokenOutputs<'_>,
) -> Result<()> {
    let options = Options::of(estimator)?;
    let count = of.rewards.len();
    let lengths = [
        ("logprob", Some(of.logprob.len())),
        ("sum_squares", Some(of.sum_squares.len())),
        ("weight", of.weight.map(DeviceSlice::len)),
        ("output `advantage`", Some(out.advantage.len())),
        ("output `returns`", out.returns.as_ref().map(DeviceSliceMut::len)),
    ];
    check_token_lengths(count, tokens.mask.len(), &lengths)?;
    // The workspace counts a sequence's slots by int32, and where its sequences end only the device knows.
    if i32::try_from(count).is_err() {
        return Err(Error::shape(format!(
            "advantage: a baseline of {count} tokens: 2^31 are too many"
        )));
    }
    let sequences = tokens.sequences(count)?;
    if groups.responses != sequences {
        return Err(Error::shape(format!(
            "advantage: groups of {} sequences for {sequences}",
            groups.responses
        )));
    }
    out.advantage.fill_bytes(0)?;
    if let Some(returns) = &mut out.returns {
        returns.fill_bytes(0)?;
    }
    let gpu = of.rewards.gpu();
    let new = |dtype, len| DeviceBuffer::recycled(gpu, dtype, len);
    let (mut to_go, mut energy) = (new(I64, count)?, new(I64, count)?);
    let (mut place, mut slots, mut live) =
        (new(I32, count)?, new(I32, sequences)?, new(I32, sequences)?);
    let args = AdvantageTokenBaselineArgs {
        rewards: of.rewards.typed::<f32>()?,
        logprob: of.logprob.typed::<f32>()?,
        sum_squares: of.sum_squares.typed::<f32>()?,
        weight: optional(of.weight)?,
        mask: tokens.mask.typed::<u8>()?,
        offsets: tokens.offsets.typed::<i64>()?,
        groups: groups.offsets.whole().typed::<i64>()?,
        order: groups.order()?,
        to_go: to_go.whole_mut().ptr().cast(),
        energy: energy.whole_mut().ptr().cast(),
        place: place.whole_mut().typed::<i32>()?,
        slots: slots.whole_mut().typed::<i32>()?,
        live: live.whole_mut().typed::<i32>()?,
        advantage: out.advantage.typed::<f32>()?,
        returns: optional_mut(&mut out.returns)?,
        status: gpu.status(),
        tokens: count as i64,
        sequences: sequences as i64,
        group_count: groups.count() as i64,
        epsilon: options.epsilon,
        compact: u32::from(options.positions == Positions::LiveToken),
        zero_tail: u32::from(options.zero_tail),
        carried: u32::from(masked == Masked::Carried),
        unused: 0,
    };
    let by_warps = gpu.item_grid(sequences.div_ceil(SEQUENCES));
    launch(gpu, "token_baseline_slots", by_warps, &args)?;
    launch(gpu, "token_baseline", gpu.item_grid(groups.count()), &args)
}

impl Tokens<'_> {
    fn sequences(&self, tokens: usize) -> Result<usize> {
        match self.offsets.len().saturating_sub(1) {
            0 if tokens > 0 => {
                Err(Error::shape(format!("advantage: no sequence offsets for {tokens} tokens")))
            }
            sequences => Ok(sequences),
        }
    }
}

fn launch<A: Copy>(gpu: &Arc<Gpu>, name: &'static str, grid: [u32; 3], args: &A) -> Result<()> {
    let kernel = Kernel::new("advantage_tokens", name);
    // SAFETY: types and lengths were checked; offsets, groups and orders are checked by the kernels.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, args) }
}
