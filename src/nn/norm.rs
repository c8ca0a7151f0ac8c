//! Norms over the last dimension.

use super::builder::Builder;
use super::weights::Weights;
use crate::error::Result;
use crate::ops;
use crate::tensor::Tensor;

/// RMSNorm: `x / √(mean x² + ε) · weight`.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    weight: usize,
    epsilon: f32,
    unit_offset: bool,
}

impl RmsNorm {
    /// Adds `name.weight [width]`. With `unit_offset` the factor is `1 + weight` (Gemma).
    ///
    /// # Errors
    /// As [`Builder::tensor`].
    pub fn new(
        builder: &mut Builder<'_>,
        name: &str,
        width: usize,
        epsilon: f32,
        unit_offset: bool,
    ) -> Result<RmsNorm> {
        let weight = builder.tensor(&format!("{name}.weight"), &[width])?;
        Ok(RmsNorm { weight, epsilon, unit_offset })
    }

    /// The index of its weight.
    pub fn index(self) -> usize {
        self.weight
    }

    /// `x [.., width]`; of its shape and dtype.
    ///
    /// # Errors
    /// As [`ops::rms_norm`].
    pub fn forward(self, weights: Weights<'_>, x: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, &weights.get(self.weight), self.epsilon, self.unit_offset)
    }
}

/// LayerNorm: `(x - mean) / √(variance + ε) · gain + bias`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    gain: usize,
    bias: usize,
    epsilon: f32,
}

impl LayerNorm {
    /// Adds `name.gain` and `name.bias`, both `[width]`.
    ///
    /// # Errors
    /// As [`Builder::tensor`].
    pub fn new(
        builder: &mut Builder<'_>,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> Result<LayerNorm> {
        let gain = builder.tensor(&format!("{name}.gain"), &[width])?;
        let bias = builder.tensor(&format!("{name}.bias"), &[width])?;
        Ok(LayerNorm { gain, bias, epsilon })
    }

    /// The indices of its parameters.
    pub fn indices(self) -> [usize; 2] {
        [self.gain, self.bias]
    }

    /// `x [.., width]`; of its shape and dtype.
    ///
    /// # Errors
    /// As [`ops::layer_norm`].
    pub fn forward(self, weights: Weights<'_>, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &weights.get(self.gain), &weights.get(self.bias), self.epsilon)
    }
}
