//! Reproductions of published claims: what a paper's recipe declares, and what comes out of running it.
//!
//! A [`Paper`] names its arms, metrics and [`Claim`]s and knows how to run one arm with one seed; [`run`](run()) runs all
//! of them, one a core; [`Report`] judges the claims, and [`page`] and [`figure`] write it down. A claim that does not
//! hold is written down as that.

pub mod claim;
pub mod figure;
pub mod page;
mod run;
pub mod seeds;

pub use claim::{Bound, Claim, Judged, Measure};
pub use run::run;
pub use seeds::Seeds;

use crate::error::Result;
use crate::train::chart::Unit;

/// One way to train, compared with the others.
#[derive(Clone, Debug)]
pub struct Arm {
    /// In the tables.
    pub name: String,
    /// What is done, in one sentence.
    pub about: String,
    /// Which of the paper's starts it goes on from.
    pub start: usize,
}

/// Something measured once a run.
#[derive(Clone, Debug)]
pub struct Metric {
    /// In the tables; short.
    pub name: &'static str,
    /// What it is, with its unit.
    pub about: &'static str,
    /// Digits after the point.
    pub digits: usize,
}

/// Curves of some arms over the course of a run, the mean over the seeds.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The file is `PAPER-NAME.svg`.
    pub name: &'static str,
    /// Above it.
    pub title: &'static str,
    /// What is on the horizontal axis.
    pub axis: &'static str,
    /// Which of a run's curves.
    pub curve: &'static str,
    /// Of which arms; at most six.
    pub arms: Vec<String>,
    /// How values are written.
    pub unit: Unit,
}

/// Values of something over the course of a run: `(place, value)` in rising order of places.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Its name.
    pub name: &'static str,
    /// The values.
    pub points: Vec<(f64, f64)>,
}

/// What one run of one arm gave.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// A value for each of the paper's metrics, in their order. NaN: does not apply; infinite: never reached.
    pub metrics: Vec<f64>,
    /// Curves for the figures.
    pub curves: Vec<Curve>,
    /// Samples without a reward, because the verifier panicked or returned NaN.
    pub unscored: u64,
}

/// A published system with the claims to be tested.
pub trait Paper: Sync {
    /// What arms go on from: made once a seed and shared by the arms of that seed.
    type Start: Send + Sync;

    /// What is reproduced.
    fn description(&self) -> Description;

    /// The arms, in the order of the tables.
    fn arms(&self) -> Vec<Arm>;

    /// The metrics, in the order of the tables.
    fn metrics(&self) -> Vec<Metric>;

    /// The claims.
    fn claims(&self) -> Vec<Claim>;

    /// The figures.
    fn figures(&self) -> Vec<Figure>;

    /// Makes start number `start` of a seed.
    ///
    /// # Errors
    /// Whatever training reports.
    fn prepare(&self, start: usize, seed: u64) -> Result<Self::Start>;

    /// Runs one arm with one seed. A function of its arguments alone.
    ///
    /// # Errors
    /// Whatever training reports.
    fn run(&self, arm: usize, seed: u64, start: &Self::Start) -> Result<Outcome>;
}

/// Names and words of a [`Paper`].
#[derive(Clone, Debug)]
pub struct Description {
    /// As the program takes it.
    pub name: &'static str,
    /// The heading.
    pub title: String,
    /// Where the claims come from.
    pub source: &'static str,
    /// Paragraphs of Markdown: the task, what was chosen and how, what it does not show.
    pub about: String,
    /// The seeds that are reported unless others are given.
    pub seeds: Seeds,
    /// It is too small to be evidence of anything.
    pub quick: bool,
}

/// What running a paper gave.
pub struct Report {
    /// What was run.
    pub description: Description,
    /// The command that gives it again.
    pub command: String,
    /// The seeds that were run.
    pub seeds: Seeds,
    /// The arms.
    pub arms: Vec<Arm>,
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

    /// True when every asserted claim holds and no run failed.
    pub fn holds(&self) -> bool {
        self.failures().next().is_none()
            && self.claims.iter().all(|judged| judged.holds || !judged.claim.asserted)
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
