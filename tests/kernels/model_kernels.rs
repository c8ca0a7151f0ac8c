//! The row kernels on the emulated device: values against f64, gradients against the slopes of the f64 definition, equal
//! bits in every order of threads, for a row alone and for rows that are not aligned.

use crate::memory::{
    self, FLOATS, back, bits, blank, in_every_order, normal, placed, shifted, wide,
};
use gradstone::device::Device;
use gradstone::kernels::activation::{self, Activation};
use gradstone::kernels::rms_norm::Norm;
use gradstone::kernels::rope::{Angles, Layout};
use gradstone::kernels::{cast, layer_norm, rms_norm, rope, softmax};
use gradstone::{DType, Tensor, ops};

/// Short rows share a block; then the borders of a warp's and of a block's registers, and beyond both.
const WIDTHS: [usize; 9] = [1, 16, 37, 128, 1023, 1024, 1025, 4100, 8200];

fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 3e-6,
        DType::F16 => 1e-3,
        _ => 8e-3,
    }
}

fn close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{what}[{i}]: {got} instead of {want}");
    }
}

/// Compares `<gradient, direction>` with the central difference of `Σ dy · f` along a random direction.
fn is_slope(gradient: &[f32], f: impl Fn(&[f64]) -> Vec<f64>, at: &[f64], dy: &[f64], what: &str) {
    assert_eq!(gradient.len(), at.len(), "{what}");
    let direction: Vec<f64> = normal(at.len(), 77).iter().map(|x| f64::from(*x)).collect();
    let moved = |by: f64| -> f64 {
        let x: Vec<f64> = at.iter().zip(&direction).map(|(x, d)| x + by * d).collect();
        f(&x).iter().zip(dy).map(|(y, dy)| y * dy).sum()
    };
    let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
    let got: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum();
    let size = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    assert!((got - want).abs() <= 3e-5 * size.max(1.0), "{what}: {got} instead of {want} ({size})");
}

