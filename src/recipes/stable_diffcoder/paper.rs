//! The claims of Stable-DiffCoder, one arm a way to go on from a next-token model.

use super::statistics::{self, Statistics};
use super::{gradient_covariance, infilling, stable_diffcoder};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::block_noise::{Draw, Noise, Rate, Weight};
use crate::models::Decoder;
use crate::optim::AdamW;
use crate::recipes::reproduction::{
    Arm, Bound, Claim, Curve, Description, Figure, Measure, Metric, Outcome, Paper, Seeds,
};
use crate::tensor::Gradients;
use crate::train::chart::Unit;
use crate::train::diffusion::{DiffusionSettings, Learner, Noising, Schedule};
use crate::train::settings::ModelSettings;

/// Names of the arms, in order.
const CLIPPED: &str = "clipped";
const CLIPPED_AT_ONCE: &str = "clipped, no warm-up";
const UNBIASED: &str = "clipped, unbiased";
const UNCLIPPED: &str = "unclipped";
const UNCLIPPED_AT_ONCE: &str = "unclipped, no warm-up";
const SCRATCH: &str = "from scratch";
const NEXT_TOKEN: &str = "next token";

/// What an arm does after its start.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    about: &'static str,
    /// `None`: next-token prediction goes on.
    noising: Option<Noising>,
    from_scratch: bool,
}

/// The paper at the size of two cores.
pub struct StableDiffCoder {
    quick: bool,
    /// Steps of next-token prediction, then of each arm.
    first: u64,
    steps: u64,
    /// Steps that count as the switch.
    switch: u64,
    /// Held-out rows of the bound, and draws of masks for the covariance.
    rows: usize,
    draws: u64,
    /// Sequences of 16384 blocks for the statistics.
    sequences: u64,
}

/// What arms go on from.
pub struct Start {
    model: Decoder,
}

impl StableDiffCoder {
    /// The reproduction; `quick` checks the machinery in a few steps.
    pub fn new(quick: bool) -> StableDiffCoder {
        match quick {
            true => StableDiffCoder {
                quick,
                first: 4,
                steps: 4,
                switch: 4,
                rows: 4,
                draws: 3,
                sequences: 20,
            },
            false => StableDiffCoder {
                quick,
                first: 600,
                steps: 1200,
                switch: 100,
                rows: 96,
                draws: 48,
                sequences: 3000,
            },
        }
    }

    fn settings(&self, seed: u64) -> DiffusionSettings {
        let mut settings = stable_diffcoder();
        settings.seed = seed;
        if let (true, ModelSettings::Small { hidden_size, layers, .. }) =
            (self.quick, &mut settings.model)
        {
            (*hidden_size, *layers) = (32, 1);
        }
        settings
    }

    fn ways(&self) -> [Way; 7] {
        let noising = |schedule, weight, warm_up_steps| {
            Some(Noising { schedule, weight, warm_up_steps, ..Noising::default() })
        };
        let (clipped, linear) =
            (Schedule::Clipped { forced: true }, Schedule::Linear { low: 1e-3 });
        let way = |name, about, noising| Way { name, about, noising, from_scratch: false };
        [
            way(
                CLIPPED,
                "from the next-token model: clipped rates, forced masks, weight 1/u, warm-up (the paper's)",
                noising(clipped, Weight::Rate, self.switch),
            ),
            way(CLIPPED_AT_ONCE, "the same without the warm-up", noising(clipped, Weight::Rate, 0)),
            way(
                UNBIASED,
                "as clipped, weight 1/P(masked): the bias of the forced masks taken off",
                noising(clipped, Weight::Unbiased, self.switch),
            ),
            way(
                UNCLIPPED,
                "from the next-token model: rates uniform in 0.001..1, warm-up",
                noising(linear, Weight::Rate, self.switch),
            ),
            way(
                UNCLIPPED_AT_ONCE,
                "the same without the warm-up",
                noising(linear, Weight::Rate, 0),
            ),
            Way {
                from_scratch: true,
                ..way(
                    SCRATCH,
                    "as clipped, from random weights, for as many steps as both phases have",
                    noising(clipped, Weight::Rate, self.switch),
                )
            },
            way(NEXT_TOKEN, "next-token prediction goes on for as many steps", None),
        ]
    }

    fn learner(&self, seed: u64) -> Result<Learner> {
        Learner::new(&self.settings(seed), &Device::Cpu)
    }

    /// Statistics of the schedule against its integrals, for the draws of a seed.
    fn statistics(&self, noising: &Noising, seed: u64) -> Result<(Statistics, f64)> {
        let (rate, forced) = match noising.schedule {
            Schedule::Clipped { forced } => (Rate::Clip, forced),
            Schedule::Linear { low } => (Rate::Range { low, high: 1.0 }, false),
            other => return Err(Error::unsupported(format!("statistics of {other:?}"))),
        };
        let draw = Draw::Independent { forced };
        let noise = Noise { rate, draw, weight: noising.weight, ..Noise::clipped(4, 1, 2, seed) };
        let got = statistics::measured(&noise, self.sequences)?;
        let want = statistics::expected(rate, statistics::forces(draw), noising.weight, 4);
        Ok((got, got.error(&want)))
    }
}

