//! Training of models that fill masked blocks: batches of documents ([`batch`]), the noise that is drawn for them
//! ([`noising`]), the loss and its gradient ([`step`]), the likelihood bound on held-out text ([`bound`]) and BD3-LM's search
//! for a range of rates ([`range_search`]). A [`learner`] puts them together on running text, a [`session`] is a run of it
//! from its [`settings`]. Reinforcement of such a model is that of any policy: [`FillingPolicy`](crate::rl::filling_policy).
//!
//! The noise itself is a kernel; which rows predict which tokens is [`models`](crate::models)'.

pub mod batch;
pub mod bound;
pub mod learner;
pub mod noising;
pub mod range_search;
pub mod session;
pub mod settings;
pub mod step;

pub use batch::Batch;
pub use learner::Learner;
pub use noising::{Noised, Noising, Schedule};
pub use session::DiffusionSession;
pub use settings::DiffusionSettings;
