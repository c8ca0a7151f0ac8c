//! Norms, softmax, activations, rotations and the embedding at the widths and row counts of real models: values against
//! f64, gradients against the slopes of the f64 definition, a row alone against the row in a batch, one thread against
//! several. Small shapes of the operations built on them stand in `tests/ops.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::device::cpu::pool;
use gradstone::dtype::{FloatSlice, FloatSliceMut};
use gradstone::kernels::activation::{self, Activation};
use gradstone::kernels::rms_norm::Norm;
use gradstone::kernels::rope::{Angles, Layout};
use gradstone::kernels::{layer_norm, rms_norm, rope, rows, softmax};
use gradstone::rng::{self, Stream};
use half::{bf16, f16};
use proptest::prelude::*;

fn normal(len: usize, seed: u64) -> Vec<f32> {
    let draw = |i: usize| {
        let [a, b, ..] = rng::bits(seed, Stream::Free, i as u64, 0);
        rng::normal_pair(a, b).0
    };
    (0..len).map(draw).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{what}[{i}]: {got} instead of {want}");
    }
}

/// Compares `<gradient, direction>` with the central difference of `Σ dy · f` along a random direction.
fn is_slope(gradient: &[f32], f: impl Fn(&[f64]) -> Vec<f64>, at: &[f32], dy: &[f32], what: &str) {
    let direction = wide(&normal(at.len(), 77));
    let step = 1e-5;
    let moved = |by: f64| -> f64 {
        let x: Vec<f64> = wide(at).iter().zip(&direction).map(|(x, d)| x + by * d).collect();
        f(&x).iter().zip(dy).map(|(y, dy)| y * f64::from(*dy)).sum()
    };
    let want = (moved(step) - moved(-step)) / (2.0 * step);
    let got: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum();
    let size = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt() + 1e-3;
    assert!((got - want).abs() <= 3e-5 * size.max(1.0), "{what}: {got} instead of {want} ({size})");
}

fn each_row(x: &[f64], width: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks(width).flat_map(f).collect()
}

