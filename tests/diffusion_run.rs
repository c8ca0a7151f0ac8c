//! Runs that teach a model to fill masked blocks: the same bits after an interruption, checkpoints that other commands
//! open, source text and trained byte pairs, settings that make no sense.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::Device;
use gradstone::models::Decoder;
use gradstone::recipes::reproduction::{Request, Seeds, run as reproduce};
use gradstone::recipes::stable_diffcoder::{self, StableDiffCoder};
use gradstone::rl::block_decoding::fill;
use gradstone::rl::filling::Decoding;
use gradstone::tasks::source_text::TextSettings;
use gradstone::text::Tokenizer;
use gradstone::train::diffusion::settings::TokenizerSettings;
use gradstone::train::diffusion::{DiffusionSession, DiffusionSettings, Learner};
use gradstone::train::settings::ModelSettings;
use gradstone::train::{Observer, Outcome, Phase, RunDir, StepMetrics, Trainee, config};
use std::path::Path;

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

fn tiny() -> DiffusionSettings {
    let mut settings = stable_diffcoder::stable_diffcoder();
    settings.model = ModelSettings::Small {
        architecture: "llama".into(),
        hidden_size: 32,
        layers: 1,
        heads: 2,
        context: 64,
        dtype: "f32".into(),
    };
    (settings.rows, settings.length) = (4, 32);
    (settings.next_token.steps, settings.diffusion.steps) = (3, 4);
    settings.noising.warm_up_steps = 2;
    settings.evaluation.every = 2;
    settings.evaluation.rows = 3;
    settings.evaluation.completions = 2;
    settings
}

fn created(settings: &DiffusionSettings, at: &Path) -> RunDir {
    RunDir::create(at, &config::to_toml(settings).unwrap()).unwrap()
}

/// Everything but the clock.
fn bits(steps: &[StepMetrics]) -> Vec<String> {
    let one = |m: &StepMetrics| {
        let more: Vec<_> = m.more.iter().map(|(name, x)| (name, x.to_bits())).collect();
        format!("{} {:?} {:?} {:?} {more:?}", m.step, m.phase, m.loss, m.grad_norm)
    };
    steps.iter().map(one).collect()
}

#[test]
fn an_interrupted_run_goes_on_with_the_same_bits() {
    let settings = tiny();
    let dir = tempfile::tempdir().unwrap();
    let run = created(&settings, &dir.path().join("whole"));
    let mut whole = Seen::default();
    let mut session = DiffusionSession::new(settings.clone(), &Device::Cpu).unwrap();
    assert_eq!(gradstone::train::run(&mut session, &run, &mut whole).unwrap(), Outcome::Finished);
    let phases: Vec<Phase> = whole.steps.iter().map(|m| m.phase).collect();
    assert_eq!(
        phases[..4],
        [Phase::NextToken, Phase::NextToken, Phase::NextToken, Phase::Diffusion]
    );
    assert_eq!(whole.steps.len(), 7);
    assert_eq!(whole.steps[6].more["wasted_blocks"], 0.0);
    assert!(whole.steps[2].more.contains_key("held_out_next_token"));
    assert!(whole.steps[6].more["held_out_bound"] > 0.0);
    let settings_again: DiffusionSettings =
        config::from_toml(&run.config().unwrap(), "config.toml").unwrap();
    assert_eq!(settings_again, settings);

    for stop in [2, 3, 5] {
        let run = created(&settings, &dir.path().join(format!("stopped-{stop}")));
        let mut first = Seen { stop_after: Some(stop), ..Seen::default() };
        let mut session = DiffusionSession::new(settings.clone(), &Device::Cpu).unwrap();
        assert_eq!(
            gradstone::train::run(&mut session, &run, &mut first).unwrap(),
            Outcome::Interrupted
        );
        let (checkpoint, _) = run.checkpoints(0).latest().unwrap();
        let mut session =
            DiffusionSession::resumed(settings.clone(), &checkpoint.unwrap(), &Device::Cpu)
                .unwrap();
        run.rewind(session.step()).unwrap();
        let mut rest = Seen::default();
        assert_eq!(
            gradstone::train::run(&mut session, &run, &mut rest).unwrap(),
            Outcome::Finished
        );
        let all = [bits(&first.steps), bits(&rest.steps)].concat();
        assert_eq!(all, bits(&whole.steps), "stopped after {stop}");
    }

    // The checkpoint is a model folder that knows its mask.
    let (checkpoint, _) = run.checkpoints(0).latest().unwrap();
    let path = checkpoint.unwrap().path;
    let model = Decoder::load(&path, None).unwrap();
    assert_eq!(model.diffusion().unwrap().block, 4);
    let tokenizer = Tokenizer::load(&path).unwrap();
    let prompt = tokenizer.encode_prompt("a=3;").unwrap();
    let filled = fill(&model, &[prompt], 1, &Decoding::greedy(12, vec![])).unwrap();
    assert_eq!(filled[0].tokens.len(), 12);
    assert!(run.rollouts_path().exists());
    let report = gradstone::train::report::write(&run).unwrap();
    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.contains("Diffusion loss") && page.contains("Held-out bound"));
}

