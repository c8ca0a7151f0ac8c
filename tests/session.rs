//! The training loop from the inside: on-policy steps have no mismatch, NaN ends a run with a name, every option runs,
//! and a resumed session is the same session.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::Device;
use gradstone::kernels::advantage::Estimator;
use gradstone::kernels::policy_loss::{Kl, KlEstimator, PRESETS};
use gradstone::models::ARCHITECTURES;
use gradstone::recipes;
use gradstone::rl::dynamic_sampling::{Criterion, DynamicSampling};
use gradstone::rl::length::OverlongShaping;
use gradstone::rl::replay::ReplaySettings;
use gradstone::train::settings::{ModelSettings, Settings};
use gradstone::train::{Observer, RunDir, StepMetrics, config};
use gradstone::train::{Outcome, Reinforcement, Trainee};
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

/// A model and batches small enough for a second.
fn tiny(architecture: &str, dtype: &str) -> Settings {
    let mut settings = recipes::arithmetic();
    settings.steps = 3;
    settings.model = ModelSettings::Small {
        architecture: architecture.to_owned(),
        hidden_size: 32,
        layers: 2,
        heads: 4,
        context: 32,
        dtype: dtype.to_owned(),
    };
    settings.warmup.steps = 4;
    settings.warmup.examples = 16;
    settings.rollout.prompts = 4;
    settings.rollout.group = 4;
    settings.update.minibatches = 2;
    settings.update.epochs = 2;
    settings.update.micro_batch_tokens = 64;
    settings.evaluation.problems = 8;
    settings.evaluation.every = 1;
    settings.checkpoint.every = 0;
    settings
}

fn created(settings: &Settings, at: &Path) -> RunDir {
    RunDir::create(at, &config::to_toml(settings).unwrap()).unwrap()
}

fn opened(settings: &Settings) -> Reinforcement {
    Reinforcement::open(settings.clone(), None, &Device::Cpu).unwrap()
}

fn trained(settings: &Settings) -> Vec<StepMetrics> {
    let dir = tempfile::tempdir().unwrap();
    let run = created(settings, &dir.path().join("run"));
    let mut seen = Seen::default();
    let outcome = gradstone::train::run(&mut opened(settings), &run, &mut seen).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    seen.steps
}

#[test]
fn every_on_policy_step_has_mismatch_zero() {
    for architecture in ARCHITECTURES.iter().map(|known| known.model_type) {
        for dtype in ["f32", "bf16"] {
            let steps = trained(&tiny(architecture, dtype));
            let rl: Vec<&StepMetrics> = steps.iter().filter(|m| m.mismatch.is_some()).collect();
            assert_eq!(rl.len(), 3);
            for metrics in rl {
                assert_eq!(metrics.mismatch, Some(0.0), "{architecture:?} {dtype}");
                assert!(metrics.loss.unwrap().is_finite() && metrics.entropy.unwrap() > 0.0);
            }
        }
    }
}

#[test]
fn recomputing_activations_changes_no_bit() {
    let mut settings = tiny("gemma2", "f32");
    let kept = trained(&settings);
    settings.update.recompute = true;
    for (a, b) in kept.iter().zip(&trained(&settings)) {
        assert_eq!((a.loss, a.grad_norm, a.reward), (b.loss, b.grad_norm, b.reward));
    }
}

#[test]
fn a_reference_policy_is_measured_and_survives_a_resume() {
    let mut settings = tiny("llama", "bf16");
    settings.objective.kl = Some(Kl {
        estimator: KlEstimator::K3,
        coefficient: 0.05,
        ..serde_json::from_str("{\"estimator\": \"k3\", \"coefficient\": 0.05}").unwrap()
    });
    settings.objective.entropy_coefficient = 0.01;
    settings.optimizer.learning_rate = 1e-2;
    let whole = trained(&settings);
    assert!(whole.last().unwrap().kl.unwrap() > 0.0, "the policy has moved from its reference");

    let dir = tempfile::tempdir().unwrap();
    let run = created(&settings, &dir.path().join("run"));
    let mut seen = Seen { stop_after: Some(5), ..Seen::default() };
    let mut session = opened(&settings);
    assert_eq!(gradstone::train::run(&mut session, &run, &mut seen).unwrap(), Outcome::Interrupted);
    drop(session);
    let (latest, damaged) = run.checkpoints(0).latest().unwrap();
    assert!(damaged.is_empty());
    let mut session = Reinforcement::open(settings, Some(&latest.unwrap()), &Device::Cpu).unwrap();
    assert_eq!(session.step(), 5);
    seen.stop_after = None;
    gradstone::train::run(&mut session, &run, &mut seen).unwrap();
    assert_eq!(seen.steps.len(), whole.len());
    for (a, b) in seen.steps.iter().zip(&whole) {
        let bits = |m: &StepMetrics| {
            [m.loss, m.reward, m.kl, m.entropy, m.grad_norm, m.eval_accuracy]
                .map(|x| x.map(f32::to_bits))
        };
        assert_eq!(bits(a), bits(b), "step {}", a.step);
    }
}

