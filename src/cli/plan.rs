//! A run of either kind, reinforcement or block diffusion: its settings, and the run itself.

use super::Failure;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::recipes::Kind;
use crate::tasks::settings::Source;
use crate::train::checkpoint::Checkpoint;
use crate::train::diffusion::{DiffusionSession, DiffusionSettings};
use crate::train::session::{Outcome, Session};
use crate::train::settings::{ModelSettings, Settings};
use crate::train::{Observer, RunDir, config};
use std::path::Path;

/// The settings of a run.
pub(super) enum Plan {
    Reinforcement(Box<Settings>),
    Diffusion(Box<DiffusionSettings>),
}

/// A run in memory.
pub(super) enum Running {
    Reinforcement(Box<Session>),
    Diffusion(Box<DiffusionSession>),
}

impl Plan {
    /// A recipe's settings with a file and overrides over them, complete and checked.
    pub fn new(
        recipe: &str,
        kind: Kind,
        file: Option<&Path>,
        overrides: &[String],
    ) -> Result<Plan, Failure> {
        let plan = match kind {
            Kind::Reinforcement(defaults) => Plan::Reinforcement(Box::new(
                config::load(&defaults(), file, overrides).map_err(Failure::usage)?,
            )),
            Kind::Diffusion(defaults) => Plan::Diffusion(Box::new(
                config::load(&defaults(), file, overrides).map_err(Failure::usage)?,
            )),
        };
        let missing = |option: &str, what: &str| {
            Failure::usage(Error::invalid(format!("recipe {recipe} needs {what}: give {option}")))
        };
        let model = match &plan {
            Plan::Reinforcement(settings) => &settings.model,
            Plan::Diffusion(settings) => &settings.model,
        };
        if matches!(model, ModelSettings::Folder { path, .. } if path.as_os_str().is_empty()) {
            return Err(missing("--model DIR", "a model folder"));
        }
        match &plan {
            Plan::Reinforcement(settings) => {
                if matches!(&settings.task.source, Source::Jsonl(f) if f.path.as_os_str().is_empty())
                {
                    return Err(missing("--data FILE", "a file of problems"));
                }
                settings.check()
            }
            Plan::Diffusion(settings) => settings.check(),
        }
        .map_err(Failure::usage)?;
        Ok(plan)
    }

    /// What [`Plan::to_toml`] wrote.
    pub fn from_toml(text: &str, place: &str) -> Result<Plan> {
        // Only one of the two draws noise.
        let table: Option<toml::Table> = text.parse().ok();
        if table.is_some_and(|table| table.contains_key("noising")) {
            return Ok(Plan::Diffusion(Box::new(config::from_toml(text, place)?)));
        }
        Ok(Plan::Reinforcement(Box::new(config::from_toml(text, place)?)))
    }

    /// Every setting, as `config.toml` holds it.
    pub fn to_toml(&self) -> Result<String> {
        match self {
            Plan::Reinforcement(settings) => config::to_toml(settings),
            Plan::Diffusion(settings) => config::to_toml(settings),
        }
    }

    /// The run at its beginning, or as it was when a checkpoint was written.
    pub fn open(self, checkpoint: Option<&Checkpoint>, device: &Device) -> Result<Running> {
        Ok(match (self, checkpoint) {
            (Plan::Reinforcement(settings), None) => {
                Running::Reinforcement(Box::new(Session::new(*settings, device)?))
            }
            (Plan::Reinforcement(settings), Some(checkpoint)) => {
                Running::Reinforcement(Box::new(Session::resumed(*settings, checkpoint, device)?))
            }
            (Plan::Diffusion(settings), None) => {
                Running::Diffusion(Box::new(DiffusionSession::new(*settings, device)?))
            }
            (Plan::Diffusion(settings), Some(checkpoint)) => {
                let session = DiffusionSession::resumed(*settings, checkpoint, device)?;
                Running::Diffusion(Box::new(session))
            }
        })
    }
}

impl Running {
    /// Steps done.
    pub fn step(&self) -> u64 {
        match self {
            Running::Reinforcement(session) => session.step(),
            Running::Diffusion(session) => session.step(),
        }
    }

    /// Runs the steps that are left.
    pub fn run(&mut self, run: &RunDir, observer: &mut dyn Observer) -> Result<Outcome> {
        match self {
            Running::Reinforcement(session) => session.run(run, observer),
            Running::Diffusion(session) => session.run(run, observer),
        }
    }
}
