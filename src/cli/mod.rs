//! The program: what the command line says, and what is printed.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C (a training run after its checkpoint). An error
//! is one or two lines on standard error; one of several records shows the first five. A closed pipe ends the output, silently.

mod bench;
mod block_generation;
mod completion;
mod devices;
mod evaluate;
mod generate;
mod list;
mod observers;
mod progress;
mod remaining;
mod reproduce;
mod setting_docs;
mod source;
mod terminal;
mod train;

use crate::device::Device;
use crate::error::Error;
use crate::train::{RunDir, export};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Trains language models with reinforcement learning and block diffusion, on a CPU or an NVIDIA GPU, from one command.
#[derive(Debug, Parser)]
#[command(name = "gradstone", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a recipe, by default a tiny model on arithmetic; with --model and --data your own
    Train(train::TrainArgs),
    /// Let a trained model complete prompts
    Generate(generate::GenerateArgs),
    /// Let a trained model answer a file of problems, and judge it: pass@k with intervals
    Evaluate(evaluate::EvaluateArgs),
    /// Write report.html of a run, or a page that compares several, and print where it is
    Report {
        /// The run directory; several are laid side by side
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        /// Where the comparison of several goes
        #[arg(long, default_value = "comparison.html", value_name = "FILE")]
        out: PathBuf,
        /// Write the numbers of one run as a table too
        #[arg(long, value_name = "FILE")]
        csv: Option<PathBuf>,
        /// Write the numbers of one run as event files of TensorBoard too, into this folder
        #[arg(long, value_name = "DIR")]
        tensorboard: Option<PathBuf>,
    },
    /// Run a paper's recipe over several seeds and judge its claims
    Reproduce(reproduce::ReproduceArgs),
    /// Measure the kernels on this machine: time, percent of a measured bound, correctness
    Bench(bench::BenchArgs),
    /// Show what this machine computes with
    Devices,
    /// List what is built in
    List {
        /// One list only
        what: Option<list::Listed>,
        /// With `settings`: the recipe
        recipe: Option<String>,
    },
}

/// An error and the exit status it ends the program with.
struct Failure {
    error: Error,
    status: u8,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = if error.is_interrupted() { 130 } else { 1 };
        Failure { error, status }
    }
}

impl Failure {
    /// The command line or a configuration asks for something that cannot be.
    fn usage(error: Error) -> Failure {
        // A file that is not there is not the wording's fault.
        let status = if error.is_invalid() { 2 } else { 1 };
        Failure { error, status }
    }
}

/// What every command that computes takes.
#[derive(Debug, clap::Args)]
struct ComputeArgs {
    /// What to compute on: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: devices::DeviceChoice,
    /// Threads to compute with; 0: one per core. Results do not depend on it
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Say what is passed over: fields of config.json that the model's class does not read
    #[arg(long, short)]
    verbose: bool,
}

impl ComputeArgs {
    /// Sets the threads; opens the device.
    fn apply(&self) -> crate::Result<Device> {
        let device = self.device.open()?;
        if self.threads > 0 {
            crate::device::cpu::pool::set_threads(self.threads)?;
        }
        Ok(device)
    }
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let done = match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Report { dirs, out, csv, tensorboard } => {
            report(&dirs, &out, csv.as_deref(), tensorboard.as_deref())
        }
        Command::Reproduce(args) => reproduce::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Devices => terminal::print(&devices::describe()).map_err(Failure::from),
        Command::List { what, recipe } => listed(what, recipe.as_deref()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has had enough.
        Err(failure) if terminal::is_closed_pipe(&failure.error) => ExitCode::SUCCESS,
        // Who asked a run to end did not make an error.
        Err(failure) if failure.error.is_interrupted() => {
            terminal::note(&failure.error.to_string());
            ExitCode::from(failure.status)
        }
        Err(failure) => {
            terminal::complain(&failure.error.to_string());
            ExitCode::from(failure.status)
        }
    }
}

fn listed(what: Option<list::Listed>, recipe: Option<&str>) -> Result<(), Failure> {
    let text = list::text(what, recipe).map_err(Failure::usage)?;
    Ok(terminal::print(&text)?)
}

fn report(
    dirs: &[PathBuf],
    out: &Path,
    csv: Option<&Path>,
    tensorboard: Option<&Path>,
) -> Result<(), Failure> {
    let runs = dirs.iter().map(|dir| RunDir::open(dir)).collect::<crate::Result<Vec<_>>>()?;
    if csv.is_some() || tensorboard.is_some() {
        let [run] = &runs[..] else {
            return Err(Failure::usage(Error::invalid("--csv and --tensorboard take one run")));
        };
        let records = run.metrics()?;
        if let Some(path) = csv {
            let mut table = Vec::new();
            export::csv::write(&records, &mut table)?;
            std::fs::write(path, table)
                .map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
        }
        if let Some(folder) = tensorboard {
            let mut events = export::tensorboard::EventFile::create(folder, 0)?;
            records.iter().try_for_each(|record| events.add_record(record))?;
        }
    }
    let path = match &runs[..] {
        [run] => crate::train::report::write(run)?,
        several => {
            crate::train::comparison::write(several, out).map_err(Failure::usage)?;
            out.to_path_buf()
        }
    };
    Ok(terminal::print(&format!("{}\n", path.display()))?)
}

/// What clap says, in two lines; help and version as they are.
fn refused(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = terminal::print(&error.to_string());
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(2);
        }
        _ => {}
    }
    let text = error.to_string();
    let what: Vec<&str> =
        text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let what = what.join(" ");
    let near = match error
        .get(ContextKind::SuggestedArg)
        .or(error.get(ContextKind::SuggestedSubcommand))
    {
        Some(ContextValue::String(near)) => Some(near.clone()),
        Some(ContextValue::Strings(near)) => near.first().cloned(),
        _ => None,
    };
    let command = std::env::args().nth(1).filter(|word| Cli::has(word));
    let help = format!("gradstone {}--help", command.map_or(String::new(), |word| word + " "));
    let advice = match near {
        Some(near) => format!("did you mean `{near}`? see {help}"),
        None => format!("see {help}"),
    };
    terminal::complain(&format!("{}\n{advice}", what.trim_start_matches("error: ")));
    ExitCode::from(2)
}

impl Cli {
    fn has(word: &str) -> bool {
        use clap::CommandFactory;
        Cli::command().get_subcommands().any(|command| command.get_name() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
