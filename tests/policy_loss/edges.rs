//! The cases at the edge that every trainer meets, one test each, for every objective.

use super::cases::{batch, every, kl, run, wants_one_advantage};
use super::oracle::Batch;
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Clamp, Drift, Gradients, ImportanceLevel, Inputs, KlEstimator,
    LogRatio, Metrics, Objective, PRESETS, RatioShape, Replay, ReplayShape, Rows, Surrogate,
    Totals, forward_backward,
};
use gradstone::kernels::token_selection::Selection;

fn preset(name: &str) -> Objective {
    Objective::preset(name).unwrap()
}

/// The surrogate alone.
fn bare(objective: &Objective) -> Objective {
    let aggregation = match objective.aggregation {
        Aggregation::SequenceMeanTokenSum { .. } | Aggregation::TokenSum { .. } => {
            Aggregation::TokenMean {}
        }
        ref other => other.clone(),
    };
    Objective {
        kl: None,
        entropy_coefficient: 0.0,
        drift: None,
        selection: None,
        replay: None,
        aggregation,
        ..objective.clone()
    }
}

fn at(logprob: &[f32], old: &[f32], advantage: f32) -> Batch {
    let tokens = logprob.len();
    Batch {
        logprob: logprob.to_vec(),
        old_logprob: old.to_vec(),
        reference: old.to_vec(),
        sampler: old.to_vec(),
        advantage: vec![advantage; tokens],
        entropy: vec![1.0; tokens],
        weight: vec![1.0; tokens],
        mask: vec![1; tokens],
        off_policy: vec![0; tokens],
        selected: vec![0; tokens],
        offsets: vec![0, tokens as i64],
    }
}

#[test]
fn a_fully_masked_sequence_contributes_nothing() {
    for (objective, per_token) in every() {
        let mut with = batch(9, &[4, 6, 5], 0.3, 1.0, per_token);
        with.mask[4..10].fill(0);
        let mut without = with.part(0..4);
        let rest = with.part(10..15);
        for (all, more) in [
            (&mut without.logprob, &rest.logprob),
            (&mut without.old_logprob, &rest.old_logprob),
            (&mut without.reference, &rest.reference),
            (&mut without.sampler, &rest.sampler),
            (&mut without.advantage, &rest.advantage),
            (&mut without.entropy, &rest.entropy),
            (&mut without.weight, &rest.weight),
        ] {
            all.extend(more);
        }
        without.mask.extend(&rest.mask);
        without.off_policy.extend(&rest.off_policy);
        without.selected.extend(&rest.selected);
        without.offsets = vec![0, 4, 9];
        // A mean over all rows counts the empty one; the totals make it the same.
        let totals = Totals { sequences: Some(3.0), ..Totals::default() };
        let (a, b) = (run(&objective, &with, totals), run(&objective, &without, totals));
        assert_eq!(a.dlogprob[..4], b.dlogprob[..4], "{objective:?}");
        assert_eq!(a.dlogprob[10..], b.dlogprob[4..]);
        assert!(a.dlogprob[4..10].iter().all(|g| *g == 0.0));
        assert!((a.metrics.loss - b.metrics.loss).abs() <= 1e-6 * b.metrics.loss.abs() + 1e-7);
        assert_eq!(a.metrics.live_sequences, 2);
    }
}

#[test]
fn empty_rows_count_where_trl_says_so() {
    let mut two = batch(2, &[3, 3], 0.3, 1.0, false);
    two.mask[3..].fill(0);
    let loss = |rows: Rows| {
        let aggregation = Aggregation::SequenceMeanTokenMean { rows };
        let objective = Objective { aggregation, ..Objective::default() };
        run(&objective, &two, Totals::default()).metrics.loss
    };
    assert!((loss(Rows::NonEmpty) - 2.0 * loss(Rows::All)).abs() < 1e-7);
}

