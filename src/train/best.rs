//! Which step of a run was the best one on held-out data.

use super::metrics::{Record, StepMetrics};

/// What evaluations measure, in the order in which one decides, and whether more is better.
const DECIDING: [(&str, bool); 3] =
    [("eval_accuracy", true), ("eval_loss", false), ("held_out_bound", false)];

/// A step with an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// The step.
    pub step: u64,
    /// What decided, as `metrics.jsonl` names it.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    higher: bool,
}

impl Best {
    fn of(step: u64, measured: impl Fn(&str) -> Option<f64>) -> Option<Best> {
        let found = |(name, higher)| measured(name).map(|value| Best { step, name, value, higher });
        DECIDING.into_iter().find_map(found).filter(|best| best.value.is_finite())
    }

    /// The evaluation of a step, where it had one.
    pub fn of_step(metrics: &StepMetrics) -> Option<Best> {
        Best::of(metrics.step, |name| match name {
            "eval_accuracy" => metrics.eval_accuracy.map(f64::from),
            name => metrics.more.get(name).map(|value| f64::from(*value)),
        })
    }

    /// The best step of a run so far; of equal ones the first.
    pub fn of_run(records: &[Record]) -> Option<Best> {
        let measured =
            |record: &Record| Best::of(record.step, |name| record.values.get(name).copied());
        records.iter().filter_map(measured).reduce(Best::or)
    }

    /// The better one of the two; this one where they are equal or cannot be compared.
    #[must_use]
    pub fn or(self, later: Best) -> Best {
        let better = match self.higher {
            true => later.value > self.value,
            false => later.value < self.value,
        };
        if better && later.name == self.name { later } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn records(name: &str, values: &[f64]) -> Vec<Record> {
        let record = |(step, value): (u64, &f64)| Record {
            step,
            phase: "rl".to_owned(),
            values: BTreeMap::from([(name.to_owned(), *value), ("loss".to_owned(), 0.0)]),
        };
        (1..).zip(values).map(record).collect()
    }

    #[test]
    fn the_first_of_the_best() {
        let step = |name, values: &[f64]| Best::of_run(&records(name, values)).map(|b| b.step);
        assert_eq!(step("eval_accuracy", &[0.1, 0.5, 0.4, 0.5]), Some(2));
        assert_eq!(step("held_out_bound", &[2.0, 1.5, f64::NAN, 1.7]), Some(2));
        assert_eq!(step("eval_loss", &[2.0]), Some(1));
        assert_eq!(step("reward", &[2.0]), None);
    }
}
