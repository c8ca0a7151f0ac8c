//! Programs that judge: one that works, and one for everything that a program can do wrong.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::tasks::command::{CommandSettings, CommandVerifier, OnFailure};
use gradstone::tasks::json::Json;
use gradstone::tasks::steps::Segmentation;
use gradstone::tasks::{Attempt, Extent, Fault, Judged, Label, Problem, Verifier, judged};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What every script begins with: `ask()` gives the next request or ends, `say` answers one.
const HEAD: &str = "
import json, os, sys, time
def ask():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)
def say(asked, reward=1.0, **more):
    print(json.dumps({'id': asked['id'], 'reward': reward, **more}), flush=True)
";

/// A folder with a script, and the settings that run it.
fn script(body: &str) -> (TempDir, CommandSettings) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("judge.py");
    fs::write(&path, format!("{HEAD}{body}")).unwrap();
    let command = vec!["python3".to_owned(), path.display().to_string()];
    (folder, CommandSettings { command, time_limit: 20.0, ..CommandSettings::default() })
}

/// Starts a script with changed settings.
fn judge(body: &str, change: impl FnOnce(&mut CommandSettings)) -> (TempDir, CommandVerifier) {
    let (folder, mut settings) = script(body);
    change(&mut settings);
    (folder, CommandVerifier::start(settings).unwrap())
}

