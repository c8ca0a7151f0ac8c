//! The kinds of runs: what `config.toml` says with `kind`, the settings that belong to it, and how a run of it is opened.

use super::checkpoint::Checkpoint;
use super::config;
use super::diffusion::{DiffusionSession, DiffusionSettings};
use super::offline::{OfflineSession, OfflineSettings};
use super::open;
use super::reinforce::Reinforcement;
use super::run::Trainee;
use super::run_dir::RunDir;
use super::settings::{ModelSettings, Settings};
use super::text_codec::tells_time;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tasks::settings::Source;
use crate::tasks::source_text::TextSettings;
use crate::text::chat::today;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The settings that a recipe of a kind begins with.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Reinforcement learning, perhaps after supervised warm-up.
    Reinforcement(fn() -> Settings),
    /// Next-token prediction, then block diffusion.
    Diffusion(fn() -> DiffusionSettings),
    /// Demonstrations or preferences of a file.
    Offline(fn() -> OfflineSettings),
}

/// The settings of a run, of whichever kind.
pub enum RunSettings {
    /// Reinforcement learning.
    Reinforcement(Box<Settings>),
    /// Block diffusion.
    Diffusion(Box<DiffusionSettings>),
    /// Demonstrations or preferences of a file.
    Offline(Box<OfflineSettings>),
}

/// A run that was opened.
pub struct OpenRun {
    /// What is trained.
    pub trainee: Box<dyn Trainee>,
    /// The text of its `config.toml`: the settings with what was found in place of what they left open.
    pub config: String,
    /// What the user should know before the first step: what was guessed, what was left out.
    pub notices: Vec<String>,
}

/// The key of `config.toml` that says which.
const KIND: &str = "kind";
const REINFORCEMENT: &str = "reinforcement";
const DIFFUSION: &str = "diffusion";
const OFFLINE: &str = "offline";

impl RunSettings {
    /// A recipe's settings with a file and overrides over them, complete but not checked. Paths are absolute from here on: a
    /// run may be resumed from another folder.
    ///
    /// # Errors
    /// As [`config::load`]; [`Error::is_io`] where there is no working directory.
    pub fn load(kind: Kind, file: Option<&Path>, overrides: &[String]) -> Result<RunSettings> {
        let mut settings = match kind {
            Kind::Reinforcement(defaults) => {
                RunSettings::Reinforcement(Box::new(config::load(&defaults(), file, overrides)?))
            }
            Kind::Diffusion(defaults) => {
                RunSettings::Diffusion(Box::new(config::load(&defaults(), file, overrides)?))
            }
            Kind::Offline(defaults) => {
                RunSettings::Offline(Box::new(config::load(&defaults(), file, overrides)?))
            }
        };
        for path in settings.paths_mut() {
            *path = std::path::absolute(&path)
                .map_err(|e| Error::io(format!("finding {}", path.display()), e))?;
        }
        Ok(settings)
    }

    /// Every path of the settings that is given.
    fn paths_mut(&mut self) -> Vec<&mut PathBuf> {
        let (model, mut paths) = match self {
            RunSettings::Reinforcement(settings) => {
                let pool = settings.replay.as_mut().and_then(|replay| replay.pool.as_mut());
                (&mut settings.model, pool.into_iter().chain(settings.task.paths_mut()).collect())
            }
            RunSettings::Diffusion(settings) => (
                &mut settings.model,
                match &mut settings.text {
                    TextSettings::Files { path, .. } => vec![path],
                    _ => Vec::new(),
                },
            ),
            RunSettings::Offline(settings) => (
                &mut settings.model,
                settings.data.paths_mut().chain(&mut settings.reference).collect(),
            ),
        };
        if let ModelSettings::Folder { path, .. } = model {
            paths.push(path);
        }
        // An empty path is one that is still to be given.
        paths.retain(|path| !path.as_os_str().is_empty());
        paths
    }

    /// Takes the data as they are now: what they were when the run began is forgotten.
    pub fn accept_changes(&mut self) {
        match self {
            RunSettings::Reinforcement(settings) => {
                if let Source::File(file) = &mut settings.task.source {
                    file.accept_changes();
                }
            }
            RunSettings::Offline(settings) => settings.data.accept_changes(),
            RunSettings::Diffusion(_) => {}
        }
    }

