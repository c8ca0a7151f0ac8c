//! Several runs on one page: what each reached, which settings differ, every measurement over each other.
//!
//! Not here: the page of one run, which is [`report`](super::report)'s, and how a chart is drawn.

use super::chart::{Chart, Mark, Series, Unit, escape, number};
use super::metrics::{self, Record};
use super::report::{
    CHARTS, all_zero, begin, duration, end, finite, latest, name_of, points, undocumented, zero,
};
use super::run_dir::RunDir;
use crate::error::{Error, Result};
use crate::files::atomic;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Runs that a page can tell apart by colour.
pub const MOST: usize = 6;

/// What the page needs of a run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it is called on the page.
    pub name: String,
    /// The text of its `config.toml`.
    pub config: String,
    /// Its metrics.
    pub records: Vec<Record>,
}

impl Run {
    /// Reads a run directory.
    ///
    /// # Errors
    /// [`Error::is_io`], or [`Error::is_format`] when its metrics are damaged.
    pub fn read(run: &RunDir) -> Result<Run> {
        let path = run.metrics_path();
        let records = if path.exists() { metrics::read(&path)? } else { vec![] };
        Ok(Run { name: name_of(run), config: run.config()?, records })
    }
}

/// Writes the page that compares the runs.
///
/// # Errors
/// [`Error::is_invalid`] for fewer than two runs or more than [`MOST`], [`Error::is_io`], [`Error::is_format`].
pub fn write(runs: &[RunDir], page: &Path) -> Result<()> {
    if runs.len() < 2 || runs.len() > MOST {
        let count = runs.len();
        return Err(Error::invalid(format!("{count} runs to compare; it takes 2 to {MOST}")));
    }
    let mut read = runs.iter().map(Run::read).collect::<Result<Vec<_>>>()?;
    // Folders of one name (`a/run`, `b/run`) are told apart by their place in the list.
    for i in 0..read.len() {
        if read.iter().filter(|run| run.name == read[i].name).count() > 1 {
            let name = runs[i].root().display().to_string();
            read[i].name = name;
        }
    }
    atomic::write_file(page, html(&read).as_bytes())
}

/// The page.
pub fn html(runs: &[Run]) -> String {
    let mut out = begin("gradstone comparison", &format!("{} runs", runs.len()));
    out.push_str("</header>\n");
    reached(&mut out, runs);
    settings(&mut out, runs);
    out.push_str("<h2 class=\"section\">Measurements</h2>\n<p class=\"legend\">");
    for (i, run) in runs.iter().enumerate() {
        let _ = write!(out, "<span>{}{}</span>", key(i), escape(&run.name));
    }
    out.push_str("</p>\n<section class=\"charts\">\n");
    let mut zeros = Vec::new();
    for shown in &CHARTS {
        let mark = if shown.mark == Mark::Points { Mark::Points } else { Mark::Mean };
        let form = (shown.unit, mark, shown.phase);
        figure(&mut out, &mut zeros, runs, [shown.field, shown.title, shown.about], form);
    }
    for name in undocumented(runs.iter().flat_map(|run| &run.records)) {
        let title = name.replace('_', " ");
        figure(&mut out, &mut zeros, runs, [name, &title, ""], (Unit::Plain, Mark::Mean, None));
    }
    out.push_str("</section>\n");
    out.push_str(&zero(&zeros));
    out.push_str(
        "<p class=\"note\">Lines are moving means over a twentieth of a run; points are as measured.</p>\n",
    );
    out + &end()
}

/// A dot in a run's colour.
fn key(run: usize) -> String {
    format!("<i class=\"key c{run}\"></i>")
}

/// The table of what each run reached.
fn reached(out: &mut String, runs: &[Run]) {
    out.push_str(
        "<table><thead><tr><th>Run</th><th>Held-out accuracy</th><th>Best</th><th>Reward</th><th>Steps</th><th>Time</th></tr></thead>\n<tbody>\n",
    );
    let or_dash =
        |value: Option<f64>, unit| value.map_or("–".into(), |value| number(value, unit));
    for (i, run) in runs.iter().enumerate() {
        let accuracy = finite(&run.records, "eval_accuracy");
        let last = accuracy.last().map(|point| point.1);
        let best = accuracy.iter().map(|point| point.1).reduce(f64::max);
        let reward = finite(&run.records, "reward");
        let reward = (!reward.is_empty()).then(|| latest(&reward, Mark::Mean));
        let seconds: f64 = finite(&run.records, "seconds").iter().map(|point| point.1).sum();
        let _ = writeln!(
            out,
            "<tr><td data-name=\"Run\">{}{}</td>\
             <td data-name=\"Held-out\">{}</td><td data-name=\"Best\">{}</td><td data-name=\"Reward\">{}</td>\
             <td data-name=\"Steps\">{}</td><td data-name=\"Time\">{}</td></tr>",
            key(i),
            escape(&run.name),
            or_dash(last, Unit::Percent),
            or_dash(best, Unit::Percent),
            or_dash(reward, Unit::Plain),
            run.records.last().map_or(0, |record| record.step),
            duration(seconds),
        );
    }
    out.push_str("</tbody></table>\n");
}