#[test]
fn an_infinite_log_ratio_is_clamped_and_has_no_gradient() {
    let (far, one) = ([f32::NEG_INFINITY], [-1.0f32]);
    for surrogate in [Surrogate::Ratio {}, preset("sapo").surrogate, preset("ppo").surrogate] {
        let objective = Objective { surrogate, ..Objective::default() };
        for (logprob, old) in [(far, one), (one, far)] {
            for a in [1.0, -1.0] {
                let got = run(&objective, &at(&logprob, &old, a), Totals::default());
                assert!(got.metrics.loss.is_finite(), "{objective:?}");
                assert_eq!(got.dlogprob, [0.0]);
                let ratio = got.metrics.ratio_mean;
                assert!((2.0e-9..=4.9e8).contains(&ratio), "{ratio}");
            }
        }
    }
}

#[test]
fn nan_in_a_live_token_is_seen() {
    for (objective, per_token) in every() {
        let mut broken = batch(5, &[6, 5], 0.3, 1.0, per_token);
        broken.off_policy.fill(0);
        broken
            .selected
            .fill(u8::from(matches!(objective.selection, Some(Selection::TopEntropy { .. }))));
        broken.advantage.fill(0.7);
        broken.logprob[2] = f32::NAN;
        let got = run(&objective, &broken, Totals::default());
        assert!(got.metrics.loss.is_nan(), "{objective:?}");
        // The gradient of a log-prob's own is a constant: nothing of a NaN is in it.
        let constant =
            matches!(objective.surrogate, Surrogate::Reinforce {} | Surrogate::Cpgd { .. })
                && objective.kl.is_none()
                && objective.drift.is_none();
        assert!(got.dlogprob[2].is_nan() || constant, "{objective:?}");
        // The other sequence does not know.
        assert!(got.dlogprob[6..].iter().all(|g| g.is_finite()));
    }
}

#[test]
fn an_advantage_of_zero_leaves_the_penalties() {
    for (objective, per_token) in every() {
        let mut still = batch(6, &[7, 3], 0.3, 1.0, per_token);
        still.advantage.fill(0.0);
        still.off_policy.fill(0);
        let alone = run(&bare(&objective), &still, Totals::default());
        assert!(alone.dlogprob.iter().all(|g| *g == 0.0), "{objective:?}");
        assert_eq!(alone.metrics.loss, 0.0);
        let coefficient = objective.kl.as_ref().map_or(0.0, |kl| kl.coefficient);
        let got = run(&objective, &still, Totals::default());
        let moved = got.dlogprob.iter().any(|g| *g != 0.0);
        assert_eq!(moved, coefficient > 0.0 || objective.drift.is_some() || pays(&objective));
        assert_eq!(got.dentropy[0] != 0.0, objective.entropy_coefficient != 0.0);
    }
}

fn pays(objective: &Objective) -> bool {
    matches!(objective.selection, Some(Selection::KlCov { .. }))
}

#[test]
fn on_the_policy_every_objective_is_the_policy_gradient() {
    let logprob = [-0.5, -1.0, -0.25];
    let on_policy = at(&logprob, &logprob, 1.5);
    for preset in PRESETS {
        let objective = bare(&preset.objective());
        let got = run(&objective, &on_policy, Totals::default());
        let first = got.dlogprob[0];
        assert!(got.dlogprob.iter().all(|g| *g == first), "{}", preset.name);
        let length = if matches!(objective.aggregation, Aggregation::SequenceLength { .. }) {
            1.0
        } else {
            3.0
        };
        assert!((first * length + 1.5).abs() < 1e-6, "{}: {first}", preset.name);
        assert_eq!((got.metrics.ratio_mean, got.metrics.ratio_max), (1.0, 1.0));
        assert_eq!((got.metrics.approx_kl, got.metrics.clip_fraction), (0.0, 0.0));
    }
}

#[test]
fn a_balanced_replay_on_the_policy_counts_as_a_fresh_token() {
    let logprob = [-0.5, -1.0, -0.25];
    let mut replayed = at(&logprob, &logprob, 1.5);
    replayed.off_policy.fill(1);
    let gradient = |shape: ReplayShape| {
        let replay = Some(Replay { shape, ..Replay::default() });
        let objective = Objective { replay, ..Objective::default() };
        run(&objective, &replayed, Totals::default()).dlogprob[1]
    };
    assert!((gradient(ReplayShape::balanced(0.1)) + 0.5).abs() < 1e-6);
    // The release's weigh a twelfth: beta / (1 + beta)².
    let released = gradient(ReplayShape::Sigmoid { beta: 0.1, gain: 1.0 });
    assert!((released / -0.5 - 0.1 / 1.21).abs() < 1e-6, "{released}");
}

