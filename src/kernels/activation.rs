//! SiLU and GELU, alone and as the gate of a product.

pub mod launch;

use crate::device::cpu::math::{fma, sigmoid, tanh};
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use crate::dtype::{FloatSlice, FloatSliceMut};
use crate::error::{Error, Result};
use crate::kernels::cast;
use crate::with_float;

/// Elements handled by one task.
const BLOCK: usize = 8 * 1024;

/// Elements that are converted at a time; a divisor of [`BLOCK`].
const STAGE: usize = 1024;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// `x · Φ(x)`, with the error function.
    Gelu,
    /// `x · ½(1 + tanh(√(2/π)(x + 0.044715 x³)))`
    GeluTanh,
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// `(f(x), f'(x))`
#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> (f32, f32) {
    let s = sigmoid::<FMA>(x);
    (x * s, s * fma::<FMA>(x, 1.0 - s, 1.0))
}

#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> (f32, f32) {
    let square = x * x;
    let t = tanh::<FMA>(SQRT_2_OVER_PI * x * fma::<FMA>(CUBIC, square, 1.0));
    let inner = SQRT_2_OVER_PI * fma::<FMA>(3.0 * CUBIC, square, 1.0);
    (0.5 * x * (1.0 + t), fma::<FMA>(0.5 * x * (1.0 - t * t), inner, 0.5 * (1.0 + t)))
}

/// `erf` by a Chebyshev fit of `erfc` in f64, relative error below 1.2e-7 (Press et al., Numerical Recipes §6.2).
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let t = 1.0 / (1.0 + 0.5 * z);
    let terms = [
        -1.26551223,
        1.00002368,
        0.37409196,
        0.09678418,
        -0.18628806,
        0.27886807,
        -1.13520398,
        1.48851587,
        -0.82215223,
        0.17087277,
    ];
    let series = terms.iter().rev().fold(0.0, |sum, term| sum * t + term);
    let tail = t * (-z * z + series).exp();
    if x >= 0.0 { 1.0 - tail } else { tail - 1.0 }
}

#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let x64 = f64::from(x);
    let cumulative = 0.5 * (1.0 + erf(x64 * std::f64::consts::FRAC_1_SQRT_2));
    let density = (-0.5 * x64 * x64).exp() * 0.398_942_280_401_432_7;
    ((x64 * cumulative) as f32, (cumulative + x64 * density) as f32)
}

#[inline(always)]
fn evaluate<const FMA: bool>(f: Activation, x: f32) -> (f32, f32) {
    match f {
        Activation::Silu => silu::<FMA>(x),
        Activation::GeluTanh => gelu_tanh::<FMA>(x),
        Activation::Gelu => gelu(x),
    }
}

/// One loop a function, so that the choice is made outside of it.
macro_rules! for_each_function {
    ($f:expr, |$known:ident| $body:expr) => {
        match $f {
            Activation::Silu => {
                let $known = Activation::Silu;
                $body
            }
            Activation::GeluTanh => {
                let $known = Activation::GeluTanh;
                $body
            }
            Activation::Gelu => {
                let $known = Activation::Gelu;
                $body
            }
        }
    };
}

simd_fn! {
    fn value_block(f: Activation, x: &[f32], up: Option<&[f32]>, y: &mut [f32]) {
        for_each_function!(f, |f| match up {
            // A loop: a closure would be compiled without the instructions that this function has.
            None => {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = evaluate::<FMA>(f, *x).0;
                }
            }
            Some(up) => {
                for ((y, x), up) in y.iter_mut().zip(x).zip(up) {
                    *y = evaluate::<FMA>(f, *x).0 * up;
                }
            }
        });
    }
}

simd_fn! {
    fn slope_block(f: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        for_each_function!(f, |f| {
            for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                *dx = evaluate::<FMA>(f, *x).1 * dy;
            }
        });
    }
}