#[test]
fn nan_ends_the_run_with_the_step_and_the_parameter() {
    let mut settings = tiny("qwen2", "f32");
    settings.evaluation.problems = 0;
    // The first update throws the weights out of the range of f32.
    settings.warmup.steps = 10;
    settings.warmup.optimizer.learning_rate = 1e38;
    settings.warmup.schedule.warmup = 0;
    let dir = tempfile::tempdir().unwrap();
    let run = created(&settings, &dir.path().join("run"));
    let mut seen = Seen::default();
    let error = gradstone::train::run(&mut opened(&settings), &run, &mut seen).unwrap_err();
    assert!(error.is_numeric(), "{error}");
    let text = error.to_string();
    assert!(text.contains("step ") && text.contains("model."), "{text}");
    assert!(text.lines().count() <= 2, "{text}");
    assert!(!seen.steps.is_empty(), "what was done before is in the log");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = |change: fn(&mut Settings), name: &str| {
        let mut settings = tiny("llama", "f32");
        change(&mut settings);
        let error = Reinforcement::open(settings, None, &Device::Cpu).map(|_| ()).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(name), "{name}: {error}");
    };
    refused(|s| s.rollout.temperature = 0.0, "temperature");
    refused(|s| s.rollout.group = 0, "rollout.group");
    refused(|s| s.update.minibatches = 3, "minibatches");
    refused(|s| s.optimizer.beta2 = 1.0, "beta2");
    refused(|s| s.warmup.optimizer.learning_rate = f64::NAN, "learning_rate");
}

#[test]
fn every_objective_trains_by_its_name() {
    for preset in PRESETS {
        let mut settings = tiny("llama", "f32");
        settings.steps = 2;
        settings.objective = preset.objective();
        settings.replay = settings.objective.replay.map(|_| ReplaySettings::default());
        let steps = trained(&settings);
        let last = steps.last().unwrap();
        assert!(last.loss.unwrap().is_finite() && last.mismatch == Some(0.0), "{}", preset.name);
        assert!(last.grad_norm.unwrap().is_finite(), "{}", preset.name);
        assert_eq!(last.more["groups_drawn"], 4.0);
        let selects = settings.objective.selection.is_some();
        assert_eq!(last.more.contains_key("selected_fraction"), selects, "{}", preset.name);
    }
}

#[test]
fn every_advantage_of_outcomes_trains_by_its_name() {
    for name in ["grpo", "dr_grpo", "rloo", "grpo_trl", "batch_std", "pass_k", "gpg"] {
        let mut settings = tiny("llama", "f32");
        settings.steps = 2;
        settings.advantage = Estimator::preset(name).unwrap();
        assert!(trained(&settings).last().unwrap().loss.unwrap().is_finite(), "{name}");
    }
}

#[test]
fn names_are_settings_and_parts_of_them_can_be_changed() {
    let set = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        config::load(&recipes::arithmetic(), None, &sets)
    };
    let settings = set(&["objective=gspo", "objective.entropy_coefficient=0.5", "advantage=rloo"]);
    let settings = settings.unwrap();
    let gspo = PRESETS.iter().find(|preset| preset.name == "gspo").unwrap().objective();
    assert_eq!(settings.objective.surrogate, gspo.surrogate);
    assert_eq!(settings.objective.importance_level, gspo.importance_level);
    assert_eq!(settings.objective.entropy_coefficient, 0.5);
    assert_eq!(settings.advantage, Estimator::preset("rloo").unwrap());
    let error = set(&["objective=gpso"]).unwrap_err().to_string();
    assert!(error.contains("gpso") && error.contains("gspo"), "{error}");
    assert!(set(&["advantage=nothing"]).is_err());
}

#[test]
fn groups_that_teach_nothing_are_drawn_again() {
    let mut settings = tiny("llama", "f32");
    settings.warmup.steps = 30;
    settings.rollout.dynamic_sampling =
        Some(DynamicSampling { criterion: Criterion::DifferentRewards {}, max_rounds: 50 });
    settings.rollout.overlong = Some(OverlongShaping { max_length: 6, buffer: 5, factor: 0.1 });
    settings.rollout.mask_truncated = true;
    let steps = trained(&settings);
    let again = trained(&settings);
    for (a, b) in steps.iter().zip(&again).filter(|(a, _)| a.mismatch.is_some()) {
        assert_eq!(a.reward.map(f32::to_bits), b.reward.map(f32::to_bits));
        assert!(a.more["groups_drawn"] >= 4.0 && a.loss.unwrap().is_finite());
    }
    settings.rollout.dynamic_sampling =
        Some(DynamicSampling { criterion: Criterion::default(), max_rounds: 0 });
    assert!(settings.check().unwrap_err().to_string().contains("max_rounds"));
}