#[test]
fn the_two_forms_of_gspo_agree_without_weights() {
    let mut equal = batch(12, &[9, 1, 14], 0.2, 0.8, false);
    equal.weight.fill(1.0);
    let (a, b) = (preset("gspo"), preset("gspo_token"));
    let (a, b) = (run(&a, &equal, Totals::default()), run(&b, &equal, Totals::default()));
    assert_eq!(a.dlogprob, b.dlogprob);
    assert_eq!(a.metrics, b.metrics);
}

#[test]
fn a_tie_on_a_bound_passes_the_gradient() {
    let same = at(&[-1.0], &[-1.0], 2.0);
    for surrogate in [
        Surrogate::clip(0.0, 0.0),
        Surrogate::Gmpo { clip_low: 0.0, clip_high: 0.0 },
        Surrogate::Cpgd { clip_low: 0.0, clip_high: 0.0 },
    ] {
        let objective = Objective { surrogate, ..Objective::default() };
        assert_eq!(run(&objective, &same, Totals::default()).dlogprob, [-2.0], "{objective:?}");
    }
}

#[test]
fn cpgd_does_not_explode_where_ppo_does() {
    let far = at(&[-0.1], &[-9.0], -1.0);
    let slope = |name: &str| {
        let objective = bare(&Objective { selection: None, ..preset(name) });
        run(&objective, &far, Totals::default()).dlogprob[0]
    };
    assert!(slope("dapo") > 7000.0);
    assert_eq!(slope("ppo"), 0.0);
    assert_eq!(slope("cpgd"), 1.0);
}

#[test]
fn dropped_tokens_still_count() {
    let mut picked = batch(3, &[8], 0.1, 1.0, false);
    picked.selected = vec![1, 0, 0, 1, 0, 0, 0, 0];
    let top = Objective {
        selection: Some(Selection::TopEntropy { fraction: 0.25 }),
        ..Objective::default()
    };
    let all = run(&Objective::default(), &picked, Totals::default());
    let some = run(&top, &picked, Totals::default());
    for (i, selected) in picked.selected.iter().enumerate() {
        let want = if *selected != 0 { all.dlogprob[i] } else { 0.0 };
        assert_eq!(some.dlogprob[i], want);
    }
    assert_eq!((some.metrics.dropped_fraction, some.metrics.selected_fraction), (0.75, 0.25));
    assert_eq!(some.metrics.live_tokens, 8);
}

#[test]
fn the_off_policy_mask_drops_what_is_bad_and_far() {
    let threshold = Objective { off_policy_threshold: Some(0.5), ..Objective::default() };
    let gradient = |a: f32, distance: f32| {
        let mut sequence = at(&[-1.0, -2.0], &[-1.0, -2.0], a);
        sequence.sampler = vec![-1.0 + distance, -2.0 + distance];
        run(&threshold, &sequence, Totals::default()).dlogprob[0] != 0.0
    };
    assert!(gradient(1.0, 0.6) && gradient(1.0, 0.4) && gradient(-1.0, 0.5));
    assert!(!gradient(-1.0, 0.6));
}

