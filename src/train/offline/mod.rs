//! Learning from what is written down: demonstrations (supervised fine-tuning), preferences (DPO, CPO, ORPO and their kin) and
//! labelled completions (KTO).
//!
//! [`settings`] are a run's; `written` tells what a record says, `encoding` makes token ids of it, [`data`] holds all of them;
//! [`learner`] turns records into gradients and [`session`] is the run. The losses are
//! [`rl::preference`](crate::rl::preference)'s.

pub mod data;
mod encoding;
pub mod learner;
mod references;
pub mod session;
pub mod settings;
mod written;

pub use data::Record;
pub use encoding::Encoded;
pub use session::OfflineSession;
pub use settings::{OfflineObjective, OfflineSettings};
