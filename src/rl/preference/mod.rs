//! Losses of preferences: how log-probs of whole completions become a loss and its gradient.
//!
//! A loss reads numbers of whole completions ([`Completion`]), on the host and in f64: a batch has few of them, and log-probs of
//! long completions are large numbers whose differences count. It gives the loss, its derivatives by these numbers, and
//! the rewards that it implies ([`Measured`]); the learner spreads the derivatives over tokens. [`dpo`] is the family that
//! measures from a reference policy, [`cpo`] and [`orpo`] do without one, and [`kto`] does without pairs. Names of settings
//! and of losses are those of TRL 1.16, whose own functions computed the values that the tests compare with.

pub mod completion;
pub mod cpo;
pub mod divergence;
pub mod dpo;
pub mod kto;
mod logistic;
mod odds;
pub mod orpo;

pub use completion::{Completion, Gradient, Measured, Pair, Totals};
pub use cpo::Cpo;
pub use divergence::FDivergence;
pub use dpo::Dpo;
pub use kto::Kto;
pub use orpo::Orpo;
