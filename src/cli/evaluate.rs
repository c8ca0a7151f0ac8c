//! `gradstone evaluate`.

use super::{ComputeArgs, Failure, source::ModelArgs, terminal};
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::recipes;
use crate::tasks::file::{FileFormat, FileSettings};
use crate::tasks::settings::Source;
use crate::tasks::{Prompting, TaskSettings};
use crate::train::config;
use crate::train::kind::RunSettings;
use crate::train::open::Surroundings;
use crate::train::pass_at_k::Estimate;
use crate::train::sampled_evaluation::{Evaluated, SampledEvaluation, Tally};
use crate::train::settings::{ModelSettings, Settings};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often progress is told.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct EvaluateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Problems with answers: lines of JSON, a JSON array, CSV or Parquet
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Attempts at each problem
    #[arg(long, default_value_t = 1, value_name = "N")]
    samples: usize,
    /// pass@k for these k, e.g. 1,4,8; by default the powers of two up to --samples
    #[arg(long, value_name = "K,…", value_delimiter = ',')]
    k: Vec<usize>,
    /// Divides the logits; 0 takes the likeliest token. By default 0 for one sample, and rollout.temperature for several
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// The longest completion, tokens; by default rollout.max_new_tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// The seed of every random draw
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// One setting of the run over all others, e.g. task.format.answer=gold or task.verifier=exact
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Also write what was found, with the counts of every problem, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What is written as JSON.
#[derive(Serialize)]
struct Written<'a> {
    model: String,
    data: String,
    /// Length and SHA-256 of the data.
    fingerprint: Option<&'a str>,
    samples: usize,
    temperature: f32,
    max_new_tokens: usize,
    seed: u64,
    pass_at: Vec<PassAt>,
    mean_reward: f64,
    attempts: usize,
    right: usize,
    refused: usize,
    truncated: usize,
    /// Attempts for which the verifier gave no judgement.
    unjudged: usize,
    problems: &'a [Tally],
}

#[derive(Serialize)]
struct PassAt {
    k: usize,
    #[serde(flatten)]
    estimate: Option<Estimate>,
}

impl EvaluateArgs {
    /// The settings of the run, or those that fit a model folder, with the data in place of their problems.
    fn settings(&self, folder: &Path) -> Result<Settings, Failure> {
        let mut settings = match &self.model.run {
            Some(run) => match RunSettings::of_run(run)? {
                RunSettings::Reinforcement(settings) => *settings,
                RunSettings::Offline(settings) => {
                    let Prompting { template, system } = settings.data.prompting();
                    let format = FileFormat { template, system, ..FileFormat::default() };
                    let file = FileSettings { format, ..FileSettings::default() };
                    Settings {
                        model: settings.model,
                        task: TaskSettings::new(Source::File(file)),
                        ..recipes::jsonl()
                    }
                }
                RunSettings::Diffusion(_) => {
                    let place = run.display();
                    return Err(Error::invalid(format!(
                        "{place} is a run of block diffusion, which has no problems to answer"
                    ))
                    .into());
                }
            },
            None => Settings {
                model: ModelSettings::Folder { path: folder.to_owned(), dtype: None, date: None },
                ..recipes::jsonl()
            },
        };
        let format = match &settings.task.source {
            Source::File(file) => FileFormat {
                template: file.format.template.clone(),
                system: file.format.system.clone(),
                skip_bad: file.format.skip_bad,
                ..FileFormat::default()
            },
            _ => FileFormat::default(),
        };
        settings.task.source =
            Source::File(FileSettings { format, ..FileSettings::new(&self.data) });
        let mut settings: Settings =
            config::load(&settings, None, &self.settings).map_err(Failure::usage)?;
        if let Source::File(file) = &mut settings.task.source {
            file.hold_out_all();
        }
        if let Some(most) = self.max_tokens {
            settings.rollout.max_new_tokens = most;
        }
        settings.check().map_err(Failure::usage)?;
        Ok(settings)
    }

    /// The k of pass@k.
    fn ks(&self) -> Result<Vec<usize>, Failure> {
        let mut ks = self.k.clone();
        if ks.is_empty() {
            ks.extend((0..).map(|power| 1 << power).take_while(|k| *k <= self.samples));
        }
        ks.push(1);
        ks.sort_unstable();
        ks.dedup();
        match ks.iter().find(|k| **k == 0 || **k > self.samples.max(1)) {
            Some(k) => Err(Failure::usage(Error::invalid(format!(
                "--k {k}: from 1 to the number of samples, {} (--samples)",
                self.samples
            )))),
            None => Ok(ks),
        }
    }
}

