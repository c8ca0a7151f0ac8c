//! Recipes: complete settings of a run, by name, and reproductions of what their papers claim. A TOML file or `--set`
//! changes any setting.

mod arithmetic;
#[cfg(test)]
mod committed_pages;
pub mod exgrpo;
pub mod faithrl;
mod jsonl;
mod offline;
pub mod reproduction;
pub mod stable_diffcoder;

pub use arithmetic::arithmetic;
pub use jsonl::jsonl;
pub use offline::{dpo, kto, orpo, sft};
pub use stable_diffcoder::stable_diffcoder;

use crate::error::{Error, Result};
use crate::train::config;
use crate::train::kind::Kind;
use reproduction::Reproduction;

/// What the program knows by a name.
pub struct Recipe {
    /// As the program takes it; a `-` is taken for a `_`.
    pub name: &'static str,
    /// One line for a list.
    pub summary: &'static str,
    /// Where `train` begins.
    pub settings: Kind,
    /// Where `train` begins when neither a model nor data is named: a small model and problems made in code. `None`: where
    /// it begins anyway.
    pub small: Option<Kind>,
    /// The claims of its paper.
    pub reproduction: Option<Reproduction>,
}

/// Every recipe; the first is what `train` trains unless another is named.
pub const REGISTRY: &[Recipe] = &[
    Recipe {
        name: "arithmetic",
        summary: "a tiny decoder learns sums: supervised warm-up, then GRPO (two minutes on two cores)",
        settings: Kind::Reinforcement(arithmetic),
        small: None,
        reproduction: None,
    },
    Recipe {
        name: "jsonl",
        summary: "GRPO on a Hugging Face model folder (--model) and a file of problems (--data)",
        settings: Kind::Reinforcement(jsonl),
        small: None,
        reproduction: None,
    },
    Recipe {
        name: "sft",
        summary: "supervised fine-tuning of a model folder (--model) on demonstrations (--data)",
        settings: Kind::Offline(sft),
        small: None,
        reproduction: None,
    },
    Recipe {
        name: "dpo",
        summary: "a model folder (--model) learns from pairs of a chosen and a rejected completion (--data) \
                  [arXiv 2305.18290]",
        settings: Kind::Offline(dpo),
        small: None,
        reproduction: None,
    },
    Recipe {
        name: "kto",
        summary: "a model folder (--model) learns from completions that are desirable or not (--data) [arXiv 2402.01306]",
        settings: Kind::Offline(kto),
        small: None,
        reproduction: None,
    },
    Recipe {
        name: "orpo",
        summary: "demonstrations and preferences in one, without a reference policy (--model, --data) [arXiv 2403.07691]",
        settings: Kind::Offline(orpo),
        small: None,
        reproduction: None,
    },
    Recipe {
        name: "stable_diffcoder",
        summary: "block diffusion from a next-token model, on programs made in code or a folder of source files (--data) \
                  [arXiv 2601.15892]",
        settings: Kind::Diffusion(stable_diffcoder),
        small: None,
        reproduction: Some(Reproduction::of::<stable_diffcoder::StableDiffCoder>()),
    },
    Recipe {
        name: "exgrpo",
        summary: "replay of past successes, on your model and problems (--model, --data) or chains of transpositions \
                  [arXiv 2510.02245]",
        settings: Kind::Reinforcement(exgrpo::exgrpo),
        small: Some(Kind::Reinforcement(exgrpo::exgrpo_small)),
        reproduction: Some(Reproduction::of::<exgrpo::ExGrpo>()),
    },
    Recipe {
        name: "faithrl",
        summary: "step-wise faithfulness against hallucination, on your model, problems and judge (--model, --data) or \
                  two-hop questions [arXiv 2602.03507]",
        settings: Kind::Reinforcement(faithrl::faithrl),
        small: Some(Kind::Reinforcement(faithrl::faithrl_small)),
        reproduction: Some(Reproduction::of::<faithrl::FaithRl>()),
    },
];

/// The recipe of a name.
///
/// # Errors
/// [`Error::is_invalid`] listing the names there are.
pub fn named(name: &str) -> Result<&'static Recipe> {
    let plain = name.replace('-', "_");
    REGISTRY.iter().find(|recipe| recipe.name == plain).ok_or_else(|| {
        let names: Vec<_> = REGISTRY.iter().map(|recipe| recipe.name).collect();
        let near = config::nearest(&plain, names.iter().copied());
        let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        Error::invalid(format!("no recipe `{name}`{near} (there are: {})", names.join(", ")))
    })
}

/// The recipe that a TOML file of settings is of: what its `recipe` says, else one of its `kind`, else one of the kind that alone
/// has its keys. `None`: it does not tell.
///
/// # Errors
/// [`Error::is_io`] when it cannot be read, and [`Error::is_invalid`] naming file and line where it is no TOML.
pub fn of_config(path: &std::path::Path) -> Result<Option<&'static str>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    let Ok(table) = text.parse::<toml::Table>() else { return Ok(None) };
    let text_of = |key: &str| table.get(key).and_then(toml::Value::as_str);
    if let Some(recipe) = text_of("recipe") {
        return Ok(Some(named(recipe)?.name));
    }
    let folder = table.get("model").and_then(|model| model.get("kind")?.as_str()) == Some("folder");
    let of_diffusion =
        ["text", "next_token", "diffusion", "noising"].iter().any(|key| table.contains_key(*key));
    Ok(match text_of("kind") {
        Some("diffusion") => Some("stable_diffcoder"),
        None if of_diffusion => Some("stable_diffcoder"),
        _ if folder => Some("jsonl"),
        _ => None,
    })
}

