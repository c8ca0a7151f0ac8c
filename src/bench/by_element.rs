//! Operations that look at one element of each input: arithmetic, activations, and their gradients.

use super::operation::{backward, operation};
use super::reference::{allowed, part, runs, worst};
use super::{Case, Give, inputs};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

/// An operation and the same of single numbers.
#[derive(Clone, Copy)]
pub(super) struct ByElement {
    /// The operation, of tensors of one shape.
    pub(super) run: fn(&[Tensor]) -> Result<Tensor>,
    /// How many it takes.
    pub(super) inputs: usize,
    /// Its value.
    pub(super) value: fn(&[f64]) -> f64,
    /// Its derivative by one of its inputs.
    pub(super) slope: fn(&[f64], usize) -> f64,
}

impl ByElement {
    fn inputs(&self, device: &Device, dtype: DType, shape: &[usize]) -> Result<Vec<Tensor>> {
        let new = |i: usize| inputs::tensor(device, dtype, shape, i as u64 + 1);
        (0..self.inputs).map(new).collect()
    }

    /// Its value, in f32 and bf16.
    pub(super) fn forward(
        self,
        name: &'static str,
        device: &Device,
        shape: &[usize],
        give: &mut Give<'_>,
    ) -> Result<()> {
        for dtype in [DType::F32, DType::Bf16] {
            let inputs = self.inputs(device, dtype, shape)?;
            let of = inputs.clone();
            let work = operation(
                move || (self.run)(&of),
                move |y: &Tensor| {
                    let one = |values: &[f64], _| (self.value)(values);
                    compare(&inputs, y, 0, one, allowed(dtype))
                },
            );
            let len: usize = shape.iter().product();
            let bytes = (self.inputs + 1) * dtype.size() * len;
            give(Case::bytes(name, shape, dtype, bytes, work))?;
        }
        Ok(())
    }

    /// The gradients by all inputs, in f32 whatever the storage type.
    pub(super) fn backward(
        self,
        name: &'static str,
        device: &Device,
        shape: &[usize],
        give: &mut Give<'_>,
    ) -> Result<()> {
        for dtype in [DType::F32, DType::Bf16] {
            let inputs = self.inputs(device, dtype, shape)?;
            let upstream = inputs::tensor(device, DType::F32, shape, 9)?;
            let mut read = inputs.clone();
            read.push(upstream.clone());
            let error = move |gradients: &[Tensor]| {
                let mut largest = 0f64;
                for (i, gradient) in gradients.iter().enumerate() {
                    let one = |values: &[f64], i| match values.split_last() {
                        Some((upstream, values)) => upstream * (self.slope)(values, i),
                        None => f64::NAN,
                    };
                    // A slope may come from an output that its storage type has rounded.
                    largest = largest.max(compare(&read, gradient, i, one, allowed(dtype))?);
                }
                Ok(largest)
            };
            let work = backward(inputs, upstream, self.run, error);
            let len: usize = shape.iter().product();
            // What the forward pass saved, the gradient of the output, and one of each input.
            let bytes = (self.inputs * dtype.size() + 4 + 4 * self.inputs) * len;
            give(Case::bytes(name, shape, dtype, bytes, work))?;
        }
        Ok(())
    }
}

fn compare(
    inputs: &[Tensor],
    got: &Tensor,
    which: usize,
    one: impl Fn(&[f64], usize) -> f64,
    allowed: f64,
) -> Result<f64> {
    let flat = |tensor: &Tensor| tensor.view(&[tensor.len()]);
    let (got, inputs) = (flat(got)?, inputs.iter().map(flat).collect::<Result<Vec<_>>>()?);
    let mut largest = 0f64;
    for run in runs(got.len()) {
        let read = |x: &Tensor| part(x, run.clone());
        let values = inputs.iter().map(read).collect::<Result<Vec<_>>>()?;
        let want = (0..run.len()).map(|i| {
            let here: Vec<f64> = values.iter().map(|values| values[i]).collect();
            one(&here, which)
        });
        largest = largest.max(worst(read(&got)?.into_iter().zip(want), allowed, allowed));
    }
    Ok(largest)
}
