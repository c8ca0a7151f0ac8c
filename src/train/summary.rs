//! What a run learned, in a line: `accuracy 20.0 % → 58.8 %, reward 0.2 → 0.6, mismatch 0`.

use super::best::Best;
use super::chart::{Unit, number};
use super::metrics::Record;

/// What is shown of a run, in this order: the name in `metrics.jsonl`, the word, the unit.
const SHOWN: [(&str, &str, Unit); 6] = [
    ("eval_accuracy", "accuracy", Unit::Percent),
    ("eval_loss", "held-out loss", Unit::Plain),
    ("held_out_bound", "held-out bound", Unit::Plain),
    ("reward", "reward", Unit::Plain),
    ("margin", "margin", Unit::Plain),
    ("loss", "loss", Unit::Plain),
];

/// What a run learned. Of numbers that every step has, the first and the last tenth of the steps are compared.
pub fn words(records: &[Record]) -> String {
    let mut parts = Vec::new();
    let last_phase = records.last().map_or("", |record| &record.phase);
    for (name, word, unit) in SHOWN {
        // A loss says little where something better was measured.
        if name == "loss" && !parts.is_empty() {
            continue;
        }
        let evaluated = name.starts_with("eval") || name.starts_with("held_out");
        let values: Vec<f64> = records
            .iter()
            .filter(|record| evaluated || record.phase == last_phase)
            .filter_map(|record| record.values.get(name).copied())
            .filter(|value| value.is_finite())
            .collect();
        let tenth = if evaluated { 1 } else { values.len().div_ceil(10) };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let shown = |value: f64| number(value, unit);
        match values.len() {
            0 => {}
            1 => parts.push(format!("{word} {}", shown(values[0]))),
            count => {
                let (first, last) = (mean(&values[..tenth]), mean(&values[count - tenth..]));
                parts.push(format!("{word} {} → {}", shown(first), shown(last)));
            }
        }
    }
    if let Some(best) = Best::of_run(records)
        && records.iter().rev().find(|record| record.values.contains_key(best.name)).map(|r| r.step)
            != Some(best.step)
    {
        let unit = if best.name == "eval_accuracy" { Unit::Percent } else { Unit::Plain };
        parts.push(format!("best {} after step {}", number(best.value, unit), best.step));
    }
    let mismatches = records.iter().filter_map(|record| record.values.get("mismatch"));
    if let Some(worst) = mismatches.copied().reduce(f64::max) {
        parts.push(match worst == 0.0 {
            true => "mismatch 0".to_owned(),
            false => format!("mismatch up to {worst:.1e}"),
        });
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn record(step: u64, phase: &str, values: &[(&str, f64)]) -> Record {
        let values: BTreeMap<String, f64> =
            values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Record { step, phase: phase.to_owned(), values }
    }

    #[test]
    fn from_the_first_to_the_last() {
        let mut all = vec![record(1, "warmup", &[("loss", 3.0), ("eval_accuracy", 0.2)])];
        for step in 2..22 {
            let reward = if step < 12 { 0.25 } else { 0.75 };
            all.push(record(step, "rl", &[("reward", reward), ("loss", 0.1), ("mismatch", 0.0)]));
        }
        all.push(record(22, "rl", &[("reward", 0.75), ("eval_accuracy", 0.588)]));
        assert_eq!(words(&all), "accuracy 20.0 % → 58.8 %, reward 0.250 → 0.750, mismatch 0");
        all.push(record(23, "rl", &[("eval_accuracy", 0.5), ("mismatch", 0.0015)]));
        assert!(words(&all).ends_with("best 58.8 % after step 22, mismatch up to 1.5e-3"));
        assert_eq!(words(&[record(1, "next_token", &[("loss", 3.0)])]), "loss 3.00");
        assert_eq!(words(&[]), "");
    }
}
