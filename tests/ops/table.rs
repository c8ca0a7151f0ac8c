//! The table: one row an operation, with its oracle in f64.

use crate::array::Array;
use gradstone::kernels::attention::Attention;
use gradstone::kernels::rope::{Angles, Layout};
use gradstone::ops::SoftmaxOptions;
use gradstone::rng::Sequence;
use gradstone::{Result, Tensor, ops};
use std::sync::Arc;

/// Shapes of the inputs, drawn from a sequence of random numbers.
type Shapes = Box<dyn Fn(&mut Sequence) -> Vec<Vec<usize>>>;

/// The operation on tensors.
type Run = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// The operation in f64.
type Oracle = Box<dyn Fn(&[Array]) -> Array>;

pub struct Case {
    /// The operation's name, and after a blank what is special in this row.
    pub name: &'static str,
    pub shapes: Shapes,
    pub domain: fn(f32) -> f32,
    pub run: Run,
    pub oracle: Oracle,
}

/// Operations whose rows stand in another test file, because they take more than tensors of one type.
pub const TESTED_ELSEWHERE: &[(&str, &str)] = &[
    ("append_to_cache", "tests/kernels/attention.rs"),
    ("block_noise", "tests/kernels/block_noise.rs"),
    ("cached_attention", "tests/decoder.rs"),
    ("cast", "tests/autograd.rs"),
    ("linear_policy_loss", "tests/kernels/linear_policy_loss.rs"),
    ("logits", "tests/golden/causal_lm.rs"),
    ("policy_loss", "tests/kernels/learner.rs"),
    ("vq_lookup", "tests/kernels/token_decode.rs"),
    ("vq_quantize", "tests/kernels/token_decode.rs"),
];

fn size(draws: &mut Sequence, from: u32, below: u32) -> usize {
    (from + draws.below(below - from)) as usize
}

fn case(
    name: &'static str,
    shapes: impl Fn(&mut Sequence) -> Vec<Vec<usize>> + 'static,
    domain: fn(f32) -> f32,
    run: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    oracle: impl Fn(&[Array]) -> Array + 'static,
) -> Case {
    Case { name, shapes: Box::new(shapes), domain, run: Box::new(run), oracle: Box::new(oracle) }
}

fn one(draws: &mut Sequence) -> Vec<Vec<usize>> {
    vec![vec![size(draws, 1, 5), size(draws, 1, 40)]]
}

fn pair(draws: &mut Sequence) -> Vec<Vec<usize>> {
    let (a, b) = (size(draws, 1, 5), size(draws, 1, 20));
    let second = if draws.below(2) == 0 { vec![a, b] } else { vec![b] };
    vec![vec![a, b], second]
}

const PLAIN: fn(f32) -> f32 = |x| x;
const POSITIVE: fn(f32) -> f32 = |x| x.abs() + 0.5;

pub fn cases() -> Vec<Case> {
    let mut all = plain();
    all.extend(products());
    all.extend(model());
    all.extend(attention());
    all.extend(logprobs());
    all
}

