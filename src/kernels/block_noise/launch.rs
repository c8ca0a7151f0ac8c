//! Noise on a device: checks and the launch of `kernels/block_noise.cu`.

use super::rate::Curve;
use super::{Draw, Lengths, Noise, Weight};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceSlice, DeviceSliceMut};
use crate::error::Result;
use crate::kernels::args::{
    BlockNoiseArgs, NOISE_COUNTED, NOISE_FORCED, NOISE_INDEPENDENT, NOISE_MAX_BLOCK, NOISE_TILE,
    NOISE_WEIGHT_ONE, NOISE_WEIGHT_RATE, NOISE_WEIGHT_UNBIASED,
};
use std::ptr::null;

/// Threads of a block.
const BLOCK: u32 = 256;

const _: () = assert!(super::MAX_BLOCK == NOISE_MAX_BLOCK as usize);

/// Rates and weights that the caller has drawn: [`Given`](super::Given) on a device.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// `[sequences, length / block]` f32, above 0 and at most 1: what is outside masks nothing or everything.
    pub rate: DeviceSlice<'a>,
    /// `[sequences, length / block]` f32.
    pub weight: DeviceSlice<'a>,
}

/// Arguments of [`forward`], as those of [`Forward`](super::Forward), on one device.
pub struct Forward<'a> {
    /// `[sequences, length]` i32.
    pub ids: DeviceSlice<'a>,
    /// `[sequences, length]` u8.
    pub eligible: Option<DeviceSlice<'a>>,
    /// `[sequences]` i64: the bits of the sequences' numbers.
    pub sequences: DeviceSlice<'a>,
    /// Tokens of a sequence.
    pub length: usize,
    /// In place of drawn levels.
    pub given: Option<Given<'a>>,
    /// `[sequences, length]` i32; overwritten.
    pub noised: DeviceSliceMut<'a>,
    /// `[sequences, length]` u8; overwritten.
    pub mask: DeviceSliceMut<'a>,
    /// `[sequences, length]` f32; overwritten.
    pub weight: DeviceSliceMut<'a>,
    /// `[sequences, length / block]` f32; overwritten.
    pub rate: DeviceSliceMut<'a>,
}

/// Noises a batch on a device, with the bits of [`forward`](super::forward()). Nothing waits.
///
/// # Errors
/// As [`forward`](super::forward()), [`Error::is_dtype`](crate::Error::is_dtype), and what the device reports.
pub fn forward(noise: &Noise, args: Forward<'_>) -> Result<()> {
    let Forward { ids, eligible, sequences, length, given, .. } = args;
    let (mut noised, mut mask) = (args.noised, args.mask);
    let (mut weight, mut rate) = (args.weight, args.rate);
    Lengths {
        rows: sequences.len(),
        length,
        ids: ids.len(),
        eligible: eligible.map(DeviceSlice::len),
        given: given.map(|given| [given.rate.len(), given.weight.len()]),
        noised: noised.len(),
        mask: mask.len(),
        weight: weight.len(),
        rate: rate.len(),
    }
    .check(noise)?;
    let [before, least, low, slope, high, after] = Curve::new(noise).constants();
    let tile = (NOISE_TILE as usize / noise.block).max(1);
    let (draw, [least_count, most_count]) = match noise.draw {
        Draw::Independent { forced: false } => (NOISE_INDEPENDENT, [0, 0]),
        Draw::Independent { forced: true } => (NOISE_FORCED, [0, 0]),
        Draw::Counted { least, most } => (NOISE_COUNTED, [least, most]),
    };
    let weighting = match noise.weight {
        _ if noise.warm_up.is_some() => NOISE_WEIGHT_ONE,
        Weight::Rate => NOISE_WEIGHT_RATE,
        Weight::Unbiased => NOISE_WEIGHT_UNBIASED,
        Weight::One => NOISE_WEIGHT_ONE,
    };
    let optional = |slice: Option<DeviceSlice<'_>>| slice.map_or(Ok(null()), |s| s.typed::<f32>());
    let struct_args = BlockNoiseArgs {
        ids: ids.typed::<i32>()?,
        eligible: eligible.map_or(Ok(null()), |eligible| eligible.typed::<u8>())?,
        sequences: sequences.typed::<i64>()?,
        given_rate: optional(given.map(|given| given.rate))?,
        given_weight: optional(given.map(|given| given.weight))?,
        noised: noised.typed::<i32>()?,
        mask: mask.typed::<u8>()?,
        weight: weight.typed::<f32>()?,
        rate: rate.typed::<f32>()?,
        rows: sequences.len() as i64,
        length: length as i64,
        seed: noise.seed,
        block: noise.block as i32,
        tile: tile as i32,
        mask_id: noise.mask_id,
        draw,
        weighting,
        least_count,
        most_count,
        strata_bits: noise.strata.trailing_zeros(),
        before,
        least,
        low,
        slope,
        high,
        after,
    };
    let tiles = (length / noise.block).div_ceil(tile) * sequences.len();
    let launch = Launch {
        kernel: Kernel::new("block_noise", "block_noise"),
        grid: ids.gpu().item_grid(tiles),
        block: BLOCK,
        // A key a token; a bound and a weight a block of tokens.
        shared: (4 * (tile * noise.block + 2 * tile)) as u32,
    };
    // SAFETY: types and lengths were checked; the shared memory is what the kernel divides up.
    unsafe { ids.gpu().launch(&launch, &struct_args) }
}
