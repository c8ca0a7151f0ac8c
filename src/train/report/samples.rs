//! Some rollouts of a run, as a table.

use crate::train::chart::{Unit, escape, number};
use crate::train::metrics::Rollout;
use std::fmt::Write;

/// Rollouts shown: so many steps, spread over the run, and so many of each.
pub(super) const SAMPLED_STEPS: usize = 6;
pub(super) const SAMPLED_EACH: usize = 4;

/// Characters of a prompt or a completion shown.
const SHOWN: usize = 600;

pub(super) fn samples(out: &mut String, rollouts: &[Rollout]) {
    let mut steps: Vec<u64> = rollouts.iter().map(|rollout| rollout.step).collect();
    steps.sort_unstable();
    steps.dedup();
    if steps.is_empty() {
        return;
    }
    let count = steps.len().min(SAMPLED_STEPS);
    let spread = |i: usize| if count == 1 { 0 } else { i * (steps.len() - 1) / (count - 1) };
    out.push_str(
        "<section><h2 class=\"section\">Sampled rollouts</h2>\n<table class=\"samples\"><thead><tr><th>Step</th><th>Prompt</th><th>Completion</th>\
         <th>Answer</th><th>Reward</th><th>Tokens</th></tr></thead>\n<tbody>\n",
    );
    for step in (0..count).rev().filter_map(|i| steps.get(spread(i))) {
        for rollout in rollouts.iter().filter(|rollout| rollout.step == *step).take(SAMPLED_EACH) {
            let good = if rollout.reward > 0.0 { "good" } else { "poor" };
            let cut = if rollout.truncated { " <small>cut off</small>" } else { "" };
            let _ = writeln!(
                out,
                "<tr><td data-name=\"Step\">{}</td><td data-name=\"Prompt\" class=\"text\">{}</td>\
                 <td data-name=\"Completion\" class=\"text\">{}{cut}</td><td data-name=\"Answer\" class=\"text\">{}</td>\
                 <td data-name=\"Reward\"><span class=\"{good}\">{}</span></td><td data-name=\"Tokens\">{}</td></tr>",
                rollout.step,
                excerpt(&rollout.prompt),
                excerpt(&rollout.completion),
                excerpt(&rollout.answer),
                if rollout.reward.is_nan() {
                    "not scored".into()
                } else {
                    number(f64::from(rollout.reward), Unit::Plain)
                },
                rollout.tokens
            );
        }
    }
    out.push_str("</tbody></table></section>\n");
}

fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    if shown.is_empty() { "<i>empty</i>".into() } else { escape(&shown) }
}
