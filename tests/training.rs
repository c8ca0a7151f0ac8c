//! Training as a user runs it: resumed after a kill, stopped by Ctrl-C, refused, out of disk. Runs are tiny.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Settings that make a run of a second or two in which something is learnt: both phases, evaluations, checkpoints.
const TINY: [&str; 17] = [
    "model.hidden_size=32",
    "model.layers=1",
    "model.heads=2",
    "task.largest=4",
    "warmup.steps=30",
    "warmup.examples=16",
    "warmup.optimizer.learning_rate=0.02",
    "warmup.schedule.warmup=2",
    "rollout.prompts=16",
    "rollout.group=8",
    "rollout.max_new_tokens=4",
    "rollout.logged=2",
    "update.minibatches=2",
    "evaluation.every=25",
    "checkpoint.every=12",
    "checkpoint.keep=3",
    "steps=210",
];

/// Steps of both phases.
const TOTAL: usize = 240;

fn gradstone(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradstone"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `train --out RUN` with the tiny settings and more.
fn train(run: &Path, more: &[&str]) -> Command {
    let mut command = gradstone(&["train", "--out"]);
    command.arg(run);
    for setting in TINY {
        command.args(["--set", setting]);
    }
    command.args(more);
    command
}

fn resume(run: &Path) -> Command {
    let mut command = gradstone(&["train", "--resume", "--out"]);
    command.arg(run);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeded(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    output
}

/// A refusal or a failure: its status, and one or two lines on standard error that say `says`.
fn failed(mut command: Command, status: i32, says: &str) {
    let output = command.output().unwrap();
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{err}");
    assert!(err.starts_with("error: ") && err.contains(says), "{err}");
    assert!(err.lines().count() <= 2, "{err}");
}

fn steps_written(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().lines().count()
}

/// The names of a run's checkpoints, leftovers of a kill left out.
fn checkpoints(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("step-")).collect();
    names.sort();
    names
}

/// Starts a run and waits until so many steps are in its log.
fn started(run: &Path, steps: usize) -> Child {
    let mut child = train(run, &[]).stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while steps_written(run) < steps {
        assert!(child.try_wait().unwrap().is_none(), "it ended after {} steps", steps_written(run));
        assert!(start.elapsed() < Duration::from_secs(120), "no {steps} steps in two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// `metrics.jsonl` without the two fields of the clock.
fn metrics(run: &Path) -> Vec<String> {
    let log = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let without_clock = |line: &str| {
        let mut object: Value = serde_json::from_str(line).unwrap();
        let fields = object.as_object_mut().unwrap();
        assert!(fields.remove("seconds").is_some() && fields.remove("tokens_per_second").is_some());
        object.to_string()
    };
    log.lines().map(without_clock).collect()
}

/// Both runs wrote the same bits: metrics, rollouts, and the last checkpoint's weights and optimizer.
fn same(one: &Path, other: &Path) {
    assert_eq!(metrics(one), metrics(other));
    for file in [
        "config.toml",
        "rollouts.jsonl",
        "checkpoints/step-000240/model.safetensors",
        "checkpoints/step-000240/optimizer.safetensors",
        "checkpoints/step-000240/state.json",
    ] {
        assert!(
            fs::read(one.join(file)).unwrap() == fs::read(other.join(file)).unwrap(),
            "{file} differs"
        );
    }
}

#[test]
fn killed_starved_of_disk_and_resumed_it_writes_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    succeeded(train(&whole, &["--threads", "2"]));
    assert_eq!(steps_written(&whole), TOTAL);
    // What is compared is a run that learns: rewards and gradients in the second phase.
    let moved = metrics(&whole)
        .iter()
        .filter(|line| line.contains("\"rl\"") && !line.contains("\"grad_norm\":0.0"))
        .count();
    assert!(moved > 100, "{moved} steps with a gradient");
    assert_eq!(checkpoints(&whole), ["step-000216", "step-000228", "step-000240"]);

    // SIGKILL somewhere after the first checkpoint.
    let mut child = started(&broken, 17);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(steps_written(&broken) < TOTAL);

    // A disk that takes no file larger than 16 KiB: the next checkpoint fails, the ones before stay.
    let before = checkpoints(&broken);
    let mut starved = Command::new("sh");
    starved
        .args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$0\" train --resume --out \"$1\""])
        .args([Path::new(env!("CARGO_BIN_EXE_gradstone")), &broken]);
    failed(starved, 1, "(earlier ones are untouched)");
    assert_eq!(checkpoints(&broken), before);

    // SIGKILL again, later; then a line is torn and the newest checkpoint damaged. The rest by another number of threads.
    let mut child = resume(&broken).stdout(Stdio::null()).spawn().unwrap();
    while steps_written(&broken) < 120 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(steps_written(&broken) < TOTAL);
    let log = broken.join("metrics.jsonl");
    fs::write(&log, fs::read_to_string(&log).unwrap() + "{\"step\":99,\"pha").unwrap();
    let newest = checkpoints(&broken).pop().unwrap();
    let weights = broken.join("checkpoints").join(&newest).join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let mut last = resume(&broken);
    last.args(["--threads", "1"]);
    let output = text(&succeeded(last).stdout);
    assert!(
        output.contains("passing over a damaged checkpoint") && output.contains(&newest),
        "{output}"
    );
    same(&whole, &broken);
    assert!(broken.join("report.html").exists());
}

#[test]
fn control_c_ends_with_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let child = started(&run, 3);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("stopped at a checkpoint") && err.contains("--resume"), "{err}");
    let steps = steps_written(&run);
    assert!(
        steps < TOTAL && run.join(format!("checkpoints/step-{steps:06}/state.json")).exists(),
        "{steps}"
    );
    assert!(run.join("report.html").exists());
    succeeded(resume(&run));
    assert_eq!(steps_written(&run), TOTAL);
}

