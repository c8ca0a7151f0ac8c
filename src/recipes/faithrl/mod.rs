//! FaithRL (arXiv 2602.03507) on the two-hop task: does a reward by the baseline's rates, with credit taken from steps
//! that nothing supports, make a policy hallucinate less without making it less right?

mod arms;
mod evaluation;
mod settings;
mod start;
mod training;

pub use settings::{FaithRlSettings, Imitation, Reinforcement};
pub use start::Start;

use crate::error::{Error, Result};
use crate::recipes::reproduction::{
    Arm, Bound, Claim, Curve, Description, Figure, Measure, Metric, Outcome, Paper, Seeds,
};
use crate::tasks::two_hop::Exercise;
use crate::train::chart::Unit;
use arms::{
    FAITHFUL, FAITHFUL_075, FLAGGED, FLAGGED_GRPO, GEOMETRIC, GRPO, LITERAL, PARTIAL,
    PRECISE_GEOMETRIC, PRECISE_TERNARY, RULES, SCALED_GEOMETRIC, SCALED_TERNARY, TERNARY,
};
use evaluation::sampled;

/// The reproduction of FaithRL.
pub struct FaithRl {
    /// Settings of each start: the main task, and the one with a precise baseline.
    settings: [FaithRlSettings; 2],
    quick: bool,
}

impl FaithRl {
    /// The reproduction; `quick`: so small that it is no evidence.
    pub fn new(quick: bool) -> FaithRl {
        let settings = [FaithRlSettings::default(), FaithRlSettings::precise()];
        let settings = if quick { settings.map(FaithRlSettings::quick) } else { settings };
        FaithRl { settings, quick }
    }

    /// The reproduction with settings of one's own: of the main task, and of the one with a precise baseline.
    pub fn with(settings: [FaithRlSettings; 2]) -> FaithRl {
        FaithRl { settings, quick: false }
    }
}

const METRICS: [Metric; 18] = [
    Metric {
        name: "C",
        about: "right answers, of all problems; a problem that misses a fact has none",
        digits: 3,
    },
    Metric {
        name: "H",
        about: "hallucinations, of all problems: wrong answers, malformed ones, and any answer where a fact is missing",
        digits: 3,
    },
    Metric { name: "I", about: "refusals, of all problems", digits: 3 },
    Metric {
        name: "THS",
        about: "truthful helpfulness score x1 - x0 y1 / y0, where x counts right answers and right refusals, y hallucinations, and x0, y0 are the start's; compare within a seed",
        digits: 3,
    },
    Metric {
        name: "U",
        about: "steps that the given facts do not support, of all steps",
        digits: 3,
    },
    Metric { name: "U T=1", about: "the same of sampled responses", digits: 3 },
    Metric {
        name: "S3",
        about: "answers with a third step, which nothing asks for, of all answers",
        digits: 3,
    },
    Metric { name: "over-ref.", about: "refusals of the problems that give both facts", digits: 3 },
    Metric {
        name: "ref. faint",
        about: "refusals of the problems whose second fact is faint (right with probability 0.4)",
        digits: 3,
    },
    Metric {
        name: "ref. smudged",
        about: "refusals of the problems whose second fact is smudged (right with probability 0.75; 0.62 in the precise task)",
        digits: 3,
    },
    Metric {
        name: "ref. 1st",
        about: "refusals of the problems whose first fact is missing",
        digits: 3,
    },
    Metric {
        name: "ref. 2nd",
        about: "refusals of the problems whose second fact is missing",
        digits: 3,
    },
    Metric { name: "C T=1", about: "right answers when sampled", digits: 3 },
    Metric { name: "H T=1", about: "hallucinations when sampled", digits: 3 },
    Metric {
        name: "A'=0",
        about: "tokens that the modulation left without an advantage, of those of responses that have one",
        digits: 3,
    },
    Metric {
        name: "zero-std",
        about: "groups of rollouts in which all rewards are equal",
        digits: 3,
    },
    Metric {
        name: "x0",
        about: "right answers and right refusals of the start, sampled",
        digits: 3,
    },
    Metric { name: "y0", about: "hallucinations of the start, sampled", digits: 3 },
];

impl Paper for FaithRl {
    type Start = Start;

