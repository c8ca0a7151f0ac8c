//! `gradstone reproduce` as a user runs it, with `--quick`: the machinery, and that it says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::{Command, Output};

fn reproduce(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradstone"));
    command.arg("reproduce").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a paper quickly with one worker and with two: the same numbers, a page, figures, JSON.
fn runs_quickly(paper: &str) {
    let folder = tempfile::tempdir().unwrap();
    let json = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let run = |threads: &str, file: &str| {
        let path = folder.path().join(file).to_string_lossy().into_owned();
        let out = folder.path().join("pages").to_string_lossy().into_owned();
        let seeds = ["--quick", "--seeds", "7..8", "--threads", threads];
        let output = reproduce(&[&[paper][..], &seeds, &["--json", &path, "--out", &out]].concat());
        // Nothing holds after a few steps, or it does: both are a report.
        assert!([Some(0), Some(1)].contains(&output.status.code()), "{}", text(&output.stderr));
        let shown = text(&output.stdout);
        assert!(shown.contains("No evidence") && shown.contains("claims hold"), "{shown}");
        assert!(!shown.contains("failed"), "{shown}");
        let report = json(file);
        assert_eq!(report["holds"] == true, output.status.success());
        report
    };
    let (one, two) = (run("1", "one.json"), run("2", "two.json"));
    assert_eq!(one["arms"], two["arms"], "results depend on the number of workers");
    assert_eq!(one["evidence"], false);
    assert_eq!(one["seeds"], serde_json::json!([7, 8]));
    assert!(one["claims"].as_array().is_some_and(|claims| claims.len() > 3));
    let page = std::fs::read_to_string(folder.path().join(format!("pages/{paper}.md"))).unwrap();
    assert!(page.contains("No evidence") && page.contains("## Claims"), "{page}");
    for line in page.lines().filter(|line| line.starts_with("![")) {
        let file = line.split(['(', ')']).nth(1).unwrap();
        let svg = std::fs::read_to_string(folder.path().join("pages").join(file)).unwrap();
        assert!(svg.starts_with("<svg") && !svg.contains("NaN"), "{file}");
    }
}

#[test]
fn faithrl_runs() {
    runs_quickly("faithrl");
}

#[test]
fn exgrpo_runs() {
    runs_quickly("exgrpo");
}

#[test]
fn wrong_usage_is_refused() {
    for args in [&["nobody"][..], &["faithrl", "--seeds", "5..3"], &["faithrl", "--tune"]] {
        let output = reproduce(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).starts_with("error: "), "{args:?}");
    }
}
