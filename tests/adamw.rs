//! `kernels::adamw` against PyTorch's published update in f64, and its promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::cpu::pool;
use gradstone::dtype::{Float, FloatSliceMut};
use gradstone::kernels::adamw::{Hyper, Parameter, global_norm, step};
use gradstone::rng::{Sequence, Stream};
use half::{bf16, f16};
use proptest::prelude::*;

#[derive(Clone)]
struct State {
    weight: Vec<f32>,
    mean: Vec<f32>,
    variance: Vec<f32>,
}

impl State {
    fn new(weight: &[f32]) -> State {
        let zeros = vec![0.0; weight.len()];
        State { weight: weight.to_vec(), mean: zeros.clone(), variance: zeros }
    }

    fn step(&mut self, hyper: &Hyper, t: u64, scale: f32, gradient: &[f32]) {
        let parameter = Parameter {
            weight: &mut self.weight,
            mean: &mut self.mean,
            variance: &mut self.variance,
            gradient,
            copy: None,
        };
        step(hyper, t, scale, parameter).unwrap();
    }
}

fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut draws = Sequence::new(seed, Stream::Free, 1);
    (0..len).map(|_| draws.next_normal()).collect()
}

/// PyTorch's single-tensor AdamW, one element at a time in f64.
fn oracle(hyper: &Hyper, weight: f64, gradients: &[f64]) -> f64 {
    let (mut w, mut m, mut v) = (weight, 0.0, 0.0);
    for (i, g) in gradients.iter().enumerate() {
        let t = (i + 1) as i32;
        w *= 1.0 - hyper.learning_rate * hyper.weight_decay;
        m += (g - m) * (1.0 - hyper.beta1);
        v = v * hyper.beta2 + (1.0 - hyper.beta2) * g * g;
        let step_size = hyper.learning_rate / (1.0 - hyper.beta1.powi(t));
        let denominator = f64::sqrt(v) / (1.0 - hyper.beta2.powi(t)).sqrt() + hyper.epsilon;
        w -= step_size * m / denominator;
    }
    w
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn equals_the_published_update(
        len in prop::sample::select(vec![0usize, 1, 3, 15, 16, 17, 31, 257, 20_011]),
        seed in 0u64..100,
        steps in 1u64..8,
        scale in prop::sample::select(vec![1.0f32, 0.25]),
        weight_decay in prop::sample::select(vec![0.0, 0.1]),
    ) {
        let hyper = Hyper { learning_rate: 0.01, weight_decay, beta2: 0.95, ..Hyper::default() };
        let weight = normal(len, seed);
        let gradients: Vec<Vec<f32>> = (0..steps).map(|t| normal(len, 1000 + seed * 10 + t)).collect();
        let mut state = State::new(&weight);
        for (t, gradient) in gradients.iter().enumerate() {
            state.step(&hyper, t as u64 + 1, scale, gradient);
        }
        for i in 0..len {
            let history: Vec<f64> =
                gradients.iter().map(|g| f64::from(g[i]) * f64::from(scale)).collect();
            let want = oracle(&hyper, f64::from(weight[i]), &history);
            let error = (f64::from(state.weight[i]) - want).abs();
            // The step is at most 0.01 · steps; the rest is rounding of the weight itself.
            prop_assert!(error <= 3e-7 * want.abs().max(0.1) * steps as f64, "{} {want}", state.weight[i]);
        }
    }
}

#[test]
fn first_step_by_hand() {
    // At t = 1 both corrections cancel: the step is lr · sign(g).
    let hyper = Hyper { learning_rate: 0.5, weight_decay: 0.1, epsilon: 0.0, ..Hyper::default() };
    let mut state = State::new(&[2.0, -2.0]);
    state.step(&hyper, 1, 1.0, &[3.0, -1e-3]);
    assert!((state.weight[0] - (2.0 * 0.95 - 0.5)).abs() < 1e-6);
    assert!((state.weight[1] - (-2.0 * 0.95 + 0.5)).abs() < 1e-6);
    // No gradient: only the decay acts, and 0 / (0 + epsilon) is 0.
    let hyper = Hyper { learning_rate: 0.5, weight_decay: 0.1, ..Hyper::default() };
    let mut state = State::new(&[2.0]);
    state.step(&hyper, 1, 1.0, &[0.0]);
    assert_eq!(state.weight, [1.9]);
}