    fn description(&self) -> Description {
        Description {
            name: "faithrl",
            title: "FaithRL on two-hop questions".to_owned(),
            source: "FaithRL, arXiv 2602.03507; TruthRL's ternary reward as its rival",
            about: ABOUT.to_owned(),
            seeds: Seeds::new(26, 30),
            quick: self.quick,
        }
    }

    fn arms(&self) -> Vec<Arm> {
        arms::arms()
    }

    fn metrics(&self) -> Vec<Metric> {
        METRICS.to_vec()
    }

    fn claims(&self) -> Vec<Claim> {
        claims()
    }

    fn figures(&self) -> Vec<Figure> {
        let arms = [GRPO, TERNARY, GEOMETRIC, FAITHFUL, FAITHFUL_075, LITERAL];
        let figure = |name, title, curve| Figure {
            name,
            title,
            axis: "batches of rollouts",
            curve,
            arms: arms.map(str::to_owned).to_vec(),
            unit: Unit::Percent,
        };
        vec![
            figure("hallucination", "Hallucinated rollouts in training", "hallucinated"),
            figure("unsupported", "Unsupported steps of the rollouts in training", "unsupported"),
        ]
    }

    fn prepare(&self, _start: usize, seed: u64) -> Result<Start> {
        start::start(&self.settings, seed)
    }

    fn run(&self, arm: usize, seed: u64, start: &Start) -> Result<Outcome> {
        let rule = RULES.get(arm).ok_or_else(|| Error::index(format!("faithrl: arm {arm}")))?;
        let missing = || Error::index(format!("faithrl: setting {}", rule.setting));
        let settings = self.settings.get(rule.setting).ok_or_else(missing)?;
        let start = start.bases.get(rule.setting).ok_or_else(missing)?;
        let trained = training::train(settings, rule, seed, start)?;
        let problems: Vec<Exercise> =
            (0..settings.problems as u64).map(|i| start.task.held_out_exercise(seed, i)).collect();
        let greedy = sampled(&trained.model, &problems, 0.0, seed)?;
        let warm = sampled(&trained.model, &problems, 1.0, seed)?;
        let truthful = greedy.correct + greedy.correctly_refused;
        let [answerable, faint, smudged, first, second] = greedy.refused_of;
        Ok(Outcome {
            metrics: vec![
                greedy.correct,
                greedy.hallucinated,
                greedy.refused,
                start.baseline.truthful_helpfulness(truthful, greedy.hallucinated),
                greedy.unsupported,
                warm.unsupported,
                greedy.third_step,
                answerable,
                faint,
                smudged,
                first,
                second,
                warm.correct,
                warm.hallucinated,
                trained.silenced,
                trained.degenerate,
                start.baseline.correct,
                start.baseline.hallucinated,
            ],
            curves: vec![
                Curve { name: "hallucinated", points: trained.hallucinated },
                Curve { name: "unsupported", points: trained.unsupported },
            ],
            unscored: trained.unscored,
        })
    }
}

