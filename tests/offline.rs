//! Runs that learn from files of demonstrations, preferences and labels: what they learn, the same bits after an
//! interruption, and what is said of records that cannot be used.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::Device;
use gradstone::dtype::DType;
use gradstone::models::{Decoder, DecoderConfig};
use gradstone::recipes;
use gradstone::rl::preference::dpo::LossType;
use gradstone::rl::preference::{Cpo, Dpo, Kto, Orpo};
use gradstone::rng::{Sequence, Stream};
use gradstone::tensor::Gradients;
use gradstone::tensor::autograd::with_grad;
use gradstone::text::Tokenizer;
use gradstone::train::kind::RunSettings;
use gradstone::train::offline::learner::Learner;
use gradstone::train::offline::settings::{OfflineHeldOut, TooLong};
use gradstone::train::offline::{OfflineObjective, OfflineSession, OfflineSettings, Record};
use gradstone::train::settings::ModelSettings;
use gradstone::train::{Observer, Outcome, Phase, RunDir, StepMetrics, Trainee};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(Default)]
struct Seen {
    steps: Vec<StepMetrics>,
    stop_after: Option<u64>,
}

impl Observer for Seen {
    fn step(&mut self, metrics: &StepMetrics) {
        self.steps.push(metrics.clone());
    }
    fn interrupted(&self) -> bool {
        self.stop_after.is_some_and(|stop| self.steps.last().is_some_and(|m| m.step >= stop))
    }
}

const LETTERS: &str = "abcdefgh";

/// A random model of characters in a folder.
fn model(folder: &Path, chat: bool) -> PathBuf {
    let path = folder.join(if chat { "chat" } else { "model" });
    std::fs::create_dir_all(&path).unwrap();
    let mut tokenizer = Tokenizer::characters("abcdefgh=!?<>").unwrap();
    if chat {
        let source = "{% for m in messages %}{% if m.role == 'user' %}<{{ m.content }}>{% else %}!{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}!{% endif %}";
        tokenizer = tokenizer.with_chat_template(source, "own").unwrap();
    }
    let mut config = DecoderConfig::small("llama", tokenizer.vocab_size(), 32, 1, 2, 24).unwrap();
    config.set_eos(tokenizer.eos());
    Decoder::random(config, DType::F32, 3).unwrap().save(&path).unwrap();
    tokenizer.save(&path).unwrap();
    path
}

/// Every pair of letters in some order: a prompt, its right answer (the second letter twice) and a wrong one, which says that it knows nothing more.
fn pairs() -> Vec<(String, String, String)> {
    let pair = |a: char| LETTERS.chars().map(move |b| (a, b));
    let answered = |(a, b)| (format!("{a}{b}="), format!("{b}{b}"), format!("{b}??"));
    let mut all: Vec<(String, String, String)> =
        LETTERS.chars().flat_map(pair).map(answered).collect();
    Sequence::new(5, Stream::Free, 0).shuffle(&mut all);
    all
}

