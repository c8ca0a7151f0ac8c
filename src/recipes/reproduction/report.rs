//! What running a study gave.

use super::claim::{Judged, Verdict};
use super::experiment::Outcome;
use super::paper::{Figure, Metric};
use super::plan::{Description, Named};
use super::seeds::Seeds;

/// What running a study gave.
pub struct Report {
    /// What was run.
    pub description: Description,
    /// The command that gives it again.
    pub command: String,
    /// The seeds that were run.
    pub seeds: Seeds,
    /// The arms that were run.
    pub arms: Vec<Named>,
    /// The metrics.
    pub metrics: Vec<Metric>,
    /// The figures.
    pub figures: Vec<Figure>,
    /// `runs[arm][seed]`, or why there is none.
    pub runs: Vec<Vec<Result<Outcome, String>>>,
    /// The claims, judged.
    pub claims: Vec<Judged>,
    /// Wall time.
    pub seconds: f64,
    /// Runs side by side.
    pub workers: usize,
}

impl Report {
    /// The values of a metric over the seeds; NaN for a run that failed.
    pub fn values(&self, arm: usize, metric: usize) -> Vec<f64> {
        let value = |run: &Result<Outcome, String>| match run {
            Ok(outcome) => outcome.metrics.get(metric).copied().unwrap_or(f64::NAN),
            Err(_) => f64::NAN,
        };
        self.runs.get(arm).into_iter().flatten().map(value).collect()
    }

    /// The values of a metric over the seeds, by names; `None` for an arm that was not run.
    pub fn named_values(&self, arm: &str, metric: &str) -> Option<Vec<f64>> {
        let arm = self.arms.iter().position(|described| described.name == arm)?;
        let metric = self.metrics.iter().position(|described| described.name == metric)?;
        Some(self.values(arm, metric))
    }

    /// True when every asserted claim that could be judged holds and no run failed.
    pub fn holds(&self) -> bool {
        let fails = |judged: &Judged| judged.claim.asserted && judged.verdict == Verdict::Fails;
        self.failures().next().is_none() && !self.claims.iter().any(fails)
    }

    /// Runs that ended in an error: arm, seed, message.
    pub fn failures(&self) -> impl Iterator<Item = (&str, u64, &str)> {
        self.arms.iter().zip(&self.runs).flat_map(|(arm, runs)| {
            runs.iter().zip(self.seeds.iter()).filter_map(|(run, seed)| match run {
                Ok(_) => None,
                Err(message) => Some((arm.name.as_str(), seed, message.as_str())),
            })
        })
    }

    /// Samples without a reward in all runs together.
    pub fn unscored(&self) -> u64 {
        self.runs.iter().flatten().flatten().map(|outcome| outcome.unscored).sum()
    }
}

/// Mean and unbiased deviation of the finite values, and how many there are.
pub fn spread(values: &[f64]) -> (f64, f64, usize) {
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let count = finite().count();
    let mean = finite().sum::<f64>() / count as f64;
    let squares: f64 = finite().map(|v| (v - mean) * (v - mean)).sum();
    let deviation = if count > 1 { (squares / (count - 1) as f64).sqrt() } else { 0.0 };
    (mean, deviation, count)
}
