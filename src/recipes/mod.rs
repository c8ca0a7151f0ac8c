//! Recipes: complete settings of a run, by name. A TOML file or `--set` changes any of them.

mod arithmetic;
pub mod exgrpo;
pub mod faithrl;
mod jsonl;
pub mod reproduction;
pub mod stable_diffcoder;

pub use arithmetic::arithmetic;
pub use jsonl::jsonl;
pub use stable_diffcoder::stable_diffcoder;

use crate::error::{Error, Result};
use crate::train::diffusion::DiffusionSettings;
use crate::train::settings::Settings;

/// A recipe's name, what it is in one line, and its settings.
pub struct Recipe {
    /// As the program takes it.
    pub name: &'static str,
    /// One line for a list.
    pub summary: &'static str,
    /// Its settings.
    pub settings: Kind,
}

/// What a recipe trains with.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Reinforcement learning, perhaps after supervised warm-up.
    Reinforcement(fn() -> Settings),
    /// Next-token prediction, then block diffusion.
    Diffusion(fn() -> DiffusionSettings),
}

/// Every recipe; the first is the default.
pub const RECIPES: &[Recipe] = &[
    Recipe {
        name: "arithmetic",
        summary: "a tiny decoder learns sums: supervised warm-up, then GRPO (two minutes on two cores)",
        settings: Kind::Reinforcement(arithmetic),
    },
    Recipe {
        name: "jsonl",
        summary: "GRPO on a Hugging Face model folder (--model) and a JSONL file of problems (--data)",
        settings: Kind::Reinforcement(jsonl),
    },
    Recipe {
        name: "stable_diffcoder",
        summary: "block diffusion from a next-token model, on programs made in code or a folder of source files (--data)",
        settings: Kind::Diffusion(stable_diffcoder),
    },
];

/// The recipe of a name.
///
/// # Errors
/// [`Error::is_invalid`] listing the names there are.
pub fn named(name: &str) -> Result<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name).ok_or_else(|| {
        let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
        Error::invalid(format!("no recipe `{name}` (there are: {})", names.join(", ")))
    })
}
