//! Measures kernels on a device: time, rate, percent of a bound that is measured there in the same run, and whether the
//! very output that was timed is right.
//!
//! `clock` has the time and the bounds, `inputs` and `packed` the numbers that go in, `operation` what all work is made
//! of, `reference` what its outputs are compared with, `roofline` the picture. Every other module has the work of the
//! kernel family that it is named for (`norm` of two). Comparisons with other libraries are in `benches/`.

mod activation;
mod adamw;
mod advantage;
mod attended;
mod attention;
mod attention_cache;
mod block_noise;
mod by_element;
mod cast;
mod clock;
mod elementwise;
mod inputs;
mod linear_logprob;
mod linear_policy_loss;
mod logprob;
mod norm;
mod operation;
mod packed;
mod policy_loss;
mod reduce;
mod reference;
mod rollout_correction;
pub mod roofline;
mod rope;
mod rows;
mod sample;
mod softmax;
mod step_credit;
mod token_decode;
mod token_selection;
mod vq;

pub use clock::Bounds;

use crate::DType;
use crate::device::Device;
use crate::error::{Error, Result};
use serde::Serialize;
use std::time::Instant;

/// What is measured, and how long.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Kernels by name ([`KERNELS`]); all when empty.
    pub kernels: Vec<String>,
    /// Tiny sizes, for tests: the figures mean nothing.
    pub quick: bool,
    /// Seconds for each row, about; 0: a half.
    pub seconds: f64,
    /// After so many minutes no further kernel is begun; 0: all are.
    pub minutes: f64,
}

/// One measured size of one kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The kernel.
    pub kernel: &'static str,
    /// What of it: `forward`, `backward`, …
    pub part: &'static str,
    /// The sizes, as in the kernel's page.
    pub shape: Vec<usize>,
    /// Storage type.
    pub dtype: &'static str,
    /// Median time when nothing is in the caches, ms.
    pub cold_ms: f64,
    /// Median time of runs one after the other, ms.
    pub warm_ms: f64,
    /// Bytes that have to be moved at least; 0 where arithmetic is the bound.
    pub bytes: f64,
    /// Multiplications and additions; 0 where bytes are the bound.
    pub flops: f64,
    /// GB/s or TFLOP/s of the cold time.
    pub rate: f64,
    /// Bound over cold time, percent; `None` where the bound could not be measured.
    pub percent_of_bound: Option<f64>,
    /// The largest error of the output that was timed, in units of what is allowed.
    pub error: f64,
    /// `error` is at most 1.
    pub correct: bool,
}

