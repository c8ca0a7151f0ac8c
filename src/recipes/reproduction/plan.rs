//! What is asked of a reproduction, and the complete settings of every start and arm that follow from it.
//!
//! Settings are laid over each other in this order, the later ones on top: the recipe's, the study's, the quick ones
//! where they are asked for, those of the start, those of the arm, the value that the study gives to each arm, and what
//! `--set` says.

use super::claim::Claim;
use super::experiment::{ArmSettings, Experiment};
use super::paper::{Each, Figure, Metric, Paper, Study};
use super::seeds::Seeds;
use crate::error::{Error, Result};
use crate::train::config;
use toml::{Table, Value};

/// What is run of a paper.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The study; the first unless one is named.
    pub study: Option<String>,
    /// The seeds; those of the study unless some are given.
    pub seeds: Option<Seeds>,
    /// Only these arms, each text one name or several with commas between them; all where there is none.
    pub arms: Vec<String>,
    /// `key=value` over the settings of every arm.
    pub overrides: Vec<String>,
    /// So small that it proves nothing.
    pub quick: bool,
}

/// Words about a study, its `{key}` replaced.
#[derive(Clone, Debug)]
pub struct Description {
    /// The page is `PAGE.md`.
    pub page: String,
    /// The heading.
    pub title: String,
    /// Where the claims come from.
    pub source: String,
    /// Paragraphs of Markdown.
    pub about: String,
    /// It is too small to be evidence of anything.
    pub quick: bool,
}

/// An arm that is run, in words.
#[derive(Clone, Debug)]
pub struct Named {
    /// In the tables.
    pub name: String,
    /// What is done, in one sentence.
    pub about: String,
}

/// An arm that is run.
pub(crate) struct Planned<S> {
    pub named: Named,
    /// Which of the starts it goes on from.
    pub start: usize,
    pub settings: S,
}

/// All that is run.
pub(crate) struct Plan<S> {
    pub description: Description,
    pub seeds: Seeds,
    /// Those that an arm goes on from.
    pub starts: Vec<S>,
    pub arms: Vec<Planned<S>>,
    pub metrics: Vec<Metric>,
    pub claims: Vec<Claim>,
    /// Those with an arm that is run.
    pub figures: Vec<Figure>,
}

type SettingsOf<E> = ArmSettings<<E as Experiment>::Settings, <E as Experiment>::Own>;

/// The paper of an experiment.
pub(super) fn paper<E: Experiment>() -> Result<Paper> {
    Paper::read(E::PAPER, E::FILE, E::METRICS, E::CURVES)
}

/// The settings that everything else is laid over.
pub(super) fn defaults<E: Experiment>() -> SettingsOf<E> {
    ArmSettings { recipe: E::defaults(), own: E::Own::default() }
}