/// The f64 definition: `center` for LayerNorm.
fn norm(x: &[f64], weight: &[f64], bias: &[f64], epsilon: f64, center: bool) -> Vec<f64> {
    let width = weight.len();
    each_row(x, width, |row| {
        let mean = if center { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let inverse = 1.0 / (square + epsilon).sqrt();
        (0..width).map(|i| (row[i] - mean) * inverse * weight[i] + bias[i]).collect()
    })
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let logsumexp = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    row.iter().map(|x| x - logsumexp).collect()
}

/// (y, dx, dweight)
fn run_rms(x: &[f32], weight: &[f32], offset: f32, dy: &[f32]) -> [Vec<f32>; 3] {
    let mut inverse = vec![0.0; x.len() / weight.len()];
    let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
    let mut dweight = vec![0.0; weight.len()];
    rms_norm::forward(x, weight, Norm { epsilon: 1e-5, offset }, &mut y, &mut inverse).unwrap();
    let saved = rms_norm::Saved { x, weight, inverse: &inverse, offset };
    rms_norm::backward(saved, dy, Some(&mut dx), &mut dweight).unwrap();
    [y, dx, dweight]
}

/// (y, dx, dweight, dbias)
fn run_layer(x: &[f32], weight: &[f32], bias: &[f32], dy: &[f32]) -> [Vec<f32>; 4] {
    let mut statistics = vec![[0.0; 2]; x.len() / weight.len()];
    let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
    let (mut dweight, mut dbias) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
    layer_norm::forward(x, weight, bias, 1e-5, &mut y, &mut statistics).unwrap();
    let saved = layer_norm::Saved { x, weight, statistics: &statistics };
    layer_norm::backward(saved, dy, &mut dx, &mut dweight, &mut dbias).unwrap();
    [y, dx, dweight, dbias]
}

/// (y, dx)
fn run_softmax(x: &[f32], width: usize, log: bool, dy: &[f32]) -> [Vec<f32>; 2] {
    let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
    softmax::forward(x, width, log, &mut y).unwrap();
    softmax::backward(&y, dy, width, log, &mut dx).unwrap();
    [y, dx]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn norms(rows in 0usize..150, width in 1usize..400, unit in any::<bool>(), seed in 0u64..1000) {
        let x: Vec<f32> = normal(rows * width, seed).iter().map(|x| x * 3.0 + 0.5).collect();
        let (weight, bias) = (normal(width, seed + 1), normal(width, seed + 2));
        let dy = normal(rows * width, seed + 3);
        let (w64, b64, x64) = (wide(&weight), wide(&bias), wide(&x));
        let nothing = vec![0.0; width];
        let offset = if unit { 1.0 } else { 0.0 };
        let shifted: Vec<f64> = w64.iter().map(|w| w + offset).collect();
        let [y, dx, dweight] = run_rms(&x, &weight, offset as f32, &dy);
        close(&y, &norm(&x64, &shifted, &nothing, 1e-5, false), 3e-6, "rms_norm");
        is_slope(&dx, |x| norm(x, &shifted, &nothing, 1e-5, false), &x, &dy, "rms_norm dx");
        is_slope(
            &dweight,
            |w| {
                let shifted: Vec<f64> = w.iter().map(|w| w + offset).collect();
                norm(&x64, &shifted, &nothing, 1e-5, false)
            },
            &weight,
            &dy,
            "rms_norm dweight",
        );
        if width > 2 {
            let [y, dx, dweight, dbias] = run_layer(&x, &weight, &bias, &dy);
            close(&y, &norm(&x64, &w64, &b64, 1e-5, true), 3e-5, "layer_norm");
            is_slope(&dx, |x| norm(x, &w64, &b64, 1e-5, true), &x, &dy, "layer_norm dx");
            is_slope(&dweight, |w| norm(&x64, w, &b64, 1e-5, true), &weight, &dy, "layer_norm dw");
            is_slope(&dbias, |b| norm(&x64, &w64, b, 1e-5, true), &bias, &dy, "layer_norm db");
        }
    }

    #[test]
    fn softmaxes(rows in 0usize..80, width in 1usize..700, seed in 0u64..1000) {
        let x: Vec<f32> = normal(rows * width, seed).iter().map(|x| x * 5.0).collect();
        let dy = normal(rows * width, seed + 1);
        let logs = |x: &[f64]| each_row(x, width, log_softmax);
        let [y, dx] = run_softmax(&x, width, true, &dy);
        close(&y, &logs(&wide(&x)), 2e-6, "log_softmax");
        is_slope(&dx, logs, &x, &dy, "log_softmax dx");
        let plain = |x: &[f64]| logs(x).iter().map(|y| y.exp()).collect::<Vec<_>>();
        let [y, dx] = run_softmax(&x, width, false, &dy);
        close(&y, &plain(&wide(&x)), 1e-6, "softmax");
        is_slope(&dx, plain, &x, &dy, "softmax dx");
    }

    #[test]
    fn rotations(
        tokens in 0usize..40, heads in 1usize..4, pairs in 1usize..33, rest in 0usize..5,
        interleaved in any::<bool>(), seed in 0u64..1000,
    ) {
        let head_dim = 2 * pairs + rest;
        let frequencies: Vec<f32> =
            (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect();
        let positions: Vec<i32> = (0..tokens as i32).map(|t| (t * 7919) % 5000).collect();
        let angles = Angles::new(&positions, &frequencies, 1.1);
        let layout = if interleaved { Layout::Interleaved } else { Layout::RotateHalf };
        let x = normal(tokens * heads * head_dim, seed);
        let mut y = x.clone();
        rope::rotate(&x, [heads, head_dim], &angles, layout, false, &mut y).unwrap();
        let mut want = wide(&x);
        for (row, head) in want.chunks_mut(head_dim).enumerate() {
            for (i, frequency) in frequencies.iter().enumerate() {
                let angle = f64::from(positions[row / heads] as f32 * frequency);
                let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + pairs) };
                let (sin, cos) = (angle.sin() * f64::from(1.1f32), angle.cos() * f64::from(1.1f32));
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
            }
        }
        close(&y, &want, 1e-6, "rope");
        // The gradient is the transpose: <rotate(x), z> = <x, rotate back(z)>.
        let z = normal(x.len(), seed + 1);
        let mut back = z.clone();
        rope::rotate(&z, [heads, head_dim], &angles, layout, true, &mut back).unwrap();
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        prop_assert!((dot(&y, &z) - dot(&x, &back)).abs() < 1e-4 * (1.0 + x.len() as f64).sqrt());
    }

    #[test]
    fn embeddings(vocab in 1usize..50, tokens in 0usize..300, width in 1usize..70, seed in 0u64..1000) {
        let ids: Vec<i32> =
            (0..tokens).map(|t| (rng::bits(seed, Stream::Free, t as u64, 1)[0] as usize % vocab) as i32).collect();
        let table = normal(vocab * width, seed);
        let mut out = vec![f32::NAN; tokens * width];
        let bytes = bytemuck::cast_slice_mut(&mut out);
        rows::gather(bytemuck::cast_slice(&table), &ids, 4 * width, bytes).unwrap();
        let dy = normal(tokens * width, seed + 1);
        let mut got = normal(vocab * width, seed + 2);
        let mut want = got.clone();
        rows::scatter_add(&mut got, &ids, width, &dy).unwrap();
        for (token, id) in ids.iter().enumerate() {
            let row = *id as usize * width..(*id as usize + 1) * width;
            prop_assert_eq!(&out[token * width..(token + 1) * width], &table[row.clone()]);
            want[row].iter_mut().zip(&dy[token * width..]).for_each(|(sum, dy)| *sum += dy);
        }
        prop_assert_eq!(bits(&got), bits(&want));
    }
}

