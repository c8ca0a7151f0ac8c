//! A `paper.toml`: the starts, arms, metrics and studies of a reproduction, read and checked.
//!
//! The file format is described in `docs/reproductions/README.md`.

use super::claim::Claim;
use super::seeds::Seeds;
use crate::error::{Error, Result};
use crate::train::chart::Unit;
use crate::train::config;
use serde::Deserialize;
use std::collections::BTreeSet;
use toml::{Table, Value};

/// Everything that is said about a reproduction, in data.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paper {
    /// Where the claims come from.
    pub source: String,
    /// Settings that make every arm so small that it proves nothing.
    #[serde(default)]
    pub quick: Table,
    /// What arms go on from; the first is that of an arm that names none.
    #[serde(rename = "start")]
    pub starts: Vec<Start>,
    /// The metrics, in the order of the tables.
    #[serde(rename = "metric")]
    pub metrics: Vec<Metric>,
    /// The arms, in the order of the tables.
    #[serde(rename = "arm")]
    pub arms: Vec<Arm>,
    /// What is run; the first unless another is named.
    #[serde(rename = "study")]
    pub studies: Vec<Study>,
}

/// What arms go on from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// As arms call it.
    pub name: String,
    /// Settings over those of the recipe, for the start and for every arm that goes on from it.
    #[serde(default)]
    pub set: Table,
}

/// One way to train, compared with the others.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// In the tables.
    pub name: String,
    /// What is done, in one sentence. `{key}` stands for the arm's value of a setting.
    pub about: String,
    /// The start that it goes on from; absent: the first.
    pub start: Option<String>,
    /// Settings over those of the start.
    #[serde(default)]
    pub set: Table,
}

/// Something measured once per run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// In the tables; short.
    pub name: String,
    /// What it is, with its unit.
    pub about: String,
    /// Digits after the point.
    pub digits: usize,
}

/// Arms that are run together, on seeds of their own, with what is claimed of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// As `--study` takes it.
    pub name: String,
    /// What it is for, in a line for a list.
    pub summary: String,
    /// The page is `PAGE.md`, a figure `PAGE-FIGURE.svg`.
    pub page: String,
    /// The heading of the page.
    pub title: String,
    /// Paragraphs of Markdown: the task, what was chosen and how, what it does not show. `{key}` stands for a setting.
    pub about: String,
    /// The seeds that are reported unless others are given.
    pub seeds: Seeds,
    /// Settings over those of the recipe, under those of starts and arms.
    #[serde(default)]
    pub set: Table,
    /// The arms; absent: all.
    pub arms: Option<Vec<String>>,
    /// A setting that every arm is given, over its own.
    pub each: Option<Each>,
    /// What the arms are expected to satisfy.
    #[serde(default, rename = "claim")]
    pub claims: Vec<Claim>,
    /// The figures of the page.
    #[serde(default, rename = "figure")]
    pub figures: Vec<Figure>,
}

/// Every arm is run once per value; where there are several, an arm's name has the value after it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Each {
    /// The setting, dotted where it is in a table.
    pub key: String,
    /// Its values.
    pub values: Vec<Value>,
}

/// Curves of some arms over the course of a run, the mean over the seeds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The file is `PAGE-NAME.svg`.
    pub name: String,
    /// Above it.
    pub title: String,
    /// What is on the horizontal axis.
    pub axis: String,
    /// Which of a run's curves.
    pub curve: String,
    /// How values are written.
    pub unit: Unit,
    /// Of which arms, in the order of their colours; none: of all.
    #[serde(default)]
    pub arms: Vec<String>,
}

/// Arms that one figure can tell apart.
const COLOURS: usize = 6;

/// Digits that a number of 64 bits has.
const MOST_DIGITS: usize = 15;

impl Paper {
    /// Reads the text of `file` and checks all that can be checked without running anything: names are there once,
    /// claims and figures name arms, metrics and curves that exist. `metrics` and `curves` are those that a run gives.
    ///
    /// # Errors
    /// [`Error::is_invalid`] naming the file and the key.
    pub fn read(text: &str, file: &str, metrics: &[&str], curves: &[&str]) -> Result<Paper> {
        let paper: Paper = config::document(text, file)?;
        paper.check(metrics, curves).map_err(|what| Error::invalid(format!("{file}: {what}")))?;
        Ok(paper)
    }

    /// The study of a name, the first one for none.
    ///
    /// # Errors
    /// [`Error::is_invalid`] listing the names there are.
    pub fn study(&self, name: Option<&str>) -> Result<&Study> {
        let names = || self.studies.iter().map(|study| study.name.as_str());
        let found = match name {
            None => self.studies.first(),
            Some(name) => self.studies.iter().find(|study| study.name == name),
        };
        let unknown = || there_is_no("study", name.unwrap_or_default(), names());
        found.ok_or_else(|| Error::invalid(unknown()))
    }

    /// The number of the start that an arm goes on from.
    pub fn start_of(&self, arm: &Arm) -> usize {
        let named = arm.start.as_ref();
        let found = self.starts.iter().position(|start| Some(&start.name) == named);
        found.unwrap_or(0)
    }

