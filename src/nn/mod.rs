//! Parameters by name. Layers are functions of the models that use them.

mod parameters;

pub(crate) use parameters::normal;
pub use parameters::{Parameter, Parameters};
