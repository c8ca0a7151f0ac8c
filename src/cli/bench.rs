//! `gradstone bench`: the kernels' speed and correctness on this machine.

use super::{ComputeArgs, Failure, terminal};
use crate::bench::{self, Bounds, Options, Report, Row, roofline};
use crate::error::Error;
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
    /// Tiny sizes, to see that it works: the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Write everything to this file as JSON
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
    let device = args.compute.apply()?;
    terminal::print(&format!("{device}\n{HEAD}\n"))?;
    let options =
        Options { kernels: args.kernels.clone(), quick: args.quick, seconds: args.seconds };
    let mut printed = Ok(());
    let report = bench::run(&device, &options, |row| {
        if printed.is_ok() {
            printed = terminal::print(&line(row));
        }
    });
    let report = report.map_err(Failure::usage)?;
    printed?;
    terminal::print(&foot(&report))?;
    let json = serde_json::to_string_pretty(&report)
        .map_err(|e| Error::format(format!("the report as JSON: {e}")))?;
    write(args.json.as_deref(), &json)?;
    write(args.roofline.as_deref(), &roofline::svg(&report))?;
    match report.rows.iter().filter(|row| !row.correct).count() {
        0 => Ok(()),
        wrong => {
            Err(Error::numeric(format!("{wrong} outputs are wrong (see the last column)")).into())
        }
    }
}

fn write(path: Option<&Path>, text: &str) -> crate::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, text).map_err(|e| Error::io(format!("writing {}", path.display()), e))
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
    out
}