simd_fn! {
    fn gated_slope_block(f: Activation, gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for_each_function!(f, |f| {
            let inputs = gate.iter().zip(up).zip(dy);
            for (((gate, up), dy), (dgate, dup)) in inputs.zip(dgate.iter_mut().zip(dup)) {
                let (value, slope) = evaluate::<FMA>(f, *gate);
                *dgate = slope * up * dy;
                *dup = value * dy;
            }
        });
    }
}

fn same(op: &str, lengths: &[usize]) -> Result<()> {
    match lengths.windows(2).find(|pair| pair[0] != pair[1]) {
        None => Ok(()),
        Some(pair) => Err(Error::shape(format!("{op}: {} elements against {}", pair[0], pair[1]))),
    }
}

/// `y = f(x)`, or `f(x) · up` where there is an `up`. All of one length.
///
/// # Errors
/// [`Error::is_shape`] when the lengths differ.
pub fn forward(f: Activation, x: &[f32], up: Option<&[f32]>, y: &mut [f32]) -> Result<()> {
    same("activation", &[x.len(), y.len(), up.map_or(x.len(), <[f32]>::len)])?;
    pool::blocks(y, BLOCK, |i, y| {
        let span = i * BLOCK..i * BLOCK + y.len();
        value_block(f, &x[span.clone()], up.map(|up| &up[span]), y);
    });
    Ok(())
}

/// [`forward`] of any storage types, converted while they are in the cache.
///
/// # Errors
/// [`Error::is_shape`] when the lengths differ.
pub fn forward_stored(
    f: Activation,
    x: FloatSlice<'_>,
    up: Option<FloatSlice<'_>>,
    y: FloatSliceMut<'_>,
) -> Result<()> {
    same("activation", &[x.len(), y.len(), up.map_or(x.len(), FloatSlice::len)])?;
    with_float!(FloatSliceMut, y, |y| pool::blocks(y, BLOCK, |block, y| {
        let mut wide = [[0f32; STAGE]; 3];
        let [wide_x, wide_up, wide_y] = &mut wide;
        for (stage, y) in y.chunks_mut(STAGE).enumerate() {
            let first = block * BLOCK + stage * STAGE;
            let read = |from: FloatSlice<'_>, into: &mut [f32]| {
                with_float!(FloatSlice, from, |from| cast::widen(&from[first..], into));
            };
            read(x, &mut wide_x[..y.len()]);
            let up = up.map(|up| {
                read(up, &mut wide_up[..y.len()]);
                &wide_up[..y.len()]
            });
            value_block(f, &wide_x[..y.len()], up, wide_y);
            cast::narrow(wide_y, y);
        }
    }));
    Ok(())
}

/// `dx = f'(x) · dy`. All of one length.
///
/// # Errors
/// [`Error::is_shape`] when the lengths differ.
pub fn backward(f: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) -> Result<()> {
    same("activation backward", &[x.len(), dy.len(), dx.len()])?;
    pool::blocks(dx, BLOCK, |i, dx| {
        let span = i * BLOCK..i * BLOCK + dx.len();
        slope_block(f, &x[span.clone()], &dy[span], dx);
    });
    Ok(())
}

/// The gradients of `f(gate) · up`. All of one length.
///
/// # Errors
/// [`Error::is_shape`] when the lengths differ.
pub fn gated_backward(
    f: Activation,
    gate: &[f32],
    up: &[f32],
    dy: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) -> Result<()> {
    same("activation backward", &[gate.len(), up.len(), dy.len(), dgate.len(), dup.len()])?;
    let parts = dgate
        .chunks_mut(BLOCK)
        .zip(dup.chunks_mut(BLOCK))
        .zip(gate.chunks(BLOCK))
        .zip(up.chunks(BLOCK))
        .zip(dy.chunks(BLOCK));
    pool::each(parts, 1, |_, ((((dgate, dup), gate), up), dy)| {
        gated_slope_block(f, gate, up, dy, dgate, dup);
    });
    Ok(())
}
