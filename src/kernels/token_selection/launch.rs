//! The selection of tokens on a device: checks and the launch of `kernels/token_selection.cu`.

use super::{Selected, Selection};
use crate::DType::{I32, I64};
use crate::device::engine::{Kernel, Launch};
use crate::device::gpu::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
use crate::error::{Error, Result};
use crate::kernels::args::{self, TokenSelectionArgs};
use crate::rng::Stream;
use std::ptr::null;

/// What [`select`] reads: [`Inputs`](super::Inputs) in device memory. What a selection does not read may be absent.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// f32 `[tokens]`.
    pub logprob: Option<DeviceSlice<'a>>,
    /// f32 `[tokens]`.
    pub old_logprob: Option<DeviceSlice<'a>>,
    /// f32 `[tokens]`.
    pub advantage: Option<DeviceSlice<'a>>,
    /// f32 `[tokens]`.
    pub entropy: Option<DeviceSlice<'a>>,
    /// u8 `[tokens]`.
    pub mask: DeviceSlice<'a>,
    /// The clip of the objective, `1 - clip_low` and `1 + clip_high`.
    pub clip: (f32, f32),
    /// A seed and a number that no other call of that seed has.
    pub draw: (u64, u64),
}

/// [`Selected`] on the device.
pub struct DeviceSelected(DeviceBuffer);

/// Words of the report, 64 bits each.
const WORDS: usize = 4;
const _: () = assert!(size_of::<args::TokenSelectionReport>() == 8 * WORDS);

impl DeviceSelected {
    /// What was found: waits for all that was launched before.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self) -> Result<Selected> {
        let mut words = [0u64; WORDS];
        self.0.download(0..WORDS, bytemuck::cast_slice_mut(&mut words))?;
        let [live, candidates, picked, last] = words;
        let threshold = f32::from_bits(last as u32);
        Ok(Selected { live, candidates, picked, threshold })
    }
}

/// [`select`](super::select) on a device; `selected` is u8 `[tokens]`. Nothing goes to the host.
///
/// # Errors
/// As on the CPU, [`Error::is_shape`] for 2³² tokens or more, [`Error::is_invalid`] for an input that is missing, and what
/// the device reports.
pub fn select(
    selection: &Selection,
    inputs: &Inputs<'_>,
    mut selected: DeviceSliceMut<'_>,
) -> Result<DeviceSelected> {
    selection.check()?;
    let tokens = inputs.mask.len();
    if selected.len() != tokens {
        let got = selected.len();
        return Err(Error::shape(format!("token_selection: {got} of {tokens} tokens selected")));
    }
    // The kernel counts the candidates of one key in 32 bits.
    if u32::try_from(tokens).is_err() {
        return Err(Error::shape(format!(
            "token_selection: {tokens} tokens on a device, where 2^32 are too many"
        )));
    }
    let (of_cov, of_clip) = match selection {
        Selection::ClipCov { .. } => (true, true),
        Selection::KlCov { .. } => (true, false),
        Selection::TopEntropy { .. } => (false, false),
    };
    let read = |name: &str, of: Option<DeviceSlice<'_>>, is_read: bool| -> Result<*const f32> {
        match of {
            _ if !is_read => Ok(null()),
            Some(of) if of.len() == tokens => of.typed::<f32>(),
            Some(of) => {
                let got = of.len();
                Err(Error::shape(format!(
                    "token_selection: {name} has {got} elements, not {tokens}"
                )))
            }
            None => Err(Error::invalid(format!(
                "token_selection: the selection `{}` needs {name}",
                selection.name()
            ))),
        }
    };
    let gpu = inputs.mask.gpu();
    let mut keys = DeviceBuffer::recycled(gpu, I32, tokens)?;
    let mut report = DeviceBuffer::recycled(gpu, I64, WORDS)?;
    let (kind, share, least, most) = match *selection {
        Selection::ClipCov { ratio, least, most } => (args::SELECT_CLIP_COV, ratio, least, most),
        Selection::KlCov { ratio, .. } => (args::SELECT_KL_COV, ratio, 0.0, 0.0),
        Selection::TopEntropy { fraction } => (args::SELECT_TOP_ENTROPY, 1.0 - fraction, 0.0, 0.0),
    };
    let args = TokenSelectionArgs {
        logprob: read("logprob", inputs.logprob, of_cov)?,
        old_logprob: read("old_logprob", inputs.old_logprob, of_clip)?,
        advantage: read("advantage", inputs.advantage, of_cov)?,
        entropy: read("entropy", inputs.entropy, !of_cov)?,
        mask: inputs.mask.typed::<u8>()?,
        selected: selected.typed::<u8>()?,
        keys: keys.whole_mut().typed::<i32>()?.cast(),
        report: report.whole_mut().ptr().cast(),
        tokens: tokens as i64,
        seed: inputs.draw.0,
        number: inputs.draw.1,
        share,
        least,
        most,
        clip_low: inputs.clip.0,
        clip_high: inputs.clip.1,
        kind,
        stream: Stream::Select as u32,
    };
    let kernel = Kernel::new("token_selection", "token_selection");
    let block = args::TOKEN_SELECTION_BLOCK;
    // SAFETY: types and lengths were checked; the kernel touches tokens alone.
    unsafe { gpu.launch(&Launch { kernel, grid: [1, 1, 1], block, shared: 0 }, &args) }?;
    Ok(DeviceSelected(report))
}
