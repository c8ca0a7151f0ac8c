//! `kernels::policy_loss` against an f64 oracle written from the published forms, and its promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "policy_loss/cases.rs"]
mod cases;
#[path = "policy_loss/edges.rs"]
mod edges;
#[path = "policy_loss/oracle.rs"]
mod oracle;

use cases::{batch, clip, every, every_combination, kl, run};
use gradstone::device::cpu::pool;
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Clamp, Gradients, Inputs, KlEstimator, LogRatio, Metrics, Objective,
    Rows, Surrogate, Totals, forward_backward,
};
use oracle::{Batch, Oracle, Sums};
use proptest::prelude::*;

fn close(name: &str, got: f64, want: f64, scale: f64) {
    assert!((got - want).abs() <= 6e-6 * want.abs().max(scale) + 1e-9, "{name}: {got} {want}");
}

/// The gradient by central differences of the oracle's loss, and whether a kink is near, for the tokens `every` apart.
fn differences(oracle: &Oracle<'_>, apart: usize) -> Vec<Option<(f64, bool)>> {
    let step = 1e-6;
    let frozen = oracle.batch.logprob_f64();
    let mut moved = frozen.clone();
    let mut slopes = vec![None; frozen.len()];
    for (sequence, range) in oracle.batch.sequences().into_iter().enumerate() {
        for t in range.clone().filter(|t| t % apart == 0) {
            let of = if oracle.is_of_sequences() { range.clone() } else { t..t + 1 };
            let mut at = |sign: f64| -> Sums {
                moved[t] = frozen[t] + sign * step;
                let sums = oracle.sums(sequence, range.clone(), of.clone(), &moved, &frozen);
                moved[t] = frozen[t];
                sums
            };
            let (above, below) = (at(1.0), at(-1.0));
            let slope = (above.loss - below.loss) / (2.0 * step);
            slopes[t] = Some((slope, above.borderline || below.borderline));
        }
    }
    slopes
}

