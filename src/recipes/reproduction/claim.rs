//! An inequality between arms, and whether it holds.

use serde::Deserialize;

/// The value of each seed that is compared with the bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The arm's value; there is no other arm.
    Value,
    /// The arm's value minus that of another arm.
    Difference {
        /// The other arm.
        minus: String,
    },
    /// The arm's value divided by that of another arm.
    Ratio {
        /// The other arm.
        divided_by: String,
    },
}

impl Measure {
    /// In JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Measure::Value => "value",
            Measure::Difference { .. } => "difference",
            Measure::Ratio { .. } => "ratio",
        }
    }

    /// The other arm.
    pub fn against(&self) -> Option<&str> {
        match self {
            Measure::Value => None,
            Measure::Difference { minus: arm } | Measure::Ratio { divided_by: arm } => Some(arm),
        }
    }
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
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Written")]
pub struct Claim {
    /// In words.
    pub text: String,
    /// The exit status depends on it; otherwise it is only reported.
    pub asserted: bool,
    /// Whose value.
    pub arm: String,
    /// Of which metric.
    pub metric: String,
    /// Whether it is compared with another arm's, and how.
    pub measure: Measure,
    /// With what the median over the seeds is compared.
    pub bound: Bound,
}

/// A claim as `paper.toml` has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    text: String,
    asserted: bool,
    metric: String,
    arm: String,
    minus: Option<String>,
    divided_by: Option<String>,
    at_most: Option<f64>,
    at_least: Option<f64>,
    below: Option<f64>,
    above: Option<f64>,
}

impl TryFrom<Written> for Claim {
    type Error = String;

    fn try_from(written: Written) -> Result<Claim, String> {
        let Written { text, asserted, metric, arm, minus, divided_by, .. } = written;
        let bounds = [
            written.at_most.map(Bound::AtMost),
            written.at_least.map(Bound::AtLeast),
            written.below.map(Bound::Below),
            written.above.map(Bound::Above),
        ];
        let mut bounds = bounds.into_iter().flatten();
        let (Some(bound), None) = (bounds.next(), bounds.next()) else {
            return Err(format!(
                "claim \"{text}\" needs one of `at_most`, `at_least`, `below` and `above`"
            ));
        };
        let measure = match (minus, divided_by) {
            (None, None) => Measure::Value,
            (Some(minus), None) => Measure::Difference { minus },
            (None, Some(divided_by)) => Measure::Ratio { divided_by },
            (Some(_), Some(_)) => {
                return Err(format!("claim \"{text}\" has both `minus` and `divided_by`"));
            }
        };
        let number = bound.parts().1;
        if !number.is_finite() {
            return Err(format!("claim \"{text}\" has the bound {number}, which is not finite"));
        }
        if matches!(measure, Measure::Ratio { .. }) && number <= 0.0 {
            return Err(format!(
                "claim \"{text}\" bounds a ratio by {number}, which is not positive"
            ));
        }
        if measure.against() == Some(&arm) {
            return Err(format!("claim \"{text}\" compares `{arm}` with itself"));
        }
        Ok(Claim { text, asserted, arm, metric, measure, bound })
    }
}

/// What the runs say of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The median satisfies the bound.
    Holds,
    /// It does not, or there is no median because a run failed.
    Fails,
    /// An arm that the claim compares was not run.
    NotJudged {
        /// The arms that were not run.
        missing: Vec<String>,
    },
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
    /// Whether the median satisfies the bound.
    pub verdict: Verdict,
}

impl Claim {
    /// Judges it by `values(arm)`, which gives the claim's metric for each seed; `None` for an arm that was not run.
    pub fn judge(self, values: &dyn Fn(&str) -> Option<Vec<f64>>) -> Judged {
        let own = values(&self.arm);
        let other = self.measure.against().map(values);
        let mut missing = Vec::new();
        missing.extend(own.is_none().then(|| self.arm.clone()));
        missing.extend(self.measure.against().filter(|_| other == Some(None)).map(str::to_owned));
        let (own, other) = (own.unwrap_or_default(), other.flatten().unwrap_or_default());
        let compared: Vec<f64> = match self.measure {
            _ if !missing.is_empty() => Vec::new(),
            Measure::Value => own,
            Measure::Difference { .. } => own.iter().zip(other).map(|(a, b)| a - b).collect(),
            Measure::Ratio { .. } => own.iter().zip(other).map(|(a, b)| a / b).collect(),
        };
        let median = median(&compared);
        let seeds_that_hold = compared.iter().filter(|value| self.bound.holds(**value)).count();
        let verdict = match (missing.is_empty(), self.bound.holds(median)) {
            (false, _) => Verdict::NotJudged { missing },
            (true, true) => Verdict::Holds,
            (true, false) => Verdict::Fails,
        };
        Judged { claim: self, values: compared, median, seeds_that_hold, verdict }
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
    use crate::train::config;

    fn judged(rest: &str) -> Judged {
        let text = format!("text = \"\"\nasserted = true\nmetric = \"H\"\narm = \"a\"\n{rest}");
        let claim: Claim = config::document(&text, "paper.toml").unwrap();
        claim.judge(&|arm| match arm {
            "a" => Some(vec![0.2, 0.3, 0.4]),
            "b" => Some(vec![0.4, 0.4, 0.4]),
            _ => None,
        })
    }

    #[test]
    fn the_median_decides() {
        let difference = judged("minus = \"b\"\nat_most = -0.09");
        assert_eq!(difference.verdict, Verdict::Holds);
        assert_eq!((difference.seeds_that_hold, difference.values.len()), (2, 3));
        for (rest, holds) in [
            ("minus = \"b\"\nbelow = -0.15", false),
            ("divided_by = \"b\"\nat_most = 0.75", true),
            ("above = 0.29", true),
            ("at_least = 0.31", false),
        ] {
            assert_eq!(judged(rest).verdict == Verdict::Holds, holds, "{rest}");
        }
    }

    #[test]
    fn an_arm_that_was_not_run_leaves_a_claim_open() {
        let judged = judged("minus = \"c\"\nat_most = 1");
        assert_eq!(judged.verdict, Verdict::NotJudged { missing: vec!["c".to_owned()] });
        assert!(judged.values.is_empty() && judged.median.is_nan() && judged.seeds_that_hold == 0);
    }

    #[test]
    fn a_claim_that_says_nothing_is_refused() {
        for (rest, says) in [
            ("arm = \"a\"", "needs one of `at_most`"),
            ("arm = \"a\"\nat_most = 1\nbelow = 2", "needs one of `at_most`"),
            ("arm = \"a\"\nat_most = nan", "which is not finite"),
            ("arm = \"a\"\nabove = inf", "which is not finite"),
            ("arm = \"a\"\ndivided_by = \"b\"\nabove = 0", "which is not positive"),
            ("arm = \"a\"\nminus = \"a\"\nabove = 0", "compares `a` with itself"),
            ("arm = \"a\"\nminus = \"b\"\ndivided_by = \"c\"\nabove = 1", "has both"),
            (
                "arm = \"a\"\nat_mots = 1",
                "paper.toml:5: unknown key `at_mots`; did you mean `at_most`?",
            ),
        ] {
            let text = format!("text = \"x\"\nasserted = true\nmetric = \"H\"\n{rest}\n");
            let error = config::document::<Claim>(&text, "paper.toml").unwrap_err().to_string();
            assert!(error.starts_with("paper.toml:") && error.contains(says), "{error}\n{says}");
        }
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