#[test]
fn a_run_is_used_and_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let output = text(&succeeded(train(&run, &["--steps", "3", "--seed", "9"])).stdout);
    assert!(output.contains("step 1/33 warmup") && output.contains("step 33/33 rl"), "{output}");
    let before = fs::read(run.join("metrics.jsonl")).unwrap();
    failed(train(&run, &[]), 1, "holds a run already");
    assert_eq!(fs::read(run.join("metrics.jsonl")).unwrap(), before);
    // A finished run has nothing left to do.
    succeeded(resume(&run));
    assert_eq!(fs::read(run.join("metrics.jsonl")).unwrap(), before);

    let mut generate = gradstone(&["generate", "--prompt", "1+2=", "--run"]);
    generate.arg(&run);
    let greedy = text(&succeeded(generate).stdout);
    assert_eq!(greedy.lines().count(), 1, "{greedy}");
    let mut child = gradstone(&["generate", "--max-tokens", "4", "--temperature", "1", "--run"]);
    let mut child = child.arg(&run).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"1+2=\n3+4=\n").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout).lines().count(), 2);
    let mut wrong = gradstone(&["generate", "--prompt", "what?", "--run"]);
    wrong.arg(&run);
    failed(wrong, 1, "cannot encode `what?`");

    // The checkpoint is a model folder; with a file of problems it is trained on.
    let data = folder.path().join("problems.jsonl");
    let lines: String =
        (0..30).map(|i| format!("{{\"prompt\": \"{i}+1=\", \"answer\": {}}}\n", i + 1)).collect();
    fs::write(&data, &lines).unwrap();
    let checkpoint = run.join("checkpoints/step-000033");
    let own = |data: &Path| {
        let mut command =
            gradstone(&["train", "--steps", "2", "--set", "rollout.max_new_tokens=4", "--model"]);
        command
            .arg(&checkpoint)
            .arg("--data")
            .arg(data)
            .arg("--out")
            .arg(folder.path().join("own"));
        command
    };
    let broken = folder.path().join("broken.jsonl");
    fs::write(&broken, format!("{lines}{{\"prompt\": \"1+1=\"\n")).unwrap();
    failed(own(&broken), 1, "broken.jsonl:31: not a JSON object");
    assert!(!folder.path().join("own").exists(), "a run that cannot begin leaves nothing behind");
    succeeded(own(&data));
    assert_eq!(steps_written(&folder.path().join("own")), 2);

    // Weights that are cut off, and a tokenizer of another model, whose ids for some letters the model lacks.
    let damaged = |change: &dyn Fn(&Path)| {
        let copy = folder.path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir(&copy).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        {
            fs::copy(checkpoint.join(name), copy.join(name)).unwrap();
        }
        change(&copy);
        let mut command = gradstone(&["generate", "--prompt", "1+z=", "--model"]);
        command.arg(copy);
        command
    };
    let cut = |folder: &Path| {
        let path = folder.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
    };
    failed(damaged(&cut), 1, "cut off");
    let foreign = |folder: &Path| {
        gradstone::text::Tokenizer::characters("0123456789+-*%=abcdefghijklmnopqrstuvwxyz")
            .unwrap()
            .save(folder)
            .unwrap();
    };
    // It has more ids than the model has rows, and the prompt one of these.
    failed(damaged(&foreign), 1, "vocabulary");
    failed(
        damaged(&|folder| fs::remove_file(folder.join("tokenizer.json")).unwrap()),
        1,
        "tokenizer.json",
    );
}

#[test]
fn wrong_settings_are_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    for (more, says) in [
        (
            &["--set", "rollout.promts=3"][..],
            "unknown key `rollout.promts`; did you mean `rollout.prompts`?",
        ),
        (&["--set", "rollout.prompts=0"], "rollout.prompts"),
        (&["--set", "steps=many"], "--set steps=many"),
        (&["arithmetik"], "arithmetik"),
        (&["jsonl"], "model"),
    ] {
        failed(train(&run, more), 2, says);
        assert!(!run.exists(), "{more:?}");
    }
    let config = folder.path().join("my.toml");
    fs::write(&config, "seed = 3\n[rollout]\ngruop = 4\n").unwrap();
    let mut command = train(&run, &["--config"]);
    command.arg(&config);
    failed(command, 2, "my.toml:3: unknown key `rollout.gruop`; did you mean `rollout.group`?");
    failed(train(&run, &["--config", "/no/such.toml"]), 1, "/no/such.toml");
    assert!(!run.exists());
}
