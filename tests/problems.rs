//! Files of problems as a user gives them: told apart, checked before a run, kept with all their digits, the same after a resume.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::dtype::DType;
use gradstone::models::{Decoder, DecoderConfig};
use gradstone::text::Tokenizer;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const CONTEXT: usize = 64;

/// A folder with a tiny random model in `m` and these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m");
    fs::create_dir(&model).unwrap();
    let tokenizer = Tokenizer::characters("0123456789+-= ").unwrap();
    let mut config =
        DecoderConfig::small("llama", tokenizer.vocab_size(), 32, 1, 2, CONTEXT).unwrap();
    config.set_eos(tokenizer.eos());
    Decoder::random(config, DType::F32, 1).unwrap().save(&model).unwrap();
    tokenizer.save(&model).unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn gradstone(at: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradstone"));
    command.current_dir(at).args(args).stdin(Stdio::null()).output().unwrap()
}

/// A run of two steps, with paths as a user types them.
fn train(folder: &TempDir, data: &str, more: &[&str]) -> Output {
    let mut args = vec!["train", "--model", "m", "--out", "run", "--steps", "2", "--data", data];
    for setting in [
        "rollout.prompts=2",
        "rollout.group=2",
        "rollout.max_new_tokens=2",
        "rollout.logged=8",
        "evaluation.every=0",
        "checkpoint.every=1",
    ] {
        args.extend(["--set", setting]);
    }
    args.extend(more);
    gradstone(folder.path(), &args)
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", err(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A refusal that says these things and leaves no run behind.
fn refused(folder: &TempDir, output: &Output, says: &[&str]) {
    let text = err(output);
    assert!(!output.status.success() && text.starts_with("error: "), "{text}");
    for what in says {
        assert!(text.contains(what), "{what}\n{text}");
    }
    assert!(!folder.path().join("run").exists());
}

fn sums(count: usize) -> String {
    (0..count).map(|i| format!("{{\"prompt\": \"{i}+1=\", \"answer\": {}}}\n", i + 1)).collect()
}

fn read(folder: &TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).unwrap()
}

const JUDGE: &str = "
import sys, json
for line in sys.stdin:
    open('asked.jsonl', 'a').write(line)
    asked = json.loads(line)
    print(json.dumps({'id': asked['id'], 'reward': len(asked['completion']) % 2}), flush=True)
";

#[test]
fn numbers_keep_their_digits_to_logs_and_judges() {
    let (answer, field) = ("36893488147419103232", "0.1000000000000000055511151231257827");
    let line =
        |i: u32| format!("{{\"prompt\":\"{i}+1=\",\"answer\":{answer},\"x\":[{field},1E400]}}");
    let data = (0..4).map(|i| line(i) + "\n").collect::<String>();
    let folder = folder(&[("p.jsonl", &data), ("judge.py", JUDGE)]);
    let judge = "task.verifier.command=[\"python3\", \"judge.py\"]";
    out(&train(&folder, "p.jsonl", &["--set", judge]));
    for log in ["run/rollouts.jsonl", "asked.jsonl"] {
        let text = read(&folder, log);
        assert!(text.lines().count() >= 4, "{log}: {text}");
        assert!(
            text.lines().all(|line| line.contains(&format!("\"answer\":\"{answer}\""))),
            "{text}"
        );
    }
    let asked = read(&folder, "asked.jsonl");
    assert!(asked.lines().all(|line| line.contains(&format!("\"x\":[{field},1E400]"))), "{asked}");
}

#[test]
fn what_was_guessed_is_said_and_written_down() {
    let array = format!("[{}]", sums(12).trim().replace('\n', ",").replace("prompt", "question"));
    let csv: String = (0..12).map(|i| format!("\"{i}+1=\",{}\n", i + 1)).collect();
    let csv = format!("question,answer\n{csv}");
    for (name, text) in [("a.json", array.as_str()), ("c.csv", csv.as_str())] {
        let folder = folder(&[(name, text)]);
        let said = out(&train(&folder, name, &[]));
        assert!(said.contains("prompt `question`, answer `answer`"), "{said}");
        let config = read(&folder, "run/config.toml");
        for line in
            ["prompt = \"question\"", "answer = \"answer\"", "kind = \"file\"", " bytes, sha256 "]
        {
            assert!(config.contains(line), "{line}\n{config}");
        }
    }
}

