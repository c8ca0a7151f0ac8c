//! A run as it is steered from outside: made longer, changed, stopped by a scheduler, looked at by other programs; and what it
//! says where it learns nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run of some steps that ends in a second.
const SMALL: [&str; 14] = [
    "--set",
    "warmup.steps=2",
    "--set",
    "warmup.examples=4",
    "--set",
    "rollout.prompts=2",
    "--set",
    "rollout.group=2",
    "--set",
    "evaluation={every=2, problems=8}",
    "--set",
    "model.hidden_size=16",
    "--set",
    "checkpoint.every=2",
];

fn gradstone() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradstone"));
    command.stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    command
}

fn train(out: &Path, more: &[&str]) -> Output {
    gradstone().args(["train", "--out"]).arg(out).args(SMALL).args(more).output().unwrap()
}

fn resume(out: &Path, more: &[&str]) -> Output {
    gradstone().args(["train", "--resume", "--out"]).arg(out).args(more).output().unwrap()
}

fn ok(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The lines of `metrics.jsonl` without what the clock says.
fn steps(out: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = value.as_object_mut().unwrap();
        fields.remove("seconds");
        fields.remove("tokens_per_second");
        value
    };
    text.lines().map(line).collect()
}

#[test]
fn a_longer_run_is_the_run_that_was_longer_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (short, long) = (folder.path().join("short"), folder.path().join("long"));
    let first = ok(&train(&short, &["--steps", "4"]));
    assert!(first.contains("accuracy") && first.contains("mismatch 0"), "{first}");
    let again = ok(&resume(&short, &[]));
    assert!(again.contains("all 6 steps are done; --steps N makes the run longer"), "{again}");
    ok(&resume(&short, &["--steps", "8"]));
    ok(&train(&long, &["--steps", "8"]));
    assert_eq!(steps(&short).len(), 10);
    // An evaluation at the end of a run is one that the longer run may not have had.
    let without = |mut all: Vec<serde_json::Value>| {
        all.iter_mut().for_each(|step| drop(step.as_object_mut().unwrap().remove("eval_accuracy")));
        all
    };
    assert_eq!(without(steps(&short)), without(steps(&long)));
    assert!(std::fs::read_to_string(short.join("config.toml")).unwrap().contains("\nsteps = 8\n"));
}

#[test]
fn what_is_done_from_now_on_can_change_and_what_the_run_is_made_of_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    ok(&train(&out, &["--steps", "2"]));
    ok(&resume(&out, &["--steps", "4", "--set", "optimizer.learning_rate=1e-5"]));
    let config = std::fs::read_to_string(out.join("config.toml")).unwrap();
    assert!(config.contains("learning_rate = 0.00001") || config.contains("learning_rate = 1e-5"));
    for (change, says) in [("seed=9", "seed"), ("model.layers=1", "model"), ("stpes=3", "steps")] {
        let refused = resume(&out, &["--set", change]);
        let err = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{err}");
        assert!(err.contains(says), "{change}: {err}");
    }
}

#[test]
fn the_config_of_a_run_begins_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let printed = ok(&train(&folder.path().join("none"), &["--steps", "2", "--print-config"]));
    assert!(!folder.path().join("none").exists());
    assert!(printed.starts_with("kind = \"reinforcement\"\n") && printed.contains("\nsteps = 2\n"));
    let file = folder.path().join("own.toml");
    std::fs::write(&file, &printed).unwrap();
    let again = gradstone().args(["train", "--print-config", "--config"]).arg(&file).output();
    assert_eq!(ok(&again.unwrap()), printed);
    for (text, starts) in [
        ("recipe = \"exgrpo\"\n[model]\nkind = \"folder\"\npath = \"/m\"\n", "[replay]"),
        ("kind = \"diffusion\"\n", "kind = \"diffusion\""),
        ("[noising]\n", "kind = \"diffusion\""),
        ("[model]\nkind = \"folder\"\npath = \"/m\"\n", "kind = \"file\""),
    ] {
        std::fs::write(&file, text).unwrap();
        let shown = gradstone().args(["train", "--print-config", "--config"]).arg(&file).output();
        let shown = ok(&shown.unwrap());
        assert!(shown.contains(starts), "{text}: {shown}");
    }
    std::fs::write(&file, "recipe = \"nothing\"\n").unwrap();
    let refused = gradstone().args(["train", "--config"]).arg(&file).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no recipe `nothing`"));
}

