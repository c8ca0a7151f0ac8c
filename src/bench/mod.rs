//! Measures kernels on a device: time, rate, percent of a bound that is measured there in the same run, and whether the
//! very output that was timed is right.
//!
//! `clock` has the time and the bounds, `inputs` the numbers that go in, `roofline` the picture; `logprob`,
//! `linear_logprob`, `policy`, `rows` and `attention` have the work. Comparisons with other libraries are in `benches/`.

mod attention;
mod clock;
mod inputs;
mod linear_logprob;
mod logprob;
mod policy;
pub mod roofline;
mod rows;

pub use clock::Bounds;

use crate::device::Device;
use crate::error::{Error, Result};
use serde::Serialize;

/// What is measured, and how long.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Kernels by name ([`KERNELS`]); all when empty.
    pub kernels: Vec<String>,
    /// Tiny sizes, for tests: the figures mean nothing.
    pub quick: bool,
    /// Seconds for each row, about; 0: a half.
    pub seconds: f64,
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
    /// Kernels that could not be measured here, and why.
    pub skipped: Vec<(&'static str, String)>,
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
    dtype: crate::DType,
    amount: Amount,
    work: Box<dyn Work>,
}

/// Makes the cases of a kernel one after the other and gives each to the function: they are large.
type Cases = fn(&Device, bool, &mut dyn FnMut(Case) -> Result<()>) -> Result<()>;

/// What can be measured, by name.
pub const KERNELS: [&str; 8] = [
    "logprob",
    "linear_logprob",
    "policy_loss",
    "advantage",
    "rms_norm",
    "attention",
    "adamw",
    "elementwise",
];

const CASES: [Cases; 8] = [
    logprob::cases,
    linear_logprob::cases,
    policy::policy_loss,
    policy::advantage,
    rows::rms_norm,
    attention::cases,
    rows::adamw,
    rows::elementwise,
];

/// Measures; `seen` gets every row as it comes.
///
/// # Errors
/// [`Error::is_invalid`] for a kernel that is not in [`KERNELS`], and what the device reports. A kernel that does not
/// run on the device yet is noted in [`Report::skipped`].
pub fn run(device: &Device, options: &Options, mut seen: impl FnMut(&Row)) -> Result<Report> {
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
    };
    for (name, cases) in KERNELS.into_iter().zip(CASES) {
        if !options.kernels.is_empty() && !options.kernels.iter().any(|wanted| wanted == name) {
            continue;
        }
        let rows = &mut report.rows;
        let mut measure = |mut case: Case| {
            let time = clock::time(device, case.work.as_mut(), seconds, options.quick)?;
            let row = row(name, &mut case, time, &report.bounds)?;
            seen(&row);
            rows.push(row);
            Ok(())
        };
        match cases(device, options.quick, &mut measure) {
            Err(error) if error.is_unsupported() => report.skipped.push((name, error.to_string())),
            other => other?,
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

/// The largest of `|got - want| / (absolute + relative · |want|)`; infinite where either is not a number.
fn worst(pairs: impl IntoIterator<Item = (f64, f64)>, absolute: f64, relative: f64) -> f64 {
    let error = |(got, want): (f64, f64)| {
        let off = (got - want).abs() / (absolute + relative * want.abs());
        if off.is_nan() { f64::INFINITY } else { off }
    };
    pairs.into_iter().map(error).fold(0.0, f64::max)
}
