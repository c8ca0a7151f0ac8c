//! ExGRPO (arXiv 2510.02245) on chains of transpositions: does replaying past successes reach the same accuracy with
//! fewer rollouts?

mod arms;
mod measurement;
mod settings;
mod start;
mod training;

pub use settings::ExGrpoSettings;
pub use start::Start;

use crate::error::{Error, Result};
use crate::recipes::reproduction::{
    Arm, Bound, Claim, Curve, Description, Figure, Measure, Metric, Outcome, Paper, Seeds,
};
use crate::train::chart::Unit;
use arms::{
    BUCKETS, CODE, NO_DELAY, NO_ENTROPY, NO_RETIREMENT, NO_SHAPE, ON_POLICY, RANDOM, RATES,
    RETIREMENT, RULES, Running, SCALED, SPELLED, SPELLED_NO_ENTROPY, SPELLED_ON_POLICY,
    STRESS_RATE, STRESS_RATES, STRESSED,
};

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Study {
    /// The claims, every arm at its own best learning rate.
    Claims,
    /// Every arm at every learning rate, on the seeds that choose it.
    Rates,
    /// A setting in which runs collapse.
    Stress,
    /// Its arms at rising learning rates, on the seeds that choose one.
    StressRates,
}

/// The reproduction of ExGRPO.
pub struct ExGrpo {
    study: Study,
    quick: bool,
    /// Of each start.
    settings: [ExGrpoSettings; 2],
    running: Vec<Running>,
}

impl ExGrpo {
    /// A study; `quick`: so small that it is no evidence.
    pub fn new(study: Study, quick: bool) -> ExGrpo {
        let settings = match study {
            Study::Stress | Study::StressRates => {
                [ExGrpoSettings::stress(), ExGrpoSettings::stress()]
            }
            _ => [ExGrpoSettings::default(), ExGrpoSettings::spelled()],
        };
        let settings = if quick { settings.map(ExGrpoSettings::quick) } else { settings };
        ExGrpo::with(study, quick, settings)
    }

    /// A study with settings of one's own: of the questions with one right answer, and of those with several.
    pub fn with(study: Study, quick: bool, settings: [ExGrpoSettings; 2]) -> ExGrpo {
        let rules = || RULES.iter();
        let stressed = || rules().filter(|rule| STRESSED.contains(&rule.name));
        let running = match study {
            Study::Claims => rules().map(|rule| rule.at(rule.rate, rule.name.to_owned())).collect(),
            Study::Rates => rules().flat_map(|rule| rule.at_each(&RATES)).collect(),
            Study::Stress => {
                stressed().map(|rule| rule.at(STRESS_RATE, rule.name.to_owned())).collect()
            }
            Study::StressRates => stressed().flat_map(|rule| rule.at_each(&STRESS_RATES)).collect(),
        };
        ExGrpo { study, quick, settings, running }
    }
}

/// Rollouts of the limited budget at which the hardest levels are compared.
const LIMITED: f64 = 9_000.0;
/// The same, later.
const LATER: f64 = 18_000.0;

const METRICS: [Metric; 20] = [
    Metric {
        name: "to .5",
        about: "generated rollouts until held-out accuracy is 0.5 (mean of the five levels, sampled at temperature 1, smoothed over three measurements)",
        digits: 0,
    },
    Metric { name: "to .7", about: "the same until 0.7", digits: 0 },
    Metric { name: "upd. .5", about: "updates until 0.5", digits: 0 },
    Metric { name: "upd. .7", about: "updates until 0.7", digits: 0 },
    Metric { name: "hard 9k", about: "accuracy of levels 4 and 5 after 9000 rollouts", digits: 3 },
    Metric { name: "hard 18k", about: "the same after 18000 rollouts", digits: 3 },
    Metric { name: "start", about: "accuracy of the base policy", digits: 3 },
    Metric {
        name: "L1",
        about: "accuracy of level 1 at the end, the mean of the last three measurements (18 questions)",
        digits: 3,
    },
    Metric { name: "L2", about: "level 2", digits: 3 },
    Metric { name: "L3", about: "level 3", digits: 3 },
    Metric { name: "L4", about: "level 4", digits: 3 },
    Metric { name: "L5", about: "level 5", digits: 3 },
    Metric { name: "end", about: "mean of the levels at the end", digits: 3 },
    Metric { name: "peak", about: "the best smoothed accuracy", digits: 3 },
    Metric {
        name: "zero-var",
        about: "groups in which all rewards are equal, over the whole run",
        digits: 3,
    },
    Metric {
        name: "replay only",
        about: "groups in which only the replayed trajectory is right",
        digits: 3,
    },
    Metric {
        name: "entropy",
        about: "mean entropy of a token over the last ten updates, nats",
        digits: 3,
    },
    Metric { name: "max w", about: "the largest ratio of any token", digits: 0 },
    Metric {
        name: "collapse",
        about: "1 when the accuracy at the end is below half of its peak",
        digits: 2,
    },
    Metric { name: "stall", about: "1 when the peak is less than 0.15 above the start", digits: 2 },
];

