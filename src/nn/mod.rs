//! The blocks that models are built from: parameters by name, and layers that know where theirs are.
//!
//! A model is built with a [`Builder`], which asks for every parameter by name and shape. A layer keeps the indices of its
//! parameters and no tensor; in a forward pass it finds them in [`Weights`], which are those of the model, weights laid out
//! for generation ([`Prepared`]), or the inputs of a part that is recomputed for its gradient ([`recomputed`]).

mod attention;
mod builder;
mod embedding;
mod experts;
mod gated_mlp;
mod linear;
mod norm;
mod parameters;
mod prepared;
mod weights;

pub use attention::{Keys, QueryKeyNorm, SelfAttention};
pub use builder::Builder;
pub use embedding::Embedding;
pub use experts::{ExpertSizes, Experts};
pub use gated_mlp::{Activation, GatedMlp};
pub use linear::{Linear, linears, logits};
pub use norm::{LayerNorm, RmsNorm};
pub(crate) use parameters::normal;
pub use parameters::{Parameter, Parameters};
pub use prepared::Prepared;
pub use weights::{Weights, recomputed};
