//! `gradstone list`: what is built in. Every list is read from the table or the enum that the library itself uses.

use super::setting_docs;
use crate::error::{Error, Result};
use crate::kernels::{FAMILIES, advantage, policy_loss, rollout_correction};
use crate::models::ARCHITECTURES;
use crate::recipes::reproduction::Described;
use crate::recipes::{self, REGISTRY, Recipe};
use crate::train::config;
use crate::train::diffusion::DiffusionSettings;
use crate::train::kind::Kind;
use crate::train::offline::OfflineSettings;
use crate::train::settings::Settings;
use clap::ValueEnum;
use std::any::type_name;
use std::fmt::Write;

/// One of the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Listed {
    /// Every setting of a recipe with its default; of the first recipe unless one is named
    Settings,
    /// What `gradstone train` and `gradstone reproduce` take by name
    Recipes,
    /// Model families that are read and written in Hugging Face layout
    Models,
    /// What a policy is optimised for
    Objectives,
    /// How rewards become advantages
    Advantages,
    /// How tokens of another policy are corrected for
    Corrections,
    /// Kernel families
    Kernels,
}

/// A name and what it stands for.
type Entry = (String, String);

fn entries(listed: Listed) -> Vec<Entry> {
    let entry = |name: &str, about: &str| (name.to_owned(), about.to_owned());
    let sourced =
        |name: &str, summary: &str, source: &str| entry(name, &format!("{summary} [{source}]"));
    match listed {
        Listed::Settings => Vec::new(),
        Listed::Recipes => REGISTRY.iter().map(|r| entry(r.name, &about(r))).collect(),
        Listed::Models => ARCHITECTURES.iter().map(|a| entry(a.model_type, a.about)).collect(),
        Listed::Objectives => {
            policy_loss::PRESETS.iter().map(|p| sourced(p.name, p.summary, p.source)).collect()
        }
        Listed::Advantages => {
            advantage::PRESETS.iter().map(|p| sourced(p.name, p.summary, p.source)).collect()
        }
        Listed::Corrections => {
            let presets = rollout_correction::PRESETS.iter();
            presets.map(|p| sourced(p.name, p.summary, p.source)).collect()
        }
        Listed::Kernels => FAMILIES.iter().map(|f| entry(f.name, f.summary)).collect(),
    }
}

/// A recipe's line, with the commands that take it.
fn about(recipe: &Recipe) -> String {
    let commands = if recipe.reproduction.is_some() { "train, reproduce" } else { "train" };
    format!("{commands}: {}", recipe.summary)
}

/// The recipes that `shown` picks, as help lists them.
pub(super) fn recipes(shown: fn(&Recipe) -> bool) -> String {
    let mut out = String::from("Recipes:\n");
    for recipe in REGISTRY.iter().filter(|recipe| shown(recipe)) {
        let _ = writeln!(out, "  {:<18}{}", recipe.name, recipe.summary);
    }
    out.trim_end().to_owned()
}

/// One list, or all of them under their names. Of settings, which are many, only those of a recipe are shown.
///
/// # Errors
/// [`Error::is_invalid`] for a recipe that does not exist, and for a recipe beside any list but that of settings.
pub(super) fn text(what: Option<Listed>, recipe: Option<&str>) -> Result<String> {
    if what == Some(Listed::Settings) {
        return settings_text(match recipe {
            Some(name) => recipes::named(name)?,
            None => &REGISTRY[0],
        });
    }
    if let Some(recipe) = recipe {
        return Err(Error::invalid(format!(
            "only settings are those of a recipe, not `{recipe}`'s"
        )));
    }
    let mut out = String::new();
    let all = Listed::value_variants().iter().filter(|listed| **listed != Listed::Settings);
    for listed in all.filter(|listed| what.is_none_or(|what| what == **listed)) {
        if what.is_none() {
            let gap = if out.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{gap}{}", format!("{listed:?}").to_lowercase());
        }
        let indent = if what.is_none() { "  " } else { "" };
        let entries = entries(*listed);
        let width = entries.iter().map(|(name, _)| name.len() + 2).max().unwrap_or(0).max(16);
        for (name, about) in entries {
            let _ = writeln!(out, "{indent}{name:<width$}{about}");
        }
    }
    if what.is_none() {
        let _ = writeln!(out, "\nsettings\n  of a recipe: gradstone list settings RECIPE");
    }
    Ok(out)
}

