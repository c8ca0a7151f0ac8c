//! `gradstone bench`: the kernels' speed and correctness on this machine.

use super::{ComputeArgs, Failure, terminal};
use crate::DType;
use crate::bench::baseline::Baseline;
use crate::bench::{self, Bounds, Options, Report, Row, bars};
use crate::device::machine::Machine;
use crate::error::Error;
use crate::files::atomic;
use std::path::{Path, PathBuf};

/// Arguments of `gradstone bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("Kernels that take --shapes and --dtype:\n{}", bench::takes()))]
pub(super) struct BenchArgs {
    /// Kernels to measure; all when none is named
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// About how long to measure each row
    #[arg(long, default_value_t = 0.5, value_name = "S")]
    seconds: f64,
    /// Begin no further kernel after so many minutes; what is left out is named
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Tiny sizes, to see that it works: the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Write everything to this file as JSON, anew with every row: a run that is stopped keeps what it measured
    #[arg(long, value_name = "F")]
    json: Option<PathBuf>,
    /// Draw how much of its bound each row reaches, into this SVG file
    #[arg(long, value_name = "F")]
    bars: Option<PathBuf>,
    /// Shapes to measure in place of the kernel's own, e.g. 512x32000,64x151936; the list below says what the numbers are
    #[arg(long, value_name = "SHAPE", value_delimiter = ',', value_parser = Shape::read)]
    shapes: Vec<Shape>,
    /// Types to measure in place of the kernel's own: f32, bf16, f16
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    dtype: Vec<DType>,
    /// Compare with an earlier run: a file that --json wrote. It changes no exit status
    #[arg(long, value_name = "F")]
    baseline: Option<PathBuf>,
}

/// The lengths of a tensor's dimensions.
#[derive(Clone, Debug)]
struct Shape(Vec<usize>);

impl Shape {
    fn read(text: &str) -> Result<Shape, String> {
        bench::shape(text).map(Shape)
    }
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    if !(args.seconds.is_finite() && args.seconds > 0.0) {
        return Err(Failure::usage(Error::invalid(format!("--seconds {}", args.seconds))));
    }
    if let Some(minutes) = args.minutes.filter(|minutes| !(minutes.is_finite() && *minutes > 0.0)) {
        return Err(Failure::usage(Error::invalid(format!("--minutes {minutes}"))));
    }
    let baseline = args.baseline.as_deref().map(Baseline::read).transpose()?;
    let device = args.compute.apply()?;
    let options = Options {
        kernels: args.kernels.clone(),
        quick: args.quick,
        seconds: args.seconds,
        minutes: args.minutes.unwrap_or_default(),
        shapes: args.shapes.iter().map(|shape| shape.0.clone()).collect(),
        dtypes: args.dtype.clone(),
    };
    let (mut written, mut begun) = (Ok(()), false);
    let report = bench::run(&device, &options, |report| {
        if written.is_ok() {
            let head = if begun { String::new() } else { head(&report.machine, baseline.as_ref()) };
            begun = true;
            let row = report.rows.last().map(|row| line(row, baseline.as_ref()));
            let text = head + &row.unwrap_or_default();
            written =
                terminal::print(&text).and_then(|()| write_json(args.json.as_deref(), report));
        }
    });
    let report = report.map_err(Failure::usage)?;
    written?;
    terminal::print(&foot(&report))?;
    write_json(args.json.as_deref(), &report)?;
    write(args.bars.as_deref(), &bars::svg(&report))?;
    let wrong = report.rows.iter().filter(|row| !row.correct).count();
    if wrong > 0 {
        let text = format!("{wrong} outputs are wrong (see the last column)");
        return Err(Error::numeric(text).into());
    }
    match &report.failed[..] {
        [] => Ok(()),
        failed => {
            let names: Vec<&str> = failed.iter().map(|(kernel, _)| *kernel).collect();
            Err(Error::state(format!("failed: {}", names.join(", "))).into())
        }
    }
}