/// Asks for judgements of completions of one problem.
fn ask(verifier: &CommandVerifier, completions: &[&str]) -> gradstone::Result<Judged> {
    let problem = Problem::text(7, "2+2=", "4");
    let attempts: Vec<(&Problem, Attempt<'_>)> =
        completions.iter().map(|text| (&problem, Attempt::one_shot(text, &[], false))).collect();
    judged(verifier, &attempts)
}

/// The rewards of what was judged; -1 for an attempt that was left out.
fn rewards(judged: &Judged) -> Vec<f32> {
    judged.totals().into_iter().map(|reward| if reward.is_nan() { -1.0 } else { reward }).collect()
}

fn counts(judged: &Judged) -> Vec<(Fault, u64)> {
    judged.faults.iter().collect()
}

/// The failure that ends a run, in words.
fn ended(result: gradstone::Result<Judged>) -> String {
    let error = result.unwrap_err();
    assert!(error.is_state(), "{error}");
    let text = error.to_string();
    assert!(text.lines().count() <= 2, "{text}");
    text
}

fn is_alive(process: u32) -> bool {
    // A process that nobody has waited for yet is dead too: its state is Z.
    let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn dies(process: u32) -> bool {
    until(|| !is_alive(process))
}

/// True as soon as something is; false when it is not within a minute.
fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// The number in a file, once there is one.
fn number_in(path: &Path) -> u32 {
    let read = || fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    assert!(until(|| read().is_some()), "no number in {}", path.display());
    read().unwrap()
}

#[test]
fn the_example_judges() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/judge.py");
    let settings = CommandSettings {
        command: vec!["python3".to_owned(), path.display().to_string()],
        label: true,
        steps: Some(Segmentation::Tags),
        ..CommandSettings::default()
    };
    let verifier = CommandVerifier::start(settings).unwrap();
    verifier.try_out(&Problem::text(7, "2+2=", "4")).unwrap();
    let texts: Vec<String> = (0..200).map(|i| (i % 7).to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let all = ask(&verifier, &texts).unwrap();
    assert_eq!(counts(&all), []);
    for (i, judgement) in all.judgements.iter().enumerate() {
        let judgement = judgement.as_ref().unwrap();
        let right = i % 7 == 4;
        assert_eq!(judgement.rewards, [f32::from(u8::from(right))]);
        assert_eq!(judgement.label, Some(if right { Label::Right } else { Label::Wrong }));
        assert!(judgement.steps.is_empty());
    }
    let text = "<step>2+2 is 4</step><step>so 5</step> 5";
    let all = ask(&verifier, &[text]).unwrap();
    let steps = &all.judgements[0].as_ref().unwrap().steps;
    let seen: Vec<(&Extent, f32)> = steps.iter().map(|step| (&step.body, step.score)).collect();
    assert_eq!(seen, [(&Extent::Text(6..14), 1.0), (&Extent::Text(27..31), 0.0)]);
    assert!(verifier.notices().is_empty());
}

#[test]
fn answers_may_come_in_any_order() {
    let body = "
while True:
    several = [ask() for _ in range(4)]
    for asked in reversed(several):
        say(asked, float(asked['completion']))
";
    let (_folder, verifier) = judge(body, |settings| settings.in_flight = 4);
    let all = ask(&verifier, &["0", "1", "2", "3", "4", "5", "6", "7"]).unwrap();
    assert_eq!(rewards(&all), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(counts(&all), []);
}

#[test]
fn no_more_wait_than_are_allowed() {
    // Says how many requests it could read before it answered, after a pause in which more would have come.
    let body = "
import select
while True:
    read = b''
    while select.select([0], [], [], 0.3)[0]:
        piece = os.read(0, 65536)
        if not piece:
            sys.exit(0)
        read += piece
    lines = read.splitlines()
    for line in lines:
        say(json.loads(line), len(lines))
";
    for most in [1, 3] {
        let (_folder, verifier) = judge(body, |settings| settings.in_flight = most);
        let all = rewards(&ask(&verifier, &["x"; 7]).unwrap());
        assert!(
            all.iter().all(|together| (1.0..=most as f32).contains(together)),
            "{most}: {all:?}"
        );
    }
}

#[test]
fn several_named_rewards() {
    let body = "
while True:
    asked = ask()
    print(json.dumps({'id': asked['id'], 'rewards': {'style': 0.25, 'right': 1}}), flush=True)
";
    let names = || vec!["right".to_owned(), "style".to_owned()];
    let (_folder, verifier) = judge(body, |settings| settings.rewards = names());
    assert_eq!(verifier.rewards(), names());
    let all = ask(&verifier, &["x"]).unwrap();
    assert_eq!(all.judgements[0].as_ref().unwrap().rewards, [1.0, 0.25]);
}

#[test]
fn the_records_fields_are_sent() {
    let body = "
while True:
    asked = ask()
    expected = {'id': 0, 'prompt': 'q', 'completion': 'a \\n\\u00e9', 'answer': '', 'truncated': True,
                'facts': [1, {'x': None}], 'record': {'id': 'mine'}}
    say(asked, float(asked == expected))
";
    let (_folder, verifier) = judge(body, |_| ());
    let record = r#"{"facts": [1, {"x": null}], "id": "mine"}"#;
    let Ok(Json::Object(fields)) = Json::parse(record) else { panic!() };
    let problem = Problem { fields, ..Problem::text(3, "q", "") };
    let attempt = Attempt::one_shot("a \n\u{e9}", &[], true);
    assert_eq!(judged(&verifier, &[(&problem, attempt)]).unwrap().totals(), [1.0]);
}

#[test]
fn a_crash_costs_the_attempt_that_causes_it() {
    let body = "
while True:
    asked = ask()
    if asked['completion'] == 'bad':
        print('cannot read this', file=sys.stderr)
        sys.exit(3)
    say(asked)
";
    let (_folder, verifier) = judge(body, |_| ());
    let all = ask(&verifier, &["a", "b", "bad", "c", "d", "e", "bad", "f", "g", "h", "i"]).unwrap();
    let expected = [1.0, 1.0, -1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0];
    assert_eq!(rewards(&all), expected);
    assert!(all.faults.count(Fault::Crashed) >= 2);
    assert_eq!(counts(&all).len(), 1);
    let said = verifier.notices().join("\n");
    assert!(said.contains("judge: cannot read this") && said.contains("exit status: 3"), "{said}");
    // It goes on afterwards.
    assert_eq!(rewards(&ask(&verifier, &["a"]).unwrap()), [1.0]);
}

#[test]
fn a_program_that_answers_once_is_started_again_each_time() {
    let (_folder, verifier) = judge("say(ask())\n", |settings| settings.restarts = 1);
    assert_eq!(rewards(&ask(&verifier, &["a", "b", "c", "d"]).unwrap()), [1.0; 4]);
    // Its end while nothing waited costs nothing either.
    assert_eq!(rewards(&ask(&verifier, &["e"]).unwrap()), [1.0]);
}

#[test]
fn a_program_that_always_ends_ends_the_run() {
    let body = "
print('no module named judge', file=sys.stderr)
sys.exit(2)
";
    let (_folder, verifier) = judge(body, |settings| settings.restarts = 2);
    let text = ended(ask(&verifier, &["a", "b", "c"]));
    assert!(text.contains("exit status: 2") && text.contains("failure 3 in a row"), "{text}");
    assert!(text.contains("its standard error ends: no module named judge"), "{text}");
    let first = verifier.try_out(&Problem::text(0, "q", "a")).unwrap_err();
    assert!(first.is_state(), "{first}");
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    for command in ["/no/such/program", "/etc/passwd"] {
        let command = vec![command.to_owned()];
        let settings = CommandSettings { command, ..CommandSettings::default() };
        let error = CommandVerifier::start(settings).err().unwrap();
        let text = error.to_string();
        assert!(error.is_io() && text.starts_with("starting the judge `/"), "{text}");
    }
    let error = CommandVerifier::start(CommandSettings::default()).err().unwrap();
    assert!(error.is_invalid(), "{error}");
}

#[test]
fn silence_has_a_limit() {
    let body = "
while True:
    asked = ask()
    if asked['completion'] == 'slow':
        time.sleep(3600)
    say(asked)
";
    let (_folder, verifier) = judge(body, |settings| {
        settings.time_limit = 0.5;
        settings.start_limit = Some(20.0);
    });
    // The first answer has the limit of the start, so the slow one comes second.
    assert_eq!(rewards(&ask(&verifier, &["a"]).unwrap()), [1.0]);
    let (_other, impatient) = judge(body, |settings| settings.time_limit = 2.0);
    let all = ask(&impatient, &["a", "slow", "b", "c"]).unwrap();
    assert_eq!(rewards(&all), [1.0, -1.0, 1.0, 1.0]);
    assert!(all.faults.count(Fault::TimedOut) >= 1);
    let said = impatient.notices().join("\n");
    assert!(said.contains("did not answer for 2 s"), "{said}");
}

#[test]
fn a_program_that_never_answers_ends_the_run() {
    for body in [
        "time.sleep(3600)\n",
        "while True: ask()\n",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: ask()\n",
    ] {
        let (_folder, verifier) = judge(body, |settings| {
            settings.time_limit = 0.3;
            settings.restarts = 1;
        });
        // More than a pipe holds, so that writing blocks where nothing is read.
        let long = "x".repeat(1 << 20);
        let text = ended(ask(&verifier, &[&long, &long, "a"]));
        assert!(text.contains("did not answer for 0.3 s; failure 2 in a row"), "{text}");
    }
}

#[test]
fn what_is_no_json_is_no_answer() {
    let body = "
print('loading', flush=True)
print(flush=True)
while True:
    asked = ask()
    if asked['completion'] == 'odd':
        print('I think it is fine', flush=True)
    else:
        say(asked)
";
    let (_folder, verifier) = judge(body, |settings| settings.time_limit = 2.0);
    let all = ask(&verifier, &["a", "odd", "b"]).unwrap();
    assert_eq!(rewards(&all), [1.0, -1.0, 1.0]);
    // A line that the program writes when it starts harms nobody, but it is counted.
    assert!(all.faults.count(Fault::NotJson) >= 3);
    let said = verifier.notices().join("\n");
    assert!(said.contains("a line that is no JSON object: I think it is fine"), "{said}");
}

#[test]
fn second_answers_and_unknown_ids_are_counted() {
    let body = "
while True:
    asked = ask()
    say(asked, 0.5)
    say(asked, 0.75)
    say({'id': 123456})
    say({'id': 'three'})
    print('{\"reward\": 1}', flush=True)
";
    let (_folder, verifier) = judge(body, |settings| settings.in_flight = 1);
    let first = ask(&verifier, &["a", "b"]).unwrap();
    let second = ask(&verifier, &["c"]).unwrap();
    assert_eq!((rewards(&first), rewards(&second)), (vec![0.5, 0.5], vec![0.5]));
    let all = first.faults.plus(&second.faults);
    assert_eq!([Fault::AnsweredTwice, Fault::UnknownId].map(|fault| all.count(fault)), [2, 6]);
}

#[test]
fn answers_that_are_no_verdict_cost_their_attempt() {
    let body = "
while True:
    asked = ask()
    asked['reward'] = {'nan': float('nan'), 'none': None, 'text': 'good', 'fine': 1}[asked['completion']]
    print(json.dumps(asked), flush=True)
";
    let (_folder, verifier) = judge(body, |_| ());
    let all = ask(&verifier, &["nan", "fine", "none", "text"]).unwrap();
    assert_eq!(rewards(&all), [-1.0, 1.0, -1.0, -1.0]);
    assert_eq!(counts(&all), [(Fault::NotFinite, 2), (Fault::Malformed, 1)]);
    let end = |settings: &mut CommandSettings| settings.on_failure = OnFailure::End;
    let (_folder, strict) = judge(body, end);
    let text = ended(ask(&strict, &["fine", "text"]));
    assert!(text.contains("`reward` is \"good\", not a number"), "{text}");
    let error = strict.try_out(&Problem::text(0, "q", "text")).unwrap_err().to_string();
    assert!(error.contains("not a number"), "{error}");
    let error = verifier.try_out(&Problem::text(0, "q", "none")).unwrap_err().to_string();
    assert!(error.contains("no verdict on a first problem: answer to id"), "{error}");
    verifier.try_out(&Problem::text(0, "q", "fine")).unwrap();
}

#[test]
fn promised_labels_and_steps_must_come() {
    let body = "
while True:
    asked = ask()
    more = {'steps': [True] * (len(asked['steps']) + asked['completion'].count('more'))}
    if 'mute' not in asked['completion']:
        more['label'] = 'refused'
    say(asked, **more)
";
    let (_folder, verifier) = judge(body, |settings| {
        settings.label = true;
        settings.steps = Some(Segmentation::Numbered);
    });
    let all = ask(&verifier, &["1. a\n2. b\n#### 4", "1. mute", "1. more", "nothing"]).unwrap();
    assert_eq!(rewards(&all), [1.0, -1.0, -1.0, 1.0]);
    assert_eq!(counts(&all), [(Fault::Malformed, 2)]);
    let first = all.judgements[0].as_ref().unwrap();
    assert_eq!((first.label, first.steps.len()), (Some(Label::Refused), 2));
    assert_eq!(first.answer, Some(Extent::Text(10..16)));
}

#[test]
fn a_flood_has_a_bound() {
    for flood in [
        "while True: sys.stdout.write('x' * 65536)",
        "while True: print('x')",
        "while True: print()",
        "while True: say({'id': asked['id'] + 1000})",
        "while True: say(asked, 'no number')",
    ] {
        let body = format!(
            "
while True:
    asked = ask()
    if asked['completion'] == 'bad':
        {flood}
    say(asked)
"
        );
        let (_folder, verifier) = judge(&body, |_| ());
        let all = ask(&verifier, &["a", "bad", "b"]).unwrap();
        assert_eq!(rewards(&all), [1.0, -1.0, 1.0], "{flood}");
        let said = verifier.notices();
        assert!(said.len() < 100 && said.iter().all(|line| line.len() < 600), "{flood}");
        let (_folder, verifier) =
            judge(&format!("asked = ask()\n{flood}\n"), |settings| settings.restarts = 1);
        if !flood.contains("no number") {
            let text = ended(ask(&verifier, &["a", "b"]));
            assert!(text.contains("wrote without end; failure 2 in a row"), "{text}");
        }
    }
}

#[test]
fn a_flood_of_standard_error_blocks_nothing() {
    let body = "
while True:
    asked = ask()
    for number in range(20000):
        print('x' * 1000, file=sys.stderr)
    sys.stderr.write('y' * 3000000)
    say(asked)
";
    let (_folder, verifier) = judge(body, |_| ());
    assert_eq!(rewards(&ask(&verifier, &["a", "b"]).unwrap()), [1.0, 1.0]);
    assert!(until(|| {
        let said = verifier.notices();
        assert!(said.len() < 100 && said.iter().all(|line| line.len() < 600));
        said.last().is_some_and(|line| line.ends_with("more lines"))
    }));
}

#[test]
fn a_closed_standard_output_is_an_end() {
    let body = "
asked = ask()
os.close(1)
time.sleep(3600)
";
    let (_folder, verifier) = judge(body, |settings| settings.restarts = 0);
    let text = ended(ask(&verifier, &["a"]));
    assert!(text.contains("ended (signal: 9 (SIGKILL)); failure 1 in a row"), "{text}");
}

#[test]
fn its_input_is_closed_at_the_end() {
    let body = "
while True:
    line = sys.stdin.readline()
    if not line:
        open(os.path.join(os.path.dirname(__file__), 'closed'), 'w').write(str(os.getpid()))
        break
    say(json.loads(line))
";
    let (folder, verifier) = judge(body, |_| ());
    assert_eq!(rewards(&ask(&verifier, &["a"]).unwrap()), [1.0]);
    drop(verifier);
    let process = number_in(&folder.path().join("closed"));
    assert!(!is_alive(process));
}

/// Starts a descendant, and neither ends when its input is closed.
const STAYS: &str = "
import subprocess
child = subprocess.Popen(['sleep', '3600'], stdin=subprocess.DEVNULL)
folder = os.path.dirname(__file__)
for name, number in [('child', child.pid), ('judge', os.getpid())]:
    open(os.path.join(folder, name), 'w').write(str(number) + '\\n')
while True:
    line = sys.stdin.readline()
    if not line:
        time.sleep(3600)
    say(json.loads(line))
";

#[test]
fn what_it_started_ends_with_it() {
    let (folder, verifier) = judge(STAYS, |_| ());
    assert_eq!(rewards(&ask(&verifier, &["a"]).unwrap()), [1.0]);
    let [judge, child] = ["judge", "child"].map(|name| number_in(&folder.path().join(name)));
    assert!(is_alive(judge) && is_alive(child));
    drop(verifier);
    assert!(dies(judge) && dies(child));
}

/// A tiny run with a judge.
fn train(run: &Path, settings: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradstone"));
    command.args(["train", "--device", "cpu", "--out"]).arg(run);
    for setting in [
        "model.hidden_size=16",
        "model.layers=1",
        "model.heads=2",
        "task.largest=4",
        "warmup.steps=2",
        "rollout.prompts=4",
        "rollout.group=4",
        "rollout.max_new_tokens=3",
        "evaluation.problems=4",
    ] {
        command.args(["--set", setting]);
    }
    for setting in settings {
        command.args(["--set", setting]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn command_of(path: &Path) -> String {
    format!("task.verifier.command=[\"python3\", \"{}\"]", path.display())
}

#[test]
fn a_run_with_a_judge() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/judge.py");
    let folder = tempfile::tempdir().unwrap();
    let metrics = |name: &str, settings: &[String]| {
        let run = folder.path().join(name);
        let output = train(&run, settings).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let log = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            ["loss", "reward", "eval_accuracy"].map(|name| value[name].clone())
        };
        log.lines().map(line).collect::<Vec<_>>()
    };
    let steps = || "steps=3".to_owned();
    // The example judges as `exact` does, so the two runs are the same.
    let judged = metrics("judged", &[command_of(&example), steps()]);
    assert_eq!(judged.len(), 5);
    assert_eq!(judged, metrics("exact", &["task.verifier=\"exact\"".to_owned(), steps()]));
}

#[test]
fn what_a_judge_writes_on_its_standard_error_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talks.py");
    let body = "import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    print('looking at it', file=sys.stderr, flush=True)
    print(json.dumps({'id': asked['id'], 'reward': 1.0}), flush=True)
";
    fs::write(&path, body).unwrap();
    let settings = [command_of(&path), "steps=1".to_owned()];
    let output = train(&folder.path().join("run"), &settings).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("looking at it"), "{said}");
}

#[test]
fn a_judge_that_does_not_work_is_refused_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let mute = folder.path().join("mute.py");
    fs::write(&mute, "import sys\nfor line in sys.stdin: print('{\"id\": 0}', flush=True)\n")
        .unwrap();
    let missing = "task.verifier.command=[\"/no/such/judge\"]".to_owned();
    for (setting, says) in [
        (missing, "starting the judge `/no/such/judge`: No such file"),
        (
            command_of(&folder.path().join("none.py")),
            "no verdict on a first problem: it ended (exit status: 2)",
        ),
        (command_of(&mute), "no verdict on a first problem: answer to id 0: neither `reward` nor"),
    ] {
        let run = folder.path().join("run");
        let output = train(&run, &[setting]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: ") && error.contains(says), "{error}");
        assert!(error.lines().count() <= 2 && !run.exists(), "{error}");
    }
}

#[test]
fn a_judge_dies_with_a_run_that_is_killed() {
    let (folder, _) = script(STAYS);
    let settings = [command_of(&folder.path().join("judge.py")), "steps=100000".to_owned()];
    let run = folder.path().join("run");
    let mut trainer: Child = train(&run, &settings).stdout(Stdio::null()).spawn().unwrap();
    let [judge, child] = ["judge", "child"].map(|name| number_in(&folder.path().join(name)));
    let log = run.join("metrics.jsonl");
    assert!(until(|| fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 2)));
    assert!(is_alive(judge) && is_alive(child));
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    assert!(dies(judge) && dies(child));
}
