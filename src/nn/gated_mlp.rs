//! The gated MLP of a decoder.

use super::builder::Builder;
use super::linear::{Linear, linears};
use super::weights::Weights;
use crate::error::Result;
use crate::ops;
use crate::tensor::Tensor;

/// The activation of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// GELU with the error function.
    Gelu,
}

/// `down(activation(gate(x)) · up(x))`.
#[derive(Clone, Copy, Debug)]
pub struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl GatedMlp {
    /// Adds `name.gate_proj` and `name.up_proj` `[inner, width]`, and `name.down_proj` `[width, inner]`.
    ///
    /// # Errors
    /// As [`Builder::tensor`].
    pub fn new(
        builder: &mut Builder<'_>,
        name: &str,
        [width, inner]: [usize; 2],
        bias: bool,
        activation: Activation,
    ) -> Result<GatedMlp> {
        let mut linear =
            |which: &str, shape| Linear::new(builder, &format!("{name}.{which}_proj"), shape, bias);
        Ok(GatedMlp {
            gate: linear("gate", [inner, width])?,
            up: linear("up", [inner, width])?,
            down: linear("down", [width, inner])?,
            activation,
        })
    }

    /// Its linear layers.
    pub fn linears(&self) -> [Linear; 3] {
        [self.gate, self.up, self.down]
    }

    /// `x [.., width]`; of its shape and dtype.
    ///
    /// # Errors
    /// As [`ops::linears`].
    pub fn forward(&self, weights: Weights<'_>, x: &Tensor) -> Result<Tensor> {
        let [gate, up] = linears(weights, x, [self.gate, self.up])?;
        let gated = match self.activation {
            Activation::Silu => ops::silu_mul(&gate, &up)?,
            Activation::GeluTanh => ops::gelu_tanh_mul(&gate, &up)?,
            Activation::Gelu => ops::mul(&ops::gelu(&gate)?, &up)?,
        };
        self.down.forward(weights, &gated)
    }
}
