//! `gradstone bench`: every kernel is measured and right, on the CPU and through the launch code on the emulated device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod devices;

use gradstone::bench::{self, KERNELS, Options};
use gradstone::device::Device;
use gradstone::kernels::FAMILIES;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn quick() -> Options {
    Options { quick: true, ..Options::default() }
}

fn measured(device: &Device) -> bench::Report {
    let mut seen = 0;
    let report = bench::run(device, &quick(), |so_far| {
        seen += 1;
        assert_eq!(seen, so_far.rows.len());
    })
    .unwrap();
    assert_eq!(seen, report.rows.len());
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    for row in &report.rows {
        let name = format!("{} {} {} on {device}", row.kernel, row.part, row.dtype);
        assert!(row.correct, "{name}: {}", row.error);
        assert!(row.cold_ms > 0.0 && row.warm_ms > 0.0 && row.rate > 0.0, "{name}: {row:?}");
        assert!(row.bytes > 0.0 || row.flops > 0.0, "{name}");
        assert!(row.percent_of_bound.is_some_and(|p| p > 0.0), "{name}: {row:?}");
    }
    report
}

#[test]
fn every_kernel_is_measured_on_the_cpu() {
    let report = measured(&Device::Cpu);
    for kernel in KERNELS {
        assert!(report.rows.iter().any(|row| row.kernel == kernel), "{kernel}");
    }
    assert!(report.skipped.is_empty(), "{:?}", report.skipped);
}

#[test]
fn the_launch_code_is_measured_on_the_emulated_device() {
    let report = measured(&devices::emulated());
    for kernel in KERNELS {
        assert!(
            report.rows.iter().any(|row| row.kernel == kernel),
            "{kernel}: {:?}",
            report.skipped
        );
    }
}

/// What a folder of the sources holds; nothing where this test runs without them (benches/gpu/pack).
fn names(folder: &str) -> Vec<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !sources.join("Cargo.toml").exists() {
        eprintln!("SKIPPED: no sources here, so {folder}/ is not compared");
        return Vec::new();
    }
    let entries = std::fs::read_dir(sources.join(folder)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn every_family_is_measured() {
    assert_eq!(KERNELS, FAMILIES.map(|family| family.name));
}

#[test]
fn every_cuda_source_belongs_to_a_family() {
    let entries = names("kernels");
    if entries.is_empty() {
        return;
    }
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let files: BTreeSet<String> =
        entries.iter().map(name).filter(|name| name.ends_with(".cu")).collect();
    let named: BTreeSet<String> =
        FAMILIES.iter().flat_map(|family| family.sources).map(|file| (*file).to_owned()).collect();
    assert_eq!(files, named);
}

#[test]
fn every_family_is_a_module() {
    let modules: BTreeSet<String> = names("src/kernels").iter().map(|path| stem(path)).collect();
    if modules.is_empty() {
        return;
    }
    for family in FAMILIES {
        assert!(modules.contains(family.name), "{}", family.name);
    }
}

#[test]
fn every_family_that_is_launched_is_measured_under_its_name() {
    let launches =
        |path: &&PathBuf| path.join("launch.rs").exists() || path.join("launch").is_dir();
    let entries = names("src/kernels");
    if entries.is_empty() {
        return;
    }
    let families: BTreeSet<String> =
        entries.iter().filter(launches).map(|path| stem(path)).collect();
    let measured: BTreeSet<String> = KERNELS.into_iter().map(str::to_owned).collect();
    assert_eq!(families, measured);
}

#[test]
fn an_unknown_kernel_is_refused_before_anything_is_measured() {
    let options = Options { kernels: vec!["logprobs".into()], ..quick() };
    let error = bench::run(&Device::Cpu, &options, |_| panic!("measured")).unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("there are logprob,"), "{error}");
}

#[test]
fn kernels_that_are_not_begun_in_time_are_named() {
    let options = Options { minutes: 1e-9, ..quick() };
    let report = bench::run(&Device::Cpu, &options, |_| panic!("measured")).unwrap();
    assert!(report.rows.is_empty() && report.bounds.copy_gb_s > 0.0, "{report:?}");
    let skipped: Vec<&str> = report.skipped.iter().map(|(kernel, _)| *kernel).collect();
    assert_eq!(skipped, KERNELS);
    assert!(report.skipped.iter().all(|(_, why)| why.contains("no time left")), "{report:?}");
}

/// The program that `GRADSTONE_PROGRAM` names (benches/gpu/run), else what cargo built.
fn program() -> PathBuf {
    std::env::var_os("GRADSTONE_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_gradstone").into(), PathBuf::from)
}