    fn check(&self, metrics: &[&str], curves: &[&str]) -> Result<(), String> {
        let of = |place: &str, what: &str| format!("{place}: {what}");
        for (key, count) in [
            ("start", self.starts.len()),
            ("metric", self.metrics.len()),
            ("arm", self.arms.len()),
            ("study", self.studies.len()),
        ] {
            if count == 0 {
                return Err(format!("`{key}` is empty; there must be at least one"));
            }
        }
        once("start.name", self.starts.iter().map(|start| start.name.as_str()))?;
        once("metric.name", self.metrics.iter().map(|metric| metric.name.as_str()))?;
        once("arm.name", self.arms.iter().map(|arm| arm.name.as_str()))?;
        once("study.name", self.studies.iter().map(|study| study.name.as_str()))?;
        once("study.page", self.studies.iter().map(|study| study.page.as_str()))?;
        let named: Vec<&str> = self.metrics.iter().map(|metric| metric.name.as_str()).collect();
        if named != metrics {
            return Err(format!(
                "metric.name: the paper has {}, a run gives {}",
                named.join(", "),
                metrics.join(", ")
            ));
        }
        if let Some(metric) = self.metrics.iter().find(|metric| metric.digits > MOST_DIGITS) {
            return Err(format!(
                "metric `{}`: digits = {} are too many",
                metric.name, metric.digits
            ));
        }
        for arm in &self.arms {
            let place = format!("arm `{}`", arm.name);
            let starts = || self.starts.iter().map(|start| start.name.as_str());
            if let Some(start) = &arm.start {
                known("start", start, starts()).map_err(|e| of(&place, &e))?;
            }
        }
        for study in &self.studies {
            self.check_study(study, curves)
                .map_err(|e| of(&format!("study `{}`", study.name), &e))?;
        }
        Ok(())
    }

    fn check_study(&self, study: &Study, curves: &[&str]) -> Result<(), String> {
        file_name("page", &study.page)?;
        for arm in study.arms.iter().flatten() {
            known("arms", arm, self.arms.iter().map(|arm| arm.name.as_str()))?;
        }
        if study.each.as_ref().is_some_and(|each| each.values.is_empty()) {
            return Err("`each.values` is empty".to_owned());
        }
        let arms: Vec<String> = self.variants(study).map(|variant| variant.name).collect();
        once("arms", arms.iter().map(String::as_str))?;
        let arms = || arms.iter().map(String::as_str);
        for claim in &study.claims {
            let place = |what: String| format!("claim \"{}\": {what}", claim.text);
            let metrics = self.metrics.iter().map(|metric| metric.name.as_str());
            known("metric", &claim.metric, metrics).map_err(place)?;
            known("arm", &claim.arm, arms()).map_err(place)?;
            if let Some(against) = claim.measure.against() {
                known("arm", against, arms()).map_err(place)?;
            }
        }
        once("figure.name", study.figures.iter().map(|figure| figure.name.as_str()))?;
        for figure in &study.figures {
            let place = |what: String| format!("figure `{}`: {what}", figure.name);
            file_name("name", &figure.name).map_err(place)?;
            known("curve", &figure.curve, curves.iter().copied()).map_err(place)?;
            for arm in &figure.arms {
                known("arms", arm, arms()).map_err(place)?;
            }
            let drawn = if figure.arms.is_empty() { arms().count() } else { figure.arms.len() };
            if drawn > COLOURS {
                return Err(place(format!("`arms` are {drawn}; {COLOURS} can be told apart")));
            }
        }
        Ok(())
    }

    /// The arms of a study, each with what the study makes of it.
    pub(super) fn variants<'a>(&'a self, study: &'a Study) -> impl Iterator<Item = Variant<'a>> {
        let mine = |arm: &&Arm| study.arms.as_ref().is_none_or(|names| names.contains(&arm.name));
        let several = study.each.as_ref().is_some_and(|each| each.values.len() > 1);
        self.arms.iter().filter(mine).flat_map(move |arm| {
            let values: Vec<Option<&Value>> = match &study.each {
                None => vec![None],
                Some(each) => each.values.iter().map(Some).collect(),
            };
            values.into_iter().map(move |value| {
                let suffix = value.filter(|_| several).map(|value| format!(" {}", short(value)));
                Variant { name: arm.name.clone() + &suffix.unwrap_or_default(), arm, value }
            })
        })
    }
}

/// An arm with one value of the setting that its study gives to each.
pub(super) struct Variant<'a> {
    pub name: String,
    pub arm: &'a Arm,
    pub value: Option<&'a Value>,
}

/// A value as it stands after an arm's name: a learning rate as `2e-3`.
fn short(value: &Value) -> String {
    match value {
        Value::Float(number) => format!("{number:e}"),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// There is no `name` among `names`: says which is near, else which there are.
fn there_is_no<'a>(what: &str, name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match config::nearest(name, names.iter().copied()) {
        Some(near) => format!("there is no {what} `{name}`; did you mean `{near}`?"),
        None => format!("there is no {what} `{name}`; there are {}", names.join(", ")),
    }
}

