//! `gradstone bench`: the kernels' speed and correctness on this machine.

use super::{ComputeArgs, Failure, terminal};
use crate::bench::{self, Bounds, Options, Report, Row, roofline};
use crate::error::Error;
use crate::files::atomic;
use std::path::{Path, PathBuf};

/// Arguments of `gradstone bench`.
#[derive(Debug, clap::Args)]
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
    /// Write a roofline plot to this SVG file
    #[arg(long, value_name = "F")]
    roofline: Option<PathBuf>,
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    if !(args.seconds.is_finite() && args.seconds > 0.0) {
        return Err(Failure::usage(Error::invalid(format!("--seconds {}", args.seconds))));
    }
    if let Some(minutes) = args.minutes.filter(|minutes| !(minutes.is_finite() && *minutes > 0.0)) {
        return Err(Failure::usage(Error::invalid(format!("--minutes {minutes}"))));
    }
    let device = args.compute.apply()?;
    terminal::print(&format!("{device}\n{HEAD}\n"))?;
    let options = Options {
        kernels: args.kernels.clone(),
        quick: args.quick,
        seconds: args.seconds,
        minutes: args.minutes.unwrap_or_default(),
    };
    let mut written = Ok(());
    let report = bench::run(&device, &options, |report| {
        if written.is_ok() {
            let line = report.rows.last().map(line).unwrap_or_default();
            written =
                terminal::print(&line).and_then(|()| write_json(args.json.as_deref(), report));
        }
    });
    let report = report.map_err(Failure::usage)?;
    written?;
    terminal::print(&foot(&report))?;
    write_json(args.json.as_deref(), &report)?;
    write(args.roofline.as_deref(), &roofline::svg(&report))?;
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

const HEAD: &str = "kernel              part              dtype  shape                         cold ms   warm ms            rate  of bound  output";

fn line(row: &Row) -> String {
    let shape: Vec<String> = row.shape.iter().map(usize::to_string).collect();
    let unit = if row.flops > 0.0 { "TFLOP/s" } else { "GB/s" };
    let percent = row.percent_of_bound.map_or("-".to_owned(), |p| format!("{p:.0} %"));
    let output = if row.correct { "right".to_owned() } else { format!("WRONG ({:.1})", row.error) };
    format!(
        "{:<20}{:<18}{:<7}{:<28}{:>10.4}{:>10.4}  {:>14}{percent:>10}  {output}\n",
        row.kernel,
        row.part,
        row.dtype,
        shape.join(" x "),
        row.cold_ms,
        row.warm_ms,
        format!("{:.2} {unit}", row.rate),
    )
}

fn foot(report: &Report) -> String {
    let Bounds { copy_gb_s, product_f32_tflops, product_bf16_tflops } = &report.bounds;
    let rate = |name: &str, rate: &Option<f64>| {
        rate.map_or(format!("{name} not here"), |rate| format!("{name} {rate:.3} TFLOP/s"))
    };
    let mut out = format!(
        "bounds in this run: copy {copy_gb_s:.1} GB/s, product {}, {}\n",
        rate("f32", product_f32_tflops),
        rate("bf16", product_bf16_tflops)
    );
    for (kernel, why) in &report.skipped {
        out.push_str(&format!("not measured: {kernel}: {why}\n"));
    }
    for (kernel, what) in &report.failed {
        out.push_str(&format!("FAILED: {kernel}: {what}\n"));
    }
    out
}
