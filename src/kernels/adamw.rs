//! AdamW in one pass over each parameter, and the global norm of many gradients.
//!
//! Contract: f32 master weights, moments and gradients; an optional bf16 or f16 copy of the weights is written in the
//! same pass. Everything is elementwise but the norm, which is added in f64 over blocks of a fixed size and then over
//! the slices in order. Which parameters decay, at which rate they learn, and when a step is skipped is decided in
//! `optim`.
//!
//! Floor: 16 bytes read and 12 written a parameter, 2 more for a 16-bit copy.
//!
#![doc = include_str!("../../docs/kernels/adamw.md")]

pub mod launch;

use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::dtype::{Float, FloatSliceMut};
use crate::error::{Error, Result};
use crate::with_float;

/// What the update is made of. The default is PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled: a weight shrinks by `learning_rate * weight_decay` of itself.
    pub weight_decay: f64,
}

impl Default for Hyper {
    fn default() -> Hyper {
        Hyper { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 1e-2 }
    }
}

/// One parameter and its state, all of one length.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// Master weights.
    pub weight: &'a mut [f32],
    /// Mean of gradients; zeros before the first step.
    pub mean: &'a mut [f32],
    /// Mean of squared gradients; zeros before the first step.
    pub variance: &'a mut [f32],
    /// The gradient.
    pub gradient: &'a [f32],
    /// Gets the new weights, rounded to nearest even.
    pub copy: Option<FloatSliceMut<'a>>,
}

/// The factors of one step, in the arithmetic of the pass.
#[derive(Clone, Copy)]
struct Factors {
    gradient_scale: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    fresh1: f32,
    fresh2: f32,
    rate: f32,
    correction2: f32,
    epsilon: f32,
}

impl Factors {
    fn new(hyper: &Hyper, step: u64, gradient_scale: f32) -> Factors {
        let corrected = |beta: f64| 1.0 - beta.powf(step as f64);
        Factors {
            gradient_scale,
            keep: (1.0 - hyper.learning_rate * hyper.weight_decay) as f32,
            beta1: hyper.beta1 as f32,
            beta2: hyper.beta2 as f32,
            fresh1: (1.0 - hyper.beta1) as f32,
            fresh2: (1.0 - hyper.beta2) as f32,
            rate: (hyper.learning_rate / corrected(hyper.beta1)) as f32,
            correction2: (1.0 / corrected(hyper.beta2).sqrt()) as f32,
            epsilon: hyper.epsilon as f32,
        }
    }
}

/// Elements that one task updates at a time.
const BLOCK: usize = 1 << 14;
const LANES: usize = 16;

/// Step `step` (the first is 1) of AdamW, with gradients multiplied by `gradient_scale` first.
///
/// ```text
/// w := w (1 - lr decay);  m := b1 m + (1 - b1) g;  v := b2 v + (1 - b2) g²
/// w := w - lr / (1 - b1^t) · m / (sqrt(v / (1 - b2^t)) + epsilon)
/// ```
///
/// # Errors
/// [`Error::is_shape`] when lengths differ; [`Error::is_invalid`] for a step of 0, a beta outside `[0, 1)`, or a
/// negative or non-finite rate, decay or epsilon, or a gradient scale that is not finite.
///
/// # Source
/// Loshchilov, Hutter, arXiv 1711.05101, as PyTorch's `AdamW` does it.
pub fn step(hyper: &Hyper, step: u64, gradient_scale: f32, parameter: Parameter<'_>) -> Result<()> {
    check(hyper, step, gradient_scale, &parameter)?;
    let factors = Factors::new(hyper, step, gradient_scale);
    let Parameter { weight, mean, variance, gradient, copy } = parameter;
    let blocks = weight
        .chunks_mut(BLOCK)
        .zip(mean.chunks_mut(BLOCK))
        .zip(variance.chunks_mut(BLOCK))
        .zip(gradient.chunks(BLOCK));
    match copy {
        None => pool::each(blocks, 1, |_, (((weight, mean), variance), gradient)| {
            update::<f32>(&factors, weight, mean, variance, gradient, None);
        }),
        Some(copy) => with_float!(FloatSliceMut, copy, |copy| {
            let blocks = blocks.zip(copy.chunks_mut(BLOCK));
            pool::each(blocks, 1, |_, ((((weight, mean), variance), gradient), copy)| {
                update(&factors, weight, mean, variance, gradient, Some(copy));
            });
        }),
    }
    Ok(())
}

fn check(hyper: &Hyper, step: u64, gradient_scale: f32, parameter: &Parameter<'_>) -> Result<()> {
    let elements = parameter.weight.len();
    let lengths = [
        ("mean", Some(parameter.mean.len())),
        ("variance", Some(parameter.variance.len())),
        ("gradient", Some(parameter.gradient.len())),
        ("copy", parameter.copy.as_ref().map(FloatSliceMut::len)),
    ];
    for (name, len) in lengths {
        if let Some(len) = len.filter(|len| *len != elements) {
            return Err(Error::shape(format!(
                "adamw: {name} has {len} elements, the weight {elements}"
            )));
        }
    }
    check_hyper(hyper, step, gradient_scale)
}

