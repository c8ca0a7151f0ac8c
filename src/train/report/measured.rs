//! What of a run's measurements is shown: the documented fields with their words, in order, and how values are taken from the records.

use crate::train::chart::{Mark, Unit, moving_mean};
use crate::train::metrics::Record;

/// One kind of chart: a field of `metrics.jsonl` and how it is shown.
pub(in crate::train) struct Shown {
    pub field: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    pub unit: Unit,
    pub mark: Mark,
    pub colour: usize,
    /// Only the steps of this phase; all where absent.
    pub phase: Option<&'static str>,
}

const fn shown(
    field: &'static str,
    title: &'static str,
    about: &'static str,
    colour: usize,
) -> Shown {
    Shown { field, title, about, unit: Unit::Plain, mark: Mark::Noisy, colour, phase: None }
}

pub(in crate::train) const CHARTS: [Shown; 20] = [
    Shown {
        unit: Unit::Percent,
        mark: Mark::Points,
        ..shown(
            "eval_accuracy",
            "Held-out accuracy",
            "greedy answers to problems never trained on",
            0,
        )
    },
    shown("reward", "Reward", "mean over the rollouts of a step", 1),
    shown("entropy", "Entropy", "nats per token", 3),
    shown("kl", "KL divergence", "nats per token", 4),
    Shown {
        unit: Unit::Percent,
        ..shown("clip_fraction", "Clip fraction", "tokens whose ratio was clipped", 2)
    },
    shown("grad_norm", "Gradient norm", "before clipping", 2),
    shown("response_length", "Response length", "tokens", 3),
    shown("tokens_per_second", "Tokens per second", "wall clock", 5),
    Shown { phase: Some("rl"), ..shown("loss", "Policy loss", "reinforcement learning", 4) },
    Shown {
        phase: Some("warmup"),
        ..shown("loss", "Warm-up loss", "nats per token of worked examples", 5)
    },
    Shown { phase: Some("next_token"), ..shown("loss", "Next-token loss", "nats per token", 5) },
    Shown {
        phase: Some("diffusion"),
        ..shown("loss", "Diffusion loss", "weighted, nats per token", 4)
    },
    Shown {
        mark: Mark::Points,
        ..shown("held_out_bound", "Held-out bound", "nats per token, unclipped noise", 0)
    },
    Shown { unit: Unit::Percent, ..shown("masked", "Masked", "tokens of a batch", 3) },
    Shown {
        unit: Unit::Percent,
        ..shown("wasted_blocks", "Wasted blocks", "without a masked token", 2)
    },
    Shown {
        phase: Some("sft"),
        ..shown("loss", "Supervised loss", "nats per token of demonstrations", 5)
    },
    Shown { phase: Some("preference"), ..shown("loss", "Preference loss", "per record", 4) },
    Shown {
        mark: Mark::Points,
        ..shown("eval_loss", "Held-out loss", "records never trained on", 0)
    },
    shown("margin", "Margin", "reward of chosen over rejected completions", 1),
    shown("mismatch", "Mismatch", "largest |sampler's − trainer's log-prob|", 1),
];

pub(in crate::train) fn points(
    records: &[Record],
    field: &str,
    phase: Option<&str>,
) -> Vec<(f64, f64)> {
    let of_phase = records.iter().filter(|record| phase.is_none_or(|phase| record.phase == phase));
    of_phase.filter_map(|record| Some((record.step as f64, *record.values.get(field)?))).collect()
}

/// The values that are numbers.
pub(in crate::train) fn finite(records: &[Record], field: &str) -> Vec<(f64, f64)> {
    points(records, field, None).into_iter().filter(|point| point.1.is_finite()).collect()
}

/// Zero in every step: nothing to draw.
pub(in crate::train) fn all_zero(points: &[(f64, f64)]) -> bool {
    points.iter().all(|point| point.1 == 0.0)
}

/// The last step of the warm-up.
pub(super) fn warmup_end(records: &[Record]) -> Option<f64> {
    records.iter().rfind(|record| record.phase == "warmup").map(|record| record.step as f64)
}

/// The figure in a heading: the end of the strong line.
pub(in crate::train) fn latest(points: &[(f64, f64)], mark: Mark) -> f64 {
    let line = if mark == Mark::Points { points.to_vec() } else { moving_mean(points) };
    line.last().map_or(f64::NAN, |point| point.1)
}

/// The names of what an objective measured beyond the documented fields.
pub(in crate::train) fn undocumented<'a>(
    records: impl IntoIterator<Item = &'a Record>,
) -> Vec<&'a String> {
    let known = |name: &str| name == "seconds" || CHARTS.iter().any(|shown| shown.field == name);
    let keys = records.into_iter().flat_map(|record| record.values.keys());
    let mut names: Vec<&String> = keys.filter(|name| !known(name)).collect();
    names.sort();
    names.dedup();
    names
}