fn file(
    folder: &Path,
    name: &str,
    line: impl Fn(usize, &(String, String, String)) -> String,
) -> PathBuf {
    let mut text = String::new();
    for (i, one) in pairs().iter().enumerate() {
        writeln!(text, "{}", line(i, one)).unwrap();
    }
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn demonstrations(folder: &Path) -> PathBuf {
    file(folder, "sft.jsonl", |_, (prompt, good, _)| {
        format!(r#"{{"prompt": "{prompt}", "completion": "{good}"}}"#)
    })
}

fn preferences(folder: &Path) -> PathBuf {
    file(folder, "dpo.jsonl", |_, (prompt, good, bad)| {
        format!(r#"{{"prompt": "{prompt}", "chosen": "{good}", "rejected": "{bad}"}}"#)
    })
}

fn labels(folder: &Path) -> PathBuf {
    file(folder, "kto.jsonl", |i, (prompt, good, bad)| {
        let (label, text) = if i % 3 == 0 { (false, bad) } else { (true, good) };
        format!(r#"{{"prompt": "{prompt}", "completion": "{text}", "label": {label}}}"#)
    })
}

fn settings(mut of: OfflineSettings, model: &Path, data: &Path, steps: u64) -> OfflineSettings {
    of.model = ModelSettings::Folder { path: model.into(), dtype: None, date: None };
    of.data.path = data.into();
    of.steps = Some(steps);
    of.batch = 8;
    of.micro_batch_tokens = 40;
    of.optimizer.learning_rate = 3e-3;
    of.schedule.warmup = 2;
    of.evaluation.every = 5;
    of.evaluation.max_new_tokens = 8;
    of.checkpoint.every = 3;
    of
}

fn opened(settings: &OfflineSettings) -> OfflineSession {
    OfflineSession::open(settings.clone(), None, &Device::Cpu).unwrap()
}

fn created(settings: &OfflineSettings, at: &Path) -> RunDir {
    let text = RunSettings::Offline(Box::new(settings.clone())).to_toml().unwrap();
    RunDir::create(at, &text).unwrap()
}

fn trained(settings: &OfflineSettings, at: &Path) -> (OfflineSession, Vec<StepMetrics>) {
    let mut session = opened(settings);
    let mut seen = Seen::default();
    let run = created(session.settings(), at);
    let outcome = gradstone::train::run(&mut session, &run, &mut seen).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    (session, seen.steps)
}

fn bits(steps: &[StepMetrics]) -> Vec<String> {
    let one = |m: &StepMetrics| {
        let more: Vec<_> = m.more.iter().map(|(name, x)| (name, x.to_bits())).collect();
        format!("{} {:?} {:?} {:?} {:?} {more:?}", m.step, m.phase, m.loss, m.grad_norm, m.entropy)
    };
    steps.iter().map(one).collect()
}

#[test]
fn demonstrations_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (model(folder.path(), false), demonstrations(folder.path()));
    let mut of = settings(recipes::sft(), &model, &data, 150);
    of.optimizer.learning_rate = 1e-2;
    of.evaluation.every = 0;
    of.evaluation.completions = 8;
    let at = folder.path().join("run");
    let before = opened(&of).evaluate().unwrap().loss;
    let (session, steps) = trained(&of, &at);
    let last = steps.last().unwrap();
    assert_eq!(last.phase, Phase::Sft);
    let after = f64::from(last.more["eval_loss"]);
    assert!(after < 0.3 * before, "held-out loss {before}, then {after}");
    let answers = session.answers().unwrap();
    let right = answers.iter().filter(|one| one.completion == one.answer).count();
    assert!(right * 2 >= answers.len() && !answers.is_empty(), "{answers:?}");
    let run = RunDir::open(&at).unwrap();
    let page = std::fs::read_to_string(gradstone::train::report::write(&run).unwrap()).unwrap();
    assert!(page.contains("Supervised loss") && page.contains("Held-out loss"));
    assert!(run.rollouts_path().exists());
}

/// From the same random start: what each loss of preferences is for.
#[test]
fn preferences_and_labels_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let model = model(path, false);
    let (pairs, labels) = (preferences(path), labels(path));
    let dpo = |loss_type: &[LossType]| {
        OfflineObjective::Dpo(Dpo { loss_type: loss_type.to_vec(), beta: 0.3, ..Dpo::default() })
    };
    let simpo = Cpo {
        loss_type: gradstone::rl::preference::cpo::CpoLoss::Simpo,
        beta: 2.0,
        cpo_alpha: 0.0,
        ..Cpo::default()
    };
    let weighted = Dpo { use_weighting: true, beta: 0.3, ..Dpo::default() };
    for (name, objective, data) in [
        ("sigmoid", dpo(&[LossType::Sigmoid]), &pairs),
        ("mpo", dpo(&[LossType::Sigmoid, LossType::BcoPair, LossType::Sft]), &pairs),
        ("aot", dpo(&[LossType::Aot]), &pairs),
        ("wpo", OfflineObjective::Dpo(weighted), &pairs),
        ("simpo", OfflineObjective::Cpo(simpo), &pairs),
        ("orpo", OfflineObjective::Orpo(Orpo { beta: 1.0 }), &pairs),
        ("kto", OfflineObjective::Kto(Kto { beta: 0.3, ..Kto::default() }), &labels),
        ("kto of pairs", OfflineObjective::Kto(Kto { beta: 0.3, ..Kto::default() }), &pairs),
    ] {
        let of = OfflineSettings { objective, ..settings(recipes::dpo(), &model, data, 25) };
        let before = opened(&of).evaluate().unwrap();
        let (_, steps) = trained(&of, &path.join(name));
        let last = steps.last().unwrap();
        assert_eq!(last.phase, Phase::Preference);
        let margin = f64::from(last.more["eval_margin"]) - before.margin().unwrap();
        assert!(margin > 0.05, "{name}: the margin rises by {margin}");
        assert!(f64::from(last.more["eval_loss"]) < before.loss, "{name}");
        assert!(last.eval_accuracy.unwrap() >= 0.8, "{name}: {:?}", last.eval_accuracy);
        for key in ["reward_chosen", "reward_rejected", "margin", "accuracy"] {
            assert!(last.more.contains_key(key) || name.starts_with("kto"), "{name}: {key}");
        }
        assert_eq!(last.more.contains_key("kl_estimate"), name.starts_with("kto"));
        assert!(last.tokens_per_second > 0.0 && last.entropy.unwrap() > 0.0);
    }
}

/// The policy is the reference at the start: rewards of 0, and the loss that this means.
#[test]
fn a_run_begins_at_its_reference() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (model(folder.path(), false), preferences(folder.path()));
    let of = settings(recipes::dpo(), &model, &data, 1);
    let start = opened(&of).evaluate().unwrap();
    assert_eq!((start.reward_chosen, start.reward_rejected), (Some(0.0), Some(0.0)));
    assert!((start.loss - 2f64.ln()).abs() < 1e-12);
    // The same folder as a reference of its own, and another one.
    let of = OfflineSettings { reference: Some(model.clone()), ..of };
    assert_eq!(opened(&of).evaluate().unwrap(), start);
    let (trained, _) =
        trained(&OfflineSettings { steps: Some(3), ..of }, &folder.path().join("run"));
    assert!(trained.evaluate().unwrap().reward_chosen != Some(0.0));
}

/// How records are cut into micro-batches changes the order of additions alone, also where pairs depend on each other.
#[test]
fn micro_batches_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (model, pairs) = (model(folder.path(), false), preferences(folder.path()));
    let of = settings(recipes::dpo(), &model, &pairs, 3);
    let (session, _) = trained(&of, &folder.path().join("run"));
    let records: Vec<&Record> = session.training()[..12].iter().collect();
    for loss_type in [LossType::Sigmoid, LossType::Aot, LossType::AotUnpaired, LossType::Sft] {
        let dpo = Dpo { loss_type: vec![loss_type], ld_alpha: 0.5, ..Dpo::default() };
        let objective = OfflineObjective::Dpo(dpo);
        let of = |micro_batch_tokens| {
            let policy = session.policy();
            let learner = Learner { policy, objective: &objective, micro_batch_tokens };
            let mut gradients = Gradients::new();
            let learned = with_grad(|| learner.gradients(&records, &mut gradients)).unwrap();
            assert_eq!(learner.measure(&records).unwrap().loss, learned.loss);
            let all: Vec<f32> = policy
                .parameters()
                .iter()
                .filter_map(|p| gradients.get(p.id()))
                .flat_map(|g| g.f32s().unwrap().to_vec())
                .collect();
            (learned.loss, all)
        };
        let (whole, parts) = (of(1 << 20), of(30));
        assert!((whole.0 - parts.0).abs() < 1e-9, "{loss_type:?}");
        assert!(!whole.1.is_empty() && whole.1.iter().any(|x| x.abs() > 1e-4));
        for (a, b) in whole.1.iter().zip(&parts.1) {
            assert!((a - b).abs() < 1e-5, "{loss_type:?}: {a} {b}");
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let model = model(path, true);
    for (name, recipe, data) in [
        ("sft", recipes::sft(), demonstrations(path)),
        ("dpo", recipes::dpo(), preferences(path)),
        ("kto", recipes::kto(), labels(path)),
        ("orpo", recipes::orpo(), preferences(path)),
    ] {
        let of = settings(recipe, &model, &data, 7);
        let (_, whole) = trained(&of, &path.join(name));
        assert_eq!(whole.len(), 7);
        for stop in [2, 5] {
            let run = created(&of, &path.join(format!("{name}-{stop}")));
            let mut first = Seen { stop_after: Some(stop), ..Seen::default() };
            let outcome = gradstone::train::run(&mut opened(&of), &run, &mut first).unwrap();
            assert_eq!(outcome, Outcome::Interrupted);
            let (checkpoint, _) = run.checkpoints(0).latest().unwrap();
            let checkpoint = checkpoint.unwrap();
            let settings = RunSettings::from_toml(&run.config().unwrap(), "config.toml").unwrap();
            let mut rest = Seen::default();
            let mut session = settings.open(Some(&checkpoint), &Device::Cpu).unwrap().trainee;
            run.rewind(session.step()).unwrap();
            gradstone::train::run(&mut *session, &run, &mut rest).unwrap();
            let all = [bits(&first.steps), bits(&rest.steps)].concat();
            assert_eq!(all, bits(&whole), "{name} stopped after {stop}");
        }
    }
}

/// A record of one's own, that lacks what the loss reads.
#[test]
fn an_incomplete_record_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (model(folder.path(), false), preferences(folder.path()));
    let session = opened(&settings(recipes::dpo(), &model, &data, 1));
    let good = session.training()[0].clone();
    for record in [
        Record::default(),
        Record { reference: Vec::new(), ..good.clone() },
        Record { sequences: good.sequences[..1].to_vec(), ..good.clone() },
    ] {
        for objective in
            [OfflineObjective::Dpo(Dpo::default()), OfflineObjective::Kto(Kto::default())]
        {
            let policy = session.policy();
            let learner = Learner { policy, objective: &objective, micro_batch_tokens: 64 };
            assert!(learner.measure(&[&record]).unwrap_err().is_invalid());
        }
    }
}

#[test]
fn epochs_decide_the_steps() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (model(folder.path(), false), demonstrations(folder.path()));
    let mut of = settings(recipes::sft(), &model, &data, 1);
    (of.steps, of.epochs, of.data.held_out) = (None, 1.5, 4);
    let session = opened(&of);
    let count = session.training().len();
    let expected = (1.5 * count as f64 / 8.0).ceil() as u64;
    assert_eq!((session.total_steps(), session.held_out().len()), (expected, 4));
    // A run writes down what was found.
    assert_eq!(session.settings().steps, Some(expected));
    assert!(session.settings().data.fingerprint.is_some());
    let own = file(folder.path(), "own.jsonl", |_, (_, good, _)| {
        format!(r#"{{"prompt": "?", "completion": "{good}"}}"#)
    });
    of.data.held_out = 0;
    of.data.evaluation = Some(OfflineHeldOut { path: own, fingerprint: None });
    let session = opened(&of);
    assert_eq!(session.training().len(), count + 4);
    assert_eq!(session.held_out().len(), pairs().len());
}

/// The settings of one file, and what opening it says.
fn refused(of: &OfflineSettings) -> String {
    OfflineSession::open(of.clone(), None, &Device::Cpu).err().expect("an error").to_string()
}

#[test]
fn records_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), false);
    let path = folder.path().join("p.jsonl");
    let place = path.display().to_string();
    let good = r#"{"prompt": "a=", "completion": "a"}"#;
    let long = format!(r#"{{"prompt": "a=", "completion": "{}"}}"#, "b".repeat(40));
    let with = |bad: &str| format!("{good}\n{bad}\n{}\n", good.replace("a=", "b="));
    let of = |text: &str, recipe| {
        std::fs::write(&path, text).unwrap();
        settings(recipe, &model, &path, 1)
    };
    for (bad, recipe, says) in [
        ("{\"prompt\": \"a=\"", recipes::sft(), "not a JSON object"),
        (
            r#"{"prompt": "a="}"#,
            recipes::sft(),
            "wanted are `messages`, `prompt` and `completion`, or `text`; it has prompt",
        ),
        (r#"{"prompt": "Z=", "completion": "a"}"#, recipes::sft(), "cannot encode"),
        (long.as_str(), recipes::sft(), "it has 43 tokens, and 24 fit"),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            recipes::sft(),
            "need a chat template",
        ),
    ] {
        let error = refused(&of(&with(bad), recipe));
        assert!(error.contains(&format!("{place}:2: ")) && error.contains(says), "{error}");
        assert!(error.contains("data.skip_bad = true"), "{error}");
        let mut skipping = of(&with(bad), recipes::sft());
        skipping.data.skip_bad = true;
        let session = opened(&skipping);
        assert_eq!((session.training().len(), session.held_out().len()), (1, 1));
        assert!(
            session
                .opening_notices()
                .iter()
                .any(|line| line.contains("1 of 3 records are left out"))
        );
    }
    let error = refused(&of(r#"{"prompt": "a=", "chosen": "a", "rejected": "b"}"#, recipes::sft()));
    assert!(
        error.contains("preference, which the recipes dpo, orpo and kto learn from"),
        "{error}"
    );
    for recipe in [recipes::dpo(), recipes::orpo()] {
        let error = refused(&of(good, recipe));
        assert!(error.contains("wanted are `prompt`, `chosen` and `rejected`"), "{error}");
    }
    assert!(refused(&of(good, recipes::kto())).contains("`completion` and `label`"));
    assert!(refused(&of("", recipes::sft())).contains("no usable record"));
    for (too_long, records, longest) in [(TooLong::LeaveOut, 1, 4), (TooLong::Cut, 2, 24)] {
        let mut of = of(&with(&long), recipes::sft());
        of.data.too_long = too_long;
        of.data.evaluation =
            Some(OfflineHeldOut { path: demonstrations(folder.path()), fingerprint: None });
        let session = opened(&of);
        let lengths: Vec<usize> =
            session.training().iter().map(|record| record.sequences[0].tokens()).collect();
        assert_eq!(lengths.len(), records + 1);
        assert_eq!(lengths.iter().max(), Some(&longest));
    }
}

#[test]
fn a_chat_template_decides_what_is_learned() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), true);
    let turns = r#"{"messages": [{"role": "user", "content": "a="}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c="}, {"role": "assistant", "content": "d"}]}"#;
    let path = folder.path().join("p.jsonl");
    std::fs::write(&path, format!("{turns}\n{}\n", turns.replace("a=", "h="))).unwrap();
    let session = opened(&settings(recipes::sft(), &model, &path, 1));
    let encoded = &session.training()[0].sequences[0];
    let text = |ids: &[i32]| session.codec().tokenizer().decode(ids).unwrap();
    assert_eq!(text(&encoded.prompt), "<a=>!");
    assert_eq!(text(&encoded.completion), "b<c=>!d");
    let learned: Vec<i32> = encoded
        .completion
        .iter()
        .zip(&encoded.mask)
        .filter(|(_, mask)| **mask == 1)
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(text(&learned), "bd");
    assert_eq!(learned.len(), 3, "and the end");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let load = |kind: fn() -> OfflineSettings, sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|one| (*one).to_owned()).collect();
        RunSettings::load(gradstone::train::kind::Kind::Offline(kind), None, &sets)
            .and_then(|settings| settings.check())
    };
    load(recipes::dpo, &["objective.kind=cpo", "objective.loss_type=simpo"]).unwrap();
    load(recipes::dpo, &["objective.loss_type=[\"sigmoid\", \"sft\"]"]).unwrap();
    for (kind, sets, says) in [
        (recipes::sft as fn() -> OfflineSettings, &["objective.beta=0.1"][..], "unknown key"),
        (recipes::dpo, &["objective.bta=0.1"], "did you mean `objective.beta`"),
        (recipes::dpo, &["objective.loss_type=[\"best\"]"], "unknown variant `best`"),
        (recipes::dpo, &["objective.beta=-1"], "objective: beta is -1"),
        (recipes::sft, &["epochs=0"], "epochs is 0"),
        (recipes::orpo, &["reference=\"x\""], "this objective measures from none"),
        (recipes::sft, &["data.held_out=3", "data.evaluation={path=\"x\"}"], "give one"),
        (recipes::sft, &["batch=0"], "batch"),
    ] {
        let error = load(kind, sets).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(says), "{error}");
    }
}
