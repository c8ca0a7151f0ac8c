//! Whatever the check of the settings accepts trains, and what cannot train is refused by name before anything is written:
//! every preset objective with every preset advantage, and every other part of a step with the rest.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::Device;
use gradstone::kernels::{advantage, policy_loss, rollout_correction};
use gradstone::recipes;
use gradstone::train::settings::{ModelSettings, Settings};
use gradstone::train::{Reinforcement, RunDir, StepMetrics, Trainee, config, run};
use gradstone::{Error, Result};

/// A model and batches so small that a run takes a moment.
fn tiny() -> Settings {
    let mut settings = recipes::arithmetic();
    settings.steps = 2;
    settings.model = ModelSettings::Small {
        architecture: "llama".to_owned(),
        hidden_size: 16,
        layers: 1,
        heads: 2,
        context: 32,
        dtype: "f32".to_owned(),
    };
    settings.warmup.steps = 0;
    settings.rollout.prompts = 4;
    settings.rollout.group = 4;
    settings.rollout.max_new_tokens = 4;
    settings.evaluation.problems = 0;
    settings
}

fn with(settings: &Settings, overrides: &[&str]) -> Settings {
    let overrides: Vec<String> = overrides.iter().map(|one| (*one).to_owned()).collect();
    config::load(settings, None, &overrides).unwrap_or_else(|e| panic!("{overrides:?}: {e}"))
}

/// Two steps of a run, and their measurements.
fn trained(settings: &Settings) -> Result<Vec<StepMetrics>> {
    let mut run = Reinforcement::open(settings.clone(), None, &Device::Cpu)?;
    let mut steps = Vec::new();
    for _ in 0..settings.total_steps() {
        steps.push(run.advance()?.0);
    }
    Ok(steps)
}

fn refusal(settings: &Settings) -> Option<Error> {
    Reinforcement::open(settings.clone(), None, &Device::Cpu).err()
}

/// What a setting asks for beside itself, so that nothing is missing.
fn completed(settings: &Settings) -> Settings {
    let mut overrides = Vec::new();
    let kind = settings.advantage.kind();
    if kind == "gae" {
        overrides.push("critic={kind=\"head\"}");
    }
    if kind == "prime" {
        overrides.push("process_reward={beta=0.05}");
    }
    if settings.objective.replay.is_some() {
        overrides.push("replay={starts_at=-1.0}");
    }
    with(settings, &overrides)
}

#[test]
fn every_objective_trains_with_every_advantage() {
    let mut counts = [0; 3];
    for objective in policy_loss::PRESETS {
        for estimator in advantage::PRESETS {
            let name = format!("{} with {}", objective.name, estimator.name);
            let plain = with(
                &tiny(),
                &[
                    &format!("objective={}", objective.name),
                    &format!("advantage={}", estimator.name),
                ],
            );
            let whole = completed(&plain);
            if let Some(error) = refusal(&whole) {
                // A sequence's loss has one advantage: both parts are named.
                counts[2] += 1;
                let said = error.to_string();
                let part = whole
                    .objective
                    .one_advantage_a_sequence()
                    .unwrap_or_else(|| panic!("{name}: {said}"));
                assert!(error.is_invalid() && said.contains(part), "{name}: {said}");
                assert!(said.contains(&format!("`{}`", whole.advantage.kind())), "{name}: {said}");
                continue;
            }
            if let Some(error) = refusal(&plain) {
                counts[1] += 1;
                assert!(error.is_invalid(), "{name}: {error}");
                let said = error.to_string();
                assert!(said.contains("needs the column"), "{name}: {said}");
            }
            let steps = trained(&whole).unwrap_or_else(|error| panic!("{name}: {error}"));
            counts[0] += 1;
            let last = steps.last().unwrap();
            // Values that overflow are the objective's business and are counted; a step that ends the run is not.
            assert!(last.reward.is_some() && last.more["groups_drawn"] == 4.0, "{name}");
        }
    }
    let all = policy_loss::PRESETS.len() * advantage::PRESETS.len();
    assert_eq!(counts[0] + counts[2], all);
    assert!(counts[1] > 20, "{} are refused without what they need", counts[1]);
    assert!((1..all / 5).contains(&counts[2]), "{} contradict each other", counts[2]);
}

