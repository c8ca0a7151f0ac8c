//! The devices that a test runs on.
#![allow(dead_code)]

use gradstone::device::Device;

/// What runs the CUDA kernels: the CPU, or the GPU that `GRADSTONE_TEST_DEVICE` names (`cuda:0`; benches/gpu/run).
pub fn emulated() -> Device {
    if let Ok(name) = std::env::var("GRADSTONE_TEST_DEVICE") {
        let ordinal = name.strip_prefix("cuda:").and_then(|digits| digits.parse().ok());
        return Device::cuda(ordinal.expect("GRADSTONE_TEST_DEVICE=cuda:N")).unwrap();
    }
    // SAFETY: the host engine is built from this crate's kernels and argument structs.
    unsafe { Device::emulated(gradstone_host::launch) }.unwrap()
}

/// The CPU, what runs the CUDA kernels, and a GPU where there is one.
pub fn all() -> Vec<Device> {
    let mut all = vec![Device::Cpu, emulated()];
    if std::env::var_os("GRADSTONE_TEST_DEVICE").is_none() {
        all.extend(Device::cuda(0).ok());
    }
    all
}