fn plain() -> Vec<Case> {
    let unary = |name, domain, run: fn(&Tensor) -> Result<Tensor>, oracle: fn(f64) -> f64| {
        case(name, one, domain, move |x| run(&x[0]), move |x| x[0].map(oracle))
    };
    let binary =
        |name, run: fn(&Tensor, &Tensor) -> Result<Tensor>, oracle: fn(f64, f64) -> f64| {
            case(name, pair, POSITIVE, move |x| run(&x[0], &x[1]), move |x| x[0].zip(&x[1], oracle))
        };
    vec![
        binary("add", ops::add, |a, b| a + b),
        binary("sub", ops::sub, |a, b| a - b),
        binary("mul", ops::mul, |a, b| a * b),
        binary("div", ops::div, |a, b| a / b),
        unary("scale", PLAIN, |x| ops::scale(x, -1.7), |x| x * f64::from(-1.7f32)),
        unary("shift", PLAIN, |x| ops::shift(x, 0.5), |x| x + 0.5),
        unary("neg", PLAIN, ops::neg, |x| -x),
        unary("exp", |x| x * 3.0, ops::exp, f64::exp),
        unary("log", POSITIVE, ops::log, f64::ln),
        unary("sqrt", POSITIVE, ops::sqrt, f64::sqrt),
        unary("tanh", |x| x * 2.0, ops::tanh, f64::tanh),
        unary("softcap", |x| x * 4.0, |x| ops::softcap(x, 1.5), |x| 1.5 * (x / 1.5).tanh()),
        case(
            "sum",
            one,
            PLAIN,
            |x| ops::sum(&x[0]),
            |x| Array::new(&[], vec![x[0].data.iter().sum()]),
        ),
        case(
            "mean",
            one,
            PLAIN,
            |x| ops::mean(&x[0]),
            |x| Array::new(&[], vec![x[0].data.iter().sum::<f64>() / x[0].data.len() as f64]),
        ),
        case(
            "sum_last",
            one,
            PLAIN,
            |x| ops::sum_last(&x[0]),
            |x| Array::new(&x[0].shape[..1], x[0].rows(|row| vec![row.iter().sum()])),
        ),
        case(
            "mean_last",
            one,
            PLAIN,
            |x| ops::mean_last(&x[0]),
            |x| {
                let mean = |row: &[f64]| vec![row.iter().sum::<f64>() / row.len() as f64];
                Array::new(&x[0].shape[..1], x[0].rows(mean))
            },
        ),
        case(
            "reshape",
            one,
            PLAIN,
            |x| ops::reshape(&x[0], &[x[0].len(), 1]),
            |x| Array::new(&[x[0].data.len(), 1], x[0].data.clone()),
        ),
        case(
            "rows",
            |draws| vec![vec![size(draws, 2, 6), size(draws, 1, 9)]],
            PLAIN,
            |x| ops::rows(&x[0], 1..x[0].shape()[0]),
            |x| {
                let (n, width) = (x[0].shape[0], x[0].last());
                Array::new(&[n - 1, width], x[0].data[width..].to_vec())
            },
        ),
        case(
            "split",
            |draws| vec![vec![size(draws, 3, 7), size(draws, 1, 9)]],
            PLAIN,
            |x| {
                // The second part is not used: its gradient is 0.
                let parts = ops::split(&x[0], &[1, 1, x[0].shape()[0] - 2])?;
                ops::concat(&[&parts[2], &parts[0]])
            },
            |x| {
                let width = x[0].last();
                let data = [&x[0].data[2 * width..], &x[0].data[..width]].concat();
                Array::new(&[x[0].shape[0] - 1, width], data)
            },
        ),
        case(
            "concat",
            |draws| {
                let width = size(draws, 1, 9);
                vec![vec![size(draws, 1, 4), width], vec![0, width], vec![size(draws, 1, 4), width]]
            },
            PLAIN,
            |x| ops::concat(&[&x[0], &x[1], &x[2]]),
            |x| {
                let data: Vec<f64> = x.iter().flat_map(|a| a.data.clone()).collect();
                Array::new(&[x.iter().map(|a| a.shape[0]).sum(), x[0].last()], data)
            },
        ),
        case(
            "gather",
            |draws| vec![vec![4, size(draws, 1, 9)]],
            PLAIN,
            |x| ops::gather(&x[0], &[3, 0, 3, 1]),
            |x| {
                let width = x[0].last();
                let row = |i: usize| x[0].data[i * width..(i + 1) * width].to_vec();
                Array::new(&[4, width], [3, 0, 3, 1].into_iter().flat_map(row).collect())
            },
        ),
    ]
}