impl Paper for StableDiffCoder {
    type Start = Start;

    fn description(&self) -> Description {
        Description {
            name: "stable-diffcoder",
            title: "Stable-DiffCoder: block diffusion from a next-token model".to_owned(),
            source: "Stable-DiffCoder (arXiv 2601.15892), §3.2 and §3.3",
            about: format!(
                "Programs made in code (`a=3;b=4;a+b=7;{{[a]}}`), one id a character, rows of 64; a Llama-shaped decoder of \
                 width 64 and 3 layers. {} steps of next-token prediction, then each arm goes on for {} steps of 16 rows, \
                 blocks of 4, the same optimizer. The paper's models are four orders of magnitude larger and it isolates \
                 neither warm-up nor clipping by accuracy, so what is tested here is what it says of noise, gradients and \
                 stability; held-out losses are reported, whatever they say.\n\n\
                 The bound is the same for all arms: unclipped noise, integrated over the rate, every size of mask once a \
                 block. The covariance of the gradient is that over draws of masks for one batch at the weights of the \
                 next-token model. A part of what the warm-up does to the gradient norm is that its weights are 1.",
                self.first, self.steps
            ),
            seeds: Seeds::new(1, 3),
            quick: self.quick,
        }
    }

    fn arms(&self) -> Vec<Arm> {
        let arm = |way: Way| Arm {
            name: way.name.to_owned(),
            about: way.about.to_owned(),
            start: usize::from(way.from_scratch),
        };
        self.ways().into_iter().map(arm).collect()
    }

    fn metrics(&self) -> Vec<Metric> {
        let metric = |name, about, digits| Metric { name, about, digits };
        vec![
            metric("E[S]/B", "mean weight of a token, drawn", 4),
            metric("Var[S]", "variance of a block's weight, drawn", 3),
            metric("statistics", "largest relative difference to the closed forms", 4),
            metric("wasted", "share of blocks without a mask, in training", 4),
            metric("tr Cov", "trace of the gradient's covariance over masks, at the start", 5),
            metric("|mean|²", "squared norm of the mean gradient, at the start", 5),
            metric("largest |g|", "largest gradient norm in the switch, before clipping", 3),
            metric("bound", "held-out bound at the end, nats per token", 4),
            metric("infill", "share of one-token holes filled right", 4),
            metric("infill loss", "negative log-prob of what was in the hole, nats", 4),
            metric(
                "tried all",
                "share filled right by next-token prediction that tries every token",
                4,
            ),
        ]
    }

    fn claims(&self) -> Vec<Claim> {
        let claim =
            |text: &str, asserted, arm: &str, against: &str, metric, measure, bound| Claim {
                text: text.to_owned(),
                asserted,
                arm: arm.to_owned(),
                against: against.to_owned(),
                metric,
                measure,
                bound,
            };
        let value =
            |text, arm, metric, bound| claim(text, true, arm, "", metric, Measure::Value, bound);
        let ratio = |text, arm, against, metric, bound| {
            claim(text, true, arm, against, metric, Measure::Ratio, bound)
        };
        let reported = |text, arm, against, metric, bound| {
            claim(text, false, arm, against, metric, Measure::Difference, bound)
        };
        vec![
            value(
                "clipped noise has the statistics of its integral",
                CLIPPED,
                "statistics",
                Bound::AtMost(0.03),
            ),
            value(
                "unclipped noise has those of its closed form",
                UNCLIPPED,
                "statistics",
                Bound::AtMost(0.03),
            ),
            value("the unbiased weight has mean 1", UNBIASED, "statistics", Bound::AtMost(0.03)),
            ratio(
                "clipping at least halves the variance of the gradient",
                CLIPPED,
                UNCLIPPED,
                "tr Cov",
                Bound::AtMost(0.5),
            ),
            value("no block is wasted with clipping", CLIPPED, "wasted", Bound::AtMost(0.0)),
            value("a fifth is without", UNCLIPPED_AT_ONCE, "wasted", Bound::AtLeast(0.17)),
            ratio(
                "the warm-up at least halves the largest gradient of the switch, clipped",
                CLIPPED,
                CLIPPED_AT_ONCE,
                "largest |g|",
                Bound::AtMost(0.5),
            ),
            ratio("and unclipped", UNCLIPPED, UNCLIPPED_AT_ONCE, "largest |g|", Bound::AtMost(0.5)),
            claim(
                "any order: diffusion fills holes better than next-token prediction from the left",
                true,
                CLIPPED,
                NEXT_TOKEN,
                "infill",
                Measure::Difference,
                Bound::Above(0.0),
            ),
            reported(
                "… and than one that tries every token",
                CLIPPED,
                NEXT_TOKEN,
                "tried all",
                Bound::Above(0.0),
            ),
            reported(
                "clipped is no worse than unclipped",
                CLIPPED,
                UNCLIPPED,
                "bound",
                Bound::AtMost(0.0),
            ),
            reported(
                "starting from next-token prediction helps",
                CLIPPED,
                SCRATCH,
                "bound",
                Bound::Below(0.0),
            ),
            reported(
                "the unbiased weight is no worse",
                UNBIASED,
                CLIPPED,
                "bound",
                Bound::AtMost(0.0),
            ),
            reported(
                "the warm-up does not cost",
                CLIPPED,
                CLIPPED_AT_ONCE,
                "bound",
                Bound::AtMost(0.0),
            ),
        ]
    }