#[test]
fn the_program_writes_json_and_bars_and_compares() {
    let folder = tempfile::tempdir().unwrap();
    let (json, svg) = (folder.path().join("bench.json"), folder.path().join("bars.svg"));
    let output = Command::new(program())
        .args(["bench", "elementwise", "policy_loss", "--quick", "--device", "cpu", "--json"])
        .arg(&json)
        .arg("--bars")
        .arg(&svg)
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    assert!(
        out.starts_with("cpu\ngradstone 0.")
            && out.contains("\nkernel ")
            && out.contains("bounds in this run: copy "),
        "{out}"
    );
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    // A sum, a function and its gradient in two types, and the loss.
    assert_eq!(rows.len(), 7, "{report}");
    for row in rows {
        assert!(
            row["correct"].as_bool().unwrap() && row["cold_ms"].as_f64().unwrap() > 0.0,
            "{row}"
        );
        let quartile = |i: usize| row["cold_quartiles_ms"][i].as_f64().unwrap();
        let median = row["cold_ms"].as_f64().unwrap();
        assert!(quartile(0) <= median && median <= quartile(1) && row["rounds"] == 3, "{row}");
    }
    assert!(report["bounds"]["copy_gb_s"].as_f64().unwrap() > 0.0);
    assert!(report["cores"].as_u64().unwrap() > 0 && report["simd"].is_string(), "{report}");
    assert_eq!(report["gradstone"], env!("CARGO_PKG_VERSION"));
    assert!(report["measured"].as_str().unwrap().ends_with('Z'), "{report}");
    let svg = std::fs::read_to_string(&svg).unwrap();
    assert_eq!(svg.matches("<rect class=\"bar ").count(), rows.len());
    assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");

    let arguments = ["bench", "elementwise", "softmax", "--quick", "--device", "cpu", "--baseline"];
    let output = Command::new(program()).args(arguments).arg(&json).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && out.contains("baseline: gradstone "), "{out}");
    let compared = |kernel: &str, said: &str| {
        let lines = out.lines().filter(|line| line.starts_with(kernel));
        lines.clone().count() > 0 && lines.clone().all(|line| line.contains(said))
    };
    assert!(compared("elementwise ", "x  right") && compared("softmax ", "new  right"), "{out}");
}

#[test]
fn own_shapes_and_types_are_measured() {
    // One row, fewer than are compared, more than are distinct; a vocabulary of one; an odd number of tokens.
    for (kernel, shapes) in [
        ("logprob", vec![vec![1, 1], vec![130, 37]]),
        ("linear_logprob", vec![vec![1, 3, 2], vec![70, 8, 33]]),
        ("policy_loss", vec![vec![1, 1], vec![5, 3]]),
        ("sample", vec![vec![1, 1], vec![3, 70]]),
        ("rms_norm", vec![vec![1, 1], vec![3, 33]]),
        ("layer_norm", vec![vec![2, 2], vec![3, 33]]),
        ("softmax", vec![vec![1, 1], vec![9, 65]]),
        ("attention", vec![vec![1, 1, 1, 16], vec![7, 4, 2, 16], vec![10, 2, 1, 32]]),
    ] {
        let all = [gradstone::DType::F32, gradstone::DType::Bf16, gradstone::DType::F16];
        let dtypes = if kernel == "policy_loss" { all[..1].to_vec() } else { all.to_vec() };
        let kernels = vec![kernel.to_owned()];
        let options =
            Options { kernels, shapes: shapes.clone(), dtypes: dtypes.clone(), ..quick() };
        for device in [Device::Cpu, devices::emulated()] {
            let report = bench::run(&device, &options, |_| {}).unwrap();
            assert!(report.failed.is_empty(), "{kernel}: {:?}", report.failed);
            for (shape, dtype) in shapes.iter().flat_map(|s| dtypes.iter().map(move |d| (s, d))) {
                let same = |row: &&bench::Row| row.shape == *shape && row.dtype == dtype.name();
                assert!(report.rows.iter().filter(same).count() > 0, "{kernel} {shape:?} {dtype}");
            }
            for row in &report.rows {
                assert!(row.correct, "{device}: {row:?}");
                assert!(shapes.contains(&row.shape), "{row:?}");
            }
        }
    }
    let options = Options { kernels: vec!["rope".into()], shapes: vec![vec![2, 2]], ..quick() };
    let error = bench::run(&Device::Cpu, &options, |_| panic!("measured")).unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("logprob, linear_logprob"), "{error}");
}
