//! The devices that a test runs on.
#![allow(dead_code)]

use gradstone::device::Device;

/// The CUDA kernels on the CPU.
pub fn emulated() -> Device {
    // SAFETY: the host engine is built from this crate's kernels and argument structs.
    unsafe { Device::emulated(gradstone_host::launch) }.unwrap()
}

/// The CPU, the emulated device, and a GPU where there is one.
pub fn all() -> Vec<Device> {
    vec![Device::Cpu, emulated()]
}
