//! `kernels::policy_loss` against an f64 oracle written from the published forms, and its promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "policy_loss/oracle.rs"]
mod oracle;

use gradstone::device::cpu::pool;
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Clamp, Gradients, Inputs, Kl, KlEstimator, LogRatio, Metrics,
    Objective, Rows, Surrogate, Totals, forward_backward,
};
use gradstone::rng::{Sequence, Stream};
use oracle::Batch;
use proptest::prelude::*;

struct Got {
    metrics: Metrics,
    dlogprob: Vec<f32>,
    dentropy: Vec<f32>,
}

fn run(objective: &Objective, batch: &Batch, totals: Totals) -> Got {
    let mut dlogprob = vec![f32::NAN; batch.logprob.len()];
    let mut dentropy = vec![f32::NAN; batch.logprob.len()];
    let metrics = forward_backward(
        objective,
        &Inputs {
            logprob: &batch.logprob,
            old_logprob: &batch.old_logprob,
            advantage: Advantages::PerToken(&batch.advantage),
            mask: &batch.mask,
            offsets: &batch.offsets,
            reference_logprob: Some(&batch.reference),
            entropy: Some(&batch.entropy),
            weight: Some(&batch.weight),
            sampler_logprob: None,
            off_policy: None,
            selected: None,
            totals,
        },
        Gradients { logprob: &mut dlogprob, entropy: Some(&mut dentropy) },
    )
    .unwrap();
    Got { metrics, dlogprob, dentropy }
}

fn batch(seed: u64, lengths: &[usize], spread: f32, live: f32) -> Batch {
    let mut draws = Sequence::new(seed, Stream::Free, 0);
    let tokens: usize = lengths.iter().sum();
    let mut offsets = vec![0i64];
    for length in lengths {
        offsets.push(offsets[offsets.len() - 1] + *length as i64);
    }
    let mut normal =
        |scale: f32| -> Vec<f32> { (0..tokens).map(|_| draws.next_normal() * scale).collect() };
    let logprob: Vec<f32> = normal(1.0).iter().map(|x| -x.abs()).collect();
    let near = |noise: Vec<f32>| logprob.iter().zip(noise).map(|(l, n)| l + n).collect();
    let old_logprob = near(normal(spread));
    let reference = near(normal(spread));
    let advantage = normal(1.0);
    let entropy = normal(2.0).iter().map(|x| x.abs()).collect();
    let weight = normal(1.0).iter().map(|x| x.abs()).collect();
    let mask = (0..tokens).map(|_| u8::from(draws.next_unit() < live)).collect();
    Batch { logprob, old_logprob, reference, advantage, entropy, weight, mask, offsets }
}

fn clip(dual_clip: Option<f32>, delta: Option<f32>) -> Surrogate {
    Surrogate::PpoClip { clip_low: 0.2, clip_high: 0.28, dual_clip, delta }
}

fn kl(estimator: KlEstimator, clamp: Clamp, bias_correction: bool) -> Option<Kl> {
    Some(Kl { estimator, coefficient: 0.3, clamp, bias_correction, straight_through: false })
}

fn objectives() -> Vec<Objective> {
    let mut all = Vec::new();
    let surrogates = [
        clip(None, None),
        clip(Some(3.0), None),
        clip(Some(1.1), None),
        clip(None, Some(1.15)),
        clip(Some(2.5), Some(1.7)),
        clip(None, Some(0.7)),
    ];
    let penalties = [
        None,
        kl(KlEstimator::K1, Clamp::Clamped, false),
        kl(KlEstimator::K2, Clamp::Clamped, true),
        kl(KlEstimator::K3, Clamp::Clamped, false),
        kl(KlEstimator::K3, Clamp::Unclamped, true),
        kl(KlEstimator::Abs, Clamp::Clamped, false),
    ];
    let aggregations = [
        Aggregation::TokenMean {},
        Aggregation::SequenceMeanTokenMean { rows: Rows::NonEmpty },
        Aggregation::SequenceMeanTokenMean { rows: Rows::All },
        Aggregation::SequenceMeanTokenSum { rows: Rows::NonEmpty, length: 1.0 },
        Aggregation::SequenceMeanTokenSum { rows: Rows::All, length: 17.0 },
        Aggregation::TokenSum { length: 10.0 },
    ];
    for (i, surrogate) in surrogates.iter().enumerate() {
        for (j, penalty) in penalties.iter().enumerate() {
            all.push(Objective {
                surrogate: surrogate.clone(),
                kl: penalty.clone(),
                aggregation: aggregations[(i + j) % aggregations.len()].clone(),
                entropy_aggregation: (i % 3 == 0).then(|| aggregations[j].clone()),
                entropy_coefficient: if j % 2 == 0 { 0.05 } else { 0.0 },
                log_ratio: if i % 2 == 0 { LogRatio::Clamped } else { LogRatio::Unclamped },
                ..Objective::default()
            });
        }
    }
    all
}