/// Every setting by its dotted name.
fn flat(config: &str) -> BTreeMap<String, String> {
    fn walk(prefix: &str, value: &toml::Value, into: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    walk(&format!("{prefix}{dot}{key}"), value, into);
                }
            }
            toml::Value::String(text) => {
                into.insert(prefix.to_string(), text.clone());
            }
            other => {
                into.insert(prefix.to_string(), other.to_string());
            }
        }
    }
    let mut all = BTreeMap::new();
    if let Ok(table) = config.parse::<toml::Table>() {
        walk("", &toml::Value::Table(table), &mut all);
    }
    all
}

/// The table of the settings that are not the same in all runs, and folded up those that are.
fn settings(out: &mut String, runs: &[Run]) {
    let settings: Vec<_> = runs.iter().map(|run| flat(&run.config)).collect();
    let mut keys: Vec<&String> = settings.iter().flat_map(BTreeMap::keys).collect();
    keys.sort();
    keys.dedup();
    let same = |key: &&String| settings.iter().all(|of| of.get(*key) == settings[0].get(*key));
    let (same, differ): (Vec<&String>, Vec<&String>) = keys.into_iter().partition(same);
    out.push_str("<h2 class=\"section\">Settings that differ</h2>\n");
    if differ.is_empty() {
        out.push_str("<p class=\"note\">None: the runs have the same settings.</p>\n");
    } else {
        out.push_str("<table><thead><tr><th>Setting</th>");
        for (i, run) in runs.iter().enumerate() {
            let _ = write!(out, "<th>{}{}</th>", key(i), escape(&run.name));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for name in differ {
            let _ = write!(out, "<tr><td data-name=\"Setting\">{}</td>", escape(name));
            for (run, of) in runs.iter().zip(&settings) {
                let value = escape(of.get(name).map_or("–", String::as_str));
                let _ = write!(out, "<td data-name=\"{}\">{value}</td>", escape(&run.name));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table>\n");
    }
    if !same.is_empty() {
        let count = same.len();
        let _ = write!(out, "<details><summary>Settings that are the same: {count}</summary><pre>");
        for name in same {
            let value = settings[0].get(name).map_or("–", String::as_str);
            let _ = writeln!(out, "{} = {}", escape(name), escape(value));
        }
        out.push_str("</pre></details>\n");
    }
}

/// One measurement of every run that has it.
fn figure(
    out: &mut String,
    zeros: &mut Vec<String>,
    runs: &[Run],
    [field, title, about]: [&str; 3],
    (unit, mark, phase): (Unit, Mark, Option<&str>),
) {
    let series: Vec<Series> = runs
        .iter()
        .enumerate()
        .map(|(colour, run)| Series {
            name: run.name.clone(),
            points: points(&run.records, field, phase),
            mark,
            colour,
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return;
    }
    if series.iter().all(|series| all_zero(&series.points)) {
        return zeros.push(title.to_owned());
    }
    let steps = || series.iter().flat_map(|series| &series.points).map(|point| point.0);
    let steps = (steps().fold(f64::MAX, f64::min), steps().fold(f64::MIN, f64::max));
    let chart = Chart {
        series,
        unit,
        axis: "step".into(),
        steps,
        warmup: None,
        size: (400.0, 196.0),
        legend: false,
    };
    let _ = writeln!(
        out,
        "<figure><figcaption><h2>{}</h2><p>{}</p></figcaption>{}</figure>",
        escape(title),
        escape(about),
        chart.svg()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, rate: &str, accuracy: f64) -> Run {
        let record = |step: u64, value: f64| Record {
            step,
            phase: "rl".into(),
            values: [
                ("eval_accuracy", value),
                ("seconds", 1.0),
                ("sequence_ratio", 0.5),
                ("kl_coefficient", 0.0),
            ]
            .map(|(name, value)| (name.to_string(), value))
            .into(),
        };
        let config = format!("seed = 1\n[optimizer]\nlearning_rate = {rate}\n");
        Run { name: name.into(), config, records: vec![record(1, 0.1), record(9, accuracy)] }
    }

    #[test]
    fn runs_are_laid_side_by_side() {
        let page = html(&[run("a<b", "0.1", 0.5), run("second", "0.2", 0.75)]);
        assert!(page.contains("a&lt;b") && !page.contains("a<b"));
        assert!(page.contains("optimizer.learning_rate") && !page.contains(">seed<"));
        assert!(page.contains("Settings that are the same: 1<") && page.contains("seed = 1"));
        assert!(page.contains("Zero in every step: kl coefficient.") && !page.contains("<h2>kl"));
        assert_eq!(page.matches("<svg").count(), 2, "no dot is a chart");
        assert!(page.contains("75.0 %") && page.contains("50.0 %"), "{page}");
        assert!(page.contains("Held-out accuracy") && page.contains("sequence ratio"));
        assert!(page.contains("c0") && page.contains("c1") && !page.contains("NaN"));
    }

    #[test]
    fn runs_without_measurements_and_equal_runs() {
        let empty = Run { name: "new".into(), config: String::new(), records: vec![] };
        let page = html(&[empty.clone(), empty]);
        assert!(page.contains("the same settings") && page.contains('–'));
    }

    #[test]
    fn one_run_is_no_comparison() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&[], &folder.path().join("page.html")).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("2 to 6"), "{error}");
    }
}