fn check_hyper(hyper: &Hyper, step: u64, gradient_scale: f32) -> Result<()> {
    let above_zero = |x: f64| x.is_finite() && x >= 0.0;
    let decay = |x: f64| (0.0..1.0).contains(&x);
    let rules = [
        ("learning_rate", hyper.learning_rate, above_zero(hyper.learning_rate)),
        ("beta1", hyper.beta1, decay(hyper.beta1)),
        ("beta2", hyper.beta2, decay(hyper.beta2)),
        ("epsilon", hyper.epsilon, above_zero(hyper.epsilon)),
        ("weight_decay", hyper.weight_decay, above_zero(hyper.weight_decay)),
        ("gradient_scale", f64::from(gradient_scale), gradient_scale.is_finite()),
        ("step", step as f64, step > 0),
    ];
    match rules.iter().find(|(_, _, allowed)| !allowed) {
        Some((name, value, _)) => Err(Error::invalid(format!("adamw: {name} is {value}"))),
        None => Ok(()),
    }
}

/// `LANES` consecutive elements of each array.
struct Lanes {
    weight: [f32; LANES],
    mean: [f32; LANES],
    variance: [f32; LANES],
}

impl Lanes {
    #[inline(always)]
    fn step(&mut self, by: &Factors, gradient: &[f32; LANES]) {
        for i in 0..LANES {
            let g = gradient[i] * by.gradient_scale;
            self.mean[i] = by.beta1 * self.mean[i] + by.fresh1 * g;
            self.variance[i] = by.beta2 * self.variance[i] + by.fresh2 * g * g;
            let divisor = self.variance[i].sqrt() * by.correction2 + by.epsilon;
            self.weight[i] = self.weight[i] * by.keep - by.rate * (self.mean[i] / divisor);
        }
    }
}

simd_fn! {
    fn update<T: Float>(by: &Factors, weight: &mut [f32], mean: &mut [f32], variance: &mut [f32], gradient: &[f32], copy: Option<&mut [T]>) {
        let mut copy = copy;
        let mut at = 0;
        while at < weight.len() {
            let count = LANES.min(weight.len() - at);
            let range = at..at + count;
            let mut lanes = Lanes {
                weight: load(&weight[range.clone()]),
                mean: load(&mean[range.clone()]),
                variance: load(&variance[range.clone()]),
            };
            lanes.step(by, &load(&gradient[range.clone()]));
            store(&mut weight[range.clone()], &lanes.weight);
            store(&mut mean[range.clone()], &lanes.mean);
            store(&mut variance[range.clone()], &lanes.variance);
            if let Some(copy) = copy.as_deref_mut() {
                store(&mut copy[range], &lanes.weight.map(T::from_f32));
            }
            at += LANES;
        }
    }
}

#[inline(always)]
fn load(part: &[f32]) -> [f32; LANES] {
    match part.first_chunk::<LANES>() {
        Some(full) => *full,
        None => {
            let mut lanes = [0.0; LANES];
            lanes[..part.len()].copy_from_slice(part);
            lanes
        }
    }
}

#[inline(always)]
fn store<T: Copy>(part: &mut [T], lanes: &[T; LANES]) {
    match part.first_chunk_mut::<LANES>() {
        Some(full) => *full = *lanes,
        None => part.copy_from_slice(&lanes[..part.len()]),
    }
}

/// The Euclidean norm of many gradients together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// The norm; NaN or infinite when an element is.
    pub value: f64,
    /// The first slice that holds NaN or infinity.
    pub non_finite: Option<usize>,
}

impl Norm {
    /// What to multiply gradients by so that their norm is at most `most`: `min(1, most / (norm + 1e-6))`, which is
    /// PyTorch's `clip_grad_norm_`. 1 when the norm is not finite: such a step is to be skipped.
    pub fn clip(&self, most: f64) -> f32 {
        if !self.value.is_finite() {
            return 1.0;
        }
        (most / (self.value + 1e-6)).clamp(0.0, 1.0) as f32
    }
}

/// The norm of all `gradients` as one vector, and which of them is not finite.
pub fn global_norm(gradients: &[&[f32]]) -> Norm {
    let mut total = 0f64;
    let mut non_finite = None;
    for (index, gradient) in gradients.iter().enumerate() {
        let mut blocks = vec![0f64; gradient.len().div_ceil(BLOCK)];
        let parts = blocks.iter_mut().zip(gradient.chunks(BLOCK));
        pool::each(parts, pool::rows_per_task(4 * BLOCK), |_, (sum, block)| {
            *sum = sum_of_squares(block);
        });
        let sum: f64 = blocks.iter().sum();
        // Squares of f32 do not overflow f64, so the sum is finite exactly when every element is.
        if !sum.is_finite() && non_finite.is_none() {
            non_finite = Some(index);
        }
        total += sum;
    }
    Norm { value: total.sqrt(), non_finite }
}

simd_fn! {
    fn sum_of_squares(part: &[f32]) -> f64 {
        let mut sums = [0f64; LANES];
        let (full, rest) = part.as_chunks::<LANES>();
        for values in full {
            for i in 0..LANES {
                let x = f64::from(values[i]);
                sums[i] += x * x;
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += f64::from(*x) * f64::from(*x);
        }
        sums.iter().sum()
    }
}