impl Recipe {
    /// Where `train` begins; `own`: with a model or data of the user's.
    pub fn trained(&self, own: bool) -> Kind {
        self.small.filter(|_| !own).unwrap_or(self.settings)
    }

    /// The claims of its paper.
    ///
    /// # Errors
    /// [`Error::is_invalid`] where it has none, listing the recipes that do.
    pub fn reproduced(&self) -> Result<Reproduction> {
        let papers = || REGISTRY.iter().filter(|recipe| recipe.reproduction.is_some());
        self.reproduction.ok_or_else(|| {
            let names: Vec<_> = papers().map(|recipe| recipe.name).collect();
            let (name, names) = (self.name, names.join(", "));
            Error::invalid(format!("recipe `{name}` claims nothing (these do: {names})"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::reproduction::{Request, Verdict};
    use super::*;

    /// Every study of every paper can be run as it is, quickly or not.
    #[test]
    fn every_paper_is_sound() {
        let mut studies = 0;
        for recipe in REGISTRY {
            let Some(reproduction) = recipe.reproduction else { continue };
            for study in reproduction.paper().unwrap().studies {
                for quick in [false, true] {
                    let study = Some(study.name.clone());
                    reproduction.check(&Request { study, quick, ..Request::default() }).unwrap();
                }
                studies += 1;
            }
        }
        assert_eq!(studies, 6);
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        let check = |recipe: &str, arms: &[&str], sets: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let (arms, overrides) = (own(arms), own(sets));
            let request = Request { arms, overrides, ..Request::default() };
            named(recipe).unwrap().reproduced().unwrap().check(&request)
        };
        for (recipe, arms, sets, says) in [
            ("exgrpo", &[][..], &["widht=3"][..], "unknown key `widht`; did you mean `width`?"),
            (
                "exgrpo",
                &[],
                &["replay.gian=3"],
                "unknown key `replay.gian`; did you mean `replay.gain`?",
            ),
            (
                "exgrpo",
                &["on policy"],
                &[],
                "there is no arm `on policy`; did you mean `on-policy`?",
            ),
            ("exgrpo", &[], &["group=1"], "arm `on-policy`: group is 1; it must be at least 2"),
            ("exgrpo", &[], &["seed=1"], "given by --seeds"),
            ("faithrl", &[], &["credit.alhpa=1"], "did you mean `credit.alpha`?"),
            ("faithrl", &[], &["reward=\"gold\""], "unknown variant `gold`"),
            ("stable_diffcoder", &[], &["reproduction.row=1"], "did you mean `reproduction.rows`?"),
            (
                "stable_diffcoder",
                &[],
                &["noising.schedule.low=0.1"],
                "arm `clipped`: --set noising",
            ),
        ] {
            let error = check(recipe, arms, sets).unwrap_err();
            assert!(error.is_invalid() && error.to_string().contains(says), "{error}\n{says}");
        }
        // A key that only the chosen arms have is given to them, though their start has no such key.
        check("stable_diffcoder", &["unclipped"], &["noising.schedule.low=0.1"]).unwrap();
        check("exgrpo", &["- shaping,on-policy"], &["width=32", "replay.gain=1"]).unwrap();
    }

    /// Settings given on the command line are those that the arms run with, and a claim without its arm stays open.
    #[test]
    fn a_request_decides_what_is_run() {
        let reproduction = named("stable_diffcoder").unwrap().reproduced().unwrap();
        let run = |sets: &[&str], arms: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let (arms, overrides) = (own(arms), own(sets));
            let seeds = Some("7".parse().unwrap());
            let request = Request { study: None, seeds, arms, overrides, quick: true };
            reproduction.run(&request, "stable-diffcoder", 2, &|_, _, _| ()).unwrap()
        };
        let plain = run(&[], &["clipped,unclipped"]);
        assert_eq!(plain.arms.len(), 2);
        assert!(plain.failures().next().is_none(), "{:?}", plain.failures().next());
        for judged in &plain.claims {
            let pair = [Some(judged.claim.arm.as_str()), judged.claim.measure.against()];
            let both = pair.iter().flatten().all(|name| plain.arms.iter().any(|a| a.name == *name));
            let open = matches!(judged.verdict, Verdict::NotJudged { .. });
            assert_eq!(open, !both, "{}", judged.claim.text);
        }
        let metrics = |report: &reproduction::Report| {
            let metrics = &report.runs[0][0].as_ref().unwrap().metrics;
            metrics.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        };
        let alone = run(&[], &["clipped"]);
        assert_eq!(metrics(&alone), metrics(&plain), "an arm depends on the arms beside it");
        let other = run(&["diffusion.optimizer.learning_rate=1e-4"], &["clipped"]);
        assert_ne!(metrics(&other), metrics(&plain));
        assert!(
            other.command.ends_with("--arms clipped --set diffusion.optimizer.learning_rate=1e-4")
        );
    }
}