impl Paper for ExGrpo {
    type Start = Start;

    fn description(&self) -> Description {
        let (name, title, about, seeds) = match self.study {
            Study::Claims => ("exgrpo", "ExGRPO on chains of transpositions", ABOUT, (21, 25)),
            Study::Rates => ("exgrpo-rates", "ExGRPO: learning rates", RATES_ABOUT, (11, 13)),
            Study::Stress => ("exgrpo-stress", "ExGRPO under stress", STRESS_ABOUT, (41, 50)),
            Study::StressRates => (
                "exgrpo-stress-rates",
                "ExGRPO under stress: learning rates",
                STRESS_RATES_ABOUT,
                (11, 13),
            ),
        };
        Description {
            name,
            title: title.to_owned(),
            source: "ExGRPO, arXiv 2510.02245, and its released code",
            about: about.to_owned(),
            seeds: Seeds::new(seeds.0, seeds.1),
            quick: self.quick,
        }
    }

    fn arms(&self) -> Vec<Arm> {
        self.running.iter().map(|running| running.arm.clone()).collect()
    }

    fn metrics(&self) -> Vec<Metric> {
        METRICS.to_vec()
    }

    fn claims(&self) -> Vec<Claim> {
        match self.study {
            Study::Claims => claims(),
            Study::Rates | Study::StressRates => Vec::new(),
            Study::Stress => stress_claims(),
        }
    }

    fn figures(&self) -> Vec<Figure> {
        let shown: &[&str] = match self.study {
            Study::Rates | Study::StressRates => return Vec::new(),
            Study::Claims => &[ON_POLICY, RETIREMENT, RANDOM, CODE, SCALED],
            Study::Stress => &STRESSED,
        };
        let figure = |name, title, axis, curve, unit| Figure {
            name,
            title,
            axis,
            curve,
            arms: shown.iter().map(|arm| (*arm).to_owned()).collect(),
            unit,
        };
        vec![
            figure(
                "rollouts",
                "Held-out accuracy",
                "generated rollouts",
                "by rollouts",
                Unit::Percent,
            ),
            figure("updates", "Held-out accuracy", "updates", "by updates", Unit::Percent),
            figure(
                "entropy",
                "Entropy of a token in nats",
                "generated rollouts",
                "entropy",
                Unit::Plain,
            ),
        ]
    }

    fn prepare(&self, start: usize, seed: u64) -> Result<Start> {
        start::start(self.setting(start)?, seed)
    }