#[test]
fn what_is_refused_names_who_lacks_what_and_who_gives_it() {
    for (overrides, parts) in [
        (&["objective=exgrpo"][..], &["objective", "off-policy mark", "replay"][..]),
        (&["objective=luffy"], &["off-policy", "replay"]),
        (&["advantage=gae"], &["advantage (`gae`)", "value", "critic"]),
        (&["advantage=prime"], &["process reward", "process_reward"]),
        (&["critic={kind=\"model\"}"], &["critic", "grpo", "gae"]),
        (&["process_reward={beta=0.1}"], &["process_reward", "prime"]),
        (&["replay={}"], &["replay", "exgrpo"]),
        (
            &[
                "reward.outcome={reward={kind=\"ternary\"}}",
                "task={kind=\"arithmetic\"}",
                "credit={rule={kind=\"mask\"}}",
            ],
            &["credit", "step verdicts", "verifier"],
        ),
        (&["reward.kl={coefficient=0.1}"], &["reward.kl", "grpo", "gae"]),
        (&["reference.refresh=3"], &["reference.refresh", "objective.kl"]),
        (&["reward.weights.speed=2.0"], &["speed", "it has"]),
        (&["correction=nonsense"], &["correction", "nonsense"]),
        (&["rollout.filling={}"], &["rollout.filling", "mask token"]),
        (&["rollout.order=epochs"], &["epochs", "arithmetic"]),
        (&["replay={share=2.0}", "objective=exgrpo"], &["replay.share", "2"]),
        (&["replay={pool=\"/no/such/pool\"}", "objective=exgrpo"], &["/no/such/pool"]),
    ] {
        let error = refusal(&with(&tiny(), overrides));
        let error = error.unwrap_or_else(|| panic!("{overrides:?} was accepted"));
        assert!(error.is_invalid(), "{overrides:?}: {error}");
        let said = error.to_string();
        for part in parts {
            assert!(said.contains(part), "{overrides:?}: `{part}` is not in: {said}");
        }
        assert!(said.lines().count() <= 2, "{said}");
    }
}

#[test]
fn every_correction_trains_beside_truncated_sampling() {
    for preset in rollout_correction::PRESETS {
        let correction = format!("correction={}", preset.name);
        for more in [
            &["update.recompute_old=true"][..],
            &["rollout.top_k=3"],
            &["rollout.top_p=0.8", "update.epochs=2", "update.minibatches=2"],
        ] {
            let overrides: Vec<&str> = [&correction[..]].iter().chain(more).copied().collect();
            let steps = trained(&with(&tiny(), &overrides)).unwrap();
            let last = steps.last().unwrap();
            let weight = last.more["correction_weight_mean"];
            assert!(weight.is_finite() && weight >= 0.0, "{}: {weight}", preset.name);
            if more[0].starts_with("update") {
                assert_eq!(last.more["correction_kl"], 0.0, "what sampled is what is trained");
            }
        }
    }
}

#[test]
fn parts_of_a_step_go_with_each_other() {
    for overrides in [
        &["advantage=gae", "critic={kind=\"head\"}", "reward.kl={coefficient=0.05}"][..],
        &[
            "advantage=gae",
            "critic={kind=\"model\", epochs=2, warmup=1}",
            "objective.kl={estimator=\"k2\", coefficient=0.1}",
        ],
        &["advantage=vapo", "critic={kind=\"head\"}", "correction=token_tis", "rollout.top_p=0.9"],
        &[
            "advantage={kind=\"reinforce-plus-plus\", gamma=0.9}",
            "reward.kl={coefficient=0.1, adaptive={target=0.1, horizon=100.0}}",
        ],
        &["advantage=prime", "process_reward={beta=0.1}", "objective=clip_cov"],
        &["advantage=remax", "objective=kl_cov", "rollout.resampling={kind=\"power\"}"],
        &[
            "advantage=optimal_token_baseline",
            "update.recompute_old=true",
            "correction=sequence_mis",
        ],
        &[
            "advantage=opo",
            "reward.cost={per_token=0.01, per_turn=0.1}",
            "rollout.overlong={max_length=4, buffer=2}",
        ],
        &[
            "objective=exgrpo",
            "replay={starts_at=-1.0, retire=false}",
            "entropy_control={target=0.5}",
            "advantage=dr_grpo",
        ],
        &[
            "objective=gspo",
            "reference.refresh=1",
            "objective.kl={estimator=\"k3\", coefficient=0.1}",
            "rollout.mask_truncated=true",
        ],
        &[
            "rollout.dynamic_sampling={criterion={kind=\"different_rewards\"}, max_rounds=3}",
            "update.skip_degenerate=true",
        ],
    ] {
        match trained(&with(&tiny(), overrides)) {
            Ok(steps) => assert_eq!(steps.len(), 2, "{overrides:?}"),
            // A tiny model may answer every problem alike: that is a state of the run and not of its settings.
            Err(error) => assert!(error.is_numeric(), "{overrides:?}: {error}"),
        }
    }
}

