//! Work made of functions: one that runs, one that says how far its outputs are from what they should be.

use super::Work;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::tensor::autograd::{Gradients, ParamId, backward_from};

struct Operation<O, R, E> {
    run: R,
    error: E,
    outputs: Option<O>,
}

/// Work whose inputs stay as they are: `error` gets what the last `run` gave.
pub(super) fn operation<O: 'static>(
    run: impl FnMut() -> Result<O> + 'static,
    error: impl Fn(&O) -> Result<f64> + 'static,
) -> Box<dyn Work> {
    Box::new(Operation { run, error, outputs: None })
}

impl<O, R: FnMut() -> Result<O>, E: Fn(&O) -> Result<f64>> Work for Operation<O, R, E> {
    fn run(&mut self) -> Result<()> {
        // Before the new ones are made: they then take the same memory.
        self.outputs = None;
        self.outputs = Some((self.run)()?);
        Ok(())
    }

    fn error(&mut self) -> Result<f64> {
        self.outputs.as_ref().map_or(Ok(f64::INFINITY), &self.error)
    }
}

struct Backward<F, E> {
    inputs: Vec<Tensor>,
    ids: Vec<ParamId>,
    upstream: Tensor,
    forward: F,
    error: E,
    output: Option<Tensor>,
    gradients: Vec<Tensor>,
}

/// The gradients of an operation, all of its inputs'. What runs forward is not timed: a backward pass consumes it.
pub(super) fn backward(
    inputs: Vec<Tensor>,
    upstream: Tensor,
    forward: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    error: impl Fn(&[Tensor]) -> Result<f64> + 'static,
) -> Box<dyn Work> {
    let ids: Vec<ParamId> = inputs.iter().map(|_| ParamId::fresh()).collect();
    let inputs = inputs.iter().zip(&ids).map(|(input, id)| input.tracked(*id)).collect();
    let (output, gradients) = (None, Vec::new());
    Box::new(Backward { inputs, ids, upstream, forward, error, output, gradients })
}

impl<F, E> Work for Backward<F, E>
where
    F: Fn(&[Tensor]) -> Result<Tensor>,
    E: Fn(&[Tensor]) -> Result<f64>,
{
    fn refresh(&mut self) -> Result<()> {
        self.output = None;
        self.output = Some((self.forward)(&self.inputs)?);
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let Some(output) = self.output.take() else {
            return Err(Error::state("bench: a backward pass without its forward pass"));
        };
        self.gradients.clear();
        let mut gradients = Gradients::new();
        backward_from(vec![(output, self.upstream.clone())], &mut gradients)?;
        self.gradients = self.ids.iter().filter_map(|id| gradients.get(*id).cloned()).collect();
        Ok(())
    }

    fn error(&mut self) -> Result<f64> {
        if self.gradients.len() != self.ids.len() {
            return Ok(f64::INFINITY);
        }
        (self.error)(&self.gradients)
    }
}
