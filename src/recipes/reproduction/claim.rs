//! An inequality between arms, and whether it holds.

use super::{Arm, Metric};

/// What of the two arms is compared with the bound, seed by seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The arm's value; there is no other arm.
    Value,
    /// The arm's value minus the other's.
    Difference,
    /// The arm's value divided by the other's.
    Ratio,
}

/// What the median over the seeds must satisfy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// `<=`
    AtMost(f64),
    /// `>=`
    AtLeast(f64),
    /// `<`
    Below(f64),
    /// `>`
    Above(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtMost(bound) => value <= bound,
            Bound::AtLeast(bound) => value >= bound,
            Bound::Below(bound) => value < bound,
            Bound::Above(bound) => value > bound,
        }
    }

    /// The sign and the number.
    pub fn parts(self) -> (&'static str, f64) {
        match self {
            Bound::AtMost(bound) => ("≤", bound),
            Bound::AtLeast(bound) => ("≥", bound),
            Bound::Below(bound) => ("<", bound),
            Bound::Above(bound) => (">", bound),
        }
    }
}

/// An inequality that a paper's results should satisfy.
#[derive(Clone, Debug)]
pub struct Claim {
    /// In words.
    pub text: String,
    /// The exit status depends on it; otherwise it is only reported.
    pub asserted: bool,
    /// Whose value.
    pub arm: String,
    /// Compared with whose; not read for [`Measure::Value`].
    pub against: String,
    /// Of which metric.
    pub metric: &'static str,
    /// How the two are compared.
    pub measure: Measure,
    /// With what the median over the seeds is compared.
    pub bound: Bound,
}

/// A claim and what the runs say.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The claim.
    pub claim: Claim,
    /// The compared value of each seed; NaN where a run is missing.
    pub values: Vec<f64>,
    /// Their median; NaN when one is missing.
    pub median: f64,
    /// Seeds whose own value satisfies the bound.
    pub seeds_that_hold: usize,
    /// The median satisfies the bound.
    pub holds: bool,
}

impl Claim {
    /// Judges it by `values(arm, metric)`, which gives one value a seed.
    pub fn judge(
        self,
        arms: &[Arm],
        metrics: &[Metric],
        values: &dyn Fn(usize, usize) -> Vec<f64>,
    ) -> Judged {
        let arm = |name: &str| arms.iter().position(|arm| arm.name == name);
        let metric = metrics.iter().position(|metric| metric.name == self.metric);
        let of = |name: &str| match (arm(name), metric) {
            (Some(arm), Some(metric)) => values(arm, metric),
            _ => Vec::new(),
        };
        let own = of(&self.arm);
        let compared: Vec<f64> = match self.measure {
            Measure::Value => own,
            Measure::Difference => own.iter().zip(of(&self.against)).map(|(a, b)| a - b).collect(),
            Measure::Ratio => own.iter().zip(of(&self.against)).map(|(a, b)| a / b).collect(),
        };
        let median = median(&compared);
        let seeds_that_hold = compared.iter().filter(|value| self.bound.holds(**value)).count();
        let holds = self.bound.holds(median);
        Judged { claim: self, values: compared, median, seeds_that_hold, holds }
    }
}

/// The middle value, the mean of the middle two of an even number; NaN when there is none or one is NaN.
pub fn median(values: &[f64]) -> f64 {
    if values.is_empty() || values.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(measure: Measure, bound: Bound) -> Judged {
        let arm = |name: &str| Arm { name: name.into(), about: String::new(), start: 0 };
        let metrics = [Metric { name: "H", about: "", digits: 3 }];
        let values =
            |arm: usize, _: usize| if arm == 0 { vec![0.2, 0.3, 0.4] } else { vec![0.4, 0.4, 0.4] };
        let claim = Claim {
            text: String::new(),
            asserted: true,
            arm: "a".into(),
            against: "b".into(),
            metric: "H",
            measure,
            bound,
        };
        claim.judge(&[arm("a"), arm("b")], &metrics, &values)
    }

    #[test]
    fn the_median_decides() {
        let judged = claim(Measure::Difference, Bound::AtMost(-0.09));
        assert!(judged.holds && judged.seeds_that_hold == 2 && judged.values.len() == 3);
        assert!(!claim(Measure::Difference, Bound::Below(-0.15)).holds);
        assert!(claim(Measure::Ratio, Bound::AtMost(0.75)).holds);
        assert!(claim(Measure::Value, Bound::Above(0.29)).holds);
        assert!(!claim(Measure::Value, Bound::AtLeast(0.31)).holds);
    }

    #[test]
    fn a_missing_run_holds_nothing() {
        assert!(median(&[1.0, f64::NAN, 2.0]).is_nan() && median(&[]).is_nan());
        assert_eq!(median(&[3.0, 1.0, 2.0, 10.0]), 2.5);
        for bound in [Bound::AtMost(1.0), Bound::AtLeast(1.0), Bound::Below(1.0), Bound::Above(1.0)]
        {
            assert!(!bound.holds(f64::NAN));
        }
        assert_eq!(median(&[f64::INFINITY, 1.0, 2.0]), 2.0);
    }
}