fn compare(objective: &Objective, batch: &Batch, totals: Totals, apart: usize) {
    let got = run(objective, batch, totals);
    let oracle = Oracle::new(objective, batch, totals);
    let now = batch.logprob_f64();
    let mut want = Sums::default();
    for (sequence, range) in batch.sequences().into_iter().enumerate() {
        let part = oracle.sums(sequence, range.clone(), range, &now, &now);
        want.loss += part.loss;
        want.magnitude += part.magnitude;
        want.kl += part.kl;
        want.kl_magnitude += part.kl_magnitude;
        want.log_ratio += part.log_ratio;
        want.log_ratio_magnitude += part.log_ratio_magnitude;
        want.ratio += part.ratio;
        want.ratio_max = want.ratio_max.max(part.ratio_max);
        want.shaped += part.shaped;
        want.entropy += part.entropy;
        want.replayed += part.replayed;
        want.dropped += part.dropped;
        want.borderline |= part.borderline;
    }
    let m = got.metrics;
    let live = oracle.live_tokens().max(1.0);
    let fresh = (oracle.live_tokens() - want.replayed).max(1.0);
    assert_eq!(m.live_tokens as f64, oracle.live_tokens());
    assert_eq!(m.live_sequences as usize, oracle.live_sequences());
    assert_eq!(m.replay.tokens as f64, want.replayed);
    let what = format!("{objective:?}");
    close(&what, m.loss, want.loss, want.magnitude);
    close("kl", m.kl, want.kl / live, want.kl_magnitude / live);
    let of_ratios = want.log_ratio_magnitude / live;
    close("approx_kl", m.approx_kl, -want.log_ratio / live, of_ratios);
    close("ratio_mean", m.ratio_mean, want.ratio / fresh, of_ratios);
    close("ratio_max", m.ratio_max, want.ratio_max, 0.0);
    close("entropy", m.entropy, want.entropy / live, 0.0);
    close("shaped", m.replay.shaped_mean, want.shaped / want.replayed.max(1.0), of_ratios);
    if !want.borderline {
        close("dropped", m.dropped_fraction, want.dropped / live, 0.0);
    }
    let slopes = differences(&oracle, apart);
    let of = |slope: &Option<(f64, bool)>| slope.map_or(0.0, |(slope, _)| slope.abs());
    let largest = slopes.iter().map(of).fold(0.0, f64::max);
    for (t, slope) in slopes.iter().enumerate() {
        let Some((slope, borderline)) = slope else { continue };
        let (got, wanted) = (f64::from(got.dlogprob[t]), *slope);
        // The differences of a loss over thousands of tokens have fewer digits.
        let digits = if apart > 1 { 4e-5 } else { 8e-6 };
        let near = (got - wanted).abs() <= digits * wanted.abs() + 4e-7 * largest + 1e-9;
        assert!(near || *borderline, "dlogprob[{t}]: {got} {wanted}\n{objective:?}");
    }
    let bonus = f64::from(objective.entropy_coefficient);
    let total: f64 = got.dentropy.iter().zip(&batch.entropy).map(|(g, e)| f64::from(g * e)).sum();
    if bonus != 0.0 && objective.entropy_aggregation.is_none() {
        close("entropy part", total, -bonus * m.entropy_loss, want.magnitude);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn equals_the_oracle(
        seed in 0u64..1000,
        lengths in prop::collection::vec(prop::sample::select(vec![0usize, 1, 2, 7, 15, 16, 17, 31, 97]), 0..7),
        spread in prop::sample::select(vec![0.01f32, 0.3, 2.0]),
        live in prop::sample::select(vec![0.0f32, 0.2, 0.9, 1.0]),
    ) {
        for (objective, per_token) in every() {
            let batch = batch(seed, &lengths, spread, live, per_token);
            compare(&objective, &batch, Totals::default(), 1);
        }
    }

    #[test]
    fn the_gradient_is_the_derivative_of_every_combination(
        seed in 0u64..1000,
        lengths in prop::collection::vec(0usize..6, 1..4),
    ) {
        for (objective, per_token) in every_combination() {
            let batch = batch(seed, &lengths, 0.3, 0.8, per_token);
            compare(&objective, &batch, Totals::default(), 1);
        }
    }
}

#[test]
fn log_ratios_far_apart() {
    for (objective, per_token) in every() {
        // An unclamped exp overflows f32 where the f64 oracle does not.
        if objective.log_ratio == LogRatio::Clamped && cases::stays_finite(&objective) {
            let batch = batch(4, &[40, 3, 90], 12.0, 0.9, per_token);
            compare(&objective, &batch, Totals::default(), 1);
        }
    }
}

#[test]
fn longer_than_a_block() {
    let lengths = [4095, 1, 0, 9001, 3, 4096];
    let totals = Totals { tokens: Some(50_000.0), sequences: Some(12.0), scale: 0.5 };
    for (i, (objective, per_token)) in every().into_iter().enumerate().step_by(3) {
        let batch = batch(5, &lengths, 0.3, 0.8, per_token);
        let totals = if i % 2 == 0 { Totals::default() } else { totals };
        compare(&objective, &batch, totals, 2003);
    }
}

fn specification() -> Batch {
    Batch {
        logprob: vec![-0.5, -1.0, -2.0, -0.1, -1.2, -0.3, -0.7, 0.0],
        old_logprob: vec![-0.7, -0.9, -1.0, -0.1, -1.0, -0.9, -0.2, 0.0],
        reference: vec![-0.6, -1.0, -1.5, -0.2, -1.1, -0.5, -0.6, 0.0],
        advantage: vec![1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0],
        sampler: vec![-0.8, -0.9, -2.2, -0.1, -1.0, -2.5, -0.2, 0.0],
        entropy: vec![0.0; 8],
        weight: vec![1.0; 8],
        off_policy: vec![1, 1, 1, 1, 0, 0, 0, 0],
        selected: vec![0; 8],
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
fn every_objective_computed_by_hand() {
    let rows = Rows::NonEmpty;
    let means = Aggregation::SequenceMeanTokenMean { rows };
    let preset = |name: &str| Objective::preset(name).unwrap();
    let gate = Objective { aggregation: means, ..preset("sapo") };
    let cispo = preset("cispo");
    for (objective, want) in [
        (preset("gspo"), 0.100_591_89),
        (preset("gspo_token"), 0.100_591_89),
        (cispo, 0.186_051_50),
        (preset("gmpo"), 0.100_741_89),
        (gate, 0.047_508_69),
        (Objective { drift: None, ..preset("cpgd") }, 0.242_076_41),
    ] {
        let metrics = run(&objective, &specification(), Totals::default()).metrics;
        assert!((metrics.loss - want).abs() < 2e-7, "{}: {objective:?}", metrics.loss);
    }
    let metrics = run(&preset("cpgd"), &specification(), Totals::default()).metrics;
    assert!((metrics.drift_loss - 0.213_574_04).abs() < 2e-7, "{}", metrics.drift_loss);
    close("with its drift", metrics.loss, 0.242_076_41 + 0.001 * 0.213_574_04, 1.0);
    let exgrpo = Objective {
        aggregation: Aggregation::TokenSum { length: 4.0 },
        entropy_coefficient: 0.0,
        ..preset("exgrpo")
    };
    let row = specification().part(0..4);
    let metrics = run(&exgrpo, &row, Totals::default()).metrics;
    assert!((metrics.loss + 0.880_041_22).abs() < 2e-7, "{}", metrics.loss);
    assert_eq!((metrics.replay.tokens, metrics.ratio_max), (4, 0.0));
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
    for (objective, per_token) in every() {
        let clean = batch(3, &[5, 0, 20, 33], 0.3, 0.6, per_token);
        let mut dirty = clean.clone();
        for i in (0..clean.mask.len()).filter(|i| clean.mask[*i] == 0) {
            for values in [
                &mut dirty.logprob,
                &mut dirty.old_logprob,
                &mut dirty.reference,
                &mut dirty.sampler,
                &mut dirty.entropy,
                &mut dirty.weight,
            ] {
                values[i] = if i % 2 == 0 { f32::NAN } else { f32::INFINITY };
            }
            if per_token {
                dirty.advantage[i] = f32::NAN;
            }
        }
        let (a, b) = (
            run(&objective, &clean, Totals::default()),
            run(&objective, &dirty, Totals::default()),
        );
        assert_eq!(a.metrics, b.metrics, "{objective:?}");
        assert_eq!(a.dlogprob, b.dlogprob);
        assert!(b.dlogprob.iter().zip(&clean.mask).all(|(g, m)| *m != 0 || *g == 0.0));
    }
}

#[test]
fn nothing_alive_is_zero() {
    for lengths in [vec![], vec![0], vec![4, 0, 9]] {
        for (objective, per_token) in every() {
            let batch = batch(1, &lengths, 0.3, 0.0, per_token);
            let got = run(&objective, &batch, Totals::default());
            assert_eq!(got.metrics, Metrics::default());
            assert!(got.dlogprob.iter().chain(&got.dentropy).all(|g| *g == 0.0));
        }
    }
}

#[test]
fn same_bits_for_any_thread_count_and_any_company() {
    for (objective, per_token) in every() {
        let batch = batch(8, &[5000, 17, 1, 4096, 700], 0.3, 0.9, per_token);
        let first = run(&objective, &batch, Totals::default());
        for threads in [1, 2, 4] {
            pool::set_threads(threads).unwrap();
            let again = run(&objective, &batch, Totals::default());
            assert_eq!(again.metrics, first.metrics, "{objective:?}");
            assert_eq!(again.dlogprob, first.dlogprob);
        }
        // A sequence alone, with the batch's totals, has the gradient that it has in the batch.
        let count = |rows: Rows| match rows {
            Rows::All => batch.offsets.len() as f64 - 1.0,
            Rows::NonEmpty => first.metrics.live_sequences as f64,
        };
        let totals = Totals {
            tokens: Some(first.metrics.live_tokens as f64),
            sequences: Some(count(Rows::NonEmpty)),
            scale: 1.0,
        };
        assert_eq!(count(Rows::All), count(Rows::NonEmpty));
        let mut merged = Metrics::default();
        for range in batch.sequences() {
            let alone = run(&objective, &batch.part(range.clone()), totals);
            assert_eq!(alone.dlogprob, first.dlogprob[range], "{objective:?}");
            merged = merged.merge(&alone.metrics);
        }
        close("merged loss", merged.loss, first.metrics.loss, 1.0);
        close("merged kl", merged.kl, first.metrics.kl, 1.0);
        close("merged clip", merged.clip_fraction, first.metrics.clip_fraction, 0.0);
        close("variance", merged.ratio_variance, first.metrics.ratio_variance, 1.0);
        let (of_parts, of_whole) = (merged.replay, first.metrics.replay);
        close("shaped", of_parts.shaped_variance, of_whole.shaped_variance, 1.0);
        assert_eq!(of_parts.tokens, of_whole.tokens);
        assert_eq!(merged.live_tokens, first.metrics.live_tokens);
        assert_eq!(merged.ratio_max, first.metrics.ratio_max);
    }
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
        (f32::INFINITY, 0.2, None, None),
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
