//! A reproduction as the registry of recipes holds it: what an [`Experiment`] can do, without its types.

use super::experiment::{Experiment, OWN};
use super::paper::Paper;
use super::plan::{self, Request};
use super::report::Report;
use super::run::{Told, run};
use crate::error::Result;
use crate::train::config;
use std::any::type_name;
use toml::Table;

/// What can be asked of a paper's reproduction.
#[derive(Clone, Copy)]
pub struct Reproduction {
    paper: fn() -> Result<Paper>,
    settings: fn() -> Result<[Described; 2]>,
    check: fn(&Request) -> Result<()>,
    run: fn(&Request, &str, usize, &Told<'_>) -> Result<Report>,
}

/// Settings with the type that documents them.
#[derive(Clone, Debug)]
pub struct Described {
    /// What stands before each key, its dot included.
    pub prefix: String,
    /// The path of the Rust type.
    pub type_name: &'static str,
    /// Their values.
    pub values: Table,
}

impl Reproduction {
    /// That of an experiment.
    pub const fn of<E: Experiment>() -> Reproduction {
        Reproduction {
            paper: plan::paper::<E>,
            settings: settings::<E>,
            check: |request| plan::plan::<E>(request).map(drop),
            run: run::<E>,
        }
    }

    /// What `paper.toml` says.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) naming the file and the key of a mistake in it.
    pub fn paper(&self) -> Result<Paper> {
        (self.paper)()
    }

    /// The settings of the recipe, and those that only the reproduction reads.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) when they are not expressible in TOML.
    pub fn settings(&self) -> Result<[Described; 2]> {
        (self.settings)()
    }

    /// Checks a request without running anything.
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) for a study or an arm that does not exist, and for a setting that
    /// does not exist or makes no sense.
    pub fn check(&self, request: &Request) -> Result<()> {
        (self.check)(request)
    }

    /// Runs what is requested on `workers` threads; `paper` is the name that the command on the page gives it. See
    /// [`run()`](super::run()).
    ///
    /// # Errors
    /// [`Error::is_invalid`](crate::Error::is_invalid) as for [`Reproduction::check`], and when the operating system
    /// refuses the threads. A run that fails is in the report.
    pub fn run(
        &self,
        request: &Request,
        paper: &str,
        workers: usize,
        told: &Told<'_>,
    ) -> Result<Report> {
        (self.run)(request, paper, workers, told)
    }
}

fn settings<E: Experiment>() -> Result<[Described; 2]> {
    let all = plan::defaults::<E>();
    Ok([
        Described {
            prefix: String::new(),
            type_name: type_name::<E::Settings>(),
            values: config::table(&all.recipe)?,
        },
        Described {
            prefix: format!("{OWN}."),
            type_name: type_name::<E::Own>(),
            values: config::table(&all.own)?,
        },
    ])
}