/// What a request asks of a paper.
///
/// # Errors
/// [`Error::is_invalid`] for a study or an arm that does not exist, a setting that does not exist or makes no sense,
/// and for a mistake in the paper itself, with its file.
pub(crate) fn plan<E: Experiment>(request: &Request) -> Result<Plan<SettingsOf<E>>> {
    let paper = paper::<E>()?;
    let study = paper.study(request.study.as_deref())?;
    if request.overrides.iter().any(|text| text.split('=').next().map(str::trim) == Some("seed")) {
        return Err(Error::invalid("--set seed: the seeds of a reproduction are given by --seeds"));
    }
    let layers = Layers { file: E::FILE, study, quick: request.quick.then_some(&paper.quick) };
    let variants: Vec<_> = paper.variants(study).collect();
    let names: Vec<[&str; 2]> =
        variants.iter().map(|variant| [variant.name.as_str(), variant.arm.name.as_str()]).collect();
    let chosen = chosen(&request.arms, &names)?;

    let (mut arms, mut needed) = (Vec::new(), Vec::new());
    for variant in chosen.iter().filter_map(|i| variants.get(*i)) {
        let number = paper.start_of(variant.arm);
        let start = needed.iter().position(|start| *start == number).unwrap_or_else(|| {
            needed.push(number);
            needed.len() - 1
        });
        let set = paper.starts.get(number).map(|start| &start.set);
        let each = study.each.as_ref().zip(variant.value).map(|(each, value)| given(each, value));
        let over = [set, Some(&variant.arm.set), each.as_ref()];
        let place = format!("arm `{}`", variant.name);
        let settings = layers.settings(&defaults::<E>(), &place, &over, &request.overrides)?;
        E::check(&settings).map_err(|e| e.at(&place))?;
        let about = filled(&variant.arm.about, &config::table(&settings)?)
            .map_err(|what| Error::invalid(format!("{}: {place}: about: {what}", E::FILE)))?;
        let named = Named { name: variant.name.clone(), about };
        arms.push(Planned { named, start, settings });
    }

    // An override may fit the arms alone: a key of the noise that one arm has, say. It is left out where it does not
    // fit: that the arms were given it shows that it is no mistake.
    let lenient = |place: &str, over: &[Option<&Table>]| -> Result<SettingsOf<E>> {
        let mut settings = layers.settings(&defaults::<E>(), place, over, &[])?;
        for text in &request.overrides {
            settings =
                config::layered(&settings, &[], std::slice::from_ref(text)).unwrap_or(settings);
        }
        Ok(settings)
    };
    let starts = needed.iter().filter_map(|number| paper.starts.get(*number));
    let starts = starts
        .map(|start| lenient(&format!("start `{}`", start.name), &[Some(&start.set)]))
        .collect::<Result<Vec<_>>>()?;
    let about = filled(&study.about, &config::table(&lenient("study", &[])?)?);
    let about = about
        .map_err(|e| Error::invalid(format!("{}: study `{}`: about: {e}", E::FILE, study.name)))?;

    let is_run = |name: &String| arms.iter().any(|arm| arm.named.name == *name);
    let mut figures = study.figures.clone();
    for figure in figures.iter_mut().filter(|figure| figure.arms.is_empty()) {
        figure.arms = variants.iter().map(|variant| variant.name.clone()).collect();
    }
    figures.retain(|figure| figure.arms.iter().any(is_run));
    Ok(Plan {
        description: Description {
            page: study.page.clone(),
            title: study.title.clone(),
            source: paper.source.clone(),
            about,
            quick: request.quick,
        },
        seeds: request.seeds.unwrap_or(study.seeds),
        starts,
        arms,
        metrics: paper.metrics.clone(),
        claims: study.claims.clone(),
        figures,
    })
}

/// The tables that every start and arm of a study has in common.
struct Layers<'a> {
    file: &'a str,
    study: &'a Study,
    quick: Option<&'a Table>,
}

impl Layers<'_> {
    fn settings<S: serde::Serialize + serde::de::DeserializeOwned>(
        &self,
        defaults: &S,
        place: &str,
        over: &[Option<&Table>],
        overrides: &[String],
    ) -> Result<S> {
        let written = |key: &str| format!("{}: {key}", self.file);
        let study = written(&format!("study `{}`: set", self.study.name));
        let (quick, set) = (written("quick"), written(&format!("{place}: set")));
        let mut layers = vec![(study.as_str(), &self.study.set)];
        layers.extend(self.quick.map(|table| (quick.as_str(), table)));
        layers.extend(over.iter().flatten().map(|table| (set.as_str(), *table)));
        let settings = config::layered(defaults, &layers, &[])?;
        config::layered(&settings, &[], overrides).map_err(|e| e.at(place))
    }
}

/// The table that gives a setting one of the values of a study.
fn given(each: &Each, value: &Value) -> Table {
    let nest = |value: Value, key: &str| Value::Table(Table::from_iter([(key.to_owned(), value)]));
    match each.key.rsplit('.').fold(value.clone(), nest) {
        Value::Table(table) => table,
        _ => Table::new(),
    }
}

/// `text` with `{key}` replaced by the value of that setting. Braces around anything but a dotted key stay.
fn filled(text: &str, settings: &Table) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let (before, after) = rest.split_at(open);
        out.push_str(before);
        let close = after.find('}').unwrap_or(0);
        let key = after.get(1..close).unwrap_or_default();
        let is_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._".contains(c);
        if key.is_empty() || !key.chars().all(is_key) {
            out.push('{');
            rest = &after[1..];
            continue;
        }
        let mut keys = key.split('.');
        let first = keys.next().and_then(|key| settings.get(key));
        match keys.try_fold(first, |value, key| value.map(|value| value.get(key))).flatten() {
            Some(Value::Float(number)) => out.push_str(&number.to_string()),
            Some(Value::String(word)) => out.push_str(word),
            Some(value) => out.push_str(&value.to_string()),
            None => return Err(format!("`{{{key}}}` is no setting")),
        }
        rest = &after[close + 1..];
    }
    Ok(out + rest)
}

