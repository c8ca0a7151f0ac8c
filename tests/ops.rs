//! Every differentiable operation against an f64 oracle: its value, and its gradient against central differences of
//! the oracle. An operation that is exported and stands in no row of the table fails the suite.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "ops/array.rs"]
mod array;
mod devices;
#[path = "ops/table.rs"]
mod table;

use array::Array;
use gradstone::device::Device;
use gradstone::rng::{Sequence, Stream};
use gradstone::tensor::{Gradients, ParamId, autograd};
use gradstone::{DType, Tensor, ops};
use table::{Case, cases};

/// Values between -1 and 1, moved into the operation's domain.
fn draw(case: &Case, shape: &[usize], which: usize, seed: u64, dtype: DType) -> Array {
    let mut draws = Sequence::new(seed, Stream::Free, which as u64);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| (case.domain)(draws.next_unit() * 2.0 - 1.0)).collect();
    let rounded = Tensor::from_buffer(values.into(), shape, dtype).unwrap();
    Array::new(shape, rounded.to_f32s().unwrap().iter().map(|x| f64::from(*x)).collect())
}

fn tensor(array: &Array, dtype: DType, device: &Device) -> Tensor {
    let values: Vec<f32> = array.data.iter().map(|x| *x as f32).collect();
    Tensor::from_buffer(values.into(), &array.shape, dtype).unwrap().to_device(device).unwrap()
}

/// The elements, wherever they are.
fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_device(&Device::Cpu).unwrap().to_f32s().unwrap().to_vec()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.to_device(&Device::Cpu).unwrap().bytes().unwrap().to_vec()
}

fn close(got: &[f32], want: &[f64], rtol: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs())).max(1e-3);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs();
        assert!(error <= rtol * (w.abs() + scale), "{what}[{i}]: {g} against {w}");
    }
}

fn check(case: &Case, seed: u64, dtype: DType, device: &Device) {
    let what = format!("{} {dtype} on {device} seed {seed}", case.name);
    let shapes = (case.shapes)(&mut Sequence::new(seed, Stream::Free, 99));
    let arrays: Vec<Array> =
        shapes.iter().enumerate().map(|(i, shape)| draw(case, shape, i, seed, dtype)).collect();
    let ids: Vec<ParamId> = arrays.iter().map(|_| ParamId::fresh()).collect();
    let leaves: Vec<Tensor> =
        arrays.iter().zip(&ids).map(|(a, id)| tensor(a, dtype, device).tracked(*id)).collect();
    let out = (case.run)(&leaves).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(out.device() == *device, "{what}: the result is on {}", out.device());
    let want = (case.oracle)(&arrays);
    assert_eq!(out.shape(), want.shape, "{what}: shape");
    let rounding = match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 2e-3,
        _ => 1.6e-2,
    };
    close(&values(&out), &want.data, rounding, &what);

    // A random direction turns the output into a scalar.
    let mut draws = Sequence::new(seed, Stream::Free, 1000);
    let direction: Vec<f32> = (0..out.len()).map(|_| draws.next_unit() * 2.0 - 1.0).collect();
    let mut gradients = Gradients::new();
    let root = Tensor::from_f32(direction.clone(), out.shape()).unwrap();
    let root = root.to_device(device).unwrap();
    autograd::backward_from(vec![(out.clone(), root)], &mut gradients)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let loss = |arrays: &[Array]| -> f64 {
        (case.oracle)(arrays).data.iter().zip(&direction).map(|(x, d)| x * f64::from(*d)).sum()
    };
    for (i, id) in ids.iter().enumerate() {
        let gradient = gradients.get(*id).unwrap_or_else(|| panic!("{what}: input {i} got none"));
        assert_eq!(gradient.dtype(), DType::F32);
        assert_eq!(gradient.shape(), arrays[i].shape, "{what}: gradient {i}");
        let step = 1e-5;
        let differences: Vec<f64> = (0..arrays[i].data.len())
            .map(|j| {
                let moved = |by: f64| {
                    let mut moved = arrays.to_vec();
                    moved[i].data[j] += by;
                    loss(&moved)
                };
                (moved(step) - moved(-step)) / (2.0 * step)
            })
            .collect();
        let rtol = if dtype == DType::F32 { 1e-4 } else { rounding };
        close(&values(gradient), &differences, rtol, &format!("{what}: gradient {i}"));
    }

    // Only the last input wanted: the others cost nothing and the wanted one has the same bits.
    let last = leaves.len() - 1;
    let partly: Vec<Tensor> = leaves
        .iter()
        .enumerate()
        .map(|(i, leaf)| if i == last { leaf.clone() } else { leaf.detach() })
        .collect();
    let out = (case.run)(&partly).unwrap();
    let mut alone = Gradients::new();
    let root = Tensor::from_f32(direction, out.shape()).unwrap().to_device(device).unwrap();
    autograd::backward_from(vec![(out, root)], &mut alone).unwrap();
    assert_eq!(alone.iter().count(), 1, "{what}: frozen inputs");
    let (a, b) = (alone.get(ids[last]).unwrap(), gradients.get(ids[last]).unwrap());
    assert_eq!(bytes(a), bytes(b), "{what}: bits with frozen inputs");
}

