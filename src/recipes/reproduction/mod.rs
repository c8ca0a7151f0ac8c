//! Reproductions of published claims.
//!
//! A recipe's `paper.toml` is a [`Paper`]: its starts, arms, metrics and studies with their claims and figures. An
//! [`Experiment`] is what Rust adds: how a start is made and how an arm runs. [`run()`] runs the arms of a study with
//! every seed, one run per core; the [`Report`] has the judged claims, and [`page`] and [`figure`] write it down. A
//! claim that does not hold is written down as that.

pub mod claim;
mod entry;
pub mod experiment;
pub mod figure;
pub mod page;
pub mod paper;
pub mod plan;
pub mod report;
pub(crate) mod run;
pub mod seeds;

pub use claim::{Bound, Claim, Judged, Measure, Verdict};
pub use entry::{Described, Reproduction};
pub use experiment::{ArmSettings, Curve, Experiment, Nothing, Outcome};
pub use paper::{Arm, Figure, Metric, Paper, Study};
pub use plan::Request;
pub use report::Report;
pub use run::run;
pub use seeds::Seeds;