fn norm(x: &[f64], weight: &[f64], bias: &[f64], center: bool) -> Vec<f64> {
    let width = weight.len();
    let rows = x.chunks(width).flat_map(|row| {
        let mean = if center { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let inverse = 1.0 / (square + 1e-3f32 as f64).sqrt();
        (0..width).map(move |i| (row[i] - mean) * inverse * weight[i] + bias[i])
    });
    rows.collect()
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let logsumexp = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    row.iter().map(|x| x - logsumexp).collect()
}

/// [y, dx, dweight]
fn run_rms(on: &Device, x: &Tensor, weight: &Tensor, offset: f32, dy: &Tensor) -> Vec<Tensor> {
    let norm = Norm { epsilon: 1e-3, offset };
    let (mut y, mut inverse) =
        (blank(on, x.shape(), x.dtype()), blank(on, &x.shape()[..1], DType::F32));
    let (mut dx, mut dweight) =
        (blank(on, x.shape(), DType::F32), blank(on, weight.shape(), DType::F32));
    let (from, w) = (x.device_slice().unwrap(), weight.device_slice().unwrap());
    let (to, factors) = (y.device_slice_mut().unwrap(), inverse.device_slice_mut().unwrap());
    rms_norm::launch::forward(from, w, norm, to, factors).unwrap();
    let inverse = inverse.device_slice().unwrap();
    let saved = rms_norm::launch::Saved { x: from, weight: w, inverse, offset };
    let (to_x, to_w) = (dx.device_slice_mut().unwrap(), dweight.device_slice_mut().unwrap());
    rms_norm::launch::backward(saved, dy.device_slice().unwrap(), Some(to_x), Some(to_w)).unwrap();
    vec![back(&y), back(&dx), back(&dweight)]
}

/// [y, dx, dweight, dbias]
fn run_layer(on: &Device, x: &Tensor, weight: &Tensor, bias: &Tensor, dy: &Tensor) -> Vec<Tensor> {
    let rows = x.shape()[0];
    let (mut y, mut statistics) =
        (blank(on, x.shape(), x.dtype()), blank(on, &[rows, 2], DType::F32));
    let [mut dx, mut dweight, mut dbias] =
        [x, weight, bias].map(|of| blank(on, of.shape(), DType::F32));
    let (from, w) = (x.device_slice().unwrap(), weight.device_slice().unwrap());
    layer_norm::launch::forward(
        from,
        w,
        bias.device_slice().unwrap(),
        1e-3,
        y.device_slice_mut().unwrap(),
        statistics.device_slice_mut().unwrap(),
    )
    .unwrap();
    let statistics = statistics.device_slice().unwrap();
    layer_norm::launch::backward(
        layer_norm::launch::Saved { x: from, weight: w, statistics },
        dy.device_slice().unwrap(),
        Some(dx.device_slice_mut().unwrap()),
        Some(dweight.device_slice_mut().unwrap()),
        Some(dbias.device_slice_mut().unwrap()),
    )
    .unwrap();
    vec![back(&y), back(&dx), back(&dweight), back(&dbias)]
}

/// [y, exact, dx]
fn run_softmax(on: &Device, x: &Tensor, log: bool, dy: &Tensor) -> Vec<Tensor> {
    let width = x.shape()[1];
    let mut y = blank(on, x.shape(), x.dtype());
    let [mut exact, mut dx] = [0, 1].map(|_| blank(on, x.shape(), DType::F32));
    let (to, kept) = (y.device_slice_mut().unwrap(), exact.device_slice_mut().unwrap());
    softmax::launch::forward(x.device_slice().unwrap(), width, log, to, Some(kept)).unwrap();
    let (saved, to_x) = (exact.device_slice().unwrap(), dx.device_slice_mut().unwrap());
    softmax::launch::backward(saved, dy.device_slice().unwrap(), width, log, to_x).unwrap();
    vec![back(&y), back(&exact), back(&dx)]
}

/// [y, dx], and [dup] where there is a gate.
fn run_activation(
    on: &Device,
    f: Activation,
    x: &Tensor,
    up: Option<&Tensor>,
    dy: &Tensor,
) -> Vec<Tensor> {
    let mut y = blank(on, x.shape(), x.dtype());
    let [mut dx, mut dup] = [0, 1].map(|_| blank(on, x.shape(), DType::F32));
    let (from, gate) = (x.device_slice().unwrap(), up.map(|up| up.device_slice().unwrap()));
    activation::launch::forward(f, from, gate, y.device_slice_mut().unwrap()).unwrap();
    let (to_x, to_up) = (dx.device_slice_mut().unwrap(), dup.device_slice_mut().unwrap());
    let to_up = Some(to_up).filter(|_| up.is_some());
    activation::launch::backward(f, from, gate, dy.device_slice().unwrap(), Some(to_x), to_up)
        .unwrap();
    let mut all = vec![back(&y), back(&dx)];
    all.extend(up.map(|_| back(&dup)));
    all
}

#[test]
fn casts_have_the_bits_of_the_cpu() {
    let on = memory::device();
    // A NaN, infinities, what overflows f16, what is rounded to nothing, and ties.
    let mut values = normal(1003, 7);
    values.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 65_520.0, -1e30, 1e-30, -0.0]);
    values.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 2048.0]);
    let place = [placed, shifted];
    for (from, place) in FLOATS.into_iter().flat_map(|from| place.map(|place| (from, place))) {
        let x = place(&on, &values, &[values.len()], from);
        let on_host = back(&x);
        for to in FLOATS {
            let got = in_every_order(|| {
                let mut out = blank(&on, x.shape(), to);
                let place = out.device_slice_mut().unwrap();
                cast::launch::convert(x.device_slice().unwrap(), place).unwrap();
                vec![back(&out)]
            });
            let want = ops::cast(&on_host, to).unwrap();
            let pairs = got[0].to_f32s().unwrap();
            for (got, want) in pairs.iter().zip(&*want.to_f32s().unwrap()) {
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{from} to {to}: {got} {want}");
            }
        }
    }
}