#[test]
fn values_and_gradients() {
    for device in devices::all() {
        // The emulated device is slow.
        let seeds = if device == Device::Cpu { 6 } else { 2 };
        for case in &cases() {
            for seed in 0..seeds {
                check(case, seed, DType::F32, &device);
            }
            check(case, 100, DType::Bf16, &device);
            check(case, 101, DType::F16, &device);
        }
    }
}

/// Output and gradients of a case, as bits.
fn bits(case: &Case, dtype: DType, device: &Device) -> Vec<Vec<u8>> {
    let shapes = (case.shapes)(&mut Sequence::new(7, Stream::Free, 99));
    let leaf = |(i, shape): (usize, &Vec<usize>)| {
        let array = draw(case, shape, i, 7, dtype);
        tensor(&array, dtype, device).tracked(ParamId::fresh())
    };
    let leaves: Vec<Tensor> = shapes.iter().enumerate().map(leaf).collect();
    let out = (case.run)(&leaves).unwrap();
    let root = Tensor::from_f32(vec![0.37; out.len()], out.shape()).unwrap();
    let mut gradients = Gradients::new();
    let root = root.to_device(device).unwrap();
    autograd::backward_from(vec![(out.clone(), root)], &mut gradients).unwrap();
    let mut all = vec![bytes(&out)];
    all.extend(gradients.iter().map(|(_, g)| bytes(g)));
    all
}

#[test]
fn bits_do_not_depend_on_the_order_of_device_threads() {
    let device = devices::emulated();
    for case in &cases() {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let seen: Vec<_> = gradstone_host::Order::ALL
                .iter()
                .map(|order| gradstone_host::with_order(*order, || bits(case, dtype, &device)))
                .collect();
            assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{} {dtype}", case.name);
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    for case in cases() {
        let mut seen = Vec::new();
        for threads in [1, 2, 4] {
            gradstone::device::cpu::pool::set_threads(threads).unwrap();
            seen.push(bits(&case, DType::F32, &Device::Cpu));
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{}", case.name);
    }
}

#[test]
fn every_exported_operation_is_in_the_table() {
    let source = include_str!("../src/ops/mod.rs");
    let mut exported: Vec<&str> = Vec::new();
    for line in source.split("pub use").skip(1) {
        let list = line.split(';').next().unwrap();
        let names = list.split("::").last().unwrap();
        exported.extend(
            names
                .trim_matches(|c: char| "{} \n".contains(c))
                .split(',')
                .map(|name| name.trim().trim_matches(|c: char| "{}".contains(c)).trim())
                .filter(|name| name.starts_with(|c: char| c.is_lowercase())),
        );
    }
    assert!(exported.len() > 15, "{exported:?}");
    let listed: Vec<&str> = cases()
        .iter()
        .map(|case| case.name)
        .chain(table::TESTED_ELSEWHERE.iter().map(|(name, _)| *name))
        .collect();
    for name in exported {
        assert!(
            listed.iter().any(|listed| listed.split(' ').next() == Some(name)),
            "`ops::{name}` is in no row of tests/ops/table.rs"
        );
    }
}

#[test]
fn misfits_are_errors() {
    let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32).unwrap();
    assert!(ops::matmul(&t(&[2, 3]), &t(&[2, 3]), false, false).unwrap_err().is_shape());
    assert!(ops::linear(&t(&[2, 3]), &t(&[4, 2]), None).unwrap_err().is_shape());
    assert!(ops::linear(&t(&[2, 3]), &t(&[4, 3]), Some(&t(&[3]))).unwrap_err().is_shape());
    assert!(ops::add(&t(&[2, 3]), &t(&[2])).unwrap_err().is_shape());
    assert!(ops::gather(&t(&[2, 3]), &[2]).unwrap_err().is_index());
    assert!(ops::concat(&[]).unwrap_err().is_shape());
    assert!(ops::concat(&[&t(&[2, 3]), &t(&[2, 4])]).unwrap_err().is_shape());
    assert!(ops::softcap(&t(&[2]), 0.0).unwrap_err().is_invalid());
    let ids = Tensor::from_i32(vec![1], &[1]).unwrap();
    assert!(ops::add(&ids, &ids).unwrap_err().is_dtype());
}
