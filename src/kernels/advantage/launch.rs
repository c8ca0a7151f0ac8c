//! Advantages on a device: checks and launches of `kernels/advantage.cu` and `kernels/advantage_tokens.cu`.

mod several;
mod tokens;

pub use several::several_rewards;
pub use tokens::{
    Prime, TokenBaseline, TokenOutputs, Tokens, gae, prime, reinforce_plus_plus, returns,
    token_baseline, whiten,
};

use super::outcome::{check_lengths, check_needs};
use super::{Counted, Estimator, Groups, Need, Scale, Singleton};
use crate::DType::{F32, I32, I64};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceElement, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{
    self, AdvantageArgs, AdvantageBatch, AdvantageBatchArgs, AdvantageFinishArgs,
};
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// Threads of a block, which takes eight groups.
const BLOCK: u32 = 256;
/// Groups of a block.
const GROUPS: usize = 8;
/// Threads of the one block that looks at the whole batch.
const BATCH_BLOCK: u32 = 1024;

/// Groups in device memory.
pub struct DeviceGroups {
    offsets: DeviceBuffer,
    order: Option<DeviceBuffer>,
    responses: usize,
}

impl DeviceGroups {
    /// Checks groups and copies them to the device.
    ///
    /// # Errors
    /// As [`forward`](super::forward); [`Error::is_shape`] for 2³¹ responses or more that are not in the order of their
    /// groups; and what the device reports.
    pub fn upload(gpu: &Arc<Gpu>, groups: Groups<'_>, responses: usize) -> Result<DeviceGroups> {
        let plan = groups.plan(responses)?;
        let offsets: Vec<i64> = plan.offsets.iter().map(|offset| *offset as i64).collect();
        let order = match plan.order {
            Some(order) => {
                Some(DeviceBuffer::upload(gpu, I32, bytemuck::cast_slice(&narrow(&order)?))?)
            }
            None => None,
        };
        let offsets = DeviceBuffer::upload(gpu, I64, bytemuck::cast_slice(&offsets))?;
        Ok(DeviceGroups { offsets, order, responses })
    }

    /// Offsets that a kernel has written: i64 `[groups + 1]`, from 0 to `responses`. A group that they do not place inside
    /// the responses is left out and raises a status bit.
    ///
    /// # Errors
    /// [`Error::is_shape`] for no offset, [`Error::is_dtype`] for another type.
    pub fn from_offsets(offsets: DeviceBuffer, responses: usize) -> Result<DeviceGroups> {
        if offsets.is_empty() {
            return Err(Error::shape("advantage: no group offsets"));
        }
        offsets.whole().typed::<i64>()?;
        Ok(DeviceGroups { offsets, order: None, responses })
    }

    /// How many groups there are.
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    fn order(&self) -> Result<*const i32> {
        self.order.as_ref().map_or(Ok(null()), |order| order.whole().typed())
    }
}

/// Responses as the kernels name them.
fn narrow(order: &[usize]) -> Result<Vec<i32>> {
    let of = |response: &usize| {
        i32::try_from(*response).map_err(|_| {
            Error::shape(format!(
                "advantage: response {response} of groups that are not in order: a device names fewer than 2^31"
            ))
        })
    };
    order.iter().map(of).collect()
}

/// What [`of_responses`] reads: [`Responses`](super::Responses) in device memory.
#[derive(Clone, Copy)]
pub struct Responses<'a> {
    /// f32 `[responses]`.
    pub rewards: DeviceSlice<'a>,
    /// Which belong together.
    pub groups: &'a DeviceGroups,
    /// i64 `[responses]`.
    pub lengths: Option<DeviceSlice<'a>>,
    /// f32 `[responses]`.
    pub greedy: Option<DeviceSlice<'a>>,
    /// u8 `[responses]`.
    pub basis: Option<DeviceSlice<'a>>,
}

/// Where [`forward`] writes.
pub struct Outputs<'a> {
    /// f32 `[responses]`.
    pub advantage: DeviceSliceMut<'a>,
    /// f32 `[groups]`.
    pub mean: Option<DeviceSliceMut<'a>>,
    /// f32 `[groups]`.
    pub std: Option<DeviceSliceMut<'a>>,
    /// u8 `[groups]`: `FLAG_*` bits.
    pub flags: Option<DeviceSliceMut<'a>>,
    /// i64 `[3]`: groups with a response, degenerate ones, and responses that were not scored.
    pub counts: Option<DeviceSliceMut<'a>>,
}

/// [`forward`](super::forward) on a device: `rewards` f32 `[responses]`. An infinite reward counts as not scored there,
/// and raises a status bit.
///
/// # Errors
/// As [`of_responses`].
pub fn forward(
    estimator: &Estimator,
    rewards: DeviceSlice<'_>,
    groups: &DeviceGroups,
    out: Outputs<'_>,
) -> Result<()> {
    let responses = Responses { rewards, groups, lengths: None, greedy: None, basis: None };
    of_responses(estimator, &responses, out)
}

