//! Measures kernels on a device: time, rate, percent of a bound that is measured there in the same run, and whether the
//! very output that was timed is right.
//!
//! `clock` has the time and the bounds, `inputs` and `packed` the numbers that go in, `operation` what all work is made
//! of, `reference` what its outputs are compared with, `sizes` what may be asked for, `bars` the picture, `baseline` an earlier
//! report. Every other module has the work of the kernel family that it is named for (`norm` of two). Comparisons with other
//! libraries are in `benches/`.

mod activation;
mod adamw;
mod advantage;
mod attended;
mod attention;
mod attention_cache;
pub mod bars;
pub mod baseline;
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
mod rope;
mod rows;
mod sample;
mod sizes;
mod softmax;
mod step_credit;
mod token_decode;
mod token_selection;
mod vq;

pub use clock::Bounds;
pub use sizes::shape;

use crate::DType;
use crate::device::Device;
use crate::device::machine::Machine;
use crate::error::{Error, Result};
use crate::train::starts;
use serde::Serialize;
use sizes::{FLOATS, Freedom, Sizes};
use std::time::Instant;

/// What is measured, and how long.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Kernels by name ([`KERNELS`]); all when empty.
    pub kernels: Vec<String>,
    /// Tiny sizes, for tests: the figures mean nothing.
    pub quick: bool,
    /// Shapes in place of the kernels' own, for those that take any ([`takes`]).
    pub shapes: Vec<Vec<usize>>,
    /// Types in place of the kernels' own, the same way.
    pub dtypes: Vec<DType>,
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
    /// A quarter of the cold rounds took less than the first, a quarter more than the second, ms.
    pub cold_quartiles_ms: [f64; 2],
    /// Median time of runs one after the other, ms.
    pub warm_ms: f64,
    /// Their quartiles, ms.
    pub warm_quartiles_ms: [f64; 2],
    /// Times measured of each.
    pub rounds: usize,
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
    /// When it began, in UTC: `2026-11-29T22:30:07Z`.
    pub measured: String,
    /// What it ran on.
    #[serde(flatten)]
    pub machine: Machine,
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
enum Cases {
    /// In sizes and types of its own.
    Own(fn(&Device, bool, &mut Give<'_>) -> Result<()>),
    /// In any, within what it takes.
    Any(Freedom, fn(&Device, &Sizes, &mut Give<'_>) -> Result<()>),
}

/// A kernel family by its name.
struct Family {
    name: &'static str,
    cases: Cases,
}

impl Family {
    const fn own(
        name: &'static str,
        cases: fn(&Device, bool, &mut Give<'_>) -> Result<()>,
    ) -> Family {
        Family { name, cases: Cases::Own(cases) }
    }

    const fn any(
        name: &'static str,
        dims: &'static [&'static str],
        dtypes: &'static [DType],
        cases: fn(&Device, &Sizes, &mut Give<'_>) -> Result<()>,
    ) -> Family {
        Family { name, cases: Cases::Any(Freedom { dims, dtypes }, cases) }
    }

    const fn freedom(&self) -> Option<&Freedom> {
        match &self.cases {
            Cases::Own(_) => None,
            Cases::Any(freedom, _) => Some(freedom),
        }
    }
}

/// The size of these for tests, for the CPU and for a GPU.
fn size<T>(device: &Device, quick: bool, [tiny, cpu, gpu]: [T; 3]) -> T {
    match (quick, device.gpu()) {
        (true, _) => tiny,
        (false, None) => cpu,
        (false, Some(_)) => gpu,
    }
}

const FAMILIES: [Family; 22] = [
    Family::any("logprob", &["rows", "vocab"], FLOATS, logprob::cases),
    Family::any("linear_logprob", &["rows", "width", "vocab"], FLOATS, linear_logprob::cases),
    Family::any("policy_loss", &["sequences", "tokens"], &[DType::F32], policy_loss::cases),
    Family::own("linear_policy_loss", linear_policy_loss::cases),
    Family::own("advantage", advantage::cases),
    Family::own("step_credit", step_credit::cases),
    Family::own("rollout_correction", rollout_correction::cases),
    Family::own("token_selection", token_selection::cases),
    Family::any("sample", &["rows", "vocab"], FLOATS, sample::cases),
    Family::any("rms_norm", &["rows", "width"], FLOATS, norm::rms_norm),
    Family::any("layer_norm", &["rows", "width"], FLOATS, norm::layer_norm),
    Family::own("rope", rope::cases),
    Family::any("attention", &["tokens", "heads", "kv_heads", "width"], FLOATS, attention::cases),
    Family::own("activation", activation::cases),
    Family::any("softmax", &["rows", "width"], FLOATS, softmax::cases),
    Family::own("rows", rows::cases),
    Family::own("cast", cast::cases),
    Family::own("reduce", reduce::cases),
    Family::own("elementwise", elementwise::cases),
    Family::own("block_noise", block_noise::cases),
    Family::own("token_decode", token_decode::cases),
    Family::own("adamw", adamw::cases),
];

/// What can be measured, by name: the kernel families.
pub const KERNELS: [&str; FAMILIES.len()] = {
    let mut names = [""; FAMILIES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FAMILIES[i].name;
        i += 1;
    }
    names
};

/// Those that are measured in any shape and type.
const FREE: [&str; 8] = {
    let mut names = [""; 8];
    let (mut i, mut at) = (0, 0);
    while i < FAMILIES.len() {
        if FAMILIES[i].freedom().is_some() {
            names[at] = FAMILIES[i].name;
            at += 1;
        }
        i += 1;
    }
    names
};

/// What the numbers of a shape are, and the types: of each kernel that takes any, in a line.
pub fn takes() -> String {
    let line = |family: &Family| {
        let Freedom { dims, dtypes } = family.freedom()?;
        let dtypes: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
        Some(format!("  {:<16}{:<30}{}\n", family.name, dims.join("x"), dtypes.join(", ")))
    };
    FAMILIES.iter().filter_map(line).collect()
}

/// Measures; `seen` gets the report with every row that comes, the row last.
///
/// # Errors
/// [`Error::is_invalid`] for a kernel that is not in [`KERNELS`], and for shapes or types that one of the kernels does not take;
/// what the device reports while its bounds are
/// measured. A kernel that does not run on the device yet is noted in [`Report::skipped`], one that fails in
/// [`Report::failed`], and the next one is measured.
pub fn run(device: &Device, options: &Options, mut seen: impl FnMut(&Report)) -> Result<Report> {
    let started = Instant::now();
    if let Some(unknown) = options.kernels.iter().find(|name| !KERNELS.contains(&name.as_str())) {
        let known = KERNELS.join(", ");
        return Err(Error::invalid(format!("bench: no kernel `{unknown}`\nthere are {known}")));
    }
    let sizes = Sizes {
        quick: options.quick,
        shapes: options.shapes.clone(),
        dtypes: options.dtypes.clone(),
    };
    let wanted = |family: &&Family| {
        options.kernels.is_empty() || options.kernels.iter().any(|name| name == family.name)
    };
    for family in FAMILIES.iter().filter(wanted) {
        sizes.check(family.name, family.freedom(), &FREE)?;
    }
    let measured = starts::now();
    let bounds = Bounds::measure(device, options.quick)?;
    let seconds = if options.quick { 0.0 } else { options.seconds };
    let seconds = if seconds > 0.0 || options.quick { seconds } else { 0.5 };
    let mut report = Report {
        measured,
        machine: Machine::with(device),
        bounds,
        rows: Vec::new(),
        skipped: Vec::new(),
        failed: Vec::new(),
    };
    for Family { name, cases } in FAMILIES.iter().filter(wanted) {
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
        let done = match cases {
            Cases::Own(cases) => cases(device, options.quick, &mut measure),
            Cases::Any(_, cases) => cases(device, &sizes, &mut measure),
        };
        match done {
            Ok(()) => (),
            Err(error) if error.is_unsupported() => report.skipped.push((name, error.to_string())),
            Err(error) => report.failed.push((name, error.to_string())),
        }
    }
    Ok(report)
}

fn row(kernel: &'static str, case: &mut Case, time: clock::Time, bounds: &Bounds) -> Result<Row> {
    let seconds = time.cold.median * 1e-3;
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
        cold_ms: time.cold.median,
        cold_quartiles_ms: time.cold.quartiles,
        warm_ms: time.warm.median,
        warm_quartiles_ms: time.warm.quartiles,
        rounds: time.cold.rounds,
        bytes,
        flops,
        rate,
        percent_of_bound: bound.map(|bound| 100.0 * rate / bound),
        error,
        correct: error <= 1.0,
    })
}
