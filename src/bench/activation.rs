//! Activations, as a gate and alone.

use super::by_element::ByElement;
use super::{Give, size};
use crate::device::Device;
use crate::error::Result;
use crate::ops;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu_slope(x: f64) -> f64 {
    sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)))
}

/// The argument of the tangent: `sqrt(2 / pi) (x + 0.044715 x^3)`.
fn gelu_argument(x: f64) -> f64 {
    std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044_715 * x.powi(3))
}

fn gelu_slope(x: f64) -> f64 {
    let t = gelu_argument(x).tanh();
    let inner = std::f64::consts::FRAC_2_PI.sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
}

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    // [tokens, width of a gated layer]
    let shape = size(device, quick, [[7, 131], [1024, 8192], [8192, 14_336]]);
    let silu_mul = ByElement {
        run: |x| ops::silu_mul(&x[0], &x[1]),
        inputs: 2,
        value: |x| x[0] * sigmoid(x[0]) * x[1],
        slope: |x, by| if by == 0 { x[1] * silu_slope(x[0]) } else { x[0] * sigmoid(x[0]) },
    };
    let gelu_tanh = ByElement {
        run: |x| ops::gelu_tanh(&x[0]),
        inputs: 1,
        value: |x| 0.5 * x[0] * (1.0 + gelu_argument(x[0]).tanh()),
        slope: |x, _| gelu_slope(x[0]),
    };
    silu_mul.forward("silu_mul", device, &shape, give)?;
    silu_mul.backward("silu_mul_backward", device, &shape, give)?;
    gelu_tanh.forward("gelu_tanh", device, &shape, give)
}