/// Everything that one run measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The device in words.
    pub device: String,
    /// Threads of the CPU.
    pub threads: usize,
    /// Copy bandwidth and product rates of this device in this run.
    pub bounds: Bounds,
    /// What was measured.
    pub rows: Vec<Row>,
    /// Kernels that could not be measured here, or not in time, and why.
    pub skipped: Vec<(&'static str, String)>,
    /// Kernels that failed, with what was said; rows of theirs that came before stay.
    pub failed: Vec<(&'static str, String)>,
}

/// What bounds a piece of work.
#[derive(Clone, Copy, Debug)]
enum Amount {
    Bytes(f64),
    Flops(f64),
}

/// A piece of work that is run many times on the same inputs.
trait Work {
    /// Makes inputs that a run overwrites anew; not timed.
    fn refresh(&mut self) -> Result<()> {
        Ok(())
    }

    /// The kernel, started on the device.
    fn run(&mut self) -> Result<()>;

    /// The largest error of the last run's output, over what is allowed.
    fn error(&mut self) -> Result<f64>;
}

/// Work with its name and size.
struct Case {
    part: &'static str,
    shape: Vec<usize>,
    dtype: DType,
    amount: Amount,
    work: Box<dyn Work>,
}

impl Case {
    fn bytes(
        part: &'static str,
        shape: &[usize],
        dtype: DType,
        bytes: usize,
        work: Box<dyn Work>,
    ) -> Case {
        Case { part, shape: shape.to_vec(), dtype, amount: Amount::Bytes(bytes as f64), work }
    }

    fn flops(
        part: &'static str,
        shape: &[usize],
        dtype: DType,
        flops: f64,
        work: Box<dyn Work>,
    ) -> Case {
        Case { part, shape: shape.to_vec(), dtype, amount: Amount::Flops(flops), work }
    }
}

/// Takes cases and measures them.
type Give<'a> = dyn FnMut(Case) -> Result<()> + 'a;

/// Makes the cases of a kernel one after the other and gives each to the function: they are large.
type Cases = fn(&Device, bool, &mut Give<'_>) -> Result<()>;

/// The size of these for tests, for the CPU and for a GPU.
fn size<T>(device: &Device, quick: bool, [tiny, cpu, gpu]: [T; 3]) -> T {
    match (quick, device.gpu()) {
        (true, _) => tiny,
        (false, None) => cpu,
        (false, Some(_)) => gpu,
    }
}

const FAMILIES: [(&str, Cases); 22] = [
    ("logprob", logprob::cases),
    ("linear_logprob", linear_logprob::cases),
    ("policy_loss", policy_loss::cases),
    ("linear_policy_loss", linear_policy_loss::cases),
    ("advantage", advantage::cases),
    ("step_credit", step_credit::cases),
    ("rollout_correction", rollout_correction::cases),
    ("token_selection", token_selection::cases),
    ("sample", sample::cases),
    ("rms_norm", norm::rms_norm),
    ("layer_norm", norm::layer_norm),
    ("rope", rope::cases),
    ("attention", attention::cases),
    ("activation", activation::cases),
    ("softmax", softmax::cases),
    ("rows", rows::cases),
    ("cast", cast::cases),
    ("reduce", reduce::cases),
    ("elementwise", elementwise::cases),
    ("block_noise", block_noise::cases),
    ("token_decode", token_decode::cases),
    ("adamw", adamw::cases),
];

/// What can be measured, by name: the kernel families.
pub const KERNELS: [&str; FAMILIES.len()] = {
    let mut names = [""; FAMILIES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FAMILIES[i].0;
        i += 1;
    }
    names
};

/// Measures; `seen` gets the report with every row that comes, the row last.
///
/// # Errors
/// [`Error::is_invalid`] for a kernel that is not in [`KERNELS`], and what the device reports while its bounds are
/// measured. A kernel that does not run on the device yet is noted in [`Report::skipped`], one that fails in
/// [`Report::failed`], and the next one is measured.
pub fn run(device: &Device, options: &Options, mut seen: impl FnMut(&Report)) -> Result<Report> {
    let started = Instant::now();
    if let Some(unknown) = options.kernels.iter().find(|name| !KERNELS.contains(&name.as_str())) {
        let known = KERNELS.join(", ");
        return Err(Error::invalid(format!("bench: no kernel `{unknown}`\nthere are {known}")));
    }
    let bounds = Bounds::measure(device, options.quick)?;
    let seconds = if options.quick { 0.0 } else { options.seconds };
    let seconds = if seconds > 0.0 || options.quick { seconds } else { 0.5 };
    let mut report = Report {
        device: device.to_string(),
        threads: crate::device::cpu::pool::threads(),
        bounds,
        rows: Vec::new(),
        skipped: Vec::new(),
        failed: Vec::new(),
    };
    for (name, cases) in FAMILIES {
        if !options.kernels.is_empty() && !options.kernels.iter().any(|wanted| wanted == name) {
            continue;
        }
        if options.minutes > 0.0 && started.elapsed().as_secs_f64() > 60.0 * options.minutes {
            report.skipped.push((name, format!("no time left of {} minutes", options.minutes)));
            continue;
        }
        let mut measure = |mut case: Case| {
            let time = clock::time(device, case.work.as_mut(), seconds, options.quick)?;
            let row = row(name, &mut case, time, &report.bounds)?;
            report.rows.push(row);
            seen(&report);
            Ok(())
        };
        match cases(device, options.quick, &mut measure) {
            Ok(()) => (),
            Err(error) if error.is_unsupported() => report.skipped.push((name, error.to_string())),
            Err(error) => report.failed.push((name, error.to_string())),
        }
    }
    Ok(report)
}

fn row(kernel: &'static str, case: &mut Case, time: clock::Time, bounds: &Bounds) -> Result<Row> {
    let seconds = time.cold_ms * 1e-3;
    let (bytes, flops, rate, bound) = match case.amount {
        Amount::Bytes(bytes) => (bytes, 0.0, bytes / seconds * 1e-9, Some(bounds.copy_gb_s)),
        Amount::Flops(flops) => (0.0, flops, flops / seconds * 1e-12, bounds.product(case.dtype)),
    };
    let error = case.work.error().map_err(|e| e.at(format!("{kernel} {}", case.part)))?;
    Ok(Row {
        kernel,
        part: case.part,
        shape: case.shape.clone(),
        dtype: case.dtype.name(),
        cold_ms: time.cold_ms,
        warm_ms: time.warm_ms,
        bytes,
        flops,
        rate,
        percent_of_bound: bound.map(|bound| 100.0 * rate / bound),
        error,
        correct: error <= 1.0,
    })
}
