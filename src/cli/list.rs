//! `gradstone list`: what is built in.

use crate::kernels::{advantage, policy_loss, rollout_correction};
use crate::models::ARCHITECTURES;
use crate::recipes::RECIPES;
use clap::ValueEnum;
use std::fmt::Write;

/// One of the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Listed {
    /// What `gradstone train` trains by name
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

type Entries = &'static [(&'static str, &'static str)];

/// Recipes, models, objectives, advantages and corrections come from their own tables.
const LISTS: [(Listed, Entries); 6] = [
    (Listed::Recipes, &[]),
    (Listed::Models, &[]),
    (Listed::Objectives, &[]),
    (Listed::Advantages, &[]),
    (Listed::Corrections, &[]),
    (
        Listed::Kernels,
        &[
            (
                "logprob",
                "logits to log-prob, entropy, logsumexp and argmax in one read; backward in place",
            ),
            (
                "linear_logprob",
                "the same from hidden states and lm_head, without the matrix of logits",
            ),
            (
                "advantage",
                "estimators of outcomes in groups and of tokens, several rewards, whitening",
            ),
            (
                "step_credit",
                "verdicts about steps painted on tokens: modulation, masks, step advantages",
            ),
            (
                "rollout_correction",
                "weights and rejections between sampler and policy, with diagnostics",
            ),
            (
                "policy_loss",
                "loss, gradients and metrics of an objective in one pass over packed sequences",
            ),
            (
                "token_selection",
                "tokens that an objective treats apart: Clip-Cov, KL-Cov, the top entropies",
            ),
            ("sample", "temperature, top-k, top-p with Philox keyed by sequence and position"),
            ("adamw", "fused AdamW with f32 master weights; global gradient norm"),
            ("attention", "grouped-query attention over packed sequences or a KV cache"),
        ],
    ),
];

/// A name and what it stands for, with its source.
fn sourced<'a>(name: &'a str, summary: &str, source: &str) -> (&'a str, String) {
    (name, format!("{summary} [{source}]"))
}

/// One list, or all of them under their names.
pub(super) fn text(what: Option<Listed>) -> String {
    let mut out = String::new();
    for (listed, entries) in
        LISTS.iter().filter(|(listed, _)| what.is_none_or(|what| what == *listed))
    {
        if what.is_none() {
            let gap = if out.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{gap}{}", format!("{listed:?}").to_lowercase());
        }
        let indent = if what.is_none() { "  " } else { "" };
        let entries: Vec<(&str, String)> = match listed {
            Listed::Recipes => RECIPES.iter().map(|r| (r.name, r.summary.to_string())).collect(),
            Listed::Models => {
                ARCHITECTURES.iter().map(|a| (a.model_type, a.about.to_string())).collect()
            }
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
            _ => entries.iter().map(|(name, about)| (*name, about.to_string())).collect(),
        };
        let width = entries.iter().map(|(name, _)| name.len() + 2).max().unwrap_or(0).max(16);
        for (name, about) in entries {
            let _ = writeln!(out, "{indent}{name:<width$}{about}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_list_or_all() {
        let models = text(Some(Listed::Models));
        assert!(models.starts_with("llama ") && models.contains("\nsdar "), "{models}");
        assert_eq!(models.lines().count(), ARCHITECTURES.len());
        let objectives = text(Some(Listed::Objectives));
        assert_eq!(objectives.lines().count(), policy_loss::PRESETS.len());
        assert!(objectives.contains("\ngspo ") && objectives.contains("[arXiv 2507.18071"));
        let all = text(None);
        assert!(
            all.starts_with("recipes\n  arithmetic") && all.contains("\n\nkernels\n  logprob ")
        );
        assert!(all.contains("\n  reinforce_plus_plus_baseline  reward minus group mean"));
        assert!(all.contains("\n  trl_sequence_mask"));
    }
}