pub(super) fn run(args: &EvaluateArgs) -> Result<(), Failure> {
    let ks = args.ks()?;
    let device = args.compute.apply()?;
    let folder = args.model.folder()?;
    let settings = args.settings(&folder)?;
    // A run's model is that of its checkpoint, whatever its settings began with.
    let checkpoint = args.model.run.is_some().then_some(&*folder);
    let Surroundings { settings, world, policy, notices } =
        Surroundings::open(settings, checkpoint, &device)?;
    notices.iter().for_each(|line| terminal::note(line));
    let problems = world.task.held_out(settings.seed, usize::MAX);
    if let Some(first) = problems.first() {
        world.verifier.try_out(first)?;
    }
    let greedy = if args.samples == 1 { 0.0 } else { settings.rollout.temperature };
    let evaluation = SampledEvaluation {
        policy: &*policy,
        world: &world,
        weights: settings.reward.weights_of(&world.verifier.rewards())?,
        samples: args.samples,
        temperature: args.temperature.unwrap_or(greedy),
        truncation: settings.rollout.truncation(),
        max_new_tokens: settings.rollout.max_new_tokens,
        batch: settings.rollout.batch,
        seed: args.seed,
    };
    let mut said = Instant::now();
    let total = problems.len();
    let mut progress = |done: usize| {
        if said.elapsed() >= BETWEEN_LINES && done < total {
            terminal::note(&format!("{done} of {total} problems"));
            said = Instant::now();
        }
    };
    let found = evaluation.run(&problems, &mut progress).map_err(Failure::usage)?;
    world.verifier.notices().iter().for_each(|line| terminal::note(line));
    let fingerprint = match &settings.task.source {
        Source::File(file) => file.evaluation.as_ref().and_then(|one| one.fingerprint.as_deref()),
        _ => None,
    };
    let judged = found.total(|one| one.samples);
    let attempts = total * args.samples;
    let written = Written {
        model: folder.display().to_string(),
        data: args.data.display().to_string(),
        fingerprint,
        samples: args.samples,
        temperature: evaluation.temperature,
        max_new_tokens: evaluation.max_new_tokens,
        seed: args.seed,
        pass_at: ks
            .iter()
            .map(|k| PassAt { k: *k, estimate: found.pass_at(*k, args.seed) })
            .collect(),
        mean_reward: found.mean_reward(),
        attempts,
        right: found.total(|one| one.right),
        refused: found.total(|one| one.refused),
        truncated: found.total(|one| one.truncated),
        unjudged: attempts - judged,
        problems: &found.problems,
    };
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&written)
            .map_err(|e| Error::invalid(format!("what was found is not JSON: {e}")))?;
        atomic::write_file(path, text.as_bytes())?;
    }
    Ok(terminal::print(&page(&written, &found))?)
}

/// What is printed.
fn page(written: &Written<'_>, found: &Evaluated) -> String {
    let mut text = format!(
        "{} problems, {} samples each, temperature {}, at most {} tokens, seed {}\n",
        found.problems.len(),
        written.samples,
        written.temperature,
        written.max_new_tokens,
        written.seed
    );
    for PassAt { k, estimate } in &written.pass_at {
        text += &match estimate {
            None => format!("pass@{k}  no problem has as many judged attempts\n"),
            Some(one) => {
                let (mean, low, high) = (one.mean, one.low, one.high);
                let name = if *k == 1 { " (mean accuracy)" } else { "" };
                let of = match one.problems {
                    all if all == found.problems.len() => String::new(),
                    some => format!(", of {some} problems"),
                };
                let method = one.interval.name();
                format!("pass@{k}  {mean:.4}  95 % [{low:.4}, {high:.4}] {method}{of}{name}\n")
            }
        };
    }
    text += &format!(
        "of {} attempts: right {}, refused {}, cut off {}, not judged {}\n",
        written.attempts, written.right, written.refused, written.truncated, written.unjudged
    );
    for (fault, count) in found.faults.iter() {
        text += &format!("{} {count}\n", fault.name());
    }
    text
}