#[test]
fn what_makes_no_sense_is_named() {
    let plain = Objective::default();
    let level = |surrogate| Objective {
        surrogate,
        importance_level: ImportanceLevel::Sequence,
        ..plain.clone()
    };
    let of = |name: &str| preset(name);
    let clip_cov = Some(Selection::ClipCov { ratio: 0.1, least: 1.0, most: 5.0 });
    let kl_cov = Some(Selection::KlCov { ratio: 0.1, coefficient: 1.0 });
    let top = Some(Selection::TopEntropy { fraction: 0.2 });
    let replay = Some(Replay::default());
    let drift = Some(Drift::default());
    let ratio_shape = RatioShape::Power { exponent: 0.5 };
    let corrected = kl(KlEstimator::K3, Clamp::Clamped, true);
    let luspo = Aggregation::SequenceLength { rows: Rows::All };
    let straight = |estimator, bias_correction| {
        let base = kl(estimator, Clamp::Clamped, bias_correction).unwrap();
        Some(gradstone::kernels::policy_loss::Kl { straight_through: true, ..base })
    };
    for (objective, one, other) in [
        (level(Surrogate::Reinforce {}), "importance_level `sequence`", "surrogate `reinforce`"),
        (level(of("cpgd").surrogate), "importance_level `sequence`", "surrogate `cpgd`"),
        (level(of("gmpo").surrogate), "importance_level `sequence`", "surrogate `gmpo`"),
        (Objective { ratio_shape, ..of("cispo") }, "ratio_shape", "surrogate `cispo`"),
        (Objective { ratio_shape, ..of("gspo") }, "ratio_shape", "importance_level `sequence`"),
        (Objective { replay, ..of("gspo") }, "replay", "importance_level `sequence`"),
        (Objective { replay, ..of("vespo") }, "replay", "surrogate `vespo`"),
        (Objective { drift, ..of("gspo_token") }, "drift", "importance_level `sequence-token`"),
        (
            Objective { aggregation: luspo, ..plain.clone() },
            "aggregation `sequence-length`",
            "importance_level `token`",
        ),
        (
            Objective { selection: clip_cov, ..of("cispo") },
            "selection `clip-cov`",
            "surrogate `cispo`",
        ),
        (
            Objective { selection: clip_cov, ..of("gspo") },
            "selection `clip-cov`",
            "importance_level `sequence`",
        ),
        (
            Objective { selection: kl_cov, ratio_shape, ..plain.clone() },
            "selection `kl-cov`",
            "ratio_shape",
        ),
        (Objective { selection: top, ..of("gmpo") }, "selection `top-entropy`", "surrogate `gmpo`"),
        (Objective { kl: corrected.clone(), ..of("gspo") }, "kl.bias_correction", "importance"),
        (Objective { kl: corrected, ..of("gmpo") }, "kl.bias_correction", "surrogate `gmpo`"),
        (
            Objective { kl: straight(KlEstimator::K3, true), ..plain.clone() },
            "kl.bias_correction",
            "kl.straight_through",
        ),
    ] {
        let error = objective.check().unwrap_err();
        let text = error.to_string();
        assert!(error.is_invalid(), "{text}");
        assert!(text.contains(one) && text.contains(other), "{text}");
    }
}

#[test]
fn inputs_that_an_objective_does_not_know_are_named() {
    let tokens = batch(1, &[4], 0.1, 1.0, true);
    let error = |objective: &Objective, change: &dyn Fn(&mut Inputs<'_>)| {
        let mut dlogprob = [0f32; 4];
        let advantage = Advantages::PerToken(&tokens.advantage);
        let (now, old) = (&tokens.logprob, &tokens.old_logprob);
        let mut inputs = Inputs::new(now, old, advantage, &tokens.mask, &tokens.offsets);
        change(&mut inputs);
        let gradients = Gradients { logprob: &mut dlogprob, entropy: None };
        forward_backward(objective, &inputs, gradients).unwrap_err().to_string()
    };
    let nothing = |_: &mut Inputs<'_>| ();
    let plain = Objective::default();
    let text = error(&preset("gspo"), &nothing);
    assert!(text.contains("an advantage a token") && text.contains("`sequence`"), "{text}");
    let text = error(&preset("gmpo"), &nothing);
    assert!(text.contains("an advantage a token") && text.contains("`gmpo`"), "{text}");
    assert!(wants_one_advantage(&preset("gmpo")));
    let text = error(&preset("clip_cov"), &nothing);
    assert!(text.contains("clip-cov") && text.contains("selected is needed"), "{text}");
    let text = error(&plain, &|inputs| inputs.selected = Some(&[0; 4]));
    assert!(text.contains("selected") && text.contains("without a selection"), "{text}");
    let text = error(&plain, &|inputs| inputs.off_policy = Some(&[0; 4]));
    assert!(text.contains("off_policy") && text.contains("without a replay"), "{text}");
    let text = error(&plain, &|inputs| inputs.sampler_logprob = Some(&[0.0; 3]));
    assert!(text.contains("sampler_logprob has 3"), "{text}");
    let exgrpo = Objective { entropy_coefficient: 0.0, ..preset("exgrpo") };
    let text = error(&exgrpo, &|inputs| inputs.off_policy = Some(&[0; 5]));
    assert!(text.contains("off_policy has 5"), "{text}");
    assert_eq!(Metrics::default().live_tokens, 0);
    assert_eq!(plain.log_ratio, LogRatio::Clamped);
}