/// [`of_responses`](super::of_responses) on a device; see [`forward`].
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] for an estimator out of range or without what it needs, and
/// what the device reports.
pub fn of_responses(estimator: &Estimator, of: &Responses<'_>, mut out: Outputs<'_>) -> Result<()> {
    let given = [(Need::Lengths, of.lengths.is_some()), (Need::GreedyRewards, of.greedy.is_some())];
    check_needs(estimator, &given)?;
    check_outputs(of, &out)?;
    let gpu = of.rewards.gpu();
    let rule = Rule::of(estimator);
    let batch = if rule.of_batch { Some(batch_statistics(of.rewards)?) } else { None };
    let mut own_counts = None;
    let counts = match (&mut out.counts, rule.filter) {
        (Some(counts), _) => Some(counts.reborrow()),
        (None, Some(_)) => Some(own_counts.insert(DeviceBuffer::zeros(gpu, I64, 3)?).whole_mut()),
        (None, None) => None,
    };
    let counts: *mut u64 = match counts {
        Some(mut counts) => {
            counts.fill_bytes(0)?;
            counts.typed::<i64>()?.cast()
        }
        None => null_mut(),
    };
    let args = AdvantageArgs {
        rewards: of.rewards.typed::<f32>()?,
        offsets: of.groups.offsets.whole().typed::<i64>()?,
        order: of.groups.order()?,
        basis: optional(of.basis)?,
        greedy: optional(of.greedy)?,
        lengths: optional(of.lengths)?,
        batch: batch.as_ref().map_or(null(), |batch| batch.whole().ptr().cast()),
        advantage: out.advantage.typed::<f32>()?,
        mean: optional_mut(&mut out.mean)?,
        std: optional_mut(&mut out.std)?,
        flags: optional_mut(&mut out.flags)?,
        counts,
        status: gpu.status(),
        responses: of.groups.responses as i64,
        groups: of.groups.count() as i64,
        epsilon: rule.epsilon,
        least_std: rule.least_std,
        variance_threshold: rule.variance_threshold,
        length_bonus: rule.length_bonus,
        correct_above: rule.correct_above,
        scale: rule.scale,
        center: rule.center,
        factor: rule.factor,
        singleton_reward: u32::from(estimator.singleton() == Singleton::Reward),
        batch_std: u32::from(rule.batch_std),
        best_only: u32::from(rule.best_only),
        unused: 0,
    };
    launch(gpu, "advantage", gpu.item_grid(of.groups.count().div_ceil(GROUPS)), BLOCK, &args)?;
    let finish = match (rule.whiten, rule.filter) {
        (Some(epsilon), _) => (args::ADVANTAGE_WHITEN, epsilon, 0.0, false),
        (_, Some((cap, counted))) => {
            (args::ADVANTAGE_FILTER_SCALE, 0.0, cap, counted == Counted::Responses)
        }
        (None, None) => return Ok(()),
    };
    let (finish, epsilon, cap, per_responses) = finish;
    let finish = AdvantageFinishArgs {
        rewards: args.rewards,
        lengths: args.lengths,
        advantage: args.advantage,
        counts,
        std: null_mut(),
        responses: args.responses,
        epsilon,
        cap,
        finish,
        per_responses: u32::from(per_responses),
    };
    launch(gpu, "advantage_finish", [1, 1, 1], BATCH_BLOCK, &finish)
}

fn check_outputs(of: &Responses<'_>, out: &Outputs<'_>) -> Result<()> {
    let (responses, count) = (of.groups.responses, of.groups.count());
    let lengths = [
        ("rewards", Some(of.rewards.len()), false),
        ("lengths", of.lengths.map(DeviceSlice::len), false),
        ("greedy rewards", of.greedy.map(DeviceSlice::len), false),
        ("basis", of.basis.map(DeviceSlice::len), false),
        ("output `advantage`", Some(out.advantage.len()), false),
        ("output `mean`", out.mean.as_ref().map(DeviceSliceMut::len), true),
        ("output `std`", out.std.as_ref().map(DeviceSliceMut::len), true),
        ("output `flags`", out.flags.as_ref().map(DeviceSliceMut::len), true),
    ];
    check_lengths(responses, count, &lengths)?;
    match out.counts.as_ref().map(DeviceSliceMut::len).filter(|len| *len != 3) {
        Some(len) => {
            Err(Error::shape(format!("advantage: output `counts` has {len} elements, not 3")))
        }
        None => Ok(()),
    }
}

