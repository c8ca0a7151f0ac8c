//! `gradstone train`.

use super::observers::{Events, Observers};
use super::progress::{Progress, catch_interrupts};
use super::{ComputeArgs, Failure, list, terminal};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::recipes;
use crate::train::kind::{Kind, OpenRun, RunSettings};
use crate::train::{self, Observer, Outcome, RunDir, report, summary};
use std::path::{Path, PathBuf};

/// Which files of a folder are source text, and how much of it is read.
const SOURCE: &str = "extensions=[\"rs\", \"py\", \"c\", \"cc\", \"cpp\", \"cu\", \"h\", \"js\", \"ts\", \"go\", \"java\"], \
                      most_bytes=16000000";

/// Where runs go when `--out` does not say.
const RUNS: &str = "runs";

#[derive(Debug, clap::Args)]
#[command(after_help = list::recipes(|_| true))]
pub(super) struct TrainArgs {
    /// What to train, of the list below; else what --config names, jsonl where --model or --data is given, or arithmetic
    recipe: Option<String>,
    /// A TOML file over the recipe's settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting over all others, e.g. optimizer.learning_rate=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// A model folder: config.json, tokenizer.json, *.safetensors
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Problems with answers, demonstrations or preferences: lines of JSON, a JSON array, CSV or Parquet; for block diffusion a
    /// folder of source files
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Problems or records for evaluation alone; without it some of --data are held out
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// Steps of reinforcement learning, or of block diffusion
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// The seed of every random draw
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The run directory; by default the next free runs/RECIPE-NNN
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in --out (by default the newest) from its last checkpoint, with its settings; --steps makes it
    /// longer, and --set changes what is done from now on
    #[arg(long, conflicts_with_all = ["recipe", "config", "model", "data", "eval_data", "seed"])]
    resume: bool,
    /// Print every setting of the run as TOML, and train nothing
    #[arg(long)]
    print_config: bool,
    /// Write every step to event files of TensorBoard too, in OUT/tensorboard
    #[arg(long)]
    tensorboard: bool,
    /// With --resume: go on although a file of problems has changed since the run began
    #[arg(long, requires = "resume")]
    accept_changes: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl TrainArgs {
    /// The recipe that is named, else the one that the other options fit.
    ///
    /// # Errors
    /// What reading --config reports.
    fn recipe(&self) -> Result<String> {
        if let Some(recipe) = &self.recipe {
            return Ok(recipe.clone());
        }
        if let Some(config) = &self.config
            && let Some(recipe) = recipes::of_config(config)?
        {
            return Ok(recipe.to_owned());
        }
        let own = self.model.is_some() || self.data.is_some();
        Ok(if own { "jsonl" } else { recipes::REGISTRY[0].name }.to_owned())
    }

    /// The options that are settings, as overrides in the order they are applied: a file of problems comes before the
    /// keys that say how it is read.
    fn overrides(&self, kind: Kind) -> Vec<String> {
        let quoted =
            |path: &Path| toml::Value::String(path.to_string_lossy().into_owned()).to_string();
        let mut all = Vec::new();
        all.extend(
            self.model
                .as_deref()
                .map(|path| format!("model={{kind=\"folder\", path={}}}", quoted(path))),
        );
        let steps = match kind {
            Kind::Reinforcement(_) => {
                let task = |path| format!("task={{kind=\"file\", path={}}}", quoted(path));
                all.extend(self.data.as_deref().map(task));
                let evaluation = |path| format!("task.evaluation={{path={}}}", quoted(path));
                all.extend(self.eval_data.as_deref().map(evaluation));
                "steps"
            }
            Kind::Diffusion(_) => {
                if let Some(path) = self.data.as_deref().map(quoted) {
                    all.push(format!("text={{kind=\"files\", path={path}, {SOURCE}}}"));
                    all.push("tokenizer={kind=\"byte_pairs\", vocab_size=512}".to_owned());
                }
                if let Some(path) = self.eval_data.as_deref().map(quoted) {
                    all.push(format!("task.evaluation={{path={path}}}"));
                }
                "diffusion.steps"
            }
            Kind::Offline(_) => {
                let data = |path| format!("data.path={}", quoted(path));
                all.extend(self.data.as_deref().map(data));
                let evaluation = |path| format!("data.evaluation={{path={}}}", quoted(path));
                all.extend(self.eval_data.as_deref().map(evaluation));
                "steps"
            }
        };
        all.extend(self.settings.iter().cloned());
        all.extend(self.steps.map(|count| format!("{steps}={count}")));
        all.extend(self.seed.map(|seed| format!("seed={seed}")));
        all
    }

    /// The run directory that is meant.
    fn directory(&self) -> Result<PathBuf> {
        match (&self.out, self.resume) {
            (Some(out), _) => Ok(out.clone()),
            (None, false) => Ok(next_free(Path::new(RUNS), &self.recipe()?)),
            (None, true) => newest(Path::new(RUNS)),
        }
    }
}

pub(super) fn run(args: &TrainArgs) -> Result<(), Failure> {
    let out = args.directory()?;
    if args.print_config {
        let settings = if args.resume { resumed(args, &out)?.1 } else { chosen(args)?.0 };
        return Ok(terminal::print(&settings.to_toml()?)?);
    }
    let device = args.compute.apply()?;
    catch_interrupts()?;
    let mut progress = Progress::new();
    let events = args.tensorboard.then(|| Events::new(out.join("tensorboard")));
    let mut observers = Observers { shown: &mut progress, events };
    let outcome = if args.resume {
        resume(args, &out, &device, &mut observers)
    } else {
        begin(args, &out, &device, &mut observers)
    }?;
    drop(progress);
    let run = RunDir::open(&out)?;
    let written = report::write(&run)?;
    let learned = summary::words(&run.metrics()?);
    if outcome == Outcome::Interrupted {
        let place = out.display();
        return Err(Error::interrupted(format!(
            "stopped at a checkpoint: {learned}\ngo on with: gradstone train --resume --out {place}"
        ))
        .into());
    }
    Ok(terminal::print(&format!("report {}\n{learned}\n", written.display()))?)
}

/// Trains in `out` from the beginning.
fn begin(
    args: &TrainArgs,
    out: &Path,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Outcome, Failure> {
    RunDir::vacant(out)?;
    let (settings, name) = chosen(args)?;
    if let Some((option, what)) = settings.missing() {
        let message = format!("recipe {name} needs {what}: give {option}");
        return Err(Failure::usage(Error::invalid(message)));
    }
    settings.check().map_err(Failure::usage)?;
    if args.compute.verbose {
        settings.passed_over()?.iter().for_each(|line| observer.message(line));
    }
    // The model and the data are read before the directory is made: a run that cannot begin leaves nothing behind.
    let OpenRun { mut trainee, config, notices } = settings.open(None, device)?;
    let run = RunDir::create(out, &config)?;
    observer.message(&format!("run {}", out.display()));
    notices.iter().for_each(|line| observer.message(line));
    Ok(train::run(&mut *trainee, &run, observer)?)
}

/// The settings of a new run, and the recipe that they are of.
fn chosen(args: &TrainArgs) -> Result<(RunSettings, &'static str), Failure> {
    let recipe = recipes::named(&args.recipe()?).map_err(Failure::usage)?;
    let kind = recipe.trained(args.model.is_some() || args.data.is_some());
    let overrides = args.overrides(kind);
    let settings = RunSettings::load(kind, args.config.as_deref(), &overrides);
    Ok((settings.map_err(Failure::usage)?, recipe.name))
}

/// A run that is there, with its settings and those that are given over them.
fn resumed(args: &TrainArgs, out: &Path) -> Result<(RunDir, RunSettings), Failure> {
    let run = RunDir::resume(out)?;
    let place = run.config_path();
    let settings = RunSettings::from_toml(&run.config()?, &place.display().to_string())?;
    let mut changes = args.settings.clone();
    changes.extend(args.steps.map(|steps| format!("{}={steps}", settings.steps_key())));
    Ok((run, settings.changed(&changes).map_err(Failure::usage)?))
}

/// Goes on in `out` after its newest checkpoint; from the beginning where there is none yet.
fn resume(
    args: &TrainArgs,
    out: &Path,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Outcome, Failure> {
    let (run, mut settings) = resumed(args, out)?;
    settings.check().map_err(Failure::usage)?;
    if args.accept_changes {
        settings.accept_changes();
    }
    let (latest, damaged) = run.checkpoints(0).latest()?;
    for error in damaged {
        observer.message(&format!("passing over a damaged checkpoint: {error}"));
    }
    let changed = args.accept_changes || args.steps.is_some() || !args.settings.is_empty();
    let OpenRun { mut trainee, config, notices } = settings.open(latest.as_ref(), device)?;
    run.rewind(trainee.step())?;
    if changed {
        run.replace_config(&config)?;
    }
    if trainee.step() >= trainee.total_steps() {
        observer.message(&format!(
            "all {} steps are done; --steps N makes the run longer",
            trainee.total_steps()
        ));
    }
    observer.message(&format!("run {} from step {}", out.display(), trainee.step()));
    notices.iter().for_each(|line| observer.message(line));
    Ok(train::run(&mut *trainee, &run, observer)?)
}

/// `runs/NAME-NNN` with the first number that is free.
fn next_free(runs: &Path, name: &str) -> PathBuf {
    let candidate = |number: u32| runs.join(format!("{name}-{number:03}"));
    (1..).map(candidate).find(|path| !path.exists()).unwrap_or_else(|| candidate(0))
}

/// The run whose metrics were written last.
fn newest(runs: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(runs).into_iter().flatten().flatten();
    let written = entries.filter_map(|entry| {
        let at = entry.path().join("metrics.jsonl").metadata().ok()?.modified().ok()?;
        Some((at, entry.path()))
    });
    written.max().map(|(_, path)| path).ok_or_else(|| {
        Error::state(format!("no run to go on with in {}\nname one with --out", runs.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_numbered_and_the_newest_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert!(newest(folder.path()).unwrap_err().is_state());
        for number in 1..4 {
            let next = next_free(folder.path(), "arithmetic");
            assert!(next.ends_with(format!("arithmetic-{number:03}")));
            std::fs::create_dir(&next).unwrap();
        }
        std::fs::write(folder.path().join("arithmetic-002/metrics.jsonl"), "").unwrap();
        assert!(newest(folder.path()).unwrap().ends_with("arithmetic-002"));
    }
}
