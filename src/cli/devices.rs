//! `gradstone devices`, and the `--device` option.

use crate::device::Device;
use crate::device::cpu::{pool, simd};
use crate::error::{Error, Result};
use std::fmt::Write;
use std::str::FromStr;

/// What `--device` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceChoice {
    /// The best there is.
    Auto,
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let number = |digits: &str| {
            digits.parse().map_err(|_| format!("`{digits}` is not the number of a GPU"))
        };
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => match text.strip_prefix("cuda:") {
                Some(digits) => number(digits).map(DeviceChoice::Cuda),
                None => Err("auto, cpu, cuda or cuda:N".into()),
            },
        }
    }
}

impl DeviceChoice {
    /// # Errors
    /// [`Error::is_unsupported`] for a device that this build cannot compute on.
    pub(super) fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(index) => Err(Error::unsupported(format!(
                "cuda:{index}: this build computes on the CPU only\nleave --device out, or say --device cpu"
            ))),
        }
    }
}

/// Processor, instruction set, threads and memory of this machine.
pub(super) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "cpu      {}",
        cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_string())
    );
    let _ = writeln!(out, "  cores    {cores}");
    let _ = writeln!(out, "  threads  {}", pool::threads());
    let _ = writeln!(out, "  simd     {}", simd::level().name());
    if let Some((total, free)) = memory() {
        let _ = writeln!(out, "  memory   {:.1} GiB, {:.1} GiB available", gib(total), gib(free));
    }
    let _ = writeln!(out, "cuda     not in this build");
    out
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Bytes of memory in all and available, where the system tells.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:x", "cuda:-1", ""] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
        assert!(DeviceChoice::Cuda(0).open().unwrap_err().is_unsupported());
    }
}