#[test]
fn norms() {
    let on = memory::device();
    for (case, width) in WIDTHS.into_iter().enumerate() {
        for dtype in FLOATS {
            // 70 rows: more than one partial sum of a weight's gradient.
            let rows = if width < 200 { 70 } else { 3 };
            let seed = case as u64 * 10;
            let moved: Vec<f32> =
                normal(rows * width, seed).iter().map(|x| 3.0 * x + 0.5).collect();
            let x = placed(&on, &moved, &[rows, width], dtype);
            let weight = placed(&on, &normal(width, seed + 1), &[width], dtype);
            let bias = placed(&on, &normal(width, seed + 2), &[width], dtype);
            let dy = placed(&on, &normal(rows * width, seed + 3), &[rows, width], DType::F32);
            let (x64, w64, b64, d64) = (wide(&x), wide(&weight), wide(&bias), wide(&dy));
            let what = format!("{width} {dtype}");
            let plain = vec![0.0; width];
            let plus = |w: &[f64]| w.iter().map(|w| w + 1.0).collect::<Vec<f64>>();

            let got = in_every_order(|| run_rms(&on, &x, &weight, 1.0, &dy));
            let f = |x: &[f64], w: &[f64]| norm(x, &plus(w), &plain, false);
            let y = got[0].to_f32s().unwrap();
            close(&y, &f(&x64, &w64), 2.0 * rounding(dtype), &what);
            is_slope(got[1].f32s().unwrap(), |x| f(x, &w64), &x64, &d64, &what);
            is_slope(got[2].f32s().unwrap(), |w| f(&x64, w), &w64, &d64, &what);

            let got = in_every_order(|| run_layer(&on, &x, &weight, &bias, &dy));
            let y = got[0].to_f32s().unwrap();
            close(&y, &norm(&x64, &w64, &b64, true), 4.0 * rounding(dtype), &what);
            if width > 2 {
                let f = |x: &[f64], w: &[f64], b: &[f64]| norm(x, w, b, true);
                is_slope(got[1].f32s().unwrap(), |x| f(x, &w64, &b64), &x64, &d64, &what);
                is_slope(got[2].f32s().unwrap(), |w| f(&x64, w, &b64), &w64, &d64, &what);
                is_slope(got[3].f32s().unwrap(), |b| f(&x64, &w64, b), &b64, &d64, &what);
            }
        }
    }
}

#[test]
fn softmaxes() {
    let on = memory::device();
    for (case, width) in WIDTHS.into_iter().enumerate() {
        for dtype in FLOATS {
            let rows = if width < 200 { 9 } else { 2 };
            let mut values: Vec<f32> =
                normal(rows * width, case as u64).iter().map(|x| 5.0 * x).collect();
            if width > 1 {
                values[0] = f32::NEG_INFINITY;
            }
            let x = placed(&on, &values, &[rows, width], dtype);
            // A logarithm of -inf has no part in the compared slope.
            let mut upstream = normal(rows * width, 9);
            upstream[0] = if width > 1 { 0.0 } else { upstream[0] };
            let dy = placed(&on, &upstream, &[rows, width], DType::F32);
            let (x64, d64) = (wide(&x), wide(&dy));
            let what = format!("{width} {dtype}");
            let logs = |x: &[f64]| x.chunks(width).flat_map(log_softmax).collect::<Vec<f64>>();
            let plain = |x: &[f64]| logs(x).iter().map(|y| y.exp()).collect::<Vec<f64>>();
            let got = in_every_order(|| run_softmax(&on, &x, false, &dy));
            close(&got[0].to_f32s().unwrap(), &plain(&x64), rounding(dtype), &what);
            close(got[1].f32s().unwrap(), &plain(&x64), 3e-6, &what);
            let own = 1.min(width - 1);
            is_slope(
                &got[2].f32s().unwrap()[own..],
                |x| plain(&[&x64[..own], x].concat()),
                &x64[own..],
                &d64,
                &what,
            );
            let got = in_every_order(|| run_softmax(&on, &x, true, &dy));
            close(&got[1].f32s().unwrap()[own..], &logs(&x64)[own..], 3e-6, &what);
            let tail = |x: &[f64]| logs(&[&x64[..own], x].concat())[own..].to_vec();
            is_slope(&got[2].f32s().unwrap()[own..], tail, &x64[own..], &d64[own..], &what);
        }
    }
    // A row of -inf, or with a NaN, is NaN; its neighbours are not touched.
    let x = placed(
        &on,
        &[f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0, f32::NAN, 1.0, 1.0],
        &[3, 2],
        DType::F32,
    );
    let y = run_softmax(&on, &x, false, &x);
    let y = y[0].f32s().unwrap();
    assert!(y[..4].iter().all(|y| y.is_nan()) && y[4..] == [0.5, 0.5], "{y:?}");
}

