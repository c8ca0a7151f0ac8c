//! Where the layers of a forward pass find their parameters.

use super::parameters::Parameters;
use super::prepared::Prepared;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::tensor::autograd::checkpoint;

/// The parameters that layers find by index.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    source: Source<'a>,
    prepared: Option<&'a Prepared>,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Model(&'a Parameters),
    /// Tensors and the index that each has in the model.
    Given(&'a [usize], &'a [Tensor]),
}

impl<'a> Weights<'a> {
    /// The parameters of a model.
    pub fn of(parameters: &'a Parameters) -> Weights<'a> {
        Weights { source: Source::Model(parameters), prepared: None }
    }

    /// The same, linear layers with the weights that were laid out for generation. They give the same bits and no
    /// gradient.
    pub fn with(self, prepared: Option<&'a Prepared>) -> Weights<'a> {
        Weights { prepared, ..self }
    }

    /// The parameter of this index, tracked unless it is frozen.
    pub fn get(self, index: usize) -> Tensor {
        match self.source {
            Source::Model(parameters) => parameters.get(index),
            Source::Given(indices, tensors) => {
                // Every index that a recomputed part uses is in its list.
                let at = indices.iter().position(|known| *known == index).unwrap_or(0);
                tensors[at].clone()
            }
        }
    }

    /// The weight of this index as it was laid out for generation.
    pub(super) fn prepared(self, index: usize) -> Option<&'a [f32]> {
        self.prepared?.weight(index)
    }
}

/// `run(weights, x)` that keeps nothing but `x` and the parameters of these indices, and runs again for the gradient.
///
/// # Errors
/// What `run` reports. A parameter that it uses and `indices` does not name is an error during the backward pass.
pub fn recomputed<F>(
    parameters: &Parameters,
    indices: Vec<usize>,
    x: &Tensor,
    run: F,
) -> Result<Tensor>
where
    F: Fn(Weights<'_>, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    let tensors: Vec<Tensor> = indices.iter().map(|index| parameters.get(*index)).collect();
    let mut inputs = vec![x];
    inputs.extend(&tensors);
    let run = move |inputs: &[Tensor]| {
        let Some((x, tensors)) = inputs.split_first() else {
            return Err(Error::state("checkpoint: no input"));
        };
        let source = Source::Given(&indices, tensors);
        Ok(vec![run(Weights { source, prepared: None }, x)?])
    };
    checkpoint(&inputs, run)?.pop().ok_or_else(|| Error::state("checkpoint: no output"))
}