    /// Settings over those of a run that is there, as `key=value`: a resumed run may change what is done from now on.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a key that says what the run is made of (its seed, its model), and as [`config::load`].
    pub fn changed(self, overrides: &[String]) -> Result<RunSettings> {
        const FIXED: [&str; 2] = ["seed", "model"];
        for setting in overrides {
            let key = setting.split('=').next().unwrap_or_default().trim();
            if let Some(fixed) = FIXED.iter().find(|fixed| key.split('.').next() == Some(**fixed)) {
                return Err(Error::invalid(format!(
                    "--set {setting}: {fixed} cannot change in a run that goes on; begin another run for it"
                )));
            }
        }
        Ok(match self {
            RunSettings::Reinforcement(settings) => {
                RunSettings::Reinforcement(Box::new(config::load(&*settings, None, overrides)?))
            }
            RunSettings::Diffusion(settings) => {
                RunSettings::Diffusion(Box::new(config::load(&*settings, None, overrides)?))
            }
            RunSettings::Offline(settings) => {
                RunSettings::Offline(Box::new(config::load(&*settings, None, overrides)?))
            }
        })
    }

    /// Lines about fields of the model's `config.json` that its class does not read, which change nothing.
    ///
    /// # Errors
    /// What reading the file reports.
    pub fn passed_over(&self) -> Result<Vec<String>> {
        let model = match self {
            RunSettings::Reinforcement(settings) => &settings.model,
            RunSettings::Diffusion(settings) => &settings.model,
            RunSettings::Offline(settings) => &settings.model,
        };
        match model {
            ModelSettings::Folder { path, .. } => open::passed_over(path),
            _ => Ok(Vec::new()),
        }
    }