#[test]
fn a_choice_that_names_do_not_make_is_the_users() {
    let folder =
        folder(&[("p.jsonl", "{\"question\": \"1\", \"problem\": \"2\", \"answer\": 3}\n")]);
    let output = train(&folder, "p.jsonl", &[]);
    refused(
        &folder,
        &output,
        &[
            "`question` or `problem`: choose with task.format.prompt",
            "its columns are question, problem, answer",
        ],
    );
    let output = train(&folder, "p.jsonl", &["--set", "task.format.prompt=frage"]);
    refused(&folder, &output, &["there is no column `frage`"]);
    let parquet = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parquet/zstd.parquet");
    let output = train(&folder, parquet, &["--set", "task.format.answer=gold"]);
    refused(&folder, &output, &["there is no column `gold`", "reward_model {ground_truth, style}"]);
}

#[test]
fn what_can_be_known_before_the_first_step_is_told() {
    let long = format!("{{\"prompt\": \"{}\", \"answer\": 1}}\n", "1+".repeat(CONTEXT));
    // Line 5 is trained on, line 15 held out.
    let with = |line: &str| {
        let mut lines: Vec<String> = sums(13).lines().map(|line| format!("{line}\n")).collect();
        lines.insert(4, line.to_owned());
        lines.insert(14, line.replace("1+", "2+").replace("7=", "8="));
        lines.concat()
    };
    for (line, says) in [
        (
            long.as_str(),
            "the prompt has 128 tokens, which leaves no room in the model's context of 64",
        ),
        ("{\"prompt\": \"7=\", \"answer\": \"\"}\n", "the answer is empty"),
        (
            "{\"prompt\": \"7=\", \"answer\": \"so it is \\\\boxed{}\"}\n",
            "nothing equals the answer",
        ),
        ("{\"prompt\": \"what7=\", \"answer\": 1}\n", "cannot encode"),
    ] {
        let folder = folder(&[("p.jsonl", &with(line))]);
        let output = train(&folder, "p.jsonl", &[]);
        let second = if line == long { "p.jsonl:15: the prompt" } else { "p.jsonl:15: " };
        refused(&folder, &output, &["2 of 15 records cannot be used", "p.jsonl:5: ", says, second]);
        let said = out(&train(&folder, "p.jsonl", &["--set", "task.format.skip_bad=true"]));
        assert!(said.contains("2 of 15 records are left out, e.g. "), "{said}");
        assert_eq!(read(&folder, "run/metrics.jsonl").lines().count(), 2);
    }
}

#[test]
fn a_run_goes_on_from_anywhere_and_with_the_same_data() {
    let folder = folder(&[("p.jsonl", &sums(12)), ("e.jsonl", &sums(2)), ("judge.py", JUDGE)]);
    let judge = "task.verifier.command=[\"python3\", \"judge.py\"]";
    out(&train(&folder, "p.jsonl", &["--eval-data", "e.jsonl", "--set", judge]));
    let place = folder.path().join("run").display().to_string();
    let again = |more: &[&str]| {
        let _ = fs::remove_dir_all(folder.path().join("run/checkpoints/step-000002"));
        let mut args = vec!["train", "--resume", "--out", &place];
        args.extend(more);
        gradstone(Path::new("/"), &args)
    };
    let (config, metrics) = (read(&folder, "run/config.toml"), read(&folder, "run/rollouts.jsonl"));
    out(&again(&[]));
    assert_eq!(read(&folder, "run/config.toml"), config);
    assert_eq!(read(&folder, "run/rollouts.jsonl"), metrics);
    for (name, text) in [("p.jsonl", sums(13)), ("e.jsonl", sums(3))] {
        let before = read(&folder, "run/config.toml");
        fs::write(folder.path().join(name), text).unwrap();
        let output = again(&[]);
        let text = err(&output);
        assert!(!output.status.success() && text.contains(name), "{text}");
        assert!(
            text.contains("has changed since the run began") && text.contains("--accept-changes"),
            "{text}"
        );
        assert_eq!(read(&folder, "run/config.toml"), before);
        out(&again(&["--accept-changes"]));
        assert_ne!(read(&folder, "run/config.toml"), before);
        out(&again(&[]));
    }
}