#[test]
fn a_value_loss_is_its_formula_and_its_gradient_the_derivative() {
    use gradstone::kernels::policy_loss::{ValueInputs, ValueLoss, value_loss};
    let tokens = batch(17, &[9, 0, 30], 0.4, 0.8, true);
    let target = &tokens.advantage;
    for clip in [None, Some(0.2f32), Some(5.0)] {
        let loss = ValueLoss { clip, ..ValueLoss::default() };
        let inputs = ValueInputs {
            value: &tokens.logprob,
            old_value: &tokens.old_logprob,
            target,
            mask: &tokens.mask,
            offsets: &tokens.offsets,
            totals: Totals::default(),
        };
        let mut gradient = vec![f32::NAN; tokens.logprob.len()];
        let metrics = value_loss(&loss, &inputs, &mut gradient).unwrap();
        let of = |t: usize, v: f64| {
            let (old, target) = (f64::from(tokens.old_logprob[t]), f64::from(target[t]));
            let clip = clip.map_or(f64::INFINITY, f64::from);
            let clipped = v.clamp(old - clip, old + clip);
            let (plain, of_clipped) = ((v - target).powi(2), (clipped - target).powi(2));
            (0.5 * plain.max(of_clipped), of_clipped > plain)
        };
        let live: Vec<usize> = (0..39).filter(|t| tokens.mask[*t] != 0).collect();
        let n = live.len() as f64;
        let at = |t: usize| f64::from(tokens.logprob[t]);
        let want: f64 = live.iter().map(|t| of(*t, at(*t)).0).sum::<f64>() / n;
        assert!((metrics.loss - want).abs() < 1e-6 * want);
        let clipped = live.iter().filter(|t| of(**t, at(**t)).1).count() as f64 / n;
        assert!((metrics.clip_fraction - clipped).abs() < 1e-9);
        for t in 0..39 {
            let h = 1e-6;
            let slope = (of(t, at(t) + h).0 - of(t, at(t) - h).0) / (2.0 * h * n);
            let slope = if tokens.mask[t] != 0 { slope } else { 0.0 };
            assert!((f64::from(gradient[t]) - slope).abs() < 1e-6, "{t}");
        }
    }
    let bad = ValueLoss { clip: Some(0.0), ..ValueLoss::default() };
    let inputs = ValueInputs {
        value: &[1.0],
        old_value: &[1.0],
        target: &[0.0],
        mask: &[1],
        offsets: &[0, 1],
        totals: Totals::default(),
    };
    assert!(value_loss(&bad, &inputs, &mut [0.0]).unwrap_err().is_invalid());
    let short = ValueInputs { target: &[], ..inputs };
    assert!(value_loss(&ValueLoss::default(), &short, &mut [0.0]).unwrap_err().is_shape());
}

#[test]
fn an_objective_is_set_by_name_over_a_recipe() {
    use gradstone::train::config;
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Recipe {
        objective: Objective,
    }
    let recipe = Recipe { objective: preset("dapo") };
    let set = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|set| (*set).to_string()).collect();
        config::load(&recipe, None, &overrides).map(|recipe| recipe.objective)
    };
    assert_eq!(set(&[]).unwrap(), preset("dapo"));
    assert_eq!(set(&["objective=gspo"]).unwrap(), preset("gspo"));
    assert_eq!(set(&["objective.preset=gspo"]).unwrap(), preset("gspo"));
    let bonus = Objective { entropy_coefficient: 0.5, ..preset("cispo") };
    assert_eq!(set(&["objective=cispo", "objective.entropy_coefficient=0.5"]).unwrap(), bonus);
    let text = set(&["objective=gpso"]).unwrap_err().to_string();
    assert!(text.contains("gspo"), "{text}");
}
