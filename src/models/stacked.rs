//! Tensors of a file that hold several parameters, one above the other: taken apart when a model is read, put together when
//! it is written.

use super::architecture::Stacked;
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::Tensor;
use std::collections::HashMap;

/// The stack that a parameter is in: its tensor's whole name, and the parameter's position in it.
pub(super) fn stack_of(
    stacks: &'static [Stacked],
    name: &str,
) -> Option<(String, &'static Stacked, usize)> {
    // Parameters of a layer are `model.layers.N.` and the rest, with `.weight` or `.bias`.
    let (module, kind) = name.rsplit_once('.')?;
    stacks.iter().find_map(|stack| {
        let ends = |part: &&str| module.strip_suffix(*part).is_some_and(|rest| rest.ends_with('.'));
        let position = stack.parts.iter().position(ends)?;
        let layer = module.strip_suffix(stack.parts[position])?;
        Some((format!("{layer}{}.{kind}", stack.tensor), stack, position))
    })
}

/// Stacks of which some parameters have been taken: the rows that are left.
#[derive(Default)]
pub(super) struct Unstacking {
    begun: HashMap<String, (Tensor, usize)>,
}

impl Unstacking {
    /// The parameter at `position` of a stack, of `shape`; `whole` reads the tensor when the first one is asked for. Parts are
    /// asked for in their order.
    ///
    /// # Errors
    /// What reading reports, and [`Error::is_shape`] where the rows are not those of the parts.
    pub fn take(
        &mut self,
        (tensor, stack, position): (String, &Stacked, usize),
        shape: &[usize],
        whole: impl FnOnce(&str) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (rows, from) = match self.begun.remove(&tensor) {
            Some(begun) => begun,
            None => (whole(&tensor)?, 0),
        };
        let last = position + 1 == stack.parts.len();
        let to = from + shape.first().copied().unwrap_or(0);
        if rows.shape().is_empty() || to > rows.leading() || (last && to < rows.leading()) {
            return Err(Error::shape(format!(
                "`{tensor}` is {:?}, which is not {} one above the other",
                rows.shape(),
                stack.parts.join(", ")
            )));
        }
        // A copy: parameters share no memory.
        let part = ops::gather(&rows, &(from..to).collect::<Vec<_>>())?;
        if !last {
            self.begun.insert(tensor, (rows, to));
        }
        Ok(part)
    }
}

/// The parameters of a model under the names of a file, stacks put together; `name` gives the name of one that is in none.
///
/// # Errors
/// None for the parameters of a model that was built.
pub(super) fn stacked<'a>(
    stacks: &'static [Stacked],
    parameters: impl Iterator<Item = (&'a str, &'a Tensor)>,
    name: impl Fn(&str) -> String,
) -> Result<Vec<(String, Tensor)>> {
    let mut written: Vec<(String, Tensor)> = Vec::new();
    let mut waiting: HashMap<String, Vec<&Tensor>> = HashMap::new();
    for (own, value) in parameters {
        let Some((tensor, stack, _)) = stack_of(stacks, own) else {
            written.push((name(own), value.detach()));
            continue;
        };
        let parts = waiting.entry(tensor.clone()).or_default();
        parts.push(value);
        if parts.len() == stack.parts.len() {
            written.push((tensor, ops::concat(parts)?.detach()));
        }
    }
    Ok(written)
}
