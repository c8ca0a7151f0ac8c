//! Advantages: what a response, or a token, is worth beside what was to be expected.
//!
//! Contract: [`Estimator`] names how. The ones of outcomes give one f32 a response from rewards in groups
//! ([`of_responses`], [`forward`], [`several_rewards`]); groups are CSR offsets or ids. The ones of tokens give one f32 a
//! token of packed sequences ([`gae`], [`returns`], [`whiten`], [`token_baseline`], [`prime`]). Every statistic is computed in f64 in
//! two passes, so rewards that nearly agree lose no digits; a group never looks at another, except where an estimator
//! is of the whole batch, and inside a group sums run in the order of the responses. A masked token is never read into
//! arithmetic. Credit for the steps inside a response is [`step_credit`](super::step_credit)'s.
//!
#![doc = include_str!("../../../docs/kernels/advantage.md")]

mod estimator;
mod groups;
pub mod launch;
mod outcome;
mod preset;
mod prime;
mod scan;
mod several;
mod statistics;
mod token_baseline;
mod whiten;

pub use estimator::{Counted, Estimator, Gae, Masked, Need, Positions, Scale, Singleton};
pub use groups::Groups;
pub use outcome::{
    Counts, FLAG_DEGENERATE, FLAG_NAN, FLAG_SINGLETON, Outputs, Responses, forward, of_responses,
};
pub use preset::{PRESETS, Preset};
pub use prime::{Prime, prime};
pub use scan::{Holes, TokenOutputs, Tokens, gae, reinforce_plus_plus, returns};
pub use several::{Combination, Several, SeveralRewards, several_rewards};
pub use token_baseline::{TokenBaseline, token_baseline};
pub use whiten::whiten;
