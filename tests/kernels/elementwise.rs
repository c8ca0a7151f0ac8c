//! `kernels/elementwise.cu` at every alignment and repeat: the CPU's bits for arithmetic, a reference in f64 for the rest.

use crate::device_memory::{bits, floats, gpu, uniform, upload_floats};
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::kernels::elementwise::launch::{
    self, Binary, Unary, accumulate, binary, binary_gradient, unary, unary_gradient,
};
use gradstone_host::{Order, with_order};
use std::sync::Arc;

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];
const BINARY: [Binary; 4] = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div];

/// Values away from 0, rounded to `dtype`, `skew` elements into a buffer of their own.
struct Placed {
    buffer: DeviceBuffer,
    skew: usize,
    values: Vec<f32>,
}

impl Placed {
    fn new(gpu: &Arc<Gpu>, dtype: DType, len: usize, skew: usize, seed: u64) -> Placed {
        let mut next = uniform(seed);
        let mut all = vec![f32::NAN; skew];
        all.extend((0..len).map(|_| next() * 3.0 + 2.0));
        let buffer = upload_floats(gpu, dtype, &all);
        let values = floats(&buffer).split_off(skew);
        Placed { buffer, skew, values }
    }

    fn slice(&self) -> gradstone::device::gpu::DeviceSlice<'_> {
        self.buffer.slice(self.skew..self.skew + self.values.len()).unwrap()
    }
}

fn value(op: Binary, x: f32, y: f32) -> f32 {
    match op {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
    }
}

fn gradients(op: Binary, x: f32, y: f32, g: f32) -> (f32, f32) {
    match op {
        Binary::Add => (g, g),
        Binary::Sub => (g, -g),
        Binary::Mul => (g * y, g * x),
        Binary::Div => (g / y, g * (-x / (y * y))),
    }
}

fn rounded(gpu: &Arc<Gpu>, dtype: DType, values: &[f32]) -> Vec<u32> {
    bits(&floats(&upload_floats(gpu, dtype, values)))
}

/// Lengths and repeats: no group, part of one, many; periods that are multiples of a group and that are not.
const SIZES: [(usize, usize); 8] =
    [(1, 1), (7, 7), (8, 4), (48, 16), (15, 5), (2049, 2049), (1040, 208), (3003, 273)];