fn claims() -> Vec<Claim> {
    use Measure::Difference;
    let claim = |asserted, text: &str, metric, arm: &str, against: &str, bound| Claim {
        text: text.to_owned(),
        asserted,
        arm: arm.to_owned(),
        against: against.to_owned(),
        metric,
        measure: Difference,
        bound,
    };
    vec![
        claim(
            true,
            "FaithRL hallucinates at least 10 points less than GRPO",
            "H",
            FAITHFUL,
            GRPO,
            Bound::AtMost(-0.10),
        ),
        claim(
            true,
            "its truthful helpfulness is higher than GRPO's",
            "THS",
            FAITHFUL,
            GRPO,
            Bound::Above(0.0),
        ),
        claim(
            true,
            "modulation lowers unsupported steps against the geometric reward alone",
            "U",
            FAITHFUL,
            GEOMETRIC,
            Bound::Below(0.0),
        ),
        claim(true, "so it does when sampled", "U T=1", FAITHFUL, GEOMETRIC, Bound::Below(0.0)),
        claim(
            true,
            "its correctness is within 3 points of GRPO's",
            "C",
            FAITHFUL,
            GRPO,
            Bound::AtLeast(-0.03),
        ),
        claim(
            true,
            "with a precise baseline the geometric reward refuses what the ternary one answers",
            "ref. smudged",
            PRECISE_GEOMETRIC,
            PRECISE_TERNARY,
            Bound::AtLeast(0.2),
        ),
        claim(
            true,
            "and hallucinates less",
            "H",
            PRECISE_GEOMETRIC,
            PRECISE_TERNARY,
            Bound::Below(0.0),
        ),
        claim(
            false,
            "divided by the group's deviation, the two rewards differ as much",
            "ref. smudged",
            SCALED_GEOMETRIC,
            SCALED_TERNARY,
            Bound::AtLeast(0.2),
        ),
        claim(
            true,
            "the released code's literal labels fail: unsupported steps rise by at least 10 points",
            "U",
            LITERAL,
            FAITHFUL,
            Bound::AtLeast(0.1),
        ),
        claim(
            false,
            "alpha 0.75 lowers unsupported steps against the geometric reward alone",
            "U",
            FAITHFUL_075,
            GEOMETRIC,
            Bound::Below(0.0),
        ),
        claim(
            false,
            "the literal labels hallucinate more than the verdict's",
            "H",
            LITERAL,
            FAITHFUL,
            Bound::Above(0.05),
        ),
        claim(
            false,
            "the literal labels write more third steps",
            "S3",
            LITERAL,
            FAITHFUL,
            Bound::Above(0.5),
        ),
        claim(
            false,
            "the geometric reward differs from the ternary one on the main task",
            "H",
            GEOMETRIC,
            TERNARY,
            Bound::Below(-0.02),
        ),
        claim(
            false,
            "negative control: told what is unanswerable, GRPO hallucinates no more than FaithRL told the same (within 3 points)",
            "H",
            FLAGGED_GRPO,
            FLAGGED,
            Bound::AtMost(0.03),
        ),
        claim(
            false,
            "credit for partial derivations changes hallucination by more than 2 points",
            "H",
            PARTIAL,
            FAITHFUL,
            Bound::Below(-0.02),
        ),
    ]
}

const ABOUT: &str = "\
A prompt gives six facts and asks for a relation of a relation. A response is a chain of numbered steps, each claiming \
one fact, and an answer or a refusal; every step is checked against the given facts by a program. Thirty percent of the \
prompts miss one of the two facts. In a fifth the second fact is worn off, and its tail is right only with a known \
probability (0.4 faint, 0.75 smudged), so no policy can answer every prompt rightly and refusing costs right answers.

The trainer is *not* told which prompts miss a fact: it knows the answer key of every prompt, so that a lucky guess is \
rewarded. That is necessary: told (the flagged arms), plain GRPO learns to refuse too. Results are measured with the truth.

The model (two layers, width 64) first learns to look up and to refuse on sound responses, then becomes unreliable on \
noisy ones: fabricated steps, wrong answers, few refusals. In these a third step, which nothing asks for and which is \
normally made up, comes only after two sound steps. So it goes with being right without being supported, which is what \
modulation is for; without such a correlation the geometric reward alone does as well. **This is a constructed \
demonstration of the mechanism, not independent evidence for the paper.** Its first form was found by a prototype on \
other seeds; settings here were chosen on seeds 11 to 13, which are not reported.

Learning to look up takes one round of 300 updates or more: a round is repeated until 90 % of held-out problems are right. A \
first run, on seeds 21 to 25, had one round for all, and the model of seed 24 had not learned it (it was right on a third of the \
problems); its page had 6 of 8 asserted claims, two of them undecided because on that seed the geometric arm refused \
everything. That run is replaced by this one on other seeds.

Where the prototype never learned to refuse for want of the second fact, two things are different here: a step may be \
left open in place of its tail, so that a refusal stands where the look-up fails, and noisy refusals stand there too.

The *precise* arms run on a task of their own (fewer missing facts, 30 % smudged prompts that are right with probability \
0.62, a less noisy start): there the baseline's precision is far above one half, and the two rewards must differ, since \
the geometric one answers only above that precision and the ternary one above one half. They differ only where advantages \
keep the size of rewards: whether a shown tail is right is the same for all rollouts of a prompt, so its group holds two \
rewards, and GRPO's division by the deviation leaves of two rewards nothing but which is larger. These arms therefore take \
the mean off and do not divide; two more divide, to show it.";
