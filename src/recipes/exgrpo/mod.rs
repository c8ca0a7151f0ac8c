//! ExGRPO (arXiv 2510.02245) on chains of transpositions: does replaying past successes reach the same accuracy with
//! fewer rollouts? Arms, metrics and claims are in `paper.toml`.

mod measurement;
mod settings;
mod start;
mod training;

pub use settings::{ExGrpoSettings, ReplaySettings};
pub use start::Start;

use super::reproduction::{ArmSettings, Curve, Experiment, Nothing, Outcome};
use crate::error::{Error, Result};

/// The reproduction of ExGRPO.
pub struct ExGrpo;

/// Rollouts of the limited budget at which the hardest levels are compared.
const LIMITED: f64 = 9_000.0;
/// A budget twice as large.
const LATER: f64 = 18_000.0;

impl Experiment for ExGrpo {
    const PAPER: &'static str = include_str!("paper.toml");
    const FILE: &'static str = "src/recipes/exgrpo/paper.toml";
    const METRICS: &'static [&'static str] = &[
        "to .5",
        "to .7",
        "upd. .5",
        "upd. .7",
        "hard 9k",
        "hard 18k",
        "start",
        "L1",
        "L2",
        "L3",
        "L4",
        "L5",
        "end",
        "peak",
        "zero-var",
        "replay only",
        "entropy",
        "max w",
        "collapse",
        "stall",
    ];
    const CURVES: &'static [&'static str] = &["by rollouts", "by updates", "entropy"];

    type Settings = ExGrpoSettings;
    type Own = Nothing;
    type Start = Start;

    fn defaults() -> ExGrpoSettings {
        ExGrpoSettings::default()
    }

    fn check(settings: &ArmSettings<ExGrpoSettings, Nothing>) -> Result<()> {
        settings.recipe.check()
    }

    fn prepare(starts: &[ArmSettings<ExGrpoSettings, Nothing>], seed: u64) -> Result<Vec<Start>> {
        starts.iter().map(|settings| start::start(&settings.recipe, seed)).collect()
    }

    fn run(
        settings: &ArmSettings<ExGrpoSettings, Nothing>,
        seed: u64,
        start: &Start,
    ) -> Result<Outcome> {
        let run = training::train(&settings.recipe, seed, start)?;
        if run.skipped > 0 {
            return Err(Error::numeric(format!("{} updates were not finite", run.skipped)));
        }
        let ((half, half_updates), (most, most_updates)) = (run.reached(0.5), run.reached(0.7));
        let levels = run.at_end();
        let end = levels.iter().sum::<f64>() / levels.len() as f64;
        let peak = run.peak();
        let groups = run.groups.max(1) as f64;
        let last = &run.entropy[run.entropy.len().saturating_sub(10)..];
        let entropy = last.iter().map(|point| point.1).sum::<f64>() / last.len() as f64;
        let flag = |holds: bool| f64::from(u8::from(holds));
        let mut metrics = vec![
            half,
            most,
            half_updates,
            most_updates,
            run.hardest_at(LIMITED),
            run.hardest_at(LATER),
            run.at_start(),
        ];
        metrics.extend(levels);
        metrics.extend([
            end,
            peak,
            run.degenerate as f64 / groups,
            run.only_replayed as f64 / groups,
            entropy,
            run.largest_ratio,
            flag(end < 0.5 * peak),
            flag(peak < run.at_start() + 0.15),
        ]);
        let [by_rollouts, by_updates] = run.curves();
        Ok(Outcome {
            metrics,
            curves: vec![
                Curve { name: "by rollouts", points: by_rollouts },
                Curve { name: "by updates", points: by_updates },
                Curve { name: "entropy", points: run.entropy },
            ],
            unscored: run.unscored,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::reproduction::Reproduction;

    #[test]
    fn the_rate_under_stress_was_chosen_in_the_setting_of_stress() {
        let paper = Reproduction::of::<ExGrpo>().paper().unwrap();
        let study = |name: &str| paper.study(Some(name)).unwrap();
        let (stress, rates) = (study("stress"), study("stress-rates"));
        assert_eq!((&stress.set, &stress.arms), (&rates.set, &rates.arms));
        let values = |name: &str| study(name).each.clone().unwrap().values;
        assert!(values("stress-rates").contains(&values("stress")[0]));
    }
}