#[test]
fn a_file_of_its_own_is_what_is_evaluated_on() {
    let folder =
        folder(&[("p.jsonl", &sums(12)), ("e.csv", "question,solution\n3+1=,4\n5+5=,10\n")]);
    let said = out(&train(&folder, "p.jsonl", &["--eval-data", "e.csv"]));
    assert!(said.contains("1 of 12 problems are also held out and are not trained on"), "{said}");
    assert!(said.contains("11 problems to train on, 2 held out"), "{said}");
    let rollouts = read(&folder, "run/rollouts.jsonl");
    let trained_on = |prompt: &str| {
        let named = format!("\"prompt\":\"{prompt}\"");
        rollouts.lines().any(|line| line.contains(&named) && line.contains("\"advantage\":"))
    };
    assert!(!trained_on("3+1=") && !trained_on("5+5="), "{rollouts}");
    assert!(read(&folder, "run/metrics.jsonl").contains("\"eval_accuracy\":"));
}

#[test]
fn an_evaluation_counts_and_repeats() {
    let folder = folder(&[("p.jsonl", &sums(6)), ("judge.py", JUDGE)]);
    let judge = "task.verifier.command=[\"python3\", \"judge.py\"]";
    let evaluate = |more: &[&str]| {
        let mut args = vec![
            "evaluate",
            "--model",
            "m",
            "--data",
            "p.jsonl",
            "--max-tokens",
            "5",
            "--json",
            "e.json",
        ];
        args.extend(more);
        gradstone(folder.path(), &args)
    };
    let found = |more: &[&str]| -> (String, Value) {
        let said = out(&evaluate(more));
        (said, serde_json::from_str(&read(&folder, "e.json")).unwrap())
    };
    let four =
        ["--samples", "4", "--k", "1,3", "--set", judge, "--set", "task.verifier.time_limit=60"];
    let (said, first) = found(&four);
    assert!(said.contains("6 problems, 4 samples each, temperature 1"), "{said}");
    assert!(
        said.contains("pass@1  ") && said.contains("pass@3  ") && !said.contains("pass@2"),
        "{said}"
    );
    let problems = first["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 6);
    let right = |one: &Value| one["right"].as_f64().unwrap();
    let shares: f64 = problems.iter().map(|one| right(one) / 4.0).sum::<f64>() / 6.0;
    let pass = |found: &Value, at: usize, key: &str| found["pass_at"][at][key].as_f64().unwrap();
    assert!(
        (pass(&first, 0, "mean") - shares).abs() < 1e-12 && shares > 0.0 && shares < 1.0,
        "{first}"
    );
    assert!(pass(&first, 1, "mean") >= shares && pass(&first, 0, "low") <= shares);
    assert_eq!(first["attempts"], 24);
    assert_eq!(first["right"].as_f64().unwrap(), problems.iter().map(right).sum::<f64>());
    // Neither the batch nor the number of threads is seen in a result; the seed is.
    let mut other = four.to_vec();
    other.extend(["--set", "rollout.batch=3", "--threads", "1"]);
    assert_eq!(found(&other).1, first);
    other.extend(["--seed", "9"]);
    assert_ne!(found(&other).1["problems"], first["problems"]);

    let (said, greedy) = found(&[]);
    assert!(said.contains("temperature 0") && said.contains("Wilson"), "{said}");
    assert_eq!(greedy["pass_at"].as_array().unwrap().len(), 1);
    for (more, says) in [
        (&["--k", "2"][..], "--k 2: from 1 to the number of samples, 1"),
        (&["--samples", "2", "--temperature", "0"], "all 2 samples would be the same"),
        (&["--samples", "0"], "0 samples at temperature"),
        (&["--set", "task.format.answer=gold"], "there is no column `gold` (task.format.answer)"),
        (&["--set", "rollout.promts=3"], "did you mean `rollout.prompts`?"),
    ] {
        let output = evaluate(more);
        assert!(
            !output.status.success() && err(&output).contains(says),
            "{more:?}: {}",
            err(&output)
        );
    }
}

#[test]
fn a_run_is_evaluated_as_it_judged() {
    let folder =
        folder(&[("p.jsonl", &sums(12)), ("e.jsonl", &sums(3).replace("prompt", "query"))]);
    out(&train(&folder, "p.jsonl", &["--set", "task.verifier=exact"]));
    let args = ["evaluate", "--run", "run", "--data", "e.jsonl", "--json", "e.json"];
    let output = gradstone(folder.path(), &args);
    assert!(out(&output).contains("3 problems, 1 samples each, temperature 0, at most 2 tokens"));
    assert!(err(&output).contains("prompt `query`, answer `answer`"), "{}", err(&output));
    let found: Value = serde_json::from_str(&read(&folder, "e.json")).unwrap();
    assert!(found["model"].as_str().unwrap().ends_with("step-000002"));
    assert_eq!(found["unjudged"], 0);
    assert_eq!(found["problems"][2]["prompt"], "2+1=");
}