    fn run(&self, arm: usize, seed: u64, start: &Start) -> Result<Outcome> {
        let running =
            self.running.get(arm).ok_or_else(|| Error::index(format!("exgrpo: arm {arm}")))?;
        let settings = self.setting(running.arm.start)?;
        let run = training::train(settings, &running.method, seed, start)?;
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

impl ExGrpo {
    fn setting(&self, start: usize) -> Result<&ExGrpoSettings> {
        self.settings.get(start).ok_or_else(|| Error::index(format!("exgrpo: start {start}")))
    }
}

fn claim(
    asserted: bool,
    text: &str,
    metric: &'static str,
    [arm, against]: [&str; 2],
    measure: Measure,
    bound: Bound,
) -> Claim {
    Claim {
        text: text.to_owned(),
        asserted,
        arm: arm.to_owned(),
        against: against.to_owned(),
        metric,
        measure,
        bound,
    }
}

fn claims() -> Vec<Claim> {
    use Bound::{AtLeast, AtMost, Below};
    use Measure::{Difference, Ratio};
    let main = [SCALED, ON_POLICY];
    let mut claims = vec![
        claim(
            true,
            "re-scaled ExGRPO reaches 0.5 with at most 0.90 of on-policy's rollouts, each at its best rate",
            "to .5",
            main,
            Ratio,
            AtMost(0.90),
        ),
        claim(
            true,
            "its hardest levels are at least 5 points higher at a limited budget",
            "hard 9k",
            main,
            Difference,
            AtLeast(0.05),
        ),
        claim(true, "it has fewer zero-variance groups", "zero-var", main, Difference, Below(0.0)),
        claim(
            false,
            "it reaches 0.7 with at most 0.90 of the rollouts",
            "to .7",
            main,
            Ratio,
            AtMost(0.90),
        ),
        claim(
            false,
            "it reaches 0.5 with at most 0.90 of the updates (a mixed batch generates 0.875 of the rollouts)",
            "upd. .5",
            main,
            Ratio,
            AtMost(0.90),
        ),
        claim(
            false,
            "the hardest levels are still 5 points higher later",
            "hard 18k",
            main,
            Difference,
            AtLeast(0.05),
        ),
        claim(
            false,
            "the released constants reach 0.5 with at most 0.90 of the rollouts",
            "to .5",
            [CODE, ON_POLICY],
            Ratio,
            AtMost(0.90),
        ),
        claim(
            false,
            "retirement alone does",
            "to .5",
            [RETIREMENT, ON_POLICY],
            Ratio,
            AtMost(0.90),
        ),
        claim(false, "random replay does", "to .5", [RANDOM, ON_POLICY], Ratio, AtMost(0.90)),
        claim(
            false,
            "re-scaled ExGRPO needs fewer than random replay",
            "to .5",
            [SCALED, RANDOM],
            Ratio,
            Below(1.0),
        ),
    ];
    for (arm, text) in [
        (NO_SHAPE, "without shaping it needs more rollouts"),
        (
            NO_ENTROPY,
            "without the choice by entropy it needs more (nothing to choose here: this is the noise)",
        ),
        (NO_DELAY, "without the delayed start it needs more"),
        (NO_RETIREMENT, "without retirement it needs more"),
        (BUCKETS, "with the released buckets it needs more"),
    ] {
        claims.push(claim(false, text, "to .5", [arm, SCALED], Ratio, Bound::Above(1.0)));
    }
    claims.extend([
        claim(false, "with two spellings re-scaled ExGRPO reaches 0.5 with at most 0.90 of on-policy's rollouts", "to .5", [SPELLED, SPELLED_ON_POLICY], Ratio, AtMost(0.90)),
        claim(false, "where there is a choice, lowest entropy needs fewer rollouts than any trajectory", "to .5", [SPELLED, SPELLED_NO_ENTROPY], Ratio, Below(1.0)),
        claim(false, "and it lowers the entropy at the end", "entropy", [SPELLED, SPELLED_NO_ENTROPY], Difference, Below(0.0)),
    ]);
    claims
}

fn stress_claims() -> Vec<Claim> {
    let fewer = |text, metric, arm: &'static str| {
        claim(false, text, metric, [arm, ON_POLICY], Measure::Difference, Bound::Above(0.0))
    };
    vec![
        fewer("re-scaled ExGRPO ends higher than on-policy", "end", SCALED),
        fewer("the released constants end higher than on-policy", "end", CODE),
        fewer("random replay ends higher than on-policy", "end", RANDOM),
        fewer("re-scaled ExGRPO without shaping ends higher than on-policy", "end", NO_SHAPE),
    ]
}

const ABOUT: &str = "\
A question gives a permutation of four symbols and one to five transpositions (levels 1 to 5); a response writes the \
state after each and is right when all are. The base policy imitates chains in which the rarer transpositions mostly go \
wrong, so that it is unsure on the harder levels and reinforcement can improve it. The whole chain is checked: where only \
the last state is, lucky successes fill the pool with wrong chains.

Every arm runs at its own best learning rate, chosen on seeds 11 to 13 (`gradstone reproduce exgrpo --tune`, \
[exgrpo-rates.md](exgrpo-rates.md)), which are not reported here. A mixed batch generates 224 rollouts where an on-policy batch generates 256, so 0.875 of the rollouts an \
update is arithmetic; rollouts and updates are both reported. *Re-scaled* is not the released ExGRPO: it has flat buckets \
and a gain that gives a replayed token at ratio 1 the gradient of a fresh one, where the released constants give it a \
twelfth. Successes are counted on fresh rollouts alone (the released code counts the replayed one too), and entropy is \
averaged over the response's own tokens.

With one right answer a question has one trajectory, so there is nothing for the choice by entropy to choose from; the arms \
with two spellings of every state have several. Held-out questions occur neither in training nor among the examples.";
const RATES_ABOUT: &str = "\
Every arm at every learning rate, on seeds that are not reported. The rate of an arm in the reproduction is the one with \
the fewest rollouts to an accuracy of 0.5 (mean over these seeds, a run that never gets there counted at its whole \
budget); of equal ones the lower.";
const STRESS_ABOUT: &str = "\
A weaker base policy, half the batch, and one learning rate for all arms: the lowest of those tried on seeds 11 to 13 at \
which an on-policy run collapsed ([exgrpo-stress-rates.md](exgrpo-stress-rates.md)). Nothing is asserted.";
const STRESS_RATES_ABOUT: &str = "\
The stress setting at rising learning rates, on seeds that are not reported: it shows from which rate on runs collapse.";