#[test]
fn the_best_checkpoint_stays_and_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let best = ["--set", "checkpoint={every=1, keep=1, best=true}", "--steps", "8"];
    ok(&train(&out, &best));
    let accuracy = |step: &serde_json::Value| step.get("eval_accuracy").and_then(|a| a.as_f64());
    let all = steps(&out);
    let evaluated: Vec<(u64, f64)> =
        all.iter().filter_map(|s| Some((s["step"].as_u64()?, accuracy(s)?))).collect();
    let first_of_the_best =
        evaluated.iter().fold((0, -1.0), |best, one| if one.1 > best.1 { *one } else { best }).0;
    let mut kept: Vec<String> = std::fs::read_dir(out.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    let mut wanted = vec![format!("step-{first_of_the_best:06}"), "step-000010".to_owned()];
    wanted.sort();
    wanted.dedup();
    assert_eq!(kept, wanted);
    let generate = |which: &str| {
        let mut command = gradstone();
        command.args(["generate", "--prompt", "1+2=", "--checkpoint", which, "--run"]).arg(&out);
        command.args(["--temperature", "1", "--min-p", "0.2", "--max-tokens", "2"]);
        command.output().unwrap()
    };
    ok(&generate("best"));
    ok(&generate("10"));
    let refused = generate("3");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no checkpoint of step 3"));
}

/// What a scheduler sends before it takes a machine away leaves a checkpoint, and is no error.
#[cfg(unix)]
#[test]
fn a_terminated_run_saves_and_goes_on() {
    for signal in ["TERM", "HUP", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let mut command = gradstone();
        command.args(["train", "--out"]).arg(&out).args(SMALL);
        command.args(["--steps", "1000000", "--set", "checkpoint.every=0"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let began = Instant::now();
        while std::fs::metadata(out.join("metrics.jsonl")).map_or(0, |file| file.len()) == 0 {
            assert!(began.elapsed() < Duration::from_secs(120), "no step");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut kill = Command::new("kill");
        kill.args([&format!("-{signal}"), &child.id().to_string()]);
        assert!(kill.status().unwrap().success());
        let ended = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(130), "{signal}: {err}");
        assert!(!err.contains("error") && err.contains("go on with"), "{signal}: {err}");
        let saved = std::fs::read_dir(out.join("checkpoints")).unwrap().count();
        assert_eq!(saved, 1, "{signal}");
        let done = steps(&out).len() as u64;
        let more = (done + 1).to_string();
        ok(&resume(&out, &["--steps", &more, "--set", "evaluation.every=0"]));
        assert_eq!(steps(&out).len() as u64, done + 3);
    }
}

#[test]
fn a_group_of_one_is_refused_where_completions_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let refused = train(&out, &["--steps", "2", "--set", "rollout.group=1"]);
    let err = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{err}");
    assert!(err.contains("rollout.group = 1") && err.contains("2 or more"), "{err}");
    assert!(!out.exists());
    let alone =
        ["--steps", "2", "--set", "rollout.group=1", "--set", "advantage=reinforce_plus_plus"];
    ok(&train(&out, &alone));
}

/// A step in which no group is mixed is skipped and counted; the run goes on, and says why it learns nothing.
#[test]
fn a_step_without_a_mixed_group_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let rounds = "rollout.dynamic_sampling={max_rounds=1}";
    let said = ok(&train(
        &out,
        &["--steps", "21", "--set", rounds, "--set", "task.largest=9", "--set", "warmup.steps=0"],
    ));
    let all = steps(&out);
    assert_eq!(all.len(), 21);
    let skipped: Vec<&serde_json::Value> =
        all.iter().filter(|step| step["step_without_mixed_group"] == 1.0).collect();
    assert!(!skipped.is_empty());
    for step in skipped {
        assert!(step.get("loss").is_none() && step["grad_norm"] == 0.0, "{step}");
    }
    assert!(said.contains("no completion of the last 20 steps earned a reward"), "{said}");
}

#[test]
fn numbers_for_other_programs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    ok(&train(&out, &["--steps", "2", "--tensorboard"]));
    let events = || std::fs::read_dir(out.join("tensorboard")).unwrap().count();
    assert_eq!(events(), 1);
    ok(&resume(&out, &["--steps", "3", "--tensorboard"]));
    assert_eq!(events(), 2);
    let table = folder.path().join("run.csv");
    let mut report = gradstone();
    report.arg("report").arg(&out).arg("--csv").arg(&table);
    ok(&report.output().unwrap());
    let text = std::fs::read_to_string(&table).unwrap();
    assert!(text.starts_with("step,phase,") && text.lines().count() == 6, "{text}");
    assert!(text.lines().next().unwrap().contains("eval_accuracy"));
}
