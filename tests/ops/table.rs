//! The table: one row an operation, with its oracle in f64.

use crate::array::Array;
use gradstone::rng::Sequence;
use gradstone::{Result, Tensor, ops};

/// Shapes of the inputs, drawn from a sequence of random numbers.
type Shapes = Box<dyn Fn(&mut Sequence) -> Vec<Vec<usize>>>;

pub struct Case {
    /// The operation's name, and after a blank what is special in this row.
    pub name: &'static str,
    pub shapes: Shapes,
    pub domain: fn(f32) -> f32,
    pub run: Box<dyn Fn(&[Tensor]) -> Result<Tensor>>,
    pub oracle: Box<dyn Fn(&[Array]) -> Array>,
}

/// Operations whose rows stand in another test file, because they take more than tensors of one type.
pub const TESTED_ELSEWHERE: &[(&str, &str)] = &[("cast", "tests/autograd.rs")];

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