#[test]
fn activations_over_their_whole_range() {
    let x: Vec<f32> =
        (-4000..4000).map(|i| i as f32 * 0.005).chain([-1e30, 1e30, 88.0, -88.0]).collect();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let gelu_tanh = |x: f64| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    };
    let functions: [(Activation, &dyn Fn(f64) -> f64); 2] =
        [(Activation::Silu, &|x| x * sigmoid(x)), (Activation::GeluTanh, &gelu_tanh)];
    let up = normal(x.len(), 1);
    let dy = normal(x.len(), 2);
    for (f, exact) in functions {
        let mut y = vec![f32::NAN; x.len()];
        activation::forward(f, &x, None, &mut y).unwrap();
        let want: Vec<f64> = wide(&x).iter().map(|x| exact(*x)).collect();
        close(&y, &want, 1e-6, "activation");
        let mut gated = vec![f32::NAN; x.len()];
        activation::forward(f, &x, Some(&up), &mut gated).unwrap();
        assert!(gated.iter().zip(y.iter().zip(&up)).all(|(g, (y, up))| *g == y * up));
        let finite = 8000;
        let (mut dgate, mut dup, mut dx) =
            (vec![f32::NAN; finite], vec![f32::NAN; finite], vec![f32::NAN; finite]);
        let (x, up, dy) = (&x[..finite], &up[..finite], &dy[..finite]);
        activation::gated_backward(f, x, up, dy, &mut dgate, &mut dup).unwrap();
        activation::backward(f, x, dy, &mut dx).unwrap();
        for i in 0..finite {
            let at = f64::from(x[i]);
            let slope = (exact(at + 1e-5) - exact(at - 1e-5)) / 2e-5;
            close(&[dx[i]], &[slope * f64::from(dy[i])], 2e-6, "activation slope");
            close(&[dgate[i]], &[slope * f64::from(dy[i]) * f64::from(up[i])], 3e-6, "dgate");
            close(&[dup[i]], &[exact(at) * f64::from(dy[i])], 2e-6, "dup");
        }
    }
}

/// Stored values are widened, and the value rounded once: whatever the types, and wherever a block or a stage ends.
#[test]
fn stored_activations_are_the_rounded_f32_ones() {
    for len in [0, 1, 1023, 1025, 8 * 1024 + 1, 20_000] {
        let (x, up) = (normal(len, 21), normal(len, 22));
        let x: Vec<bf16> = x.into_iter().map(bf16::from_f32).collect();
        let half_up: Vec<f16> = up.iter().copied().map(f16::from_f32).collect();
        let wide = |values: &[f16]| values.iter().map(|v| v.to_f32()).collect::<Vec<f32>>();
        let wide_x: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
        for f in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let ups = [None, Some(FloatSlice::F16(&half_up)), Some(FloatSlice::F32(&up))];
            for (stored, wide_up) in
                ups.into_iter().zip([None, Some(wide(&half_up)), Some(up.clone())])
            {
                let (mut y, mut rounded) = (vec![f32::NAN; len], vec![bf16::NAN; len]);
                activation::forward(f, &wide_x, wide_up.as_deref(), &mut y).unwrap();
                let out = FloatSliceMut::Bf16(&mut rounded);
                activation::forward_stored(f, FloatSlice::Bf16(&x), stored, out).unwrap();
                assert!(
                    y.iter().zip(&rounded).all(|(y, r)| bf16::from_f32(*y) == *r),
                    "{f:?} {len}"
                );
                let mut again = vec![f32::NAN; len];
                let out = FloatSliceMut::F32(&mut again);
                activation::forward_stored(f, FloatSlice::Bf16(&x), stored, out).unwrap();
                assert!(bits(&again) == bits(&y), "{f:?} {len}");
            }
        }
    }
    let out = FloatSliceMut::F32(&mut []);
    let error = activation::forward_stored(Activation::Silu, FloatSlice::F32(&[1.0]), None, out);
    assert!(error.unwrap_err().is_shape());
}

