//! What computes, in words: it belongs beside every result.

use super::Device;
use super::cpu::{pool, simd};
use serde::{Deserialize, Serialize};
use std::fs;

/// This program, the device it computes on, and the machine around it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The version of this library.
    pub gradstone: String,
    /// The commit of the checkout that it was built in; absent where it was built from a package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The device: `cpu`, or a GPU in words.
    pub device: String,
    /// The CPU's model, else its architecture.
    pub cpu: String,
    /// CPU cores that the process may use.
    pub cores: usize,
    /// Threads that it computes with.
    pub threads: usize,
    /// The instruction set of the CPU's kernels.
    pub simd: String,
    /// Operating system and architecture, on Linux with the kernel's release.
    pub os: String,
}

impl Machine {
    /// What computes now.
    pub fn with(device: &Device) -> Machine {
        Machine {
            gradstone: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("GRADSTONE_COMMIT").map(str::to_owned),
            device: device.to_string(),
            cpu: cpu_model(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: pool::threads(),
            simd: simd::level().name().to_owned(),
            os: os(),
        }
    }

    /// Version and commit: `0.1.0 (1a2b3c4d5e6f)`.
    pub fn version(&self) -> String {
        let commit = self.commit.as_ref().map(|commit| format!(" ({commit})"));
        format!("{}{}", self.gradstone, commit.unwrap_or_default())
    }

    /// What computes, in a line: the GPU, or the CPU with its instruction set and threads.
    pub fn computes(&self) -> String {
        let threads = self.threads;
        let threads = if threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
        match self.device.as_str() {
            "cpu" => format!("{}, {}, {threads}", self.cpu, self.simd),
            device => device.to_owned(),
        }
    }
}

/// The CPU's model where the system tells, else its architecture.
pub fn cpu_model() -> String {
    let told = || {
        let text = fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    told().unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn os() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let parts = [std::env::consts::OS, release.trim(), std::env::consts::ARCH];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_read_back_and_named() {
        let mut machine = Machine::with(&Device::Cpu);
        let json = serde_json::to_string(&machine).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&json).unwrap(), machine);
        assert!(
            machine.cores > 0 && machine.threads > 0 && machine.os.contains(std::env::consts::ARCH)
        );
        (machine.cpu, machine.simd, machine.threads) = ("Cpu".into(), "avx2".into(), 1);
        assert_eq!(machine.computes(), "Cpu, avx2, 1 thread");
        (machine.device, machine.commit) = ("cuda:0 H".into(), Some("abc".into()));
        assert_eq!(machine.computes(), "cuda:0 H");
        assert!(machine.version().ends_with(" (abc)"));
    }
}
