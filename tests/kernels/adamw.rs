//! AdamW on the emulated device: with the same scale the bits of the CPU, in every order of threads; steps that are
//! skipped; the optimizer over parameters of a device.

use crate::memory::{self, back, bits, blank, in_every_order, normal, placed, shifted};
use gradstone::device::Device;
use gradstone::kernels::adamw::launch::{Parameter, Workspace};
use gradstone::kernels::adamw::{self, Hyper, Norm, global_norm};
use gradstone::nn::Parameters;
use gradstone::optim::{AdamW, AdamWSettings};
use gradstone::tensor::Gradients;
use gradstone::{DType, Tensor};

/// Parameters of a model: empty ones, ragged ones, the borders of a chunk of 16384 elements.
const LENGTHS: [usize; 7] = [0, 1, 37, 16384, 0, 16385, 40_003];
const COPIES: [Option<DType>; 7] =
    [None, Some(DType::Bf16), Some(DType::F16), None, None, Some(DType::Bf16), Some(DType::F32)];

struct State {
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    gradient: Tensor,
    copy: Option<Tensor>,
}

fn states(on: &Device, gradients: &[Vec<f32>]) -> Vec<State> {
    let make = |i: usize| {
        let len = LENGTHS[i];
        // Odd ones are not aligned.
        let put = if i % 2 == 1 { shifted } else { placed };
        State {
            weight: put(on, &normal(len, i as u64), &[len], DType::F32),
            mean: placed(on, &vec![0.0; len], &[len], DType::F32),
            variance: placed(on, &vec![0.0; len], &[len], DType::F32),
            gradient: put(on, &gradients[i], &[len], DType::F32),
            copy: COPIES[i].map(|dtype| blank(on, &[len], dtype)),
        }
    };
    (0..LENGTHS.len()).map(make).collect()
}

fn steps(
    on: &Device,
    hyper: &Hyper,
    most: Option<f64>,
    gradients: &[Vec<f32>],
    count: u64,
) -> (Vec<Tensor>, Norm) {
    let mut workspace = Workspace::new(on.gpu().unwrap()).unwrap();
    let mut states = states(on, gradients);
    for step in 1..=count {
        let mut table: Vec<Parameter<'_>> = states
            .iter_mut()
            .enumerate()
            .map(|(i, state)| Parameter {
                weight: state.weight.device_slice_mut().unwrap(),
                mean: state.mean.device_slice_mut().unwrap(),
                variance: state.variance.device_slice_mut().unwrap(),
                gradient: state.gradient.device_slice().unwrap(),
                copy: state.copy.as_mut().map(|copy| copy.device_slice_mut().unwrap()),
                decays: i % 2 == 0,
            })
            .collect();
        workspace.step(hyper, step, most, &mut table).unwrap();
    }
    let norm = workspace.norm().unwrap();
    let mut all = Vec::new();
    for state in &states {
        all.extend([back(&state.weight), back(&state.mean), back(&state.variance)]);
        all.extend(state.copy.as_ref().map(back));
    }
    (all, norm)
}

fn on_the_cpu(hyper: &Hyper, scale: f32, gradients: &[Vec<f32>], count: u64) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for (i, len) in LENGTHS.into_iter().enumerate() {
        let (mut weight, mut mean, mut variance) =
            (normal(len, i as u64), vec![0.0; len], vec![0.0; len]);
        let hyper =
            Hyper { weight_decay: if i % 2 == 0 { hyper.weight_decay } else { 0.0 }, ..*hyper };
        for step in 1..=count {
            let parameter = adamw::Parameter {
                weight: &mut weight,
                mean: &mut mean,
                variance: &mut variance,
                gradient: &gradients[i],
                copy: None,
            };
            adamw::step(&hyper, step, scale, parameter).unwrap();
        }
        let copy = COPIES[i].map(|_| weight.clone());
        all.extend([weight, mean, variance]);
        all.extend(copy);
    }
    all
}

fn gradients() -> Vec<Vec<f32>> {
    LENGTHS.iter().enumerate().map(|(i, len)| normal(*len, 100 + i as u64)).collect()
}

#[test]
fn steps_have_the_bits_of_the_cpu() {
    let on = memory::device();
    let hyper = Hyper { learning_rate: 0.01, weight_decay: 0.1, beta2: 0.95, ..Hyper::default() };
    let gradients = gradients();
    for most in [None, Some(3.0), Some(1e9)] {
        let got = in_every_order(|| steps(&on, &hyper, most, &gradients, 3).0);
        let norm = steps(&on, &hyper, most, &gradients, 1).1;
        let slices: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
        let exact = global_norm(&slices);
        assert!((norm.value - exact.value).abs() <= 1e-13 * exact.value, "{norm:?} {exact:?}");
        assert_eq!(norm.non_finite, None);
        let scale = most.map_or(1.0, |most| norm.clip(most));
        let want = on_the_cpu(&hyper, scale, &gradients, 3);
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let want = Tensor::from_buffer(want.into(), got.shape(), got.dtype()).unwrap();
            assert!(bits(got) == bits(&want), "array {i}, largest norm {most:?}");
        }
    }
}