    fn figures(&self) -> Vec<Figure> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        vec![
            Figure {
                name: "switch",
                title: "Gradient norm before clipping, after the switch",
                axis: "step",
                curve: "grad_norm",
                arms: names(&[CLIPPED, CLIPPED_AT_ONCE, UNCLIPPED, UNCLIPPED_AT_ONCE]),
                unit: Unit::Plain,
            },
            Figure {
                name: "bound",
                title: "Held-out bound, nats per token",
                axis: "step",
                curve: "bound",
                arms: names(&[CLIPPED, UNBIASED, UNCLIPPED, UNCLIPPED_AT_ONCE, SCRATCH]),
                unit: Unit::Plain,
            },
        ]
    }

    fn prepare(&self, start: usize, seed: u64) -> Result<Start> {
        let mut learner = self.learner(seed)?;
        if start == 0 {
            let phase = self.settings(seed).next_token;
            let mut optimizer = AdamW::new(phase.optimizer.clone(), learner.model.parameters())?;
            for step in 0..self.first {
                let mut gradients = Gradients::new();
                learner.next_token(step, &mut gradients)?;
                // The rate does not fall: the paper goes on from a model before its annealing.
                let factor = phase.schedule.factor(step, u64::MAX);
                learner.update(&mut optimizer, &gradients, factor)?;
            }
        }
        Ok(Start { model: learner.model })
    }

    fn run(&self, arm: usize, seed: u64, start: &Start) -> Result<Outcome> {
        let ways = self.ways();
        let Some(way) = ways.get(arm) else {
            return Err(Error::index(format!("arm {arm} of {}", ways.len())));
        };
        let mut learner = self.learner(seed)?;
        learner.model = start.model.copy()?;
        let nan = f64::NAN;
        let settings = self.settings(seed);
        let mut optimizer =
            AdamW::new(settings.diffusion.optimizer.clone(), learner.model.parameters())?;
        let Some(noising) = way.noising else {
            for step in self.first..self.first + self.steps {
                let mut gradients = Gradients::new();
                learner.next_token(step, &mut gradients)?;
                learner.update(&mut optimizer, &gradients, 1.0)?;
            }
            let found = infilling::by_next_token(&learner, self.rows)?;
            let tried = infilling::by_trying_all(&learner, self.rows)?;
            let metrics =
                vec![nan, nan, nan, nan, nan, nan, nan, nan, found.right, found.loss, tried];
            return Ok(Outcome { metrics, curves: Vec::new(), unscored: 0 });
        };
        let (drawn, error) = self.statistics(&noising, seed)?;
        let (mut trace, mut mean) = (nan, nan);
        if !way.from_scratch {
            let spread = gradient_covariance::measure(&learner, &noising, 16, self.draws)?;
            (trace, mean) = (spread.trace, spread.mean_square);
        }
        let (first, steps) = match way.from_scratch {
            true => (0, self.first + self.steps),
            false => (self.first, self.steps),
        };
        let (mut norms, mut bounds) = (Vec::new(), Vec::new());
        let (mut largest, mut wasted) = (0f64, 0f64);
        let every = (steps / 8).max(1);
        for place in 0..steps {
            let mut gradients = Gradients::new();
            let done = learner.denoise(&noising, first + place, place, &mut gradients)?;
            let update = learner.update(&mut optimizer, &gradients, 1.0)?;
            let norm = f64::from(update.grad_norm);
            wasted += f64::from(done.wasted) / steps as f64;
            if place < self.switch {
                largest = largest.max(norm);
                norms.push((place as f64, norm));
            }
            if (place + 1) % every == 0 && place + 1 < steps {
                bounds.push(((place + 1) as f64, learner.held_out_bound(self.rows / 3 + 1, 1)?));
            }
        }
        let bound = learner.held_out_bound(self.rows, 2)?;
        bounds.push((steps as f64, bound));
        let found = infilling::by_diffusion(&learner, self.rows)?;
        let metrics = vec![
            drawn.mean,
            drawn.variance,
            error,
            wasted,
            trace,
            mean,
            if way.from_scratch { nan } else { largest },
            bound,
            found.right,
            found.loss,
            found.right,
        ];
        let curves = vec![
            Curve { name: "grad_norm", points: norms },
            Curve { name: "bound", points: bounds },
        ];
        Ok(Outcome { metrics, curves, unscored: 0 })
    }
}
