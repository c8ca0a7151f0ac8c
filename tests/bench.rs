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
fn the_program_writes_json_and_a_roofline() {
    let folder = tempfile::tempdir().unwrap();
    let (json, svg) = (folder.path().join("bench.json"), folder.path().join("roofline.svg"));
    let output = Command::new(program())
        .args(["bench", "elementwise", "policy_loss", "--quick", "--device", "cpu", "--json"])
        .arg(&json)
        .arg("--roofline")
        .arg(&svg)
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    assert!(out.starts_with("cpu\nkernel ") && out.contains("bounds in this run: copy "), "{out}");
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
    }
    assert!(report["bounds"]["copy_gb_s"].as_f64().unwrap() > 0.0);
    let svg = std::fs::read_to_string(&svg).unwrap();
    assert_eq!(svg.matches("<circle").count(), rows.len());
    assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}
