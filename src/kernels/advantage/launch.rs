//! Advantages on a device: checks and launches of `kernels/advantage.cu`.

use super::{Estimator, Groups, Scale, Singleton};
use crate::DType::{F32, I32, I64};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::kernels::args::{
    ADVANTAGE_LEAVE_ONE_OUT, ADVANTAGE_ONE, ADVANTAGE_OVER_STD, AdvantageArgs, AdvantageBatchArgs,
};
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// Threads of a block, which takes eight groups.
const BLOCK: u32 = 256;
/// Groups of a block.
const GROUPS: usize = 8;
/// Threads of the one block that takes the deviation of the batch.
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
    /// As [`forward`](super::forward), and what the device reports.
    pub fn upload(gpu: &Arc<Gpu>, groups: Groups<'_>, responses: usize) -> Result<DeviceGroups> {
        let plan = groups.plan(responses)?;
        let offsets: Vec<i64> = plan.offsets.iter().map(|offset| *offset as i64).collect();
        let order = match plan.order {
            Some(order) => {
                let order: Vec<i32> = order.into_iter().map(|i| i as i32).collect();
                Some(DeviceBuffer::upload(gpu, I32, bytemuck::cast_slice(&order))?)
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
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] for an estimator out of range, and what the device
/// reports.
pub fn forward(
    estimator: &Estimator,
    rewards: DeviceSlice<'_>,
    groups: &DeviceGroups,
    mut out: Outputs<'_>,
) -> Result<()> {
    estimator.check()?;
    let (responses, count) = (groups.responses, groups.count());
    let lengths = [
        ("rewards", Some(rewards.len()), responses),
        ("output `advantage`", Some(out.advantage.len()), responses),
        ("output `mean`", out.mean.as_ref().map(DeviceSliceMut::len), count),
        ("output `std`", out.std.as_ref().map(DeviceSliceMut::len), count),
        ("output `flags`", out.flags.as_ref().map(DeviceSliceMut::len), count),
        ("output `counts`", out.counts.as_ref().map(DeviceSliceMut::len), 3),
    ];
    for (name, got, want) in lengths {
        if let Some(got) = got.filter(|got| *got != want) {
            return Err(Error::shape(format!(
                "advantage: {name} has {got} elements, not {want} ({responses} responses in {count} groups)"
            )));
        }
    }
    let gpu = rewards.gpu();
    let (factor, singleton, epsilon, least_std, of_batch) = match *estimator {
        Estimator::Grpo { epsilon, scale, singleton, variance_floor } => {
            let of_batch = scale == Scale::Batch;
            (ADVANTAGE_OVER_STD, singleton, epsilon, variance_floor.sqrt(), of_batch)
        }
        Estimator::DrGrpo { singleton } => (ADVANTAGE_ONE, singleton, 0.0, 0.0, false),
        Estimator::Rloo { singleton } => (ADVANTAGE_LEAVE_ONE_OUT, singleton, 0.0, 0.0, false),
    };
    let mut batch_std = if of_batch { Some(DeviceBuffer::recycled(gpu, F32, 2)?) } else { None };
    if let Some(std) = &mut batch_std {
        let args = AdvantageBatchArgs {
            rewards: rewards.typed::<f32>()?,
            std: std.whole_mut().ptr().cast(),
            responses: responses as i64,
        };
        let kernel = Kernel::new("advantage", "advantage_batch_std");
        let launch = Launch { kernel, grid: [1, 1, 1], block: BATCH_BLOCK, shared: 0 };
        // SAFETY: types and lengths were checked; two f32 hold one f64.
        unsafe { gpu.launch(&launch, &args)? };
    }
    if let Some(counts) = &mut out.counts {
        counts.fill_bytes(0)?;
    }
    let pointer = |out: &mut Option<DeviceSliceMut<'_>>| {
        out.as_mut().map_or(Ok(null_mut()), DeviceSliceMut::typed::<f32>)
    };
    let args = AdvantageArgs {
        rewards: rewards.typed::<f32>()?,
        offsets: groups.offsets.whole().typed::<i64>()?,
        order: groups.order.as_ref().map_or(Ok(null()), |order| order.whole().typed::<i32>())?,
        batch_std: batch_std.as_ref().map_or(null(), |std| std.whole().ptr().cast()),
        advantage: out.advantage.typed::<f32>()?,
        mean: pointer(&mut out.mean)?,
        std: pointer(&mut out.std)?,
        flags: out.flags.as_mut().map_or(Ok(null_mut()), DeviceSliceMut::typed::<u8>)?,
        counts: match &mut out.counts {
            Some(counts) => counts.typed::<i64>()?.cast(),
            None => null_mut(),
        },
        status: gpu.status(),
        responses: responses as i64,
        groups: count as i64,
        epsilon,
        least_std,
        factor,
        singleton_reward: u32::from(singleton == Singleton::Reward),
    };
    let kernel = Kernel::new("advantage", "advantage");
    let grid = gpu.item_grid(count.div_ceil(GROUPS));
    // SAFETY: types and lengths were checked; offsets and responses are checked by the kernel.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, &args) }
}
