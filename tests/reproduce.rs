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
fn stable_diffcoder_runs() {
    runs_quickly("stable-diffcoder");
}

/// `--study`, `--arms` and `--set` decide what is run and are in the command on the page; a claim without its arms is
/// not judged, and alone it does not fail.
#[test]
fn a_part_of_a_study_runs_with_settings_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let run = |sets: &[&str], file: &str| {
        let path = folder.path().join(file).to_string_lossy().into_owned();
        let out = folder.path().to_string_lossy().into_owned();
        let study =
            ["exgrpo", "--study", "stress", "--arms", "- shaping", "--quick", "--seeds", "7"];
        let output = reproduce(&[&study, sets, &["--json", &path, "--out", &out]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("not judged"), "{}", text(&output.stdout));
        let json = std::fs::read_to_string(path).unwrap();
        serde_json::from_str::<serde_json::Value>(&json).unwrap()
    };
    let (plain, other) = (
        run(&[], "plain.json"),
        run(&["--set", "replay.starts_at=-1", "--set", "imitation_steps=400"], "other.json"),
    );
    assert_eq!(plain["arms"].as_array().unwrap().len(), 1);
    assert_ne!(plain["arms"][0]["metrics"], other["arms"][0]["metrics"]);
    assert!(plain["claims"].as_array().unwrap().iter().all(|claim| claim["holds"].is_null()));
    let page = std::fs::read_to_string(folder.path().join("exgrpo-stress.md")).unwrap();
    let command = "gradstone reproduce exgrpo --study stress --seeds 7..7 --quick --arms '- shaping' \
                   --set replay.starts_at=-1 --set imitation_steps=400";
    assert!(page.contains(command), "{page}");
    assert!(
        page.contains("| not judged | end(- shaping) − end(on-policy) > 0? not run: on-policy |"),
        "{page}"
    );
}

#[test]
fn wrong_usage_is_refused() {
    for (args, says) in [
        (&["nobody"][..], "no recipe `nobody` (there are: arithmetic, "),
        (&["exgrop"], "did you mean `exgrpo`?"),
        (&["arithmetic"], "claims nothing (these do: stable_diffcoder, exgrpo, faithrl)"),
        (&["faithrl", "--seeds", "5..3"], "has no seed"),
        (&["faithrl", "--study", "stress"], "there is no study `stress`; there are claims"),
        (&["exgrpo", "--study", "stres"], "did you mean `stress`?"),
        (
            &["exgrpo", "--arms", "on-policy,nobody"],
            "there is no arm `nobody`\n       there are on-policy | ",
        ),
        (&["exgrpo", "--set", "widht=3"], "unknown key `widht`; did you mean `width`?"),
        (&["exgrpo", "--set", "width=0"], "width is 0"),
        (&["exgrpo", "--set", "seed=3"], "given by --seeds"),
        (&["exgrpo", "--set", "width"], "not key=value"),
    ] {
        let output = reproduce(args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.starts_with("error: ") && error.contains(says), "{args:?}: {error}");
        assert!((1..=2).contains(&error.lines().count()), "{args:?}: {error}");
    }
}

#[test]
fn help_lists_papers_and_studies() {
    let help = text(&reproduce(&["--help"]).stdout);
    for part in
        ["faithrl ", "stable-diffcoder ", "--study rates ", "--study stress-rates ", "--arms <A,B>"]
    {
        assert!(help.contains(part), "{part}: {help}");
    }
}