#[test]
fn a_step_with_a_nan_or_an_infinity_changes_nothing() {
    let on = memory::device();
    let clean = gradients();
    let (before, _) = steps(&on, &Hyper::default(), Some(1.0), &clean, 0);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // In the second chunk of one parameter, and in a later one as well.
        let mut gradients = clean.clone();
        gradients[5][16384] = bad;
        gradients[6][3] = bad;
        let (after, norm) = steps(&on, &Hyper::default(), Some(1.0), &gradients, 1);
        assert_eq!(norm.non_finite, Some(5));
        assert!(!norm.value.is_finite());
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(bits(before) == bits(after), "array {i} after {bad}");
        }
    }
    // Squares overflow f32 here, not f64.
    let mut large = clean;
    large[3][5] = 1e30;
    let (_, norm) = steps(&on, &Hyper::default(), Some(1.0), &large, 1);
    assert!(norm.non_finite.is_none() && (norm.value / 1e30 - 1.0).abs() < 1e-6, "{norm:?}");
}

#[test]
fn misfits_are_errors_before_any_launch() {
    let on = memory::device();
    let t = |len: usize, dtype: DType| placed(&on, &vec![1.0; len], &[len], dtype);
    let mut workspace = Workspace::new(on.gpu().unwrap()).unwrap();
    let mut fails = |hyper: Hyper, most: Option<f64>, gradient: Tensor, weight: DType| {
        let [mut mean, mut variance] = [0, 1].map(|_| t(3, DType::F32));
        let mut weight = t(3, weight);
        let parameter = Parameter {
            weight: weight.device_slice_mut().unwrap(),
            mean: mean.device_slice_mut().unwrap(),
            variance: variance.device_slice_mut().unwrap(),
            gradient: gradient.device_slice().unwrap(),
            copy: None,
            decays: true,
        };
        workspace.step(&hyper, 1, most, &mut [parameter]).unwrap_err()
    };
    let good = Hyper::default();
    let error = fails(good, None, t(2, DType::F32), DType::F32);
    assert!(error.is_shape() && error.to_string().contains("gradient has 2"), "{error}");
    assert!(fails(good, None, t(3, DType::F32), DType::Bf16).is_dtype());
    assert!(fails(good, Some(0.0), t(3, DType::F32), DType::F32).is_invalid());
    assert!(fails(good, Some(f64::NAN), t(3, DType::F32), DType::F32).is_invalid());
    let hyper = Hyper { beta1: 1.0, ..good };
    assert!(fails(hyper, None, t(3, DType::F32), DType::F32).is_invalid());
}

/// A matrix and a bias of each type, gradients for all but one, three steps of which the second is bad.
fn trained(on: &Device, folder: &std::path::Path) -> (Vec<Tensor>, Vec<String>) {
    let settings =
        AdamWSettings { weight_decay: 0.1, max_grad_norm: 0.5, ..AdamWSettings::default() };
    let mut parameters = Parameters::new();
    for dtype in memory::FLOATS {
        for shape in [vec![5, 7], vec![7], vec![3]] {
            let values = normal(shape.iter().product(), shape.len() as u64);
            let name = format!("{dtype} {shape:?}");
            parameters.add(&name, placed(on, &values, &shape, dtype)).unwrap();
        }
    }
    let mut optimizer = AdamW::new(settings.clone(), &parameters).unwrap();
    let mut skipped = Vec::new();
    for step in 0..3u64 {
        let mut gradients = Gradients::new();
        for (i, parameter) in parameters.iter().enumerate().filter(|(i, _)| i % 3 != 2) {
            let shape = parameter.value().shape();
            let mut values = normal(parameter.value().len(), 100 * step + i as u64);
            if step == 1 && i == 3 {
                values[2] = f32::NAN;
            }
            gradients.add(parameter.id(), placed(on, &values, shape, DType::F32)).unwrap();
        }
        let update = optimizer.step(&mut parameters, &gradients, 0.5).unwrap();
        assert_eq!(update.grad_norm.is_finite(), update.skipped.is_none());
        skipped.extend(update.skipped);
        // What was saved goes on as if nothing had happened.
        let file = folder.join(format!("{}-{step}.safetensors", on.gpu().is_some()));
        optimizer.save(&parameters, &file).unwrap();
        optimizer = AdamW::load(settings.clone(), &parameters, &file).unwrap();
    }
    (parameters.iter().map(|parameter| back(parameter.value())).collect(), skipped)
}

#[test]
fn the_optimizer_trains_parameters_of_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let (want, skipped) = trained(&Device::Cpu, folder.path());
    assert_eq!(skipped, ["bf16 [5, 7]"]);
    let (got, skipped) = trained(&memory::device(), folder.path());
    assert_eq!(skipped, ["bf16 [5, 7]"]);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(bits(got), bits(want), "parameter {i}");
    }
    for step in 0..3 {
        let [host, device] = [false, true].map(|on_device| {
            std::fs::read(folder.path().join(format!("{on_device}-{step}.safetensors"))).unwrap()
        });
        assert_eq!(host, device, "state after step {step}");
    }
}