fn activated(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Gelu => {
            // Simpson's rule on the density.
            let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let (n, h) = (400, x / 400.0);
            let inner = |i: i32| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 };
            let middle: f64 = (1..n).map(inner).sum();
            x * (0.5 + h / 3.0 * (density(0.0) + middle + density(x)))
        }
    }
}

#[test]
fn activations() {
    let on = memory::device();
    for f in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        for dtype in FLOATS {
            for len in [0usize, 1, 7, 16, 1031, 5000] {
                let x: Vec<f32> = (0..len).map(|i| i as f32 * 12.0 / len as f32 - 6.0).collect();
                let x = placed(&on, &x, &[len], dtype);
                let up = placed(&on, &normal(len, 1), &[len], dtype);
                let dy = placed(&on, &normal(len, 2), &[len], DType::F32);
                let (x64, u64, d64) = (wide(&x), wide(&up), wide(&dy));
                let what = format!("{f:?} {dtype} {len}");
                let value = |i: usize| activated(f, x64[i]);
                let slope =
                    |i: usize| (activated(f, x64[i] + 1e-5) - activated(f, x64[i] - 1e-5)) / 2e-5;
                let over = |g: &dyn Fn(usize) -> f64| (0..len).map(g).collect::<Vec<f64>>();
                let got = in_every_order(|| run_activation(&on, f, &x, None, &dy));
                close(&got[0].to_f32s().unwrap(), &over(&value), rounding(dtype), &what);
                close(got[1].f32s().unwrap(), &over(&|i| slope(i) * d64[i]), 3e-6, &what);
                let got = in_every_order(|| run_activation(&on, f, &x, Some(&up), &dy));
                close(
                    &got[0].to_f32s().unwrap(),
                    &over(&|i| value(i) * u64[i]),
                    rounding(dtype),
                    &what,
                );
                close(got[1].f32s().unwrap(), &over(&|i| slope(i) * u64[i] * d64[i]), 3e-6, &what);
                close(got[2].f32s().unwrap(), &over(&|i| value(i) * d64[i]), 3e-6, &what);
            }
        }
    }
    let far = placed(&on, &[-1e30, 1e30, -200.0, 200.0], &[4], DType::F32);
    for f in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        let y = run_activation(&on, f, &far, None, &far);
        let y = y[0].f32s().unwrap();
        assert!(y[0] == 0.0 && y[1] == 1e30 && y[2] == 0.0 && y[3] == 200.0, "{f:?} {y:?}");
    }
}