    /// The key that counts the steps of the run's last phase.
    pub fn steps_key(&self) -> &'static str {
        match self {
            RunSettings::Reinforcement(_) | RunSettings::Offline(_) => "steps",
            RunSettings::Diffusion(_) => "diffusion.steps",
        }
    }

    /// Steps of all phases; 0 where they follow from data that has not been read.
    pub fn total_steps(&self) -> u64 {
        match self {
            RunSettings::Reinforcement(settings) => settings.total_steps(),
            RunSettings::Diffusion(settings) => settings.total_steps(),
            RunSettings::Offline(settings) => settings.steps.unwrap_or_default(),
        }
    }

    /// Reads what [`RunSettings::to_toml`] wrote.
    ///
    /// # Errors
    /// [`Error::is_invalid`] with `place`, and the line where there is one.
    pub fn from_toml(text: &str, place: &str) -> Result<RunSettings> {
        let line = text.lines().position(|line| line.trim_start().starts_with("kind"));
        let table: Table = match text.parse() {
            Ok(table) => table,
            // The parser of the settings says where the syntax is wrong.
            Err(_) => {
                return config::from_toml::<Settings>(text, place)
                    .map(|settings| RunSettings::Reinforcement(Box::new(settings)));
            }
        };
        // The settings do not know the key; its line stays, so that other lines keep their numbers.
        let rest: String = text
            .lines()
            .enumerate()
            .map(|(i, text)| if Some(i) == line { "\n".to_owned() } else { format!("{text}\n") })
            .collect();
        match table.get(KIND) {
            Some(Value::String(kind)) if kind == REINFORCEMENT => {
                Ok(RunSettings::Reinforcement(Box::new(config::from_toml(&rest, place)?)))
            }
            Some(Value::String(kind)) if kind == DIFFUSION => {
                Ok(RunSettings::Diffusion(Box::new(config::from_toml(&rest, place)?)))
            }
            Some(Value::String(kind)) if kind == OFFLINE => {
                Ok(RunSettings::Offline(Box::new(config::from_toml(&rest, place)?)))
            }
            other => Err(Error::invalid(format!(
                "{place}: kind is {}; it must be \"{REINFORCEMENT}\", \"{DIFFUSION}\" or \"{OFFLINE}\"",
                other.map_or("missing".to_owned(), Value::to_string)
            ))),
        }
    }

    /// The settings of the run in a directory.
    ///
    /// # Errors
    /// [`Error::is_state`] when it holds no run, and as [`RunSettings::from_toml`].
    pub fn of_run(root: &Path) -> Result<RunSettings> {
        let run = RunDir::open(root)?;
        RunSettings::from_toml(&run.config()?, &run.config_path().display().to_string())
    }

    /// Every setting, as `config.toml` holds it.
    ///
    /// # Errors
    /// As [`config::to_toml`].
    pub fn to_toml(&self) -> Result<String> {
        let (kind, text) = match self {
            RunSettings::Reinforcement(settings) => (REINFORCEMENT, config::to_toml(settings)?),
            RunSettings::Diffusion(settings) => (DIFFUSION, config::to_toml(settings)?),
            RunSettings::Offline(settings) => (OFFLINE, config::to_toml(settings)?),
        };
        Ok(format!("{KIND} = \"{kind}\"\n{text}"))
    }

    /// The settings of a run that begins now: where its chat template writes the date, they say which day it is, so that the
    /// run reads the same prompts whenever it goes on.
    ///
    /// # Errors
    /// As [`tells_time`].
    pub fn dated(mut self) -> Result<RunSettings> {
        let (model, prompting) = match &mut self {
            RunSettings::Reinforcement(settings) => {
                (&mut settings.model, settings.task.source.prompting())
            }
            RunSettings::Offline(settings) => (&mut settings.model, settings.data.prompting()),
            RunSettings::Diffusion(_) => return Ok(self),
        };
        if let ModelSettings::Folder { path, date: date @ None, .. } = model
            && tells_time(path, &prompting)?
        {
            *date = Some(today());
        }
        Ok(self)
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the key.
    pub fn check(&self) -> Result<()> {
        match self {
            RunSettings::Reinforcement(settings) => settings.check(),
            RunSettings::Diffusion(settings) => settings.check(),
            RunSettings::Offline(settings) => settings.check(),
        }
    }

    /// The option of the program that still has to name a folder or a file, and what it names.
    pub fn missing(&self) -> Option<(&'static str, &'static str)> {
        let model = match self {
            RunSettings::Reinforcement(settings) => &settings.model,
            RunSettings::Diffusion(settings) => &settings.model,
            RunSettings::Offline(settings) => &settings.model,
        };
        if matches!(model, ModelSettings::Folder { path, .. } if path.as_os_str().is_empty()) {
            return Some(("--model DIR", "a model folder"));
        }
        match self {
            RunSettings::Reinforcement(settings) => match &settings.task.source {
                Source::File(file) if file.path.as_os_str().is_empty() => {
                    Some(("--data FILE", "a file of problems"))
                }
                _ => None,
            },
            RunSettings::Offline(settings) if settings.data.path.as_os_str().is_empty() => {
                Some(("--data FILE", "a file of records"))
            }
            RunSettings::Diffusion(_) | RunSettings::Offline(_) => None,
        }
    }

    /// The run at its beginning, or as it was when a checkpoint was written.
    ///
    /// # Errors
    /// What loading the model and the data reports.
    pub fn open(self, checkpoint: Option<&Checkpoint>, device: &Device) -> Result<OpenRun> {
        let config = self.to_toml()?;
        let trainee: Box<dyn Trainee> = match (self, checkpoint) {
            (RunSettings::Reinforcement(settings), checkpoint) => {
                let run = Reinforcement::open(*settings, checkpoint, device)?;
                let config =
                    RunSettings::Reinforcement(Box::new(run.settings().clone())).to_toml()?;
                let notices = run.opening_notices().to_vec();
                return Ok(OpenRun { trainee: Box::new(run), config, notices });
            }
            (RunSettings::Offline(settings), checkpoint) => {
                let run = OfflineSession::open(*settings, checkpoint, device)?;
                let config = RunSettings::Offline(Box::new(run.settings().clone())).to_toml()?;
                let notices = run.opening_notices().to_vec();
                return Ok(OpenRun { trainee: Box::new(run), config, notices });
            }
            (RunSettings::Diffusion(settings), None) => {
                Box::new(DiffusionSession::new(*settings, device)?)
            }
            (RunSettings::Diffusion(settings), Some(checkpoint)) => {
                Box::new(DiffusionSession::resumed(*settings, checkpoint, device)?)
            }
        };
        Ok(OpenRun { trainee, config, notices: Vec::new() })
    }
}