/// The task of chains judges steps and labels outcomes: credit, process supervision, shaping and prices of outcomes train on it.
#[test]
fn verdicts_and_labels_train() {
    let mut small = recipes::exgrpo::exgrpo_small();
    small.steps = 2;
    small.warmup.steps = 3;
    small.warmup.examples = 8;
    small.rollout.prompts = 4;
    small.evaluation.problems = 0;
    let small = with(&small, &["model={kind=\"ids\", width=16, layers=1, heads=2, ngram=1}"]);
    for overrides in [
        &["credit={rule={kind=\"modulate\", alpha=0.0}}"][..],
        &["credit={rule={kind=\"mask\"}}", "objective=grpo", "replay.enabled=false"],
        &["credit={rule={kind=\"process\", add=true}}"],
        &["credit={rule={kind=\"add\", weight=0.5}, labelling=\"literal\"}"],
        &["reward.outcome={reward={kind=\"ternary\"}}"],
        &["reward.outcome={reward={kind=\"geometric\", problems=20}, length_penalty=true}"],
        &[
            "advantage=gae",
            "critic={kind=\"head\"}",
            "reward.shaping={}",
            "objective=grpo",
            "replay.enabled=false",
        ],
    ] {
        let steps =
            trained(&with(&small, overrides)).unwrap_or_else(|e| panic!("{overrides:?}: {e}"));
        let last = steps.last().unwrap();
        assert!(last.reward.unwrap().is_finite(), "{overrides:?}");
        if overrides[0].starts_with("credit") {
            assert!(last.more.contains_key("credit_zero_share"), "{overrides:?}");
        }
    }
}

/// A run that is stopped and resumed writes the bits of one that is not, whatever its stages keep.
#[test]
fn stages_survive_a_resume() {
    let mut small = recipes::exgrpo::exgrpo_small();
    small.steps = 5;
    small.warmup.steps = 2;
    small.warmup.examples = 8;
    small.rollout.prompts = 6;
    small.evaluation.problems = 4;
    small.checkpoint.every = 1;
    small.checkpoint.keep = 0;
    let small = with(
        &small,
        &["model={kind=\"ids\", width=16, layers=1, heads=2, ngram=1}", "replay.starts_at=-1.0"],
    );
    let model = "critic={kind=\"model\"}";
    for overrides in [
        &[][..],
        &[
            "advantage=gae",
            model,
            "reward.kl={coefficient=0.1, adaptive={target=0.01, horizon=50.0}}",
        ],
        &["advantage=gae", "critic={kind=\"head\"}", "entropy_control={target=0.3}"],
        &[
            "advantage=prime",
            "process_reward={beta=0.1}",
            "reference.refresh=2",
            "objective.kl={estimator=\"k3\", coefficient=0.1}",
        ],
        &["reward.outcome={reward={kind=\"geometric\", problems=20}}"],
    ] {
        let settings = with(&small, overrides);
        let folder = tempfile::tempdir().unwrap();
        let directory =
            RunDir::create(&folder.path().join("run"), &config::to_toml(&settings).unwrap())
                .unwrap();
        let mut whole = Reinforcement::open(settings.clone(), None, &Device::Cpu).unwrap();
        let mut seen = gradstone::train::observer::Silent;
        run(&mut whole, &directory, &mut seen).unwrap();
        let lines = |text: String| -> Vec<serde_json::Value> {
            text.lines()
                .map(|line| {
                    let mut one: serde_json::Value = serde_json::from_str(line).unwrap();
                    let fields = one.as_object_mut().unwrap();
                    fields.retain(|name, _| name != "seconds" && name != "tokens_per_second");
                    one
                })
                .collect()
        };
        let want = lines(std::fs::read_to_string(directory.metrics_path()).unwrap());
        for step in [2, 4, 6] {
            let checkpoint = directory.checkpoints(0).list().unwrap();
            let checkpoint = checkpoint.into_iter().find(|one| one.step == step).unwrap();
            let mut again =
                Reinforcement::open(settings.clone(), Some(&checkpoint), &Device::Cpu).unwrap();
            assert_eq!(again.step(), step);
            let other = folder.path().join(format!("from-{step}"));
            let other = RunDir::create(&other, &config::to_toml(&settings).unwrap()).unwrap();
            run(&mut again, &other, &mut seen).unwrap();
            let got = lines(std::fs::read_to_string(other.metrics_path()).unwrap());
            assert_eq!(got, want[step as usize..], "{overrides:?} from step {step}");
        }
    }
}
