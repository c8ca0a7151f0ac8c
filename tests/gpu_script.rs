//! `benches/gpu/run` without a GPU and without cargo: its dry run with the real program, and its way on a machine with a
//! GPU with programs that only say what they would. Skipped, loudly, where there is no bash.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A folder with programs, and what a run of the script with them gave.
struct Machine {
    folder: TempDir,
}

struct Ran {
    status: Option<i32>,
    said: String,
}

/// What a test program says when all is well.
const PASSES: &str = "echo \"test $0 on ${GRADSTONE_TEST_DEVICE:-the CPU} ... ok\"
echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s'";

/// A program that tells of a GPU, and measures two kernels on it.
const PROGRAM: &str = r#"echo "$@" >>"$(dirname "$0")/calls"
case $1 in
devices)
  echo 'cuda     driver 580.1 for CUDA 13.0 (libcuda.so.1)'
  echo '  cuda:0 NVIDIA Test 9, compute capability 9.0, 132 multiprocessors, 139.0 GiB' ;;
bench)
  while [ $# -gt 0 ]; do
    [ "$1" != --json ] || cat >"$2" <<'JSON'
{"device": "NVIDIA Test 9 (cuda:0)", "skipped": [["rope", "not here"]], "failed": [], "rows": [
  {"kernel": "softmax", "part": "forward", "shape": [5, 130], "dtype": "f32", "cold_ms": 2.0, "warm_ms": 1.0,
   "percent_of_bound": 80.0, "correct": true},
  {"kernel": "cast", "part": "to_bf16", "shape": [1001], "dtype": "f32", "cold_ms": 2.0, "warm_ms": 1.0,
   "percent_of_bound": 20.0, "correct": true}]}
JSON
    shift
  done
  echo 'bounds in this run: copy 4000.0 GB/s' ;;
esac"#;

impl Machine {
    /// With programs by these bodies, and a python that finds no torch. `None` where there is no bash.
    fn new(programs: &[(&str, &str)]) -> Option<Machine> {
        if Command::new("bash").arg("--version").output().is_err() {
            eprintln!("SKIPPED: no bash, so benches/gpu/run was not run");
            return None;
        }
        let machine = Machine { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(machine.path("binaries")).unwrap();
        fs::create_dir(machine.path("tools")).unwrap();
        for (name, body) in programs {
            machine.script(&format!("binaries/{name}"), body);
        }
        machine.script("tools/python", "exec python3 -S \"$@\"");
        fs::write(machine.path("binaries/build"), "commit=abc1234\nproptest_seed=7\n").unwrap();
        Some(machine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, options: &[&str]) -> Ran {
        let tools = self.path("tools").display().to_string();
        let path = format!("{tools}:{}", std::env::var("PATH").unwrap_or_default());
        let output = Command::new("bash")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu/run"))
            .args(["--binaries", "binaries", "--out", "results", "--python", "python"])
            .args(options)
            .current_dir(self.folder.path())
            .env("PATH", path)
            .env("CUDA_HOME", self.path("tools"))
            .env_remove("GRADSTONE_TEST_DEVICE")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        Ran { status: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
    }

    /// The one file among the results with this ending.
    fn result(&self, ending: &str) -> (String, String) {
        let entries = fs::read_dir(self.path("results")).unwrap().map(|e| e.unwrap().path());
        let found: Vec<PathBuf> =
            entries.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
        assert_eq!(found.len(), 1, "{ending}: {found:?}");
        let name = found[0].file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(&found[0]).unwrap())
    }

    /// How the program was called.
    fn calls(&self) -> String {
        fs::read_to_string(self.path("binaries/calls")).unwrap_or_default()
    }
}

impl Ran {
    /// The table's line of a step.
    fn step(&self, name: &str) -> &str {
        let table = self.said.split("\nstep  ").nth(1).unwrap_or_else(|| panic!("{}", self.said));
        let line = table.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no step {name}: {}", self.said))
    }
}

fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: no python3, so no CSV was looked at");
    }
    found
}

#[test]
fn a_dry_run_measures_with_the_program_and_writes_a_csv() {
    let tests = [("kernels", PASSES), ("ops", PASSES), ("bench", PASSES)];
    let Some(machine) = Machine::new(&tests) else { return };
    symlink(env!("CARGO_BIN_EXE_gradstone"), machine.path("binaries/gradstone")).unwrap();
    let ran = machine.run(&["--dry-run"]);
    assert_eq!(ran.status, Some(0), "{}", ran.said);
    for step in ["parity kernels", "parity ops", "parity bench", "bench"] {
        assert!(ran.step(step).contains("right: "), "{}", ran.said);
    }
    assert!(ran.step("sanitizers").contains("skipped: a dry run"), "{}", ran.said);
    let report: serde_json::Value = serde_json::from_str(&machine.result(".json").1).unwrap();
    let rows = report["rows"].as_array().unwrap().len();
    assert!(machine.result(".svg").1.ends_with("</svg>\n"));
    if has_python() {
        let (name, csv) = machine.result(".csv");
        assert!(name.ends_with("-cpu-abc1234.csv"), "{name}");
        assert_eq!(csv.matches(",gradstone,").count(), rows, "{csv}");
        assert!(csv.starts_with("commit,device,driver,command,kernel,part,"), "{csv}");
        assert!(
            ran.step("peers").contains("skipped: no peers: ModuleNotFoundError"),
            "{}",
            ran.said
        );
    }
}

#[test]
fn on_a_gpu_every_step_runs_in_order() {
    let tests = [("gradstone", PROGRAM), ("kernels", PASSES), ("ops", PASSES), ("bench", PASSES)];
    let Some(machine) = Machine::new(&tests) else { return };
    machine.script("tools/nvidia-smi", "exit 9");
    for tool in ["compute-sanitizer", "ncu"] {
        // Runs what comes after the options.
        let body = format!(
            "echo \"{tool} $*\" >>\"$(dirname \"$0\")/../binaries/calls\"
             while [ ! -x \"$1\" ]; do shift; done
             \"$@\" && echo '========= ERROR SUMMARY: 0 errors'"
        );
        machine.script(&format!("tools/{tool}"), &body);
    }
    let ran = machine.run(&["--ncu", "--minutes", "10"]);
    assert_eq!(ran.status, Some(0), "{}", ran.said);
    let log = fs::read_dir(machine.path("results")).unwrap().map(|e| e.unwrap().path());
    let log = log
        .filter(|path| path.is_dir())
        .find_map(|folder| fs::read_to_string(folder.join("parity-kernels.log")).ok());
    assert!(log.unwrap().contains("kernels on cuda:0 ... ok"), "{}", ran.said);
    for tool in ["memcheck", "racecheck", "initcheck", "synccheck"] {
        for what in ["bench", "kernels"] {
            let step = ran.step(&format!("{tool} {what}"));
            assert!(step.ends_with("right: ERROR SUMMARY: 0 errors"), "{}", ran.said);
        }
    }
    let calls = machine.calls();
    let at = |what: &str| calls.find(what).unwrap_or_else(|| panic!("{what}: {calls}"));
    assert!(at("devices") < at("bench --seconds 0.3 --minutes=6."), "{calls}");
    assert!(at("bench --seconds 0.3") < at("--tool memcheck"), "{calls}");
    assert!(at("--tool synccheck") < at("ncu --clock-control none"), "{calls}");
    if has_python() {
        let (name, csv) = machine.result(".csv");
        assert!(name.ends_with("-NVIDIA-Test-9-abc1234.csv"), "{name}");
        let command = "benches/gpu/run --device cuda:0 --seconds 0.3 --minutes 10";
        let row = format!(
            "abc1234,NVIDIA Test 9 (cuda:0),580.1,{command},cast,to_bf16,1001,f32,gradstone,"
        );
        assert!(csv.contains(&row), "{csv}");
        assert!(csv.contains(",rope,,,,gradstone,,,,,,not measured: not here"), "{csv}");
        // What is furthest from its bound is looked at first.
        assert!(at("bench cast --seconds") < at("bench softmax --seconds"), "{calls}");
    }
}

#[test]
fn a_kernel_that_is_not_right_stops_the_run_before_anything_is_measured() {
    let fails = "echo 'test rows ... FAILED'; exit 101";
    let tests = [("gradstone", PROGRAM), ("kernels", fails), ("ops", PASSES), ("bench", PASSES)];
    let Some(machine) = Machine::new(&tests) else { return };
    let ran = machine.run(&[]);
    assert_eq!(ran.status, Some(1), "{}", ran.said);
    assert!(ran.step("parity kernels").contains("WRONG (status 101)"), "{}", ran.said);
    assert!(ran.step("bench").contains("skipped: the kernels are not right"), "{}", ran.said);
    assert_eq!(machine.calls(), "devices\n");
}

#[test]
fn what_is_cut_off_is_told_apart_from_what_is_wrong() {
    // As `timeout` ends when the time is over.
    let slow = "exit 124";
    let slow_and_wrong = "echo 'test rows ... FAILED'; exit 124";
    for (kernels, status, said) in [(slow, 3, "cut off: "), (slow_and_wrong, 1, "WRONG")] {
        let tests =
            [("gradstone", PROGRAM), ("kernels", kernels), ("ops", PASSES), ("bench", PASSES)];
        let Some(machine) = Machine::new(&tests) else { return };
        let ran = machine.run(&["--minutes", "5"]);
        assert_eq!(ran.status, Some(status), "{}", ran.said);
        assert!(ran.step("parity kernels").contains(said), "{}", ran.said);
        assert_eq!(machine.calls().contains("bench --seconds"), status == 3, "{}", ran.said);
    }
}

#[test]
fn a_sanitizer_counts_by_what_it_says() {
    let silent = "exit 0";
    let finds = "echo '========= Invalid __global__ read of size 4 bytes'
echo '========= ERROR SUMMARY: 1 error'; exit 9";
    for (sanitizer, status, said) in
        [(silent, 0, " skipped: it gave no verdict"), (finds, 1, " WRONG (status 9)")]
    {
        let tests =
            [("gradstone", PROGRAM), ("kernels", PASSES), ("ops", PASSES), ("bench", PASSES)];
        let Some(machine) = Machine::new(&tests) else { return };
        machine.script("tools/compute-sanitizer", sanitizer);
        let ran = machine.run(&[]);
        assert_eq!(ran.status, Some(status), "{}", ran.said);
        assert!(ran.step("memcheck bench").contains(said), "{}", ran.said);
    }
}

#[test]
fn what_cannot_run_says_why() {
    let tests = [
        ("gradstone", "echo 'cuda     no NVIDIA driver on this machine'"),
        ("kernels", ""),
        ("ops", ""),
    ];
    let Some(machine) = Machine::new(&tests) else { return };
    let ran = machine.run(&[]);
    assert!(ran.status == Some(2) && ran.said.contains("no program bench in "), "{}", ran.said);
    machine.script("binaries/bench", "");
    let ran = machine.run(&[]);
    assert!(
        ran.status == Some(1) && ran.said.contains("no GPU cuda:0 on this machine"),
        "{}",
        ran.said
    );
    machine.script("binaries/gradstone", "exit 127");
    fs::write(machine.path("binaries/build"), "system=Linux x86_64\nglibc=2.34\n").unwrap();
    let ran = machine.run(&["--dry-run"]);
    assert!(
        ran.status == Some(1) && ran.said.contains("needs Linux x86_64 and glibc 2.34"),
        "{}",
        ran.said
    );
    let ran = machine.run(&["--minutes", "x"]);
    assert_eq!((ran.status, ran.said.trim()), (Some(2), "--minutes x: a whole number"));
}