#[test]
fn arithmetic_has_the_bits_of_one_rounded_operation_at_every_alignment() {
    let gpu = gpu();
    for dtype in FLOATS {
        for (len, period) in SIZES {
            for skew in [0, 1, 3] {
                let x = Placed::new(&gpu, dtype, len, skew, 3);
                let y = Placed::new(&gpu, dtype, period, skew / 2, 4);
                let g = Placed::new(&gpu, DType::F32, len, skew, 5);
                for op in BINARY {
                    let what = format!("{op:?} {dtype} {len} over {period}, {skew} in");
                    let pairs = || x.values.iter().zip(y.values.iter().cycle());
                    let want: Vec<f32> = pairs().map(|(x, y)| value(op, *x, *y)).collect();
                    let want = rounded(&gpu, dtype, &want);
                    let of_g = pairs().zip(&g.values).map(|((x, y), g)| gradients(op, *x, *y, *g));
                    let (want_dx, want_dy): (Vec<f32>, Vec<f32>) = of_g.unzip();
                    for order in Order::ALL {
                        let mut out = Placed::new(&gpu, dtype, len, skew, 6);
                        let [mut dx, mut dy] =
                            [7, 8].map(|seed| Placed::new(&gpu, DType::F32, len, skew, seed));
                        let part = skew..skew + len;
                        with_order(order, || {
                            let to = out.buffer.whole_mut();
                            let mut to = to;
                            binary(op, x.slice(), y.slice(), to.slice_mut(part.clone()).unwrap())
                                .unwrap();
                            let (mut dx, mut dy) = (dx.buffer.whole_mut(), dy.buffer.whole_mut());
                            let wanted = (
                                Some(dx.slice_mut(part.clone()).unwrap()),
                                Some(dy.slice_mut(part.clone()).unwrap()),
                            );
                            binary_gradient(
                                op,
                                x.slice(),
                                y.slice(),
                                g.slice(),
                                wanted.0,
                                wanted.1,
                            )
                            .unwrap();
                        });
                        let got = |of: &DeviceBuffer| bits(&floats(of)[skew..]);
                        assert_eq!(got(&out.buffer), want, "{what}, {order:?}");
                        assert_eq!(got(&dx.buffer), bits(&want_dx), "dx of {what}, {order:?}");
                        assert_eq!(got(&dy.buffer), bits(&want_dy), "dy of {what}, {order:?}");
                        let before =
                            |of: &DeviceBuffer| floats(of)[..skew].iter().all(|x| x.is_nan());
                        assert!(
                            before(&out.buffer) && before(&dx.buffer) && before(&dy.buffer),
                            "{what}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_sum_in_place_reads_an_element_before_it_writes_it() {
    let gpu = gpu();
    for dtype in FLOATS {
        for skew in [0, 1] {
            let (mut sum, x) =
                (Placed::new(&gpu, dtype, 1003, skew, 9), Placed::new(&gpu, dtype, 1003, 0, 10));
            let want: Vec<f32> = sum.values.iter().zip(&x.values).map(|(a, b)| a + b).collect();
            let mut whole = sum.buffer.whole_mut();
            accumulate(whole.slice_mut(skew..skew + 1003).unwrap(), x.slice()).unwrap();
            assert_eq!(bits(&floats(&sum.buffer)[skew..]), rounded(&gpu, dtype, &want), "{dtype}");
        }
    }
}

#[test]
fn functions_and_their_slopes_at_every_alignment() {
    let gpu = gpu();
    /// A function, its value at x, its slope at x where the value is y.
    type Case = (Unary, fn(f64) -> f64, fn(f64, f64) -> f64);
    let functions: [Case; 7] = [
        (Unary::Scale(-1.5), |x| -1.5 * x, |_, _| -1.5),
        (Unary::Shift(0.25), |x| x + 0.25, |_, _| 1.0),
        (Unary::Exp, f64::exp, |_, y| y),
        (Unary::Log, f64::ln, |x, _| 1.0 / x),
        (Unary::Sqrt, f64::sqrt, |_, y| 0.5 / y),
        (Unary::Tanh, f64::tanh, |_, y| 1.0 - y * y),
        (Unary::Softcap(2.0), |x| 2.0 * (x / 2.0).tanh(), |_, y| 1.0 - y * y / 4.0),
    ];
    for dtype in FLOATS {
        let tolerance = [1e-6, 8e-3, 1e-3][FLOATS.iter().position(|d| *d == dtype).unwrap()];
        for (len, skew) in [(1, 0), (9, 1), (1031, 0), (1031, 3)] {
            let x = Placed::new(&gpu, dtype, len, skew, 11);
            let g = Placed::new(&gpu, DType::F32, len, skew, 12);
            for (op, of, slope) in functions {
                for order in Order::ALL {
                    let mut y = Placed::new(&gpu, dtype, len, skew, 13);
                    let mut dx = Placed::new(&gpu, DType::F32, len, skew, 14);
                    let part = skew..skew + len;
                    with_order(order, || {
                        let mut to = y.buffer.whole_mut();
                        unary(op, x.slice(), to.slice_mut(part.clone()).unwrap()).unwrap();
                        let saved = if op == Unary::Log { x.slice() } else { y.slice() };
                        let mut to = dx.buffer.whole_mut();
                        let to = to.slice_mut(part.clone()).unwrap();
                        unary_gradient(op, saved, g.slice(), to).unwrap();
                    });
                    let (got, slopes) = (floats(&y.buffer), floats(&dx.buffer));
                    for i in 0..len {
                        let (x, g) = (f64::from(x.values[i]), f64::from(g.values[i]));
                        let near = |got: f32, want: f64| {
                            (f64::from(got) - want).abs() <= tolerance * want.abs().max(1.0)
                        };
                        let y = got[skew + i];
                        assert!(near(y, of(x)), "{op:?} {dtype}: {y} at {x}");
                        let want = g * slope(x, f64::from(y));
                        let got = slopes[skew + i];
                        assert!(near(got, want), "{op:?} slope, {dtype}: {got} not {want} at {x}");
                    }
                }
            }
        }
    }
}

#[test]
fn lengths_and_types_that_do_not_fit_are_named() {
    let gpu = gpu();
    let x = Placed::new(&gpu, DType::F32, 6, 0, 1);
    let (y, z) = (Placed::new(&gpu, DType::F32, 4, 0, 1), Placed::new(&gpu, DType::Bf16, 6, 0, 1));
    let mut out = Placed::new(&gpu, DType::F32, 6, 0, 2).buffer;
    let error = launch::binary(Binary::Mul, x.slice(), y.slice(), out.whole_mut()).unwrap_err();
    assert!(error.is_shape() && error.to_string().contains("4 elements over 6"), "{error}");
    let error = launch::binary(Binary::Add, x.slice(), z.slice(), out.whole_mut()).unwrap_err();
    assert!(error.is_dtype() && error.to_string().contains("bf16"), "{error}");
    let error = launch::unary(Unary::Exp, z.slice(), out.whole_mut()).unwrap_err();
    assert!(error.is_dtype(), "{error}");
    let error = launch::unary(Unary::Exp, y.slice(), out.whole_mut()).unwrap_err();
    assert!(error.is_shape(), "{error}");
}