fn close(name: &str, got: f64, want: f64, scale: f64) {
    assert!((got - want).abs() <= 4e-6 * want.abs().max(scale) + 1e-9, "{name}: {got} {want}");
}

fn compare(objective: &Objective, batch: &Batch, totals: Totals) {
    let got = run(objective, batch, totals);
    let want = oracle::evaluate(objective, batch, &batch.logprob_f64(), totals);
    let m = got.metrics;
    close("loss", m.loss, want.loss, want.magnitude);
    close("kl", m.kl, want.kl, want.kl_magnitude);
    close("approx_kl", m.approx_kl, want.approx_kl, want.log_ratio_magnitude);
    close("ratio_mean", m.ratio_mean, want.ratio_mean, 0.0);
    close("ratio_max", m.ratio_max, want.ratio_max, 0.0);
    close("entropy", m.entropy, want.entropy, 0.0);
    let borderline = want.borderline.iter().filter(|b| **b).count();
    assert!(borderline * 1000 <= batch.mask.len(), "{borderline} tokens on a bound");
    if borderline == 0 {
        close("clip_high", m.clip_fraction_high, want.high, 0.0);
        close("clip_low", m.clip_fraction_low, want.low, 0.0);
        close("clip", m.clip_fraction, want.low + want.high, 0.0);
    }
    assert_eq!(m.live_tokens, want.live_tokens);
    assert_eq!(m.live_sequences, want.live_sequences);
    let largest = want.dlogprob.iter().fold(0f64, |a, b| a.max(b.abs()));
    for (i, (g, w)) in got.dlogprob.iter().zip(&want.dlogprob).enumerate() {
        let error = (f64::from(*g) - w).abs();
        let near = error <= 4e-6 * w.abs() + 1e-7 * largest;
        assert!(near || want.borderline[i], "dlogprob[{i}]: {g} {w}\n{objective:?}");
    }
    for (g, w) in got.dentropy.iter().zip(&want.dentropy) {
        close("dentropy", f64::from(*g), *w, 0.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn equals_the_oracle(
        seed in 0u64..1000,
        lengths in prop::collection::vec(prop::sample::select(vec![0usize, 1, 2, 7, 15, 16, 17, 31, 97]), 0..9),
        spread in prop::sample::select(vec![0.01f32, 0.3, 3.0, 12.0]),
        live in prop::sample::select(vec![0.0f32, 0.2, 0.9, 1.0]),
    ) {
        let batch = batch(seed, &lengths, spread, live);
        for objective in objectives() {
            // An unclamped exp overflows f32 where the f64 oracle does not.
            if spread <= 3.0 || objective.log_ratio == LogRatio::Clamped {
                compare(&objective, &batch, Totals::default());
            }
        }
    }
}

#[test]
fn longer_than_a_block() {
    let batch = batch(5, &[4095, 1, 0, 9001, 3, 4096], 0.3, 0.8);
    for objective in objectives() {
        compare(&objective, &batch, Totals::default());
    }
    let totals = Totals { tokens: Some(50_000.0), sequences: Some(12.0), scale: 0.5 };
    for objective in objectives() {
        compare(&objective, &batch, totals);
    }
}

#[test]
fn gradient_is_the_derivative() {
    let batch = batch(11, &[13, 1, 8], 0.3, 0.8);
    let step = 1e-6;
    for objective in objectives() {
        let got = run(&objective, &batch, Totals::default());
        for i in 0..batch.logprob.len() {
            let at = |sign: f64| {
                let mut moved = batch.logprob_f64();
                moved[i] += sign * step;
                oracle::evaluate(&objective, &batch, &moved, Totals::default()).loss
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
            let error = (f64::from(got.dlogprob[i]) - slope).abs();
            assert!(error <= 2e-5 * slope.abs() + 2e-6, "{i}: {} {slope}", got.dlogprob[i]);
        }
    }
}

fn specification() -> Batch {
    Batch {
        logprob: vec![-0.5, -1.0, -2.0, -0.1, -1.2, -0.3, -0.7, 0.0],
        old_logprob: vec![-0.7, -0.9, -1.0, -0.1, -1.0, -0.9, -0.2, 0.0],
        reference: vec![-0.6, -1.0, -1.5, -0.2, -1.1, -0.5, -0.6, 0.0],
        advantage: vec![1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0],
        entropy: vec![0.0; 8],
        weight: vec![1.0; 8],
        mask: vec![1, 1, 1, 1, 1, 1, 1, 0],
        offsets: vec![0, 4, 8],
    }
}

#[test]
fn values_computed_by_hand() {
    let surrogate =
        Surrogate::PpoClip { clip_low: 0.2, clip_high: 0.2, dual_clip: Some(3.0), delta: None };
    let loss = |aggregation: Aggregation| {
        let objective =
            Objective { surrogate: surrogate.clone(), aggregation, ..Objective::default() };
        run(&objective, &specification(), Totals::default()).metrics
    };
    let token_mean = loss(Aggregation::TokenMean {});
    close("token-mean", token_mean.loss, -0.004_552_47, 1e-2);
    assert_eq!((token_mean.live_tokens, token_mean.live_sequences), (7, 2));
    close("clipped high: one of seven", token_mean.clip_fraction_high, 1.0 / 7.0, 0.0);
    close("clipped low: one of seven", token_mean.clip_fraction_low, 1.0 / 7.0, 0.0);
    let rows = Rows::NonEmpty;
    let sum = loss(Aggregation::SequenceMeanTokenSum { rows, length: 1.0 });
    close("seq-mean-token-sum", sum.loss, -0.015_933_65, 1e-2);
    let mean = loss(Aggregation::SequenceMeanTokenMean { rows });
    close("seq-mean-token-mean", mean.loss, 0.139_385_32, 1e-2);
    close("sum/T", loss(Aggregation::TokenSum { length: 4.0 }).loss, -0.007_966_83, 1e-2);
    for (estimator, want) in [
        (KlEstimator::K1, -0.042_857_14),
        (KlEstimator::K2, 0.023_571_43),
        (KlEstimator::K3, 0.026_781_24),
    ] {
        let objective =
            Objective { kl: kl(estimator, Clamp::Clamped, false), ..Objective::default() };
        let metrics = run(&objective, &specification(), Totals::default()).metrics;
        close("kl", metrics.kl, want, 1e-2);
        close("kl part", metrics.kl_loss, want, 1e-2);
    }
}

#[test]
fn the_gradient_passes_on_a_bound_and_stops_beyond_it() {
    let objective = Objective {
        surrogate: Surrogate::PpoClip {
            clip_low: 0.5,
            clip_high: 0.5,
            dual_clip: Some(3.0),
            delta: None,
        },
        aggregation: Aggregation::TokenSum { length: 1.0 },
        ..Objective::default()
    };
    // exp(±ln) is not exact, so the bounds are met by a clip of zero width at ratio 1.
    let tight = Objective {
        surrogate: Surrogate::PpoClip {
            clip_low: 0.0,
            clip_high: 0.0,
            dual_clip: None,
            delta: None,
        },
        ..objective.clone()
    };
    let one = |objective: &Objective, d: f32, a: f32| {
        let mut dlogprob = [f32::NAN];
        let inputs = Inputs {
            logprob: &[d],
            old_logprob: &[0.0],
            advantage: Advantages::PerSequence(&[a]),
            mask: &[1],
            offsets: &[0, 1],
            reference_logprob: None,
            entropy: None,
            weight: None,
            sampler_logprob: None,
            off_policy: None,
            selected: None,
            totals: Totals::default(),
        };
        let gradients = Gradients { logprob: &mut dlogprob, entropy: None };
        let metrics = forward_backward(objective, &inputs, gradients).unwrap();
        (metrics.loss, dlogprob[0])
    };
    assert_eq!(one(&tight, 0.0, 2.0), (-2.0, -2.0));
    assert_eq!(one(&tight, 0.0, -2.0), (2.0, 2.0));
    assert_eq!(one(&tight, 1e-6, 2.0), (-2.0, 0.0));
    assert_eq!(one(&tight, -1e-6, -2.0), (2.0, 0.0));
    assert_eq!(one(&objective, 1.0, 1.0), (-1.5, 0.0));
    assert!(one(&objective, -1.0, 1.0).1 < 0.0);
    assert_eq!(one(&objective, -1.0, -1.0), (0.5, 0.0));
    assert!(one(&objective, 1.0, -1.0).1 > 2.7);
    assert_eq!(one(&objective, 1.2, -1.0), (3.0, 0.0));
    assert_eq!(one(&objective, 7.0, 0.0).1, 0.0);
    // The clamp of the log ratio: a value, no gradient.
    let free = Objective {
        surrogate: Surrogate::PpoClip {
            clip_low: 1.0,
            clip_high: 0.0,
            dual_clip: None,
            delta: None,
        },
        ..objective
    };
    assert!(one(&free, -19.9, 1.0).1 != 0.0);
    assert_eq!(one(&free, -20.1, 1.0).1, 0.0);
    assert_eq!(one(&free, f32::NEG_INFINITY, 1.0).1, 0.0);
    let (loss, gradient) = one(&free, f32::NAN, 1.0);
    assert!(loss.is_nan() && gradient.is_nan());
}

#[test]
fn masked_tokens_are_not_read() {
    let clean = batch(3, &[5, 0, 20, 33], 0.3, 0.6);
    let mut dirty = clean.clone();
    for i in (0..clean.mask.len()).filter(|i| clean.mask[*i] == 0) {
        for values in [
            &mut dirty.logprob,
            &mut dirty.old_logprob,
            &mut dirty.reference,
            &mut dirty.advantage,
            &mut dirty.entropy,
            &mut dirty.weight,
        ] {
            values[i] = if i % 2 == 0 { f32::NAN } else { f32::INFINITY };
        }
    }
    for objective in objectives() {
        let (a, b) = (
            run(&objective, &clean, Totals::default()),
            run(&objective, &dirty, Totals::default()),
        );
        assert_eq!(a.metrics, b.metrics);
        assert_eq!(a.dlogprob, b.dlogprob);
        assert!(b.dlogprob.iter().zip(&clean.mask).all(|(g, m)| *m != 0 || *g == 0.0));
    }
}

#[test]
fn nothing_alive_is_zero() {
    for lengths in [vec![], vec![0], vec![4, 0, 9]] {
        let batch = batch(1, &lengths, 0.3, 0.0);
        for objective in objectives() {
            let got = run(&objective, &batch, Totals::default());
            assert_eq!(got.metrics, Metrics::default());
            assert!(got.dlogprob.iter().chain(&got.dentropy).all(|g| *g == 0.0));
        }
    }
}

#[test]
fn same_bits_for_any_thread_count_and_any_company() {
    let batch = batch(8, &[5000, 17, 9000, 1, 4096, 700], 0.3, 0.9);
    let objective = &objectives()[3];
    let first = run(objective, &batch, Totals::default());
    for threads in [1, 2, 4] {
        pool::set_threads(threads).unwrap();
        let again = run(objective, &batch, Totals::default());
        assert_eq!(again.metrics, first.metrics);
        assert_eq!(again.dlogprob, first.dlogprob);
    }
    // A sequence alone, with the batch's totals, has the gradient that it has in the batch.
    let totals = Totals {
        tokens: Some(first.metrics.live_tokens as f64),
        sequences: Some(first.metrics.live_sequences as f64),
        scale: 1.0,
    };
    let mut merged = Metrics::default();
    for bounds in batch.offsets.windows(2) {
        let range = bounds[0] as usize..bounds[1] as usize;
        let alone = run(objective, &batch.part(range.clone()), totals);
        assert_eq!(alone.dlogprob, first.dlogprob[range]);
        merged = merged.merge(&alone.metrics);
    }
    close("merged loss", merged.loss, first.metrics.loss, 1.0);
    close("merged kl", merged.kl, first.metrics.kl, 1.0);
    close("merged clip", merged.clip_fraction, first.metrics.clip_fraction, 0.0);
    assert_eq!(merged.live_tokens, first.metrics.live_tokens);
    assert_eq!(merged.ratio_max, first.metrics.ratio_max);
}

#[test]
fn bad_input_is_an_error_that_says_what() {
    let good = specification();
    let fails = |change: &dyn Fn(&mut Inputs<'_>), objective: &Objective| {
        let mut dlogprob = [0f32; 8];
        let mut inputs = Inputs {
            logprob: &good.logprob,
            old_logprob: &good.old_logprob,
            advantage: Advantages::PerToken(&good.advantage),
            mask: &good.mask,
            offsets: &good.offsets,
            reference_logprob: None,
            entropy: None,
            weight: None,
            sampler_logprob: None,
            off_policy: None,
            selected: None,
            totals: Totals::default(),
        };
        change(&mut inputs);
        let gradients = Gradients { logprob: &mut dlogprob, entropy: None };
        forward_backward(objective, &inputs, gradients).unwrap_err()
    };
    let plain = Objective::default();
    let error = fails(&|i| i.old_logprob = &[0.0; 3], &plain);
    assert!(error.is_shape() && error.to_string().contains("old_logprob has 3"), "{error}");
    assert!(fails(&|i| i.mask = &[1; 9], &plain).is_shape());
    assert!(fails(&|i| i.advantage = Advantages::PerSequence(&[0.0; 3]), &plain).is_shape());
    assert!(fails(&|i| i.offsets = &[0, 4, 7], &plain).is_shape());
    assert!(fails(&|i| i.offsets = &[1, 8], &plain).is_shape());
    assert!(fails(&|i| i.offsets = &[], &plain).is_shape());
    assert!(fails(&|i| i.offsets = &[0, 6, 5, 8], &plain).is_index());
    assert!(fails(&|i| i.totals.tokens = Some(f64::NAN), &plain).is_invalid());
    let penal = Objective { kl: kl(KlEstimator::K3, Clamp::Clamped, false), ..plain.clone() };
    assert!(fails(&|_| (), &penal).to_string().contains("reference_logprob"));
    let bonus = Objective { entropy_coefficient: 0.1, ..plain.clone() };
    assert!(fails(&|_| (), &bonus).to_string().contains("entropy"));
    for (clip_low, clip_high, dual_clip, delta) in [
        (-0.1, 0.2, None, None),
        (1.5, 0.2, None, None),
        (0.2, f32::NAN, None, None),
        (0.2, 0.2, Some(0.5), None),
        (0.2, 0.2, None, Some(0.0)),
    ] {
        let surrogate = Surrogate::PpoClip { clip_low, clip_high, dual_clip, delta };
        let objective = Objective { surrogate, ..plain.clone() };
        assert!(fails(&|_| (), &objective).is_invalid());
    }
}

#[test]
fn an_objective_is_read_from_toml() {
    let text = r#"
        entropy_coefficient = 0.001
        log_ratio = "unclamped"
        surrogate = { kind = "ppo-clip", clip_low = 0.2, clip_high = 0.28, dual_clip = 3.0 }
        kl = { estimator = "k2", coefficient = 0.04 }
        aggregation = { kind = "sequence-mean-token-mean", rows = "all" }
    "#;
    let objective: Objective = toml::from_str(text).unwrap();
    assert_eq!(objective.surrogate, clip(Some(3.0), None));
    assert_eq!(objective.aggregation, Aggregation::SequenceMeanTokenMean { rows: Rows::All });
    assert_eq!(objective.kl.as_ref().unwrap().clamp, Clamp::Clamped);
    let written = toml::to_string(&objective).unwrap();
    assert_eq!(toml::from_str::<Objective>(&written).unwrap(), objective);
    for bad in [
        "surrogat = 1",
        "surrogate = { kind = 'ppo-clip', cliplow = 0.2 }",
        "surrogate = { kind = 'unheard-of' }",
        "aggregation = { kind = 'token-mean', rows = 'all' }",
        "importance_level = 'paragraph'",
        "kl = { coefficient = 0.1, estimatr = 'k1' }",
    ] {
        assert!(toml::from_str::<Objective>(bad).is_err(), "{bad}");
    }
}
