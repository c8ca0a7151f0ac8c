//! Image tokens on a device: checks and launches of the vector part of `kernels/token_decode.cu`.

use super::vq::{Layout, check_shapes};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceSlice, DeviceSliceMut};
use crate::error::{Error, Result};
use crate::kernels::args::{VqLookupArgs, VqQuantizeArgs};

/// Threads of a block.
const BLOCK: u32 = 256;

/// What the vectors of images look like.
#[derive(Clone, Copy, Debug)]
pub struct Vectors {
    /// Positions of an image.
    pub positions: usize,
    /// Width of a code.
    pub channels: usize,
    /// Divide vectors by their length.
    pub normalize: bool,
    /// Where the channels stand.
    pub layout: Layout,
}

impl Vectors {
    fn check(&self, ids: usize, vectors: usize, codebook: usize) -> Result<i32> {
        check_shapes(ids, vectors, codebook, self.positions, self.channels)?;
        let codes = codebook / self.channels;
        i32::try_from(codes).map_err(|_| Error::shape(format!("vq: a codebook of {codes} codes")))
    }
}

/// [`vq_lookup`](super::vq_lookup) on a device, f32: the same bits. An id outside the codebook gives zeros and sets a
/// status bit.
///
/// # Errors
/// [`Error::is_shape`] when a length does not fit, [`Error::is_dtype`], and what the device reports.
pub fn lookup(
    spec: &Vectors,
    ids: DeviceSlice<'_>,
    codebook: DeviceSlice<'_>,
    mut out: DeviceSliceMut<'_>,
) -> Result<()> {
    let codes = spec.check(ids.len(), out.len(), codebook.len())?;
    let gpu = ids.gpu();
    let args = VqLookupArgs {
        ids: ids.typed::<i32>()?,
        codebook: codebook.typed::<f32>()?,
        out: out.typed::<f32>()?,
        status: gpu.status(),
        images: (ids.len() / spec.positions) as i64,
        positions: spec.positions as i64,
        channels: spec.channels as i64,
        codes,
        normalize: u32::from(spec.normalize),
        channel_last: u32::from(spec.layout == Layout::ChannelLast),
        unused: 0,
    };
    let kernel = Kernel::new("token_decode", "vq_lookup");
    let grid = gpu.stride_grid(ids.len(), BLOCK);
    // SAFETY: types and lengths were checked, the kernel checks the ids.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, &args) }
}

/// [`vq_quantize`](super::vq_quantize) on a device, f32: the same ids.
///
/// # Errors
/// As [`lookup`]; [`Error::is_shape`] for a codebook without codes.
pub fn quantize(
    spec: &Vectors,
    z: DeviceSlice<'_>,
    codebook: DeviceSlice<'_>,
    mut ids: DeviceSliceMut<'_>,
) -> Result<()> {
    let codes = spec.check(ids.len(), z.len(), codebook.len())?;
    if codes == 0 {
        return Err(Error::shape("vq: a codebook of 0 codes"));
    }
    let gpu = z.gpu();
    let args = VqQuantizeArgs {
        z: z.typed::<f32>()?,
        codebook: codebook.typed::<f32>()?,
        ids: ids.typed::<i32>()?,
        images: (ids.len() / spec.positions) as i64,
        positions: spec.positions as i64,
        channels: spec.channels as i64,
        codes,
        normalize: u32::from(spec.normalize),
        channel_last: u32::from(spec.layout == Layout::ChannelLast),
        unused: 0,
    };
    let kernel = Kernel::new("token_decode", "vq_quantize");
    // A warp a vector.
    let grid = gpu.stride_grid(ids.len() * 32, BLOCK);
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0 }, &args) }
}
