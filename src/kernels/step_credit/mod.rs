//! Step-level credit: what a verifier says about the steps of a response becomes an advantage, or a mask, of each token.
//!
//! Contract: segments of responses become spans with labels ([`Labelling::spans`]), spans are painted to one f32 label a
//! token ([`paint`]), and a rule makes token advantages from labels and any advantages ([`forward`]). Packed tokens with
//! CSR offsets; a masked token is never read into arithmetic. FaithRL's modulation is one of the rules. Rewards by
//! label of the outcome live in [`rl::faithful`](crate::rl::faithful), verifiers with their tasks.
//!
#![doc = include_str!("../../../docs/kernels/step_credit.md")]

mod credit;
pub mod launch;
mod paint;
mod process;
mod shaping;
mod span;

pub use credit::{Counts, Inputs, Outputs, StepCredit, forward};
pub use paint::paint;
pub use process::{Step, step_advantages};
pub use shaping::{Shaping, Window, shape};
pub use span::{ANSWER, FORCED, Labelling, NEUTRAL, Part, SUPPORTED, Segment, Span, UNSUPPORTED};
