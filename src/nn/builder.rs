//! A model as it is built: parameters by name and shape, from a source that gives each its value.

use super::parameters::Parameters;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Adds parameters in the order of the calls; the source of their values may draw them, copy them or read a file.
pub struct Builder<'a> {
    parameters: Parameters,
    value: &'a mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
}

impl<'a> Builder<'a> {
    /// No parameter yet; `value(name, shape)` is asked for each.
    pub fn new(value: &'a mut dyn FnMut(&str, &[usize]) -> Result<Tensor>) -> Builder<'a> {
        Builder { parameters: Parameters::new(), value }
    }

    /// Adds the parameter `name`; returns its index.
    ///
    /// # Errors
    /// What the source reports, [`Error::is_shape`] or [`Error::is_dtype`] for a value of another shape or of integers,
    /// [`Error::is_invalid`] when the name is taken.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<usize> {
        let value = (self.value)(name, shape)?;
        if value.shape() != shape {
            return Err(Error::shape(format!(
                "`{name}` is {:?}, the config says {shape:?}",
                value.shape()
            )));
        }
        if !value.dtype().is_float() {
            return Err(Error::dtype(format!("`{name}` is {}, not a float", value.dtype())));
        }
        self.parameters.add(name, value)
    }

    /// All parameters.
    pub fn finish(self) -> Parameters {
        self.parameters
    }
}