fn copies_are_rounded<T: Float + PartialEq + std::fmt::Debug>(
    wrap: for<'a> fn(&'a mut [T]) -> FloatSliceMut<'a>,
) {
    let (weight, gradient) = (normal(40_001, 1), normal(40_001, 2));
    let mut plain = State::new(&weight);
    plain.step(&Hyper::default(), 1, 0.5, &gradient);
    let mut state = State::new(&weight);
    let mut copy = vec![T::default(); weight.len()];
    let parameter = Parameter {
        weight: &mut state.weight,
        mean: &mut state.mean,
        variance: &mut state.variance,
        gradient: &gradient,
        copy: Some(wrap(&mut copy)),
    };
    step(&Hyper::default(), 1, 0.5, parameter).unwrap();
    assert_eq!(state.weight, plain.weight);
    let want: Vec<T> = plain.weight.iter().map(|w| T::from_f32(*w)).collect();
    assert_eq!(copy, want);
}

#[test]
fn the_copy_is_the_rounded_weight() {
    copies_are_rounded::<f32>(|x| FloatSliceMut::F32(x));
    copies_are_rounded::<bf16>(|x| FloatSliceMut::Bf16(x));
    copies_are_rounded::<f16>(|x| FloatSliceMut::F16(x));
}

#[test]
fn same_bits_for_any_thread_count() {
    let (weight, gradient) = (normal(70_001, 1), normal(70_001, 2));
    let run = || {
        let mut state = State::new(&weight);
        for t in 1..4 {
            state.step(&Hyper::default(), t, 1.0, &gradient);
        }
        (state.weight, global_norm(&[&gradient, &weight]).value.to_bits())
    };
    let first = run();
    for threads in [1, 2, 4] {
        pool::set_threads(threads).unwrap();
        assert_eq!(run(), first);
    }
}

#[test]
fn norms_and_clipping() {
    let parts = [normal(50_000, 3), vec![], normal(7, 4)];
    let slices: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
    let norm = global_norm(&slices);
    let want: f64 = parts.iter().flatten().map(|x| f64::from(*x).powi(2)).sum();
    assert!((norm.value - want.sqrt()).abs() < 1e-12 * norm.value);
    assert_eq!(norm.non_finite, None);
    assert_eq!(norm.clip(1e9), 1.0);
    assert!((f64::from(norm.clip(1.0)) - 1.0 / (norm.value + 1e-6)).abs() < 1e-9);
    assert_eq!(global_norm(&[]).value, 0.0);
    assert_eq!(global_norm(&[]).clip(1.0), 1.0);
    // Squares overflow f32 here.
    let large = global_norm(&[&[1e30, 0.0], &[-1e30]]);
    assert!((large.value / 2f64.sqrt() - f64::from(1e30f32)).abs() < 1e18);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let norm = global_norm(&[&[1.0; 40], &[1.0, 2.0, bad], &[bad]]);
        assert_eq!(norm.non_finite, Some(1));
        assert!(!norm.value.is_finite());
        assert_eq!(norm.clip(1.0), 1.0);
    }
}

#[test]
fn bad_input_is_an_error_that_says_what() {
    let fails = |hyper: Hyper, t: u64, scale: f32, elements: usize| {
        let mut state = State::new(&[1.0; 3]);
        let gradient = vec![0.0; elements];
        let parameter = Parameter {
            weight: &mut state.weight,
            mean: &mut state.mean,
            variance: &mut state.variance,
            gradient: &gradient,
            copy: None,
        };
        step(&hyper, t, scale, parameter).unwrap_err()
    };
    let good = Hyper::default();
    let error = fails(good, 1, 1.0, 2);
    assert!(error.is_shape() && error.to_string().contains("gradient has 2"), "{error}");
    assert!(fails(good, 0, 1.0, 3).is_invalid());
    assert!(fails(good, 1, f32::NAN, 3).is_invalid());
    for hyper in [
        Hyper { learning_rate: -1.0, ..good },
        Hyper { learning_rate: f64::NAN, ..good },
        Hyper { beta1: 1.0, ..good },
        Hyper { beta2: -0.1, ..good },
        Hyper { epsilon: -1.0, ..good },
        Hyper { weight_decay: f64::INFINITY, ..good },
    ] {
        assert!(fails(hyper, 1, 1.0, 3).is_invalid());
    }
}
