//! `gradstone devices`, and the `--device` option.

use super::terminal;
use crate::device::Device;
use crate::device::cpu::{pool, simd};
use crate::device::cuda::{self, Absent, CudaOptions, Driver, images, version_text};
use crate::device::machine::cpu_model;
use crate::error::Result;
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
    /// The device. Where `auto` finds a driver whose GPU cannot be used, standard error says why: nobody should wonder
    /// at the CPU's speed.
    ///
    /// # Errors
    /// As [`Device::cuda`] for a GPU that was asked for by name.
    pub(super) fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(ordinal) => Device::cuda(ordinal),
            DeviceChoice::Auto => {
                let (device, why) = Device::auto();
                if device == Device::Cpu && !matches!(cuda::probe(), Err(Absent::NoDriver)) {
                    terminal::note(&format!("computing on {why}"));
                }
                Ok(device)
            }
        }
    }
}

/// Processor, instruction set, threads and memory of this machine, and its GPUs.
pub(super) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let mut out = String::new();
    let _ = writeln!(out, "cpu      {}", cpu_model());
    let _ = writeln!(out, "  cores    {cores}");
    let _ = writeln!(out, "  threads  {}", pool::threads());
    let _ = writeln!(out, "  simd     {}", simd::level().name());
    if let Some((total, free)) = memory() {
        let _ = writeln!(out, "  memory   {:.1} GiB, {:.1} GiB available", gib(total), gib(free));
    }
    describe_cuda(&mut out);
    out
}

/// Driver, GPUs, the kernels that this binary carries for them, cuBLASLt, and what `auto` makes of it.
fn describe_cuda(out: &mut String) {
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<9}{}", text.replace('\n', "\n         "));
    };
    match cuda::probe() {
        Err(absent) => line("cuda", absent.to_string()),
        Ok(driver) => {
            let release = Driver::release().unwrap_or_else(|| "of unknown release".to_owned());
            let version = version_text(driver.version());
            let library = driver.library().display();
            line("cuda", format!("driver {release} for CUDA {version} ({library})"));
            for info in driver.devices() {
                let (major, minor) = info.capability;
                let gib = info.memory as f64 / f64::from(1 << 30);
                let usable = match cuda::check(driver, info) {
                    Ok(()) => String::new(),
                    Err(why) => format!("\nnot usable: {why}"),
                };
                line(
                    &format!("  cuda:{}", info.ordinal),
                    format!(
                        "{}, compute capability {major}.{minor}, {} multiprocessors, {gib:.1} GiB{usable}",
                        info.name, info.multiprocessors
                    ),
                );
            }
        }
    }
    line("kernels", embedded());
    let cublaslt = match cuda::locate_cublaslt(&CudaOptions::from_env()) {
        Ok(path) => path.display().to_string(),
        Err(why) => why,
    };
    line("cublaslt", cublaslt);
    // Its second line is what to do, said above.
    line("auto", Device::auto().1.lines().next().unwrap_or_default().to_owned());
}

/// The kernels in this binary, and how they were compiled.
fn embedded() -> String {
    let families: Vec<&str> = images::all().iter().map(|image| image.family).collect();
    let ptx = images::all().iter().filter_map(|image| image.ptx_version()).max();
    let ptx = ptx.map_or("no PTX".to_owned(), |(major, minor)| {
        format!("PTX {major}.{minor} for compute capability 8.0 and higher")
    });
    let native = match (images::native_compiler(), images::native_archs()) {
        (Ok(nvcc), archs) => format!("native code for sm_{} by nvcc {nvcc}", archs.join(", sm_")),
        (Err(why), _) => format!("no native code: {why}"),
    };
    format!("{}\n{ptx}; {native}", families.join(", "))
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
        assert_eq!(DeviceChoice::Cpu.open().unwrap(), Device::Cpu);
    }
}