fn products() -> Vec<Case> {
    let mut all = vec![
        case(
            "linear with bias",
            |draws| {
                let (m, n, k) = (size(draws, 1, 12), size(draws, 1, 9), size(draws, 1, 12));
                vec![vec![m, k], vec![n, k], vec![n]]
            },
            PLAIN,
            |x| ops::linear(&x[0], &x[1], Some(&x[2])),
            |x| x[0].matmul(&x[1], false, true).zip(&x[2], |y, b| y + b),
        ),
        case(
            "linears summed",
            |draws| {
                let (m, n, k) = (size(draws, 1, 12), size(draws, 1, 9), size(draws, 1, 12));
                vec![vec![m, k], vec![n, k], vec![n, k], vec![n]]
            },
            PLAIN,
            |x| {
                let [a, b] = ops::linears(&x[0], [(&x[1], None), (&x[2], Some(&x[3]))])?;
                ops::mul(&a, &b)
            },
            |x| {
                let b = x[0].matmul(&x[2], false, true).zip(&x[3], |y, b| y + b);
                x[0].matmul(&x[1], false, true).zip(&b, |a, b| a * b)
            },
        ),
        case(
            "linear",
            |draws| {
                let k = size(draws, 1, 12);
                vec![vec![size(draws, 1, 12), k], vec![size(draws, 1, 9), k]]
            },
            PLAIN,
            |x| ops::linear(&x[0], &x[1], None),
            |x| x[0].matmul(&x[1], false, true),
        ),
    ];
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        all.push(case(
            "matmul batched",
            move |draws| {
                let (m, n, k) = (size(draws, 1, 9), size(draws, 1, 9), size(draws, 1, 12));
                let batch = size(draws, 1, 4);
                let a = if ta { vec![batch, k, m] } else { vec![batch, m, k] };
                let b = if tb { vec![batch, n, k] } else { vec![batch, k, n] };
                vec![a, b]
            },
            PLAIN,
            move |x| ops::matmul(&x[0], &x[1], ta, tb),
            move |x| x[0].matmul(&x[1], ta, tb),
        ));
    }
    all
}

