//! What every benchmark here shares: the clock, the machine's floor, and one JSON line for each measurement.
//!
//! A line has `op`, `shape`, `dtype`, `threads`, `who`, `median_ms`, `cpu_ms` (CPU time of all threads of the process,
//! median), `bound_ms` (the floor for that work, measured in the same process) and `bytes` or `flops`.
//! `benches/compare.py` reads these lines and those of `benches/peers/*.py`.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gradstone::device::cpu::{gemm, pool};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Options of a benchmark: `--threads 1,2`, `--only SUBSTRING`, `--seconds S` for each measurement.
pub struct Options {
    pub threads: Vec<usize>,
    only: Option<String>,
    budget: Duration,
}

impl Options {
    pub fn from_args() -> Options {
        let mut options =
            Options { threads: vec![1, 2], only: None, budget: Duration::from_secs_f64(2.0) };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
            match arg.as_str() {
                "--threads" => {
                    options.threads = value().split(',').map(|t| t.parse().unwrap()).collect();
                }
                "--only" => options.only = Some(value()),
                "--seconds" => options.budget = Duration::from_secs_f64(value().parse().unwrap()),
                "--bench" => {}
                other => panic!("unknown option {other} (--threads 1,2  --only NAME  --seconds S)"),
            }
        }
        options
    }

    /// True when an operation of this name was asked for.
    pub fn wants(&self, op: &str) -> bool {
        self.only.as_ref().is_none_or(|only| op.contains(only.as_str()))
    }

    /// Runs `work` (once to warm up, then 3 to 50 times within the budget); median wall and CPU time in ms.
    pub fn time(&self, mut work: impl FnMut()) -> Timing {
        self.time_after(|| (), |()| work())
    }

    /// The same with a part before each run that is not timed.
    pub fn time_after<T>(&self, mut before: impl FnMut() -> T, mut work: impl FnMut(T)) -> Timing {
        work(before());
        let mut times = Times::default();
        let started = Instant::now();
        while self.goes_on(&times, started) {
            let input = before();
            times.add(|| work(input));
        }
        times.medians()
    }

    /// Two pieces of work in turn, so that what else the machine does meets both alike.
    pub fn time_in_turn(&self, mut one: impl FnMut(), mut other: impl FnMut()) -> [Timing; 2] {
        one();
        other();
        let mut times = [Times::default(), Times::default()];
        let started = Instant::now();
        while self.goes_on(&times[1], started) {
            times[0].add(&mut one);
            times[1].add(&mut other);
        }
        times.map(Times::medians)
    }

    fn goes_on(&self, times: &Times, started: Instant) -> bool {
        let count = times.wall.len();
        count < 3 || (count < 50 && started.elapsed() < self.budget)
    }
}

/// Wall and CPU time of each run, in ms.
#[derive(Default)]
struct Times {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Times {
    fn add(&mut self, work: impl FnOnce()) {
        let (cpu_start, start) = (cpu_ms(), Instant::now());
        work();
        self.wall.push(start.elapsed().as_secs_f64() * 1e3);
        self.cpu.push(cpu_ms() - cpu_start);
    }

    fn medians(self) -> Timing {
        Timing { median_ms: median(self.wall), cpu_ms: median(self.cpu) }
    }
}

/// Medians of one measurement.
#[derive(Clone, Copy)]
pub struct Timing {
    pub median_ms: f64,
    pub cpu_ms: f64,
}

/// What the work costs at least.
pub enum Work {
    /// Bytes streamed.
    Bytes(usize),
    /// Multiplications and additions.
    Flops(f64),
}

/// Prints the JSON line of one measurement.
pub fn print(op: &str, shape: &[usize], dtype: &str, timing: Timing, bound_ms: f64, work: &Work) {
    let (unit, amount) = match work {
        Work::Bytes(bytes) => ("bytes", *bytes as f64),
        Work::Flops(flops) => ("flops", *flops),
    };
    let threads = pool::threads();
    let Timing { median_ms, cpu_ms } = timing;
    println!(
        "{}",
        serde_json::json!({
            "op": op, "shape": shape, "dtype": dtype, "threads": threads, "who": "gradstone",
            "median_ms": median_ms, "cpu_ms": cpu_ms, "bound_ms": bound_ms, unit: amount,
        })
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of every living thread of this process in ms; 0 where the system does not tell (no Linux).
fn cpu_ms() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e6
}

const STREAM: usize = 64 << 20;

/// Seconds to read one byte, and to read and overwrite one byte in place, with the pool's threads: best of 7 over
/// 256 MiB.
pub struct Memory {
    pub read: f64,
    pub update: f64,
}

impl Memory {
    pub fn measure() -> Memory {
        let mut data = vec![1f32; STREAM];
        let (mut read, mut update) = (f64::MAX, f64::MAX);
        for _ in 0..7 {
            let start = Instant::now();
            let sum: f32 = pool::install(|| data.par_chunks(1 << 18).map(sum).sum());
            black_box(sum);
            read = read.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            pool::install(|| {
                data.par_chunks_mut(1 << 18)
                    .for_each(|part| part.iter_mut().for_each(|x| *x = -*x));
            });
            update = update.min(start.elapsed().as_secs_f64());
        }
        let bytes = (4 * STREAM) as f64;
        Memory { read: read / bytes, update: update / (2.0 * bytes) }
    }
}

fn sum(part: &[f32]) -> f32 {
    let mut lanes = [0f32; 32];
    for values in part.as_chunks::<32>().0 {
        for i in 0..32 {
            lanes[i] += values[i];
        }
    }
    lanes.iter().sum()
}

/// Seconds for one floating-point operation of a 1536³ product with the pool's threads: best of 3.
pub fn gemm_flop() -> f64 {
    const N: usize = 1536;
    let (a, b) = (vec![0.5f32; N * N], vec![0.25f32; N * N]);
    let mut c = vec![0f32; N * N];
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        gemm::matmul(&mut c, gemm::plain(&a), gemm::plain(&b), [N, N, N], false).unwrap();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best / (2.0 * (N as f64).powi(3))
}

/// Standard normal numbers times `scale`, the same for every run.
pub fn normal(len: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    };
    // The sum of four uniform numbers is near enough to a normal one here.
    (0..len).map(|_| (0..4).map(|_| uniform() - 0.5).sum::<f32>() * 1.732 * scale).collect()
}