fn known<'a>(
    key: &str,
    name: &str,
    mut names: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), String> {
    let all = names.clone();
    if names.any(|known| known == name) {
        return Ok(());
    }
    Err(format!("`{key}`: {}", there_is_no(key.trim_end_matches('s'), name, all)))
}

fn once<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if name.trim().is_empty() {
            return Err(format!("`{key}` is empty"));
        }
        if !seen.insert(name) {
            return Err(format!("`{key}`: `{name}` is there twice"));
        }
    }
    Ok(())
}

fn file_name(key: &str, name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match name.chars().all(fits) {
        true => Ok(()),
        false => {
            Err(format!("`{key}`: `{name}` is not made of a-z, 0-9 and -, as a file is called"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = r#"
source = "a paper"
quick = { steps = 1 }
[[start]]
name = "plain"
[[metric]]
name = "H"
about = "hallucinations"
digits = 3
[[arm]]
name = "on"
about = "with {rate}"
set = { rate = 0.5 }
[[arm]]
name = "off"
about = "without"
start = "plain"
[[study]]
name = "claims"
summary = "what is claimed"
page = "a-page"
title = "A"
about = "B"
seeds = "1..3"
[[study.claim]]
text = "less"
asserted = true
metric = "H"
arm = "on"
minus = "off"
below = 0
[[study.figure]]
name = "h"
title = "H"
axis = "steps"
curve = "h"
unit = "percent"
arms = ["on"]
[[study]]
name = "rates"
summary = "rates"
page = "rates"
title = "A"
about = "B"
seeds = "4"
arms = ["on"]
each = { key = "rate", values = [1e-3, 2e-3] }
"#;

    fn read(text: &str) -> Result<Paper> {
        Paper::read(text, "x/paper.toml", &["H"], &["h"])
    }

    #[test]
    fn a_sound_paper_is_read() {
        let paper = read(SOUND).unwrap();
        let names = |study: &str| -> Vec<String> {
            paper.variants(paper.study(Some(study)).unwrap()).map(|variant| variant.name).collect()
        };
        assert_eq!(names("claims"), ["on", "off"]);
        assert_eq!(names("rates"), ["on 1e-3", "on 2e-3"]);
        assert_eq!(paper.study(None).unwrap().name, "claims");
        let error = paper.study(Some("claim")).unwrap_err().to_string();
        assert_eq!(error, "there is no study `claim`; did you mean `claims`?");
        assert_eq!(paper.study(None).unwrap().claims[0].measure.against(), Some("off"));
    }

    #[test]
    fn every_mistake_names_the_file_and_the_key() {
        for (right, wrong, says) in [
            ("digits = 3", "digit = 3", ":9: unknown key `digit`; did you mean `digits`?"),
            ("digits = 3", "digits = \"3\"", ":9: invalid type: string \"3\", expected usize"),
            ("digits = 3", "digits = 99", ": metric `H`: digits = 99 are too many"),
            ("seeds = \"1..3\"", "seeds = \"3..1\"", ":24: 3..1 has no seed"),
            (
                "asserted = true",
                "asserted = 1",
                ":27: invalid type: integer `1`, expected a boolean",
            ),
            ("arm = \"on\"", "arm = \"onn\"", "`arm`: there is no arm `onn`; did you mean `on`?"),
            ("minus = \"off\"", "minus = \"zebra\"", "there is no arm `zebra`; there are on, off"),
            (
                "metric = \"H\"",
                "metric = \"HH\"",
                "`metric`: there is no metric `HH`; did you mean `H`?",
            ),
            (
                "curve = \"h\"",
                "curve = \"xyz\"",
                "figure `h`: `curve`: there is no curve `xyz`; there are h",
            ),
            (
                "arms = [\"on\"]",
                "arms = [\"no\"]",
                "`arms`: there is no arm `no`; did you mean `on`?",
            ),
            ("start = \"plain\"", "start = \"x\"", "arm `off`: `start`: there is no start `x`"),
            ("name = \"off\"", "name = \"on\"", "`arm.name`: `on` is there twice"),
            ("name = \"H\"", "name = \"K\"", "metric.name: the paper has K, a run gives H"),
            (
                "page = \"a-page\"",
                "page = \"a/page\"",
                "study `claims`: `page`: `a/page` is not made of",
            ),
            ("values = [1e-3, 2e-3]", "values = []", "study `rates`: `each.values` is empty"),
            ("values = [1e-3, 2e-3]", "values = [1e-3, 1e-3]", "`arms`: `on 1e-3` is there twice"),
            ("unit = \"percent\"", "unit = \"cm\"", ": unknown variant `cm`"),
            ("below = 0", "", "needs one of `at_most`"),
        ] {
            assert!(SOUND.contains(right), "{right}");
            let error = read(&SOUND.replacen(right, wrong, 1)).unwrap_err();
            assert!(error.is_invalid(), "{error:?}");
            let error = error.to_string();
            assert!(error.starts_with("x/paper.toml:") && error.contains(says), "{error}\n{says}");
        }
    }
}