fn rows_and_weights(count: usize) -> impl Fn(&mut Sequence) -> Vec<Vec<usize>> {
    move |draws| {
        let width = size(draws, 1, 70);
        let mut shapes = vec![vec![size(draws, 1, 5), width]];
        shapes.extend((0..count).map(|_| vec![width]));
        shapes
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// By Simpson's rule on the density: slow, and owing nothing to the fit in the kernel.
fn normal_cdf(x: f64) -> f64 {
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let n = 400;
    let h = x / n as f64;
    let inner: f64 =
        (1..n).map(|i| density(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    0.5 + h / 3.0 * (density(0.0) + inner + density(x))
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
    row.iter().map(|x| (x - max).exp() / sum).collect()
}

const POSITIONS: [i32; 3] = [0, 7, 3];
const FREQUENCIES: [f32; 3] = [1.0, 0.1, 0.01];

fn rotated(x: &Array, factor: f64, pair: fn(usize) -> (usize, usize)) -> Array {
    let (heads, d) = (x.shape[1], x.shape[2]);
    let mut out = x.clone();
    for (t, position) in POSITIONS.iter().enumerate() {
        for h in 0..heads {
            for (i, frequency) in FREQUENCIES.iter().enumerate() {
                let angle = f64::from(*position as f32 * frequency);
                let (sin, cos) = (angle.sin() * factor, angle.cos() * factor);
                let (a, b) = pair(i);
                let at = (t * heads + h) * d;
                let (xa, xb) = (x.data[at + a], x.data[at + b]);
                out.data[at + a] = xa * cos - xb * sin;
                out.data[at + b] = xb * cos + xa * sin;
            }
        }
    }
    out
}

fn model() -> Vec<Case> {
    let unary = |name, run: fn(&Tensor) -> Result<Tensor>, oracle: fn(f64) -> f64| {
        case(name, one, |x| x * 4.0, move |x| run(&x[0]), move |x| x[0].map(oracle))
    };
    let gated = |name, run: fn(&Tensor, &Tensor) -> Result<Tensor>, oracle: fn(f64) -> f64| {
        let shapes = |draws: &mut Sequence| {
            let shape = vec![size(draws, 1, 5), size(draws, 1, 40)];
            vec![shape.clone(), shape]
        };
        case(
            name,
            shapes,
            |x| x * 3.0,
            move |x| run(&x[0], &x[1]),
            move |x| x[0].zip(&x[1], |gate, up| oracle(gate) * up),
        )
    };
    let rms = |name, unit: bool| {
        case(
            name,
            rows_and_weights(1),
            PLAIN,
            move |x| ops::rms_norm(&x[0], &x[1], 1e-3, unit),
            move |x| {
                let offset = if unit { 1.0 } else { 0.0 };
                let normed = x[0].rows(|row| {
                    let square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
                    row.iter().map(|x| x / (square + f64::from(1e-3f32)).sqrt()).collect()
                });
                Array::new(&x[0].shape, normed).zip(&x[1], |y, w| y * (offset + w))
            },
        )
    };
    vec![
        unary("silu", ops::silu, |x| x * sigmoid(x)),
        unary("gelu", ops::gelu, |x| x * normal_cdf(x)),
        unary("gelu_tanh", ops::gelu_tanh, gelu_tanh),
        gated("silu_mul", ops::silu_mul, |x| x * sigmoid(x)),
        gated("gelu_tanh_mul", ops::gelu_tanh_mul, gelu_tanh),
        rms("rms_norm", false),
        rms("rms_norm with unit offset", true),
        case(
            "layer_norm",
            rows_and_weights(2),
            |x| x + 0.3,
            |x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-3),
            |x| {
                let normed = x[0].rows(|row| {
                    let mean = row.iter().sum::<f64>() / row.len() as f64;
                    let var =
                        row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
                    row.iter().map(|x| (x - mean) / (var + f64::from(1e-3f32)).sqrt()).collect()
                });
                Array::new(&x[0].shape, normed).zip(&x[1], |y, w| y * w).zip(&x[2], |y, b| y + b)
            },
        ),
        case(
            "softmax",
            one,
            |x| x * 5.0,
            |x| ops::softmax(&x[0]),
            |x| Array::new(&x[0].shape, x[0].rows(softmax)),
        ),
        case(
            "log_softmax",
            one,
            |x| x * 5.0,
            |x| ops::log_softmax(&x[0]),
            |x| Array::new(&x[0].shape, x[0].rows(softmax)).map(f64::ln),
        ),
        case(
            "embedding",
            |draws| vec![vec![5, size(draws, 1, 9)]],
            PLAIN,
            |x| ops::embedding(&x[0], &[4, 0, 4, 4, 2]),
            |x| {
                let width = x[0].last();
                let row = |i: usize| x[0].data[i * width..(i + 1) * width].to_vec();
                Array::new(&[5, width], [4, 0, 4, 4, 2].into_iter().flat_map(row).collect())
            },
        ),
        case(
            "rope",
            |draws| vec![vec![3, size(draws, 1, 4), 6]],
            PLAIN,
            |x| ops::rope(&x[0], &POSITIONS, &FREQUENCIES, 1.2),
            |x| rotated(&x[0], f64::from(1.2f32), |i| (i, i + 3)),
        ),
        case(
            "rope_with interleaved pairs on a part of the head",
            |draws| vec![vec![3, size(draws, 1, 4), 8]],
            PLAIN,
            |x| {
                let angles = Arc::new(Angles::new(&POSITIONS, &FREQUENCIES, 1.0));
                ops::rope_with(&x[0], &angles, Layout::Interleaved)
            },
            |x| rotated(&x[0], 1.0, |i| (2 * i, 2 * i + 1)),
        ),
    ]
}

const TARGETS: [i32; 4] = [2, 0, -100, 4];

/// `log-prob + 0.7 entropy` of each row, 0 for the ignored one.
fn logprob_and_entropy(logits: &Array, options: &SoftmaxOptions) -> Array {
    let cap = |z: f64| options.softcap.map_or(z, |c| f64::from(c) * (z / f64::from(c)).tanh());
    let rows = logits.data.chunks(logits.last()).zip(TARGETS).map(|(row, target)| {
        if target < 0 {
            return 0.0;
        }
        let z: Vec<f64> = row.iter().map(|z| cap(*z) / f64::from(options.temperature)).collect();
        let p = softmax(&z);
        let entropy: f64 = -p.iter().map(|p| p * p.ln()).sum::<f64>();
        p[target as usize].ln() + 0.7 * entropy
    });
    Array::new(&[TARGETS.len()], rows.collect())
}

fn joined((logprob, entropy): (Tensor, Tensor)) -> Result<Tensor> {
    ops::add(&logprob, &ops::scale(&entropy, 0.7)?)
}

fn logprobs() -> Vec<Case> {
    let mut all = Vec::new();
    for softcap in [None, Some(2.0)] {
        let options = SoftmaxOptions { temperature: 0.7, softcap, banned: Vec::new() };
        let (a, b) = (options.clone(), options.clone());
        all.push(case(
            "logprob with entropy",
            |_| vec![vec![4, 5]],
            |x| x * 3.0,
            move |x| joined(ops::logprob(&x[0], &TARGETS, &a)?),
            move |x| logprob_and_entropy(&x[0], &b),
        ));
        let (a, b) = (options.clone(), options.clone());
        all.push(case(
            "linear_logprob with bias and entropy",
            |draws| {
                let width = size(draws, 1, 9);
                vec![vec![4, width], vec![5, width], vec![5]]
            },
            PLAIN,
            move |x| joined(ops::linear_logprob(&x[0], &x[1], Some(&x[2]), &TARGETS, &a)?),
            move |x| {
                logprob_and_entropy(&x[0].matmul(&x[1], false, true).zip(&x[2], |z, b| z + b), &b)
            },
        ));
    }
    all
}

/// Two packed sequences, of 3 and 5 tokens.
const SEGMENTS: [usize; 3] = [0, 3, 8];

fn attended(x: &[Array], spec: &Attention) -> Array {
    let (h, g, d) = (spec.query_heads, spec.kv_heads, spec.head_dim);
    let mut out = vec![0.0; 8 * h * d];
    for bounds in SEGMENTS.windows(2) {
        for i in bounds[0]..bounds[1] {
            let first = spec.window.map_or(bounds[0], |w| bounds[0].max((i + 1).saturating_sub(w)));
            for head in 0..h {
                let kv = head / (h / g);
                let row = |a: &Array, t: usize, n: usize, head: usize| -> Vec<f64> {
                    a.data[(t * n + head) * d..(t * n + head + 1) * d].to_vec()
                };
                let q = row(&x[0], i, h, head);
                let scores: Vec<f64> = (first..=i)
                    .map(|j| {
                        let dot: f64 = q.iter().zip(row(&x[1], j, g, kv)).map(|(a, b)| a * b).sum();
                        let s = dot * f64::from(spec.scale);
                        spec.softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                    })
                    .collect();
                for (p, j) in softmax(&scores).iter().zip(first..) {
                    for (e, v) in row(&x[2], j, g, kv).iter().enumerate() {
                        out[(i * h + head) * d + e] += p * v;
                    }
                }
            }
        }
    }
    Array::new(&[8, h, d], out)
}

fn attention() -> Vec<Case> {
    let plain = Attention::causal(4, 2, 6);
    [
        ("attention with grouped heads", plain),
        ("attention with a window", Attention { window: Some(2), ..plain }),
        ("attention with a softcap", Attention { softcap: Some(0.5), scale: 1.0, ..plain }),
    ]
    .into_iter()
    .map(|(name, spec)| {
        case(
            name,
            |_| vec![vec![8, 4, 6], vec![8, 2, 6], vec![8, 2, 6]],
            |x| x * 1.5,
            move |x| ops::attention(&x[0], &x[1], &x[2], &spec, &SEGMENTS),
            move |x| attended(x, &spec),
        )
    })
    .collect()
}