/// The settings of a recipe, and those that its reproduction has beside them.
pub(super) fn settings(recipe: &Recipe) -> Result<Vec<Described>> {
    let (type_name, values) = match recipe.settings {
        Kind::Reinforcement(settings) => (type_name::<Settings>(), config::table(&settings())?),
        Kind::Offline(settings) => (type_name::<OfflineSettings>(), config::table(&settings())?),
        Kind::Diffusion(settings) => {
            (type_name::<DiffusionSettings>(), config::table(&settings())?)
        }
    };
    let mut all = Vec::new();
    if let Some(reproduction) = recipe.reproduction {
        all.extend(reproduction.settings()?.into_iter().filter(|own| !own.values.is_empty()));
    }
    // Where both have the settings of the recipe, they are listed once.
    all.retain(|described| !(described.prefix.is_empty() && described.type_name == type_name));
    all.insert(0, Described { prefix: String::new(), type_name, values });
    Ok(all)
}

fn settings_text(recipe: &Recipe) -> Result<String> {
    let rows: Vec<setting_docs::Row> = settings(recipe)?
        .iter()
        .flat_map(|own| setting_docs::rows(&own.prefix, own.type_name, &own.values))
        .collect();
    let width = |text: fn(&setting_docs::Row) -> &str| {
        rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0) + 2
    };
    let (key, value) = (width(|row| &row.key), width(|row| &row.value));
    let mut out = String::new();
    for row in &rows {
        let _ = writeln!(out, "{:<key$}{:<value$}{}", row.key, row.value, row.about);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every list has a line for each entry of the table that it shows, in the table's order.
    #[test]
    fn lists_are_the_tables() {
        for (listed, table) in [
            (Listed::Recipes, REGISTRY.iter().map(|r| r.name).collect::<Vec<_>>()),
            (Listed::Models, ARCHITECTURES.iter().map(|a| a.model_type).collect()),
            (Listed::Objectives, policy_loss::PRESETS.iter().map(|p| p.name).collect()),
            (Listed::Advantages, advantage::PRESETS.iter().map(|p| p.name).collect()),
            (Listed::Corrections, rollout_correction::PRESETS.iter().map(|p| p.name).collect()),
            (Listed::Kernels, FAMILIES.iter().map(|f| f.name).collect()),
        ] {
            let text = text(Some(listed), None).unwrap();
            let names: Vec<&str> =
                text.lines().filter_map(|line| line.split_whitespace().next()).collect();
            assert_eq!(names, table, "{listed:?}");
            assert!(text.lines().all(|line| line.split_whitespace().count() > 1), "{text}");
        }
        assert_eq!(Listed::value_variants().len(), 7, "a list is compared with nothing");
    }

    #[test]
    fn one_list_or_all() {
        let all = text(None, None).unwrap();
        assert!(all.starts_with("recipes\n  arithmetic"));
        assert!(all.contains("\n\nkernels\n  logprob "));
        assert!(all.contains("\n  reinforce_plus_plus_baseline  reward minus group mean"));
        assert!(all.contains("\n  trl_sequence_mask") && all.contains("list settings RECIPE"));
        let settings = text(Some(Listed::Settings), Some("exgrpo")).unwrap();
        assert!(settings.contains("\nreplay.gain "), "{settings}");
        assert!(text(Some(Listed::Settings), Some("exgpro")).unwrap_err().is_invalid());
        assert!(text(Some(Listed::Models), Some("exgrpo")).unwrap_err().is_invalid());
    }
}