/// An estimator as the kernels read it.
struct Rule {
    center: u32,
    factor: u32,
    epsilon: f64,
    least_std: f64,
    variance_threshold: f64,
    length_bonus: f64,
    correct_above: f64,
    scale: f64,
    batch_std: bool,
    best_only: bool,
    /// The batch's statistics are wanted.
    of_batch: bool,
    /// Whiten in the end, with this epsilon.
    whiten: Option<f64>,
    /// Scale by what the filter left in the end.
    filter: Option<(f64, Counted)>,
}

impl Rule {
    fn of(estimator: &Estimator) -> Rule {
        let plain = Rule {
            center: args::ADVANTAGE_MEAN,
            factor: args::ADVANTAGE_ONE,
            epsilon: 0.0,
            least_std: 0.0,
            variance_threshold: 0.0,
            length_bonus: 0.0,
            correct_above: 0.0,
            scale: 1.0,
            batch_std: false,
            best_only: false,
            of_batch: false,
            whiten: None,
            filter: None,
        };
        let over_std = args::ADVANTAGE_OVER_STD;
        match *estimator {
            Estimator::Grpo { epsilon, scale, variance_floor, variance_threshold, .. } => {
                let of_batch = scale == Scale::Batch;
                let least_std = variance_floor.sqrt();
                let of = Rule { factor: over_std, epsilon, least_std, variance_threshold, ..plain };
                Rule { batch_std: of_batch, of_batch, ..of }
            }
            Estimator::Rloo { .. } => Rule { factor: args::ADVANTAGE_LEAVE_ONE_OUT, ..plain },
            Estimator::PassK { epsilon, divide } => {
                let factor = if divide { over_std } else { plain.factor };
                Rule { factor, epsilon, best_only: true, ..plain }
            }
            Estimator::Opo { .. } => Rule { center: args::ADVANTAGE_LENGTH_MEAN, ..plain },
            Estimator::ReinforcePlusPlus { epsilon, .. } => {
                Rule { center: args::ADVANTAGE_NO_CENTER, whiten: Some(epsilon), ..plain }
            }
            Estimator::ReinforcePlusPlusBaseline { epsilon, .. } => {
                Rule { whiten: Some(epsilon), ..plain }
            }
            Estimator::Remax {} => Rule { center: args::ADVANTAGE_GREEDY, ..plain },
            Estimator::Gpg { f_norm, .. } => {
                let factor = args::ADVANTAGE_OF_BATCH;
                Rule { factor, scale: 1.0 / f_norm, of_batch: true, ..plain }
            }
            Estimator::Cpgd { cap, counted, .. } => Rule { filter: Some((cap, counted)), ..plain },
            Estimator::Cale { eta, correct_above, epsilon } => {
                Rule { factor: over_std, epsilon, length_bonus: eta, correct_above, ..plain }
            }
            // The others were refused for what they need.
            Estimator::DrGrpo { .. }
            | Estimator::Gae(_)
            | Estimator::Prime { .. }
            | Estimator::OptimalTokenBaseline { .. } => plain,
        }
    }
}

/// The deviation of all rewards and the share of those that are not 0.
fn batch_statistics(rewards: DeviceSlice<'_>) -> Result<DeviceBuffer> {
    let gpu = rewards.gpu();
    let words = size_of::<AdvantageBatch>() / size_of::<f32>();
    let mut batch = DeviceBuffer::recycled(gpu, F32, words)?;
    let args = AdvantageBatchArgs {
        rewards: rewards.typed::<f32>()?,
        batch: batch.whole_mut().ptr().cast(),
        responses: rewards.len() as i64,
    };
    launch(gpu, "advantage_batch", [1, 1, 1], BATCH_BLOCK, &args)?;
    Ok(batch)
}

fn optional<T: DeviceElement>(of: Option<DeviceSlice<'_>>) -> Result<*const T> {
    of.map_or(Ok(null()), DeviceSlice::typed)
}

fn optional_mut<T: DeviceElement>(of: &mut Option<DeviceSliceMut<'_>>) -> Result<*mut T> {
    of.as_mut().map_or(Ok(null_mut()), DeviceSliceMut::typed)
}

fn launch<A: Copy>(
    gpu: &Arc<Gpu>,
    name: &'static str,
    grid: [u32; 3],
    block: u32,
    args: &A,
) -> Result<()> {
    let kernel = Kernel::new("advantage", name);
    // SAFETY: types and lengths were checked; offsets, orders and responses are checked by the kernels.
    unsafe { gpu.launch(&Launch { kernel, grid, block, shared: 0 }, args) }
}

#[cfg(test)]
mod tests {
    use super::narrow;

    #[test]
    fn a_response_that_no_int32_names_is_refused() {
        assert_eq!(narrow(&[1, 0, (1 << 31) - 1]).unwrap(), [1, 0, i32::MAX]);
        let error = narrow(&[0, 1 << 31]).unwrap_err();
        assert!(error.is_shape() && error.to_string().contains("response 2147483648"), "{error}");
    }
}
