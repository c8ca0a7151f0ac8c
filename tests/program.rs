//! The program as a user runs it: what it prints, where, and its exit status.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn gradstone() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradstone"));
    command.stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    gradstone().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A refusal: the exit status, nothing on standard output, one or two lines on standard error that say `says`.
fn refused(args: &[&str], status: i32, says: &str) {
    let output = run(args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{args:?}: {err}");
    assert_eq!(out, "", "{args:?}");
    assert!(err.starts_with("error: ") && err.contains(says), "{args:?}: {err}");
    assert!((1..=2).contains(&err.lines().count()), "{args:?}: {err}");
}

/// A run directory as a killed run leaves it: two steps, the last line torn.
fn half_a_run(folder: &Path) {
    std::fs::write(folder.join("config.toml"), "seed = 5\nsteps = 2\n").unwrap();
    let metrics = "{\"step\":1,\"phase\":\"warmup\",\"loss\":1.5,\"tokens_per_second\":9.0,\"seconds\":0.1}\n\
                   {\"step\":2,\"phase\":\"rl\",\"reward\":0.5,\"tokens_per_second\":9.0,\"seconds\":0.1}\n{\"step\":3,\"ph";
    std::fs::write(folder.join("metrics.jsonl"), metrics).unwrap();
}

#[test]
fn help_goes_to_standard_output() {
    for args in [&["--help"][..], &["train", "--help"], &["generate", "-h"], &["list", "--help"]] {
        let output = run(args);
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}");
        assert!(text(&output.stdout).contains("Usage: gradstone"), "{args:?}");
    }
    let version = text(&run(&["--version"]).stdout);
    assert_eq!(version.trim(), concat!("gradstone ", env!("CARGO_PKG_VERSION")));
    let bare = run(&[]);
    assert_eq!(bare.status.code(), Some(2));
    assert!(text(&bare.stderr).contains("Usage: gradstone"));
}

#[test]
fn wrong_usage_is_status_two() {
    for (args, says) in [
        (&["trian"][..], "train"),
        (&["train", "--stpes", "3"], "--stpes"),
        (&["train", "--seed", "many"], "--seed"),
        (&["train", "--device", "gpu"], "auto, cpu, cuda or cuda:N"),
        (&["train", "--resume", "--seed", "1"], "--resume"),
        (&["generate"], "--run"),
        (&["generate", "--run", "a", "--model", "b"], "--model"),
        (&["generate", "--model", "b", "--prompt", "-1", "--temperature", "-1"], "temperature -1"),
        (&["list", "everything"], "everything"),
        (&["list", "settings", "nobody"], "no recipe `nobody`"),
        (&["list", "models", "exgrpo"], "only settings are those of a recipe"),
        (&["train", "nobody"], "no recipe `nobody`"),
        (&["report"], "<DIRS>"),
    ] {
        refused(args, 2, says);
    }
}

#[test]
fn failures_are_status_one() {
    refused(&["train", "--device", "cuda:99"], 1, "cuda:99: ");
    refused(&["report", "/no/such/run"], 1, "holds no run");
    refused(&["generate", "--run", "/no/such/run", "--prompt", "x"], 1, "holds no run");
    let nowhere = tempfile::tempdir().unwrap();
    let resumed =
        gradstone().args(["train", "--resume"]).current_dir(nowhere.path()).output().unwrap();
    assert_eq!(resumed.status.code(), Some(1));
    assert!(text(&resumed.stderr).contains("no run to go on with"), "{}", text(&resumed.stderr));
}

#[test]
fn a_report_of_half_a_run() {
    let folder = tempfile::tempdir().unwrap();
    half_a_run(folder.path());
    let output = run(&["report", &folder.path().to_string_lossy()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let path = text(&output.stdout);
    let page = std::fs::read_to_string(path.trim()).unwrap();
    assert!(page.contains("<!doctype html>") && page.contains("Reward") && page.contains("seed"));
    std::fs::write(folder.path().join("metrics.jsonl"), "what\n").unwrap();
    refused(&["report", &folder.path().to_string_lossy()], 1, "metrics.jsonl:1");
}

#[test]
fn devices_and_lists() {
    let devices = text(&run(&["devices"]).stdout);
    assert!(devices.starts_with("cpu ") && devices.contains("simd") && devices.contains("threads"));
    for part in ["\ncuda ", "\nkernels ", "PTX 9.0", "native code", "\ncublaslt ", "\nauto "] {
        assert!(devices.contains(part), "{part}: {devices}");
    }
    let all = text(&run(&["list"]).stdout);
    for what in ["recipes", "models", "objectives", "advantages", "corrections", "kernels"] {
        let output = run(&["list", what]);
        assert!(output.status.success() && all.contains(&format!("{what}\n")));
        for line in text(&output.stdout).lines() {
            assert!(all.contains(line), "{line}");
        }
    }
    let settings = text(&run(&["list", "settings", "stable-diffcoder"]).stdout);
    for part in
        ["\nblock ", "\nnoising.schedule.forced ", "\nreproduction.rows ", "Tokens of a block."]
    {
        assert!(settings.contains(part), "{part}: {settings}");
    }
}

#[test]
fn a_closed_pipe_is_silent() {
    for args in [&["list"][..], &["--help"], &["devices"]] {
        let mut child =
            gradstone().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let status = child.wait().unwrap();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((status.code(), err.as_str()), (Some(0), ""), "{args:?}");
    }
    let mut child = gradstone().arg("list").stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "recipes\n");
    assert!(child.wait().unwrap().success());
}