#[test]
fn rotations_have_the_bits_of_the_cpu() {
    let on = memory::device();
    let head_shapes = [(1, 8, 4), (3, 6, 3), (2, 64, 32), (2, 80, 16), (4, 72, 36), (1, 2, 1)];
    for (heads, head_dim, pairs) in head_shapes {
        for tokens in [0usize, 1, 5] {
            let frequencies: Vec<f32> =
                (0..pairs).map(|i| 10_000f32.powf(-(i as f32) / pairs as f32)).collect();
            let positions: Vec<i32> = (0..tokens as i32).map(|t| t * 7919 % 5000).collect();
            let angles = Angles::new(&positions, &frequencies, 1.1);
            let values = normal(tokens * heads * head_dim, 3);
            for dtype in FLOATS {
                let x = placed(&on, &values, &[tokens, heads, head_dim], dtype);
                let on_host = back(&x).to_f32s().unwrap().to_vec();
                for layout in [Layout::RotateHalf, Layout::Interleaved] {
                    for inverse in [false, true] {
                        let got = in_every_order(|| {
                            let mut out = blank(&on, x.shape(), dtype);
                            let (from, to) =
                                (x.device_slice().unwrap(), out.device_slice_mut().unwrap());
                            rope::launch::rotate(
                                from,
                                [heads, head_dim],
                                &angles,
                                layout,
                                inverse,
                                to,
                            )
                            .unwrap();
                            vec![back(&out)]
                        });
                        let mut want = vec![0.0; on_host.len()];
                        rope::rotate(
                            &on_host,
                            [heads, head_dim],
                            &angles,
                            layout,
                            inverse,
                            &mut want,
                        )
                        .unwrap();
                        let want = Tensor::from_buffer(want.into(), x.shape(), dtype).unwrap();
                        assert_eq!(
                            bits(&got[0]),
                            bits(&want),
                            "{head_dim} {pairs} {dtype} {layout:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_alone_and_a_row_that_is_not_aligned_have_the_bits_of_the_row_in_a_batch() {
    let on = memory::device();
    for width in [16, 64, 1023, 1024, 2048, 4104] {
        for dtype in FLOATS {
            let rows = 11;
            let shape = [rows, width];
            let (x, dy) = (normal(rows * width, 1), normal(rows * width, 2));
            let weight = placed(&on, &normal(width, 3), &[width], dtype);
            let bias = placed(&on, &normal(width, 4), &[width], dtype);
            // What each function gives for rows, first the outputs that have rows.
            let run = |x: &Tensor, dy: &Tensor| -> Vec<Tensor> {
                let mut all = run_rms(&on, x, &weight, 0.0, dy);
                all.truncate(2);
                all.extend(run_layer(&on, x, &weight, &bias, dy).into_iter().take(2));
                all.extend(run_softmax(&on, x, true, dy));
                all.extend(run_activation(&on, Activation::Silu, x, None, dy));
                all
            };
            let whole = run(&placed(&on, &x, &shape, dtype), &placed(&on, &dy, &shape, DType::F32));
            let off = run(&shifted(&on, &x, &shape, dtype), &shifted(&on, &dy, &shape, DType::F32));
            for (which, (whole, off)) in whole.iter().zip(&off).enumerate() {
                assert_eq!(bits(whole), bits(off), "{which} {width} {dtype}");
            }
            for row in [0, 5, 10] {
                let span = row * width..(row + 1) * width;
                let one = placed(&on, &x[span.clone()], &[1, width], dtype);
                let alone = run(&one, &placed(&on, &dy[span], &[1, width], DType::F32));
                for (which, (whole, alone)) in whole.iter().zip(&alone).enumerate() {
                    let part = whole.rows(row..row + 1).unwrap();
                    assert_eq!(bits(&part), bits(alone), "{which} {width} {dtype}");
                }
            }
        }
    }
}

#[test]
fn misfits_are_errors_before_any_launch() {
    let on = memory::device();
    let t = |len: usize, dtype: DType| placed(&on, &vec![1.0; len], &[len], dtype);
    let (x, w) = (t(12, DType::F32), t(5, DType::F32));
    let (mut y, mut inverse, mut half) = (t(12, DType::F32), t(3, DType::F32), t(12, DType::F16));
    let norm = Norm { epsilon: 1e-5, offset: 0.0 };
    let (from, four) = (x.device_slice().unwrap(), t(4, DType::F16));
    let rms = |weight: &Tensor, y: &mut Tensor, inverse: &mut Tensor| {
        let (w, to) = (weight.device_slice().unwrap(), y.device_slice_mut().unwrap());
        let factors = inverse.device_slice_mut().unwrap();
        rms_norm::launch::forward(from, w, norm, to, factors).unwrap_err()
    };
    assert!(rms(&w, &mut y, &mut inverse).is_shape());
    let mixed = rms(&four, &mut y, &mut inverse);
    assert!(mixed.is_dtype() && mixed.to_string().contains("f16"), "{mixed}");
    let to = half.device_slice_mut().unwrap();
    assert!(softmax::launch::forward(from, 4, false, to, None).unwrap_err().is_dtype());
    let to = y.device_slice_mut().unwrap();
    assert!(softmax::launch::forward(from, 5, false, to, None).unwrap_err().is_shape());
    let (to, gate) = (y.device_slice_mut().unwrap(), w.device_slice().unwrap());
    let error = activation::launch::forward(Activation::Silu, from, Some(gate), to).unwrap_err();
    assert!(error.is_shape());
    let angles = Angles::new(&[0, 1], &[1.0, 0.5], 1.0);
    let to = y.device_slice_mut().unwrap();
    let error =
        rope::launch::rotate(from, [2, 3], &angles, Layout::RotateHalf, false, to).unwrap_err();
    assert!(error.is_shape());
}
