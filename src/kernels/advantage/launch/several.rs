//! Rewards of several functions on a device.

use super::super::several::{check_weights, normalizer, rows};
use super::super::{Combination, Estimator};
use super::{BATCH_BLOCK, BLOCK, DeviceGroups, Outputs, forward, launch};
use crate::DType::{F32, I64};
use crate::device::gpu::{DeviceBuffer, DeviceSlice};
use crate::error::{Error, Result};
use crate::kernels::args::{ADVANTAGE_STANDARDIZE, AdvantageFinishArgs, AdvantageRewardsArgs};
use std::ptr::{null, null_mut};

/// [`several_rewards`](super::super::several_rewards) on a device: `rewards` f32 `[responses, functions]`.
///
/// # Errors
/// [`Error::is_shape`], [`Error::is_dtype`], [`Error::is_invalid`] as on the CPU, and what the device reports.
pub fn several_rewards(
    estimator: &Estimator,
    combination: Combination,
    rewards: DeviceSlice<'_>,
    weights: &[f64],
    groups: &DeviceGroups,
    mut out: Outputs<'_>,
) -> Result<()> {
    let functions = weights.len();
    let responses = rows(rewards.len(), functions)?;
    check_weights(weights)?;
    if out.advantage.len() != responses {
        return Err(Error::shape(format!(
            "advantage: output `advantage` has {} elements, not {responses}",
            out.advantage.len()
        )));
    }
    let gpu = rewards.gpu();
    // The weights' bits: the device has no type for f64, and no kernel looks at it as another.
    let weights = DeviceBuffer::upload(gpu, I64, bytemuck::cast_slice(weights))?;
    let mut sums = DeviceBuffer::recycled(gpu, F32, responses)?;
    let grid = gpu.stride_grid(responses, BLOCK);
    let mut args = AdvantageRewardsArgs {
        rewards: rewards.typed::<f32>()?,
        weights: weights.whole().ptr().cast(),
        scores: null(),
        columns: null_mut(),
        sums: sums.whole_mut().typed::<f32>()?,
        responses: responses as i64,
        functions: functions as i64,
    };
    if combination == Combination::SumThenNormalize {
        launch(gpu, "advantage_rewards", grid, BLOCK, &args)?;
        return forward(estimator, sums.whole(), groups, out);
    }
    let epsilon = normalizer(estimator)?;
    let mut columns = DeviceBuffer::recycled(gpu, F32, responses * functions)?;
    let mut scores = DeviceBuffer::recycled(gpu, F32, responses * functions)?;
    let transpose = AdvantageRewardsArgs {
        columns: columns.whole_mut().typed::<f32>()?,
        sums: null_mut(),
        ..args
    };
    launch(gpu, "advantage_rewards", grid, BLOCK, &transpose)?;
    for f in 0..functions {
        let column = f * responses..(f + 1) * responses;
        let mut whole = scores.whole_mut();
        let advantage = whole.slice_mut(column.clone())?;
        let to = Outputs { advantage, mean: None, std: None, flags: None, counts: None };
        forward(estimator, columns.slice(column)?, groups, to)?;
    }
    args.scores = scores.whole().typed::<f32>()?;
    launch(gpu, "advantage_rewards", grid, BLOCK, &args)?;
    // The statistics of the sums; their advantages are taken over the batch instead.
    let statistics = Outputs {
        advantage: out.advantage.reborrow(),
        mean: out.mean,
        std: out.std,
        flags: out.flags,
        counts: out.counts,
    };
    forward(estimator, sums.whole(), groups, statistics)?;
    out.advantage.copy_from(sums.whole())?;
    let finish = AdvantageFinishArgs {
        rewards: sums.whole().typed::<f32>()?,
        lengths: null(),
        advantage: out.advantage.typed::<f32>()?,
        counts: null(),
        std: null_mut(),
        responses: responses as i64,
        epsilon,
        cap: 0.0,
        finish: ADVANTAGE_STANDARDIZE,
        per_responses: 0,
    };
    launch(gpu, "advantage_finish", [1, 1, 1], BATCH_BLOCK, &finish)
}
