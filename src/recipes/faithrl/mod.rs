//! FaithRL (arXiv 2602.03507) on the two-hop task: does a reward by the baseline's rates, with credit taken from steps
//! that nothing supports, make a policy hallucinate less without making it less right? Arms, metrics and claims are in
//! `paper.toml`.

mod evaluation;
mod settings;
mod start;
mod training;

pub use settings::{FaithRlSettings, Imitation, Reinforcement, Reward};
pub use start::Start;

use super::reproduction::{ArmSettings, Curve, Experiment, Nothing, Outcome};
use crate::error::Result;
use crate::tasks::two_hop::Problem;
use evaluation::sampled;

/// The reproduction of FaithRL.
pub struct FaithRl;

impl Experiment for FaithRl {
    const PAPER: &'static str = include_str!("paper.toml");
    const FILE: &'static str = "src/recipes/faithrl/paper.toml";
    const METRICS: &'static [&'static str] = &[
        "C",
        "H",
        "I",
        "THS",
        "U",
        "U T=1",
        "S3",
        "over-ref.",
        "ref. faint",
        "ref. smudged",
        "ref. 1st",
        "ref. 2nd",
        "C T=1",
        "H T=1",
        "A'=0",
        "zero-std",
        "x0",
        "y0",
    ];
    const CURVES: &'static [&'static str] = &["hallucinated", "unsupported"];

    type Settings = FaithRlSettings;
    type Own = Nothing;
    type Start = Start;

    fn defaults() -> FaithRlSettings {
        FaithRlSettings::default()
    }

    fn check(settings: &ArmSettings<FaithRlSettings, Nothing>) -> Result<()> {
        settings.recipe.check()
    }

    fn prepare(starts: &[ArmSettings<FaithRlSettings, Nothing>], seed: u64) -> Result<Vec<Start>> {
        let starts: Vec<&FaithRlSettings> = starts.iter().map(|start| &start.recipe).collect();
        start::starts(&starts, seed)
    }

    fn run(
        settings: &ArmSettings<FaithRlSettings, Nothing>,
        seed: u64,
        start: &Start,
    ) -> Result<Outcome> {
        let settings = &settings.recipe;
        let trained = training::train(settings, seed, start)?;
        let problems: Vec<Problem> =
            (0..settings.problems as u64).map(|i| start.task.held_out(seed, i)).collect();
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
