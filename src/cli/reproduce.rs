//! `gradstone reproduce`: a paper's claims, run and judged.

use super::progress::Count;
use super::{Failure, terminal};
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::recipes::reproduction::{Report, Request, Seeds, figure, page};
use crate::recipes::{self, REGISTRY};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The command line of `reproduce`.
#[derive(Debug, clap::Args)]
#[command(after_help = papers())]
pub(super) struct ReproduceArgs {
    /// The paper, by the name of its recipe
    paper: String,
    /// What of it is run; the first of the list below unless another is named
    #[arg(long, value_name = "NAME")]
    study: Option<String>,
    /// Seeds, both ends included, for example 1..5; by default those of the committed page
    #[arg(long, value_name = "A..B")]
    seeds: Option<Seeds>,
    /// Only these arms, by their names in the tables; claims that need another are not judged
    #[arg(long, value_name = "A,B", allow_hyphen_values = true)]
    arms: Vec<String>,
    /// One setting of every arm and of what arms go on from (see `gradstone list settings PAPER`)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// A few steps of every arm, within a minute: checks the machinery, proves nothing
    #[arg(long)]
    quick: bool,
    /// Write everything to a JSON file
    #[arg(long, value_name = "F")]
    json: Option<PathBuf>,
    /// Write PAGE.md, PAGE.json and the figures into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs side by side; 0: one per core. Results do not depend on it
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
}

/// The papers with their studies, as help shows them.
fn papers() -> String {
    let mut out = String::from("Papers and their studies:\n");
    for recipe in REGISTRY {
        let Some(reproduction) = recipe.reproduction else { continue };
        let _ = writeln!(out, "  {:<18}{}", hyphened(recipe.name), recipe.summary);
        // A paper that cannot be read says so when it is run.
        for study in reproduction.paper().into_iter().flat_map(|paper| paper.studies) {
            let _ = writeln!(out, "    --study {:<14}{}", study.name, study.summary);
        }
    }
    out.trim_end().to_owned()
}

/// A recipe's name as the pages of reproductions write it.
fn hyphened(name: &str) -> String {
    name.replace('_', "-")
}

pub(super) fn run(args: &ReproduceArgs) -> Result<(), Failure> {
    let recipe = recipes::named(&args.paper).map_err(Failure::usage)?;
    let reproduction = recipe.reproduced().map_err(Failure::usage)?;
    let request = Request {
        study: args.study.clone(),
        seeds: args.seeds,
        arms: args.arms.clone(),
        overrides: args.settings.clone(),
        quick: args.quick,
    };
    reproduction.check(&request).map_err(Failure::usage)?;
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
    let report = reproduction.run(&request, &hyphened(recipe.name), workers, &told)?;
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

fn write_json(report: &Report, path: &Path) -> Result<()> {
    let text = serde_json::to_string(&page::json(report))
        .map_err(|e| Error::state(format!("report as JSON: {e}")))?;
    atomic::write_file(path, (text + "\n").as_bytes())
}

fn write_page(report: &Report, folder: &Path) -> Result<()> {
    let name = &report.description.page;
    for drawn in &report.figures {
        let path = folder.join(format!("{name}-{}.svg", drawn.name));
        atomic::write_file(&path, figure::svg(report, drawn).as_bytes())?;
    }
    write_json(report, &folder.join(format!("{name}.json")))?;
    let page = folder.join(format!("{name}.md"));
    atomic::write_file(&page, page::markdown(report).as_bytes())?;
    terminal::print(&format!("{}\n", page.display()))
}
