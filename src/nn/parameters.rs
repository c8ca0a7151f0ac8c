//! The trainable tensors of a model, by name and by index.

use super::prepared::Prepared;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::{Sequence, Stream};
use crate::tensor::{ParamId, Tensor};
use std::collections::HashMap;

/// One named tensor of a model.
pub struct Parameter {
    name: String,
    value: Tensor,
    id: ParamId,
    frozen: bool,
}

impl Parameter {
    /// The name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value, outside the graph.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The id under which its gradient arrives.
    pub fn id(&self) -> ParamId {
        self.id
    }

    /// True when it gets no gradient.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }
}

/// Parameters in the order in which they were added. A model keeps indices into it.
#[derive(Default)]
pub struct Parameters {
    list: Vec<Parameter>,
    by_name: HashMap<String, usize>,
}

impl Parameters {
    /// None yet.
    pub fn new() -> Parameters {
        Parameters::default()
    }

    /// Adds one; returns its index.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when the name is taken.
    pub fn add(&mut self, name: &str, value: Tensor) -> Result<usize> {
        if self.by_name.insert(name.to_owned(), self.list.len()).is_some() {
            return Err(Error::invalid(format!("parameter `{name}` twice")));
        }
        let value = value.detach();
        self.list.push(Parameter {
            name: name.to_owned(),
            value,
            id: ParamId::fresh(),
            frozen: false,
        });
        Ok(self.list.len() - 1)
    }

    /// The tensor for use in a forward pass: a leaf unless it is frozen.
    ///
    /// # Panics
    /// Never for an index that [`Parameters::add`] of this store returned.
    pub fn get(&self, index: usize) -> Tensor {
        let parameter = &self.list[index];
        if parameter.frozen {
            parameter.value.clone()
        } else {
            parameter.value.tracked(parameter.id)
        }
    }

    /// The value of the parameter of this name, for building a model with the same weights.
    ///
    /// # Errors
    /// [`Error::is_state`] when there is none.
    pub fn by_name(&self, name: &str) -> Result<Tensor> {
        match self.index(name) {
            Some(index) => Ok(self.list[index].value.clone()),
            None => Err(Error::state(format!("no parameter `{name}`"))),
        }
    }

    /// Moves every value to `device`.
    ///
    /// # Errors
    /// [`Error::is_state`] when the device has no memory.
    pub fn move_to(&mut self, device: &Device) -> Result<()> {
        for parameter in &mut self.list {
            parameter.value = parameter.value.to_device(device)?;
        }
        Ok(())
    }

    /// The weights of these indices, laid out for generation.
    ///
    /// # Errors
    /// [`Error::is_dtype`] for integers.
    pub fn prepared(&self, indices: impl Iterator<Item = usize>) -> Result<Prepared> {
        let weights: Vec<(usize, &Tensor)> =
            indices.map(|index| (index, &self.list[index].value)).collect();
        Prepared::new(weights.into_iter())
    }

    /// The index of a name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.list.iter()
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many numbers there are.
    pub fn elements(&self) -> usize {
        self.list.iter().map(|parameter| parameter.value.len()).sum()
    }

    /// Freezes or thaws every parameter whose name `choose` accepts.
    pub fn freeze(&mut self, frozen: bool, choose: impl Fn(&str) -> bool) {
        for parameter in self.list.iter_mut().filter(|p| choose(&p.name)) {
            parameter.frozen = frozen;
        }
    }

    /// Replaces a value by one of the same shape and type.
    ///
    /// # Errors
    /// [`Error::is_index`] for an unknown index, [`Error::is_shape`] or [`Error::is_dtype`] when it does not fit.
    pub fn set(&mut self, index: usize, value: Tensor) -> Result<()> {
        let Some(parameter) = self.list.get_mut(index) else {
            return Err(Error::index(format!("parameter {index}")));
        };
        if parameter.value.shape() != value.shape() {
            return Err(Error::shape(format!(
                "parameter `{}` is {:?}, the new value {:?}",
                parameter.name,
                parameter.value.shape(),
                value.shape()
            )));
        }
        if parameter.value.dtype() != value.dtype() {
            return Err(Error::dtype(format!(
                "parameter `{}` is {}, the new value {}",
                parameter.name,
                parameter.value.dtype(),
                value.dtype()
            )));
        }
        parameter.value = value.detach();
        Ok(())
    }

    /// All values for writing in place, in order.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.list.iter_mut().map(|parameter| &mut parameter.value)
    }

    /// The value for writing in place; copied first when a graph still holds it.
    pub(crate) fn value_mut(&mut self, index: usize) -> Result<&mut Tensor> {
        match self.list.get_mut(index) {
            Some(parameter) => Ok(&mut parameter.value),
            None => Err(Error::index(format!("parameter {index}"))),
        }
    }
}

/// Normal values of mean 0 and the given deviation, the same for a seed whatever else is drawn: tensor `which` has a
/// sub-stream of its own.
pub(crate) fn normal(
    seed: u64,
    which: u64,
    shape: &[usize],
    deviation: f32,
    dtype: DType,
) -> Result<Tensor> {
    let mut draws = Sequence::new(seed, Stream::Init, which);
    let values =
        (0..shape.iter().product()).map(|_| draws.next_normal() * deviation).collect::<Vec<f32>>();
    Tensor::from_buffer(values.into(), shape, dtype)
}