#[test]
fn a_row_alone_has_the_bits_of_the_row_in_a_batch() {
    for width in [1, 31, 64, 896, 1003] {
        let rows = 130;
        let (x, dy) = (normal(rows * width, 1), normal(rows * width, 2));
        let (weight, bias) = (normal(width, 3), normal(width, 4));
        let whole_rms = run_rms(&x, &weight, 1.0, &dy);
        let whole_layer = run_layer(&x, &weight, &bias, &dy);
        let whole_softmax = run_softmax(&x, width, true, &dy);
        let mut silu = vec![0.0; x.len()];
        activation::forward(Activation::Silu, &x, Some(&dy), &mut silu).unwrap();
        for row in [0, 1, 63, 64, 129] {
            let span = row * width..(row + 1) * width;
            let (x, dy) = (&x[span.clone()], &dy[span.clone()]);
            let same = |alone: &[Vec<f32>], whole: &[Vec<f32>]| {
                (0..2).all(|i| bits(&alone[i]) == bits(&whole[i][span.clone()]))
            };
            assert!(same(&run_rms(x, &weight, 1.0, dy), &whole_rms), "rms_norm {width}");
            assert!(same(&run_layer(x, &weight, &bias, dy), &whole_layer), "layer_norm {width}");
            assert!(same(&run_softmax(x, width, true, dy), &whole_softmax), "softmax {width}");
            let mut alone = vec![0.0; width];
            activation::forward(Activation::Silu, x, Some(dy), &mut alone).unwrap();
            assert_eq!(bits(&alone), bits(&silu[span.clone()]), "silu {width}");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (rows, width) = (500, 333);
    let (x, dy) = (normal(rows * width, 5), normal(rows * width, 6));
    let (weight, bias) = (normal(width, 7), normal(width, 8));
    let ids: Vec<i32> = (0..rows as i32).map(|t| t * t % 37).collect();
    let mut seen: Vec<Vec<Vec<u32>>> = Vec::new();
    for threads in [1, 2, 4] {
        pool::set_threads(threads).unwrap();
        let mut table = vec![0.0; 37 * width];
        rows::scatter_add(&mut table, &ids, width, &dy).unwrap();
        let mut all = vec![table];
        all.extend(run_rms(&x, &weight, 0.0, &dy));
        all.extend(run_layer(&x, &weight, &bias, &dy));
        all.extend(run_softmax(&x, width, false, &dy));
        seen.push(all.iter().map(|values| bits(values)).collect());
    }
    assert!(seen[0] == seen[1] && seen[1] == seen[2]);
}

#[test]
fn nan_stays_in_its_row() {
    let width = 100;
    let (x, dy, weight) = (normal(300 * width, 1), normal(300 * width, 2), normal(width, 3));
    let clean = (run_rms(&x, &weight, 0.0, &dy), run_softmax(&x, width, false, &dy));
    let mut poisoned = x.clone();
    poisoned[77 * width + 5] = f32::NAN;
    let dirty = (run_rms(&poisoned, &weight, 0.0, &dy), run_softmax(&poisoned, width, false, &dy));
    for i in 0..2 {
        for (clean, dirty) in [(&clean.0[i], &dirty.0[i]), (&clean.1[i], &dirty.1[i])] {
            for row in 0..300 {
                let span = row * width..(row + 1) * width;
                let equal = bits(&clean[span.clone()]) == bits(&dirty[span.clone()]);
                assert_eq!(equal, row != 77);
            }
        }
    }
}

#[test]
fn misfits_are_errors() {
    let x = vec![0f32; 12];
    let mut y = vec![0f32; 12];
    let norm = Norm { epsilon: 1e-5, offset: 0.0 };
    assert!(rms_norm::forward(&x, &[1.0; 5], norm, &mut y, &mut [0.0; 2]).unwrap_err().is_shape());
    assert!(softmax::forward(&x, 5, false, &mut y).unwrap_err().is_shape());
    assert!(
        activation::forward(Activation::Silu, &x, Some(&x[1..]), &mut y).unwrap_err().is_shape()
    );
    let angles = Angles::new(&[0, 1], &[1.0, 0.5], 1.0);
    assert!(
        rope::rotate(&x, [2, 3], &angles, Layout::RotateHalf, false, &mut y)
            .unwrap_err()
            .is_shape()
    );
    for bad in [-1, 4] {
        let error = rows::scatter_add(&mut y, &[0, bad], 3, &[0.0; 6]).unwrap_err();
        assert!(error.is_index() && error.to_string().contains(&bad.to_string()), "{error}");
    }
}
