//! What memory and launches are, per device.
//!
//! [`cpu`] has threads, run-time SIMD dispatch, recycled memory and matrix products. [`gpu`] is a device that runs the
//! CUDA kernels, over an [`engine`]: the driver's ([`cuda`]), or the emulated one that runs the same kernels on the CPU
//! for the tests. Kernels stand on this; nothing here knows a tensor or an operation by name.

pub mod cpu;
pub mod cuda;
mod emulated;
pub mod engine;
pub mod gpu;
pub mod machine;

pub use emulated::HostLaunch;

use crate::error::Result;
use gpu::Gpu;
use std::fmt;
use std::sync::Arc;

/// Where tensors live and operations run.
#[derive(Clone, Default)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// A device that runs the CUDA kernels.
    Gpu(Arc<Gpu>),
}

impl Device {
    /// The CUDA kernels on the CPU, run by `launch`: for tests, thousands of times slower than [`Device::Cpu`].
    ///
    /// # Safety
    /// `launch` runs the kernels of this version of the library, reading the argument structs that they take.
    ///
    /// # Errors
    /// None on a machine that has memory.
    pub unsafe fn emulated(launch: HostLaunch) -> Result<Device> {
        Ok(Device::Gpu(Gpu::new(Box::new(emulated::Emulated { launch }))?))
    }

    /// The GPU, or `None` for the CPU.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        match self {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(gpu),
        }
    }
}

impl PartialEq for Device {
    /// The same device, not one that is like it.
    fn eq(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Cpu, Device::Cpu) => true,
            (Device::Gpu(a), Device::Gpu(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(gpu) => f.write_str(&gpu.describe()),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