/// The numbers of the arms that the lists name, in rising order; all where there is no list. An arm is named by its
/// name or by that of the arm which it is a variant of. Names may have commas, so the longest one that fits is taken.
fn chosen(lists: &[String], names: &[[&str; 2]]) -> Result<Vec<usize>> {
    if lists.is_empty() {
        return Ok((0..names.len()).collect());
    }
    let mut wanted: Vec<&str> = Vec::new();
    for list in lists {
        let mut rest = list.trim();
        while !rest.is_empty() {
            let fits = |name: &&&str| {
                let after = rest.strip_prefix(**name).map(str::trim_start);
                after.is_some_and(|after| after.is_empty() || after.starts_with(','))
            };
            let found = names.iter().flatten().filter(fits).max_by_key(|name| name.len());
            let Some(name) = found else {
                let unknown = rest.split(',').next().unwrap_or_default().trim();
                let all: Vec<&str> = names.iter().map(|[name, _]| *name).collect();
                let near = config::nearest(unknown, all.iter().copied());
                let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                let all = all.join(" | ");
                return Err(Error::invalid(format!(
                    "--arms: there is no arm `{unknown}`{near}\nthere are {all}"
                )));
            };
            wanted.push(name);
            rest = rest[name.len()..].trim_start().trim_start_matches(',').trim_start();
        }
    }
    let mine = |i: &usize| names[*i].iter().any(|name| wanted.contains(name));
    match (0..names.len()).filter(mine).collect::<Vec<usize>>() {
        none if none.is_empty() => Err(Error::invalid("--arms names no arm")),
        some => Ok(some),
    }
}

impl Request {
    /// The command that gives the same numbers again, wherever they are written to.
    pub fn command(&self, paper: &str, seeds: Seeds) -> String {
        let mut words = format!("gradstone reproduce {paper}");
        if let Some(study) = &self.study {
            words += &format!(" --study {study}");
        }
        words += &format!(" --seeds {seeds}");
        if self.quick {
            words += " --quick";
        }
        for (option, texts) in [("--arms", &self.arms), ("--set", &self.overrides)] {
            for text in texts {
                words += &format!(" {option} {}", quoted(text));
            }
        }
        words
    }
}

/// A word as a shell must be given it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "=._,/:+-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_are_chosen_by_the_longest_name() {
        let names = ["clipped", "clipped, no warm-up", "- shaping", "on 1e-3", "on 2e-3"]
            .map(|name| [name, name.split(" 1e").next().unwrap().split(" 2e").next().unwrap()]);
        let chosen = |list: &[&str]| {
            chosen(&list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), &names)
        };
        for (list, numbers) in [
            (&[][..], &[0, 1, 2, 3, 4][..]),
            (&["clipped"], &[0]),
            (&["clipped, no warm-up"], &[1]),
            (&["clipped, no warm-up,clipped"], &[0, 1]),
            (&["clipped,clipped, no warm-up , - shaping"], &[0, 1, 2]),
            (&["on"], &[3, 4]),
            (&["on 2e-3", "clipped"], &[0, 4]),
        ] {
            assert_eq!(chosen(list).unwrap(), numbers, "{list:?}");
        }
        for (wrong, says) in [
            (
                "clpped",
                "there is no arm `clpped`; did you mean `clipped`?\nthere are clipped | clipped, no",
            ),
            ("clipped,zebra", "there is no arm `zebra`\nthere are clipped | "),
            (" ", "names no arm"),
        ] {
            let error = chosen(&[wrong]).unwrap_err();
            assert!(error.is_invalid() && error.to_string().contains(says), "{error}\n{says}");
        }
    }

    #[test]
    fn words_name_settings() {
        let settings: Table = "rate = 0.002\n[phase]\nsteps = 600\nkind = \"a\"".parse().unwrap();
        let text = "rate {rate}, {phase.steps} steps of {phase.kind}; `{[a]}` and {A} stay, and {";
        let says = "rate 0.002, 600 steps of a; `{[a]}` and {A} stay, and {";
        assert_eq!(filled(text, &settings).unwrap(), says);
        assert_eq!(filled("{phase.step}", &settings).unwrap_err(), "`{phase.step}` is no setting");
    }

    #[test]
    fn the_command_says_everything_that_decides_the_numbers() {
        let request = Request {
            study: Some("stress".to_owned()),
            seeds: None,
            arms: vec!["- shaping,on-policy".to_owned()],
            overrides: vec!["width=32".to_owned(), "credit={kind=\"scale\"}".to_owned()],
            quick: true,
        };
        assert_eq!(
            request.command("exgrpo", Seeds::new(1, 2)),
            "gradstone reproduce exgrpo --study stress --seeds 1..2 --quick --arms '- shaping,on-policy' \
             --set width=32 --set 'credit={kind=\"scale\"}'"
        );
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