#[test]
fn source_text_is_learned_in_byte_pairs() {
    let mut settings = tiny();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/optim");
    let extensions = vec!["rs".to_owned()];
    settings.text = TextSettings::Files { path, extensions, most_bytes: 1 << 20 };
    settings.tokenizer = TokenizerSettings::BytePairs { vocab_size: 400 };
    let learner = Learner::new(&settings, &Device::Cpu).unwrap();
    assert_eq!(learner.model.config().vocab_size, learner.tokenizer.vocab_size());
    assert_eq!(learner.model.diffusion().unwrap().mask_id, learner.tokenizer.mask().unwrap());
    let row = learner.held_out(1).unwrap().ids;
    assert!(learner.tokenizer.decode(&row).unwrap().len() > row.len(), "no pair was merged");
    let before = learner.held_out_bound(2, 1).unwrap();
    assert!((before - 400f64.ln()).abs() < 0.5, "{before}");
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let refused = |change: &dyn Fn(&mut DiffusionSettings)| {
        let mut settings = tiny();
        change(&mut settings);
        Learner::new(&settings, &Device::Cpu).map(|_| ()).unwrap_err()
    };
    for (error, says) in [
        (refused(&|s| s.length = 30), "whole number of blocks"),
        (refused(&|s| s.length = 128), "context of 64"),
        (refused(&|s| s.block = 0), "block"),
        (refused(&|s| s.evaluation.prompt = 32), "evaluation.prompt"),
        (refused(&|s| s.tokenizer = TokenizerSettings::BytePairs { vocab_size: 3 }), "260"),
        (refused(&|s| s.mask_id = Some(999)), "999"),
        (refused(&|s| s.noising.cap_from = 0.0), "cap_from"),
    ] {
        assert!(error.to_string().contains(says), "{error}");
    }
    let files = TextSettings::Files { path: "/no/such".into(), extensions: vec![], most_bytes: 10 };
    assert!(
        refused(&|s| (s.text, s.tokenizer) = (files.clone(), TokenizerSettings::Bytes)).is_io()
    );
    assert!(refused(&|s| s.text = files.clone()).is_invalid());
    // A tokenizer and a model that know no mask.
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::characters("abc").unwrap();
    tokenizer.save(dir.path()).unwrap();
    let config =
        gradstone::models::DecoderConfig::small("llama", tokenizer.vocab_size(), 16, 1, 2, 64);
    let model = Decoder::random(config.unwrap(), gradstone::DType::F32, 1).unwrap();
    model.save(dir.path()).unwrap();
    let folder = ModelSettings::Folder { path: dir.path().to_owned(), dtype: None, date: None };
    let error = refused(&|s| s.model = folder.clone());
    assert!(error.is_invalid() && error.to_string().contains("mask_id"), "{error}");
}

#[test]
fn the_reproduction_runs() {
    let request = Request { quick: true, seeds: Some(Seeds::new(1, 1)), ..Request::default() };
    let report =
        reproduce::<StableDiffCoder>(&request, "stable-diffcoder", 2, &|_, _, _| ()).unwrap();
    assert_eq!(report.failures().count(), 0, "{:?}", report.failures().collect::<Vec<_>>());
    let clipped = |metric: &str| report.named_values("clipped", metric).unwrap();
    // What needs no training holds at any size.
    assert_eq!(clipped("wasted"), [0.0]);
    assert!(clipped("statistics")[0] < 0.03);
    for judged in &report.claims {
        assert!(!judged.values.is_empty(), "{}", judged.claim.text);
    }
}

/// The program: train, generate block by block, and what is refused.
#[test]
fn the_program_trains_and_fills() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let program = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gradstone"));
        command.args(args).stdin(std::process::Stdio::null()).output().unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let out = out.to_str().unwrap();
    let small = ["model.hidden_size=32", "model.layers=1", "next_token.steps=2", "rows=4"];
    let mut args = vec!["train", "stable_diffcoder", "--out", out, "--steps", "2"];
    small.iter().for_each(|set| args.extend(["--set", set]));
    let trained = program(&args);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    assert!(text(&trained.stdout).contains("diffusion  loss"), "{}", text(&trained.stdout));
    let fill = |more: &[&str]| {
        let base = ["generate", "--run", out, "--prompt", "a=3;", "--max-tokens", "11"];
        program(&[&base[..], more].concat())
    };
    let filled = fill(&["--passes", "2"]);
    assert!(filled.status.success(), "{}", text(&filled.stderr));
    // Three blocks of four in two passes each, one token dropped.
    let (line, passes) = (text(&filled.stdout), text(&filled.stderr));
    assert!(passes.contains("12 tokens set in 6 passes, 2.00 a pass"), "{passes}");
    assert!(line.ends_with('\n') && line.chars().count() == 12, "{line:?}");
    assert_eq!(fill(&["--passes", "2", "--watch"]).stdout, filled.stdout, "not a terminal");
    let next = fill(&["--next-token"]);
    assert!(next.status.success() && next.stderr.is_empty());
    for (more, status, says) in [
        (&["--threshold", "1.5"][..], 1, "threshold of 1.5"),
        (&["--threshold", "0.9", "--factor", "1"], 2, "--factor"),
        (&["--mask-id", "4000"], 1, "4000"),
        (&["--sub-block", "0"], 1, "0 places"),
    ] {
        let refused = fill(more);
        assert_eq!(refused.status.code(), Some(status), "{more:?}");
        assert!(text(&refused.stderr).contains(says), "{more:?}: {}", text(&refused.stderr));
    }
    let resumed = program(&["train", "--resume", "--out", out]);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
}
