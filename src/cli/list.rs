//! `gradstone list`: what is built in.

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
    /// Kernel families
    Kernels,
}

type Entries = &'static [(&'static str, &'static str)];

/// Recipes come from their own table.
const LISTS: [(Listed, Entries); 4] = [
    (Listed::Recipes, &[]),
    (
        Listed::Models,
        &[
            ("llama", "Llama 2 and 3, with their RoPE scalings"),
            ("qwen2", "Qwen 2 and 2.5"),
            ("qwen3", "Qwen 3 (dense), with QK-norm"),
            ("gemma2", "Gemma 2, with softcaps and sliding windows"),
            ("llada", "LLaDA: a Llama that fills masks, everything seeing everything"),
            ("sdar", "SDAR: a Qwen 3 that fills masked blocks"),
        ],
    ),
    (
        Listed::Objectives,
        &[(
            "ppo_clip",
            "clipped ratio: PPO, GRPO, Dr.GRPO, DAPO's asymmetric bounds, dual clip; KL k1, k2, k3; entropy bonus",
        )],
    ),
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
            ("advantage", "group statistics: GRPO, Dr.GRPO, leave-one-out"),
            (
                "policy_loss",
                "loss, gradients and metrics of an objective in one pass over packed sequences",
            ),
            ("sample", "temperature, top-k, top-p with Philox keyed by sequence and position"),
            ("adamw", "fused AdamW with f32 master weights; global gradient norm"),
            ("attention", "grouped-query attention over packed sequences or a KV cache"),
        ],
    ),
];

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
        let recipes = RECIPES.iter().filter(|_| *listed == Listed::Recipes);
        for (name, about) in recipes.map(|r| (r.name, r.summary)).chain(entries.iter().copied()) {
            let _ = writeln!(out, "{indent}{name:<16}{about}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_list_or_all() {
        assert!(text(Some(Listed::Models)).starts_with("llama "));
        let all = text(None);
        assert!(
            all.starts_with("recipes\n  arithmetic") && all.contains("\n\nkernels\n  logprob ")
        );
    }
}