fn write_json(path: Option<&Path>, report: &Report) -> crate::Result<()> {
    let json = serde_json::to_string_pretty(report)
        .map_err(|e| Error::format(format!("the report as JSON: {e}")))?;
    write(path, &json)
}

fn write(path: Option<&Path>, text: &str) -> crate::Result<()> {
    path.map_or(Ok(()), |path| atomic::write_file(path, text.as_bytes()))
}

/// What is measured on, what it is compared with, and the heads of the columns.
fn head(machine: &Machine, baseline: Option<&Baseline>) -> String {
    let mut out = format!("{}\n{}\n", machine.device, described(machine));
    if let Some(earlier) = baseline {
        let Baseline { device, cpu, threads, gradstone, commit, measured, .. } = earlier;
        let commit = commit.as_ref().map_or(String::new(), |commit| format!(" ({commit})"));
        out += &format!("baseline: gradstone {gradstone}{commit}, {measured}\n");
        if (device, cpu, *threads) != (&machine.device, &machine.cpu, machine.threads) {
            out += &format!(
                "of another machine: {device}, {cpu}, {threads} threads; a ratio is of both\n"
            );
        }
    }
    let against = if baseline.is_some() { "  baseline" } else { "" };
    format!(
        "{out}kernel              part              dtype  shape                         cold ms             quartiles   warm ms            rate  of bound{against}  output\n"
    )
}

fn described(machine: &Machine) -> String {
    let Machine { cpu, cores, threads, simd, os, .. } = machine;
    format!(
        "gradstone {}, {cpu}, {cores} cores, {threads} threads, {simd}, {os}",
        machine.version()
    )
}

fn line(row: &Row, baseline: Option<&Baseline>) -> String {
    let shape: Vec<String> = row.shape.iter().map(usize::to_string).collect();
    let unit = if row.flops > 0.0 { "TFLOP/s" } else { "GB/s" };
    let percent = row.percent_of_bound.map_or("-".to_owned(), |p| format!("{p:.0} %"));
    let output = if row.correct { "right".to_owned() } else { format!("WRONG ({:.1})", row.error) };
    let against = match baseline.map(|baseline| baseline.ratio(row)) {
        None => String::new(),
        Some(None) => format!("{:>10}", "new"),
        // Within the spread of both, a ratio may be chance.
        Some(Some(ratio)) => {
            let about = if ratio.clear { "" } else { "~" };
            format!("{:>10}", format!("{about}{:.2}x", ratio.faster))
        }
    };
    let [low, high] = row.cold_quartiles_ms;
    format!(
        "{:<20}{:<18}{:<7}{:<28}{:>10.4}  {:>20}{:>10.4}  {:>14}{percent:>10}{against}  {output}\n",
        row.kernel,
        row.part,
        row.dtype,
        shape.join(" x "),
        row.cold_ms,
        format!("{low:.4}..{high:.4}"),
        row.warm_ms,
        format!("{:.2} {unit}", row.rate),
    )
}

fn foot(report: &Report) -> String {
    let Bounds { copy_gb_s, product_f32_tflops, product_bf16_tflops, unsettled } = &report.bounds;
    let rate = |name: &str, rate: &Option<f64>| {
        rate.map_or(format!("{name} not here"), |rate| format!("{name} {rate:.3} TFLOP/s"))
    };
    let mut out = format!(
        "bounds in this run: copy {copy_gb_s:.1} GB/s, product {}, {}\n",
        rate("f32", product_f32_tflops),
        rate("bf16", product_bf16_tflops)
    );
    if !unsettled.is_empty() {
        let names = unsettled.join(", ");
        out.push_str(&format!(
            "not settled: {names} (the last rounds were more than 3 % from the best: percentages vary from run to run)\n"
        ));
    }
    for (kernel, why) in &report.skipped {
        out.push_str(&format!("not measured: {kernel}: {why}\n"));
    }
    for (kernel, what) in &report.failed {
        out.push_str(&format!("FAILED: {kernel}: {what}\n"));
    }
    out
}
