//! NVIDIA GPUs through the driver, which is found at run time: no toolkit, and no panic where there is no GPU.
//!
//! [`probe`] says what there is, [`images`] what this binary carries for it, and [`Device::cuda`] opens one. Kernels and
//! operations are not known here. Library tables are in `functions`, the driver's in `driver`, a GPU's context and
//! stream in `context`; `memory`, `staging`, `modules` and `blas` stand on that, and `engine` is all of them as an
//! [`Engine`](super::engine::Engine).

mod blas;
mod code;
mod context;
mod driver;
mod engine;
mod functions;
pub mod images;
mod memory;
mod modules;
mod staging;

pub use code::Code;
pub use driver::{Absent, DeviceInfo, Driver, probe, version_text};

use super::Device;
use super::gpu::Gpu;
use crate::error::{Error, Result};
use std::ffi::c_void;
use std::path::PathBuf;

/// How a GPU is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// cuBLASLt's library, or the folder it is in; looked for in the system's places and `CUDA_HOME` where `None`.
    pub cublaslt: Option<PathBuf>,
    /// Let f32 products round their operands to TF32: about eight times the rate, three decimal digits. Off by default.
    pub tf32: bool,
}

impl CudaOptions {
    /// Options with `GRADSTONE_CUBLASLT` as the place of cuBLASLt, where it is set.
    pub fn from_env() -> CudaOptions {
        let cublaslt = std::env::var_os("GRADSTONE_CUBLASLT").filter(|path| !path.is_empty());
        CudaOptions { cublaslt: cublaslt.map(PathBuf::from), ..CudaOptions::default() }
    }
}

/// Where cuBLASLt would be loaded from.
///
/// # Errors
/// What was tried, in words.
pub fn locate_cublaslt(options: &CudaOptions) -> std::result::Result<PathBuf, String> {
    blas::locate(options.cublaslt.as_deref())
}

/// Whether this binary's kernels can run on a GPU with this driver, and why not.
///
/// # Errors
/// [`Error::is_unsupported`] naming image, PTX version, driver version and device.
pub fn check(driver: &Driver, device: &DeviceInfo) -> Result<()> {
    images::all().iter().try_for_each(|image| modules::check(image, device, driver.version()))
}

/// # Safety
/// As [`Device::cuda_on_stream`] where a stream is given.
unsafe fn open(
    ordinal: usize,
    stream: Option<*mut c_void>,
    options: &CudaOptions,
) -> Result<Device> {
    let driver = probe()
        .map_err(|absent| Error::unsupported(absent.to_string()).at(format!("cuda:{ordinal}")))?;
    let devices = driver.devices();
    let device = devices.get(ordinal).ok_or_else(|| {
        Error::invalid(match devices.len() {
            1 => format!("cuda:{ordinal}: the driver sees one GPU, cuda:0"),
            n => format!("cuda:{ordinal}: the driver sees {n} GPUs, cuda:0 to cuda:{}", n - 1),
        })
    })?;
    // SAFETY: the caller's promise.
    let engine = unsafe { engine::Cuda::open(driver, device, stream.map(|s| s.cast()), options)? };
    Ok(Device::Gpu(Gpu::new(Box::new(engine))?))
}

impl Device {
    /// A GPU by its number, on a stream of its own; options from the environment ([`CudaOptions::from_env`]).
    ///
    /// Each call makes a device of its own: tensors of two of them are not mixed.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] where there is no driver or GPU, or one that is too old for this build's kernels, with
    /// what to do; [`Error::is_invalid`] for a number that no GPU has; [`Error::is_state`] when the driver fails.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Device::cuda_with(ordinal, &CudaOptions::from_env())
    }

    /// [`Device::cuda`] with options.
    ///
    /// # Errors
    /// As [`Device::cuda`].
    pub fn cuda_with(ordinal: usize, options: &CudaOptions) -> Result<Device> {
        // SAFETY: no stream is given.
        unsafe { open(ordinal, None, options) }
    }

    /// A GPU whose work goes to the caller's stream (a `cudaStream_t` or `CUstream`; null is the default stream), in
    /// order with what the caller puts there.
    ///
    /// # Safety
    /// The stream is of this GPU's primary context and lives as long as the device and everything on it.
    ///
    /// # Errors
    /// As [`Device::cuda`], and [`Error::is_invalid`] for a stream of another context.
    pub unsafe fn cuda_on_stream(
        ordinal: usize,
        stream: *mut c_void,
        options: &CudaOptions,
    ) -> Result<Device> {
        // SAFETY: the caller's promise.
        unsafe { open(ordinal, Some(stream), options) }
    }

    /// The first GPU that works, else the CPU; and why, in words for the user.
    pub fn auto() -> (Device, String) {
        match Device::cuda(0) {
            Ok(device) => {
                let why = device.to_string();
                (device, why)
            }
            Err(error) => (Device::Cpu, format!("the CPU, since: {error}")),
        }
    }
}
