//! Whether a percent sign divides by a hundred: references differ, so the user decides.

use serde::{Deserialize, Serialize};

/// What a percent sign means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Percent {
    /// Nothing: `50%` is 50 and is not 0.5.
    #[default]
    Number,
    /// Hundredths: `50%` is 0.5 and is not 50.
    Hundredths,
    /// Either: `50%` is 50 and is 0.5.
    Either,
}
