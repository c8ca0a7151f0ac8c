//! Rotary positions on a device: checks and launches of `kernels/rope.cu`.

use super::{Angles, Layout};
use crate::device::gpu::{DeviceSlice, DeviceSliceMut};
use crate::error::Result;
use crate::kernels::args::RopeArgs;
use crate::kernels::rms_norm::launch::one_type;
use crate::kernels::row_walk;
use crate::typed_kernel;

/// Turns the first `2 · pairs` dimensions of every head; by the opposite angle where `inverse` (which is the
/// gradient). Other dimensions are copied. The angles go to the device the first time they are used there.
///
/// # Shapes
/// `x`, `out` `[T, heads, head_dim]` of one float type.
///
/// # Errors
/// [`Error::is_shape`](crate::Error::is_shape) when a length does not fit or a head has fewer dimensions than are turned,
/// [`Error::is_dtype`](crate::Error::is_dtype), and what the device reports.
pub fn rotate(
    x: DeviceSlice<'_>,
    [heads, head_dim]: [usize; 2],
    angles: &Angles,
    layout: Layout,
    inverse: bool,
    mut out: DeviceSliceMut<'_>,
) -> Result<()> {
    angles.check([heads, head_dim], &[x.len(), out.len()])?;
    one_type("rope", &[x.dtype(), out.dtype()])?;
    let kernel = typed_kernel!("rope", "rope", x.dtype())?;
    if x.is_empty() {
        return Ok(());
    }
    let gpu = x.gpu();
    let table = angles.on(gpu)?;
    let (pairs, size) = (angles.pairs, x.dtype().size());
    // Groups start in heads and, where pairs are halves apart, also in the second half and in the table of angles.
    let halves = if layout == Layout::Interleaved { 0 } else { pairs };
    let fits = [head_dim, halves].iter().all(|count| (count * size).is_multiple_of(16));
    let addresses = [x.address(), out.address(), table.whole().address()];
    let args = RopeArgs {
        x: x.ptr(),
        out: out.ptr(),
        angles: table.whole().typed::<f32>()?,
        tokens: angles.tokens() as i64,
        heads: heads as i64,
        head_dim: head_dim as i64,
        pairs: pairs as i64,
        interleaved: u32::from(layout == Layout::Interleaved),
        inverse: u32::from(inverse),
        aligned: u32::from(fits && row_walk::aligned(&addresses)),
        unused: 0,
    };
    let group = 16 / size;
    // SAFETY: types and lengths were checked.
    unsafe { gpu.launch(&row_walk::groups(gpu, kernel, x.len(), group), &args) }
}
