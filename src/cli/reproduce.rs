//! `gradstone reproduce`: a paper's claims, run and judged.

use super::progress::Count;
use super::{Failure, terminal};
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::recipes::exgrpo::{ExGrpo, Study};
use crate::recipes::faithrl::FaithRl;
use crate::recipes::reproduction::{Paper, Report, Seeds, figure, page, run as run_paper};
use crate::recipes::stable_diffcoder::StableDiffCoder;
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A paper whose claims can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Named {
    /// Step-wise faithfulness against hallucination (arXiv 2602.03507)
    Faithrl,
    /// Replay of past successes (arXiv 2510.02245)
    Exgrpo,
    /// Block diffusion from a next-token model (arXiv 2601.15892)
    StableDiffcoder,
}

/// The command line of `reproduce`.
#[derive(Debug, clap::Args)]
pub(super) struct ReproduceArgs {
    /// The paper
    paper: Named,
    /// Seeds, both ends included, for example 1..5; by default those of the committed page
    #[arg(long, value_name = "A..B")]
    seeds: Option<Seeds>,
    /// A few steps of every arm, within a minute: checks the machinery, proves nothing
    #[arg(long)]
    quick: bool,
    /// Write everything to a JSON file
    #[arg(long, value_name = "F")]
    json: Option<PathBuf>,
    /// Write PAPER.md, PAPER.json and the figures into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs side by side; 0: one per core. Results do not depend on it
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// exgrpo: choose every arm's learning rate, on seeds of its own; with --stress, the rate of that setting
    #[arg(long)]
    tune: bool,
    /// exgrpo: the setting in which runs collapse
    #[arg(long)]
    stress: bool,
}

pub(super) fn run(args: &ReproduceArgs) -> Result<(), Failure> {
    match args.paper {
        Named::Faithrl if args.tune || args.stress => {
            Err(Failure::usage(Error::invalid("faithrl has no --tune and no --stress")))
        }
        Named::Faithrl => reproduce(&FaithRl::new(args.quick), args),
        Named::Exgrpo => {
            let study = match (args.tune, args.stress) {
                (true, false) => Study::Rates,
                (true, true) => Study::StressRates,
                (false, true) => Study::Stress,
                (false, false) => Study::Claims,
            };
            reproduce(&ExGrpo::new(study, args.quick), args)
        }
        Named::StableDiffcoder if args.tune || args.stress => {
            Err(Failure::usage(Error::invalid("stable-diffcoder has no --tune and no --stress")))
        }
        Named::StableDiffcoder => reproduce(&StableDiffCoder::new(args.quick), args),
    }
}

fn reproduce<P: Paper>(paper: &P, args: &ReproduceArgs) -> Result<(), Failure> {
    let seeds = args.seeds.unwrap_or(paper.description().seeds);
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let workers = if args.threads == 0 { cores() } else { args.threads };
    // Before the work and not after it: nobody wants to wait an hour for a folder that cannot be written.
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder)
            .map_err(|e| Error::io(format!("making {}", folder.display()), e))?;
    }
    let progress = Mutex::new(Count::new());
    let told = |done: usize, of: usize, what: &str| {
        progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).tell(done, of, what);
    };
    told(0, 0, "");
    let report = run_paper(paper, seeds, workers, command(args, seeds), &told)?;
    drop(progress);
    terminal::print(&page::text(&report))?;
    if let Some(path) = &args.json {
        write_json(&report, path)?;
    }
    if let Some(folder) = &args.out {
        write_page(&report, folder)?;
    }
    if report.holds() {
        return Ok(());
    }
    Err(Error::state("not every asserted claim holds (see above)").into())
}

/// What gives the same numbers again, wherever it is written to.
fn command(args: &ReproduceArgs, seeds: Seeds) -> String {
    let name = args.paper.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
    let mut words = format!("gradstone reproduce {name} --seeds {seeds}");
    for (given, word) in [(args.quick, "quick"), (args.tune, "tune"), (args.stress, "stress")] {
        if given {
            words += &format!(" --{word}");
        }
    }
    words
}

fn write_json(report: &Report, path: &Path) -> Result<()> {
    let text = serde_json::to_string(&page::json(report))
        .map_err(|e| Error::state(format!("report as JSON: {e}")))?;
    atomic::write_file(path, (text + "\n").as_bytes())
}

fn write_page(report: &Report, folder: &Path) -> Result<()> {
    let name = report.description.name;
    for drawn in &report.figures {
        let path = folder.join(format!("{name}-{}.svg", drawn.name));
        atomic::write_file(&path, figure::svg(report, drawn).as_bytes())?;
    }
    write_json(report, &folder.join(format!("{name}.json")))?;
    let page = folder.join(format!("{name}.md"));
    atomic::write_file(&page, page::markdown(report).as_bytes())?;
    terminal::print(&format!("{}\n", page.display()))
}
