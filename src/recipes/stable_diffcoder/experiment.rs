//! How the arms of Stable-DiffCoder's reproduction run: ways to go on from a next-token model.

use super::settings::stable_diffcoder;
use super::statistics::{self, Statistics};
use super::{gradient_covariance, infilling};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::block_noise::{Draw, Noise, Rate};
use crate::models::Decoder;
use crate::optim::AdamW;
use crate::recipes::reproduction::{ArmSettings, Curve, Experiment, Outcome};
use crate::tensor::Gradients;
use crate::train::diffusion::{DiffusionSettings, Learner, Noising, Schedule};
use serde::{Deserialize, Serialize};

/// The reproduction of Stable-DiffCoder.
pub struct StableDiffCoder;

/// What only the reproduction reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Measured {
    /// The second phase fills masked blocks; otherwise next-token prediction goes on.
    pub denoises: bool,
    /// There is no first phase; the second one has the steps of both.
    pub from_scratch: bool,
    /// Steps of the second phase that count as the switch.
    pub switch: u64,
    /// Held-out rows that results are measured on.
    pub rows: usize,
    /// Draws of masks for the covariance of the gradient.
    pub draws: u64,
    /// Sequences of 16384 blocks that the statistics of the noise are counted on.
    pub sequences: u64,
}

impl Default for Measured {
    fn default() -> Measured {
        Measured {
            denoises: true,
            from_scratch: false,
            switch: 100,
            rows: 96,
            draws: 48,
            sequences: 3000,
        }
    }
}

/// What arms go on from.
pub struct Start {
    model: Decoder,
}

/// The model and the text of a seed.
fn learner(settings: &DiffusionSettings, seed: u64) -> Result<Learner> {
    Learner::new(&DiffusionSettings { seed, ..settings.clone() }, &Device::Cpu)
}

/// Statistics of the schedule for the draws of a seed, and their largest relative difference to its integrals.
fn statistics(
    noising: &Noising,
    block: usize,
    sequences: u64,
    seed: u64,
) -> Result<(Statistics, f64)> {
    let (rate, forced) = match noising.schedule {
        Schedule::Clipped { forced } => (Rate::Clip, forced),
        Schedule::Linear { low } => (Rate::Range { low, high: 1.0 }, false),
        other => return Err(Error::unsupported(format!("statistics of {other:?}"))),
    };
    let draw = Draw::Independent { forced };
    let noise = Noise { rate, draw, weight: noising.weight, ..Noise::clipped(block, 1, 2, seed) };
    let got = statistics::measured(&noise, sequences)?;
    let want = statistics::expected(rate, statistics::forces(draw), noising.weight, block);
    Ok((got, got.error(&want)))
}

/// A model with the same weights that can be trained.
fn trainable(model: &Decoder) -> Result<Decoder> {
    let mut copy = model.copy()?;
    copy.parameters_mut().freeze(false, |_| true);
    Ok(copy)
}

impl Experiment for StableDiffCoder {
    const PAPER: &'static str = include_str!("paper.toml");
    const FILE: &'static str = "src/recipes/stable_diffcoder/paper.toml";
    const METRICS: &'static [&'static str] = &[
        "E[S]/B",
        "Var[S]",
        "statistics",
        "wasted",
        "tr Cov",
        "|mean|²",
        "largest |g|",
        "bound",
        "infill",
        "infill loss",
        "tried all",
    ];
    const CURVES: &'static [&'static str] = &["grad_norm", "bound"];

    type Settings = DiffusionSettings;
    type Own = Measured;
    type Start = Start;

    fn defaults() -> DiffusionSettings {
        stable_diffcoder()
    }

    fn check(settings: &ArmSettings<DiffusionSettings, Measured>) -> Result<()> {
        settings.recipe.check()?;
        match settings.own {
            Measured { rows: 0, .. } => Err(Error::invalid("reproduction.rows is 0")),
            Measured { draws: 0 | 1, .. } => Err(Error::invalid("reproduction.draws is below 2")),
            _ => Ok(()),
        }
    }

    fn prepare(
        starts: &[ArmSettings<DiffusionSettings, Measured>],
        seed: u64,
    ) -> Result<Vec<Start>> {
        starts.iter().map(|settings| prepared(settings, seed)).collect()
    }

    fn run(
        settings: &ArmSettings<DiffusionSettings, Measured>,
        seed: u64,
        start: &Start,
    ) -> Result<Outcome> {
        let ArmSettings { recipe, own } = settings;
        let (first, steps, rows) = (recipe.next_token.steps, recipe.diffusion.steps, own.rows);
        let mut learner = learner(recipe, seed)?;
        learner.model = trainable(&start.model)?;
        let nan = f64::NAN;
        let mut optimizer =
            AdamW::new(recipe.diffusion.optimizer.clone(), learner.model.parameters())?;
        if !own.denoises {
            for step in first..first + steps {
                let mut gradients = Gradients::new();
                learner.next_token(step, &mut gradients)?;
                learner.update(&mut optimizer, &gradients, 1.0)?;
            }
            let found = infilling::by_next_token(&learner, rows)?;
            let tried = infilling::by_trying_all(&learner, rows)?;
            let metrics =
                vec![nan, nan, nan, nan, nan, nan, nan, nan, found.right, found.loss, tried];
            return Ok(Outcome { metrics, curves: Vec::new(), unscored: 0 });
        }
        let noising = &recipe.noising;
        let (drawn, error) = statistics(noising, recipe.block, own.sequences, seed)?;
        let (mut trace, mut mean) = (nan, nan);
        if !own.from_scratch {
            let spread = gradient_covariance::measure(&learner, noising, 16, own.draws)?;
            (trace, mean) = (spread.trace, spread.mean_square);
        }
        let (first, steps) = match own.from_scratch {
            true => (0, first + steps),
            false => (first, steps),
        };
        let (mut norms, mut bounds) = (Vec::new(), Vec::new());
        let (mut largest, mut wasted) = (0f64, 0f64);
        let every = (steps / 8).max(1);
        for place in 0..steps {
            let mut gradients = Gradients::new();
            let done = learner.denoise(noising, first + place, place, &mut gradients)?;
            let update = learner.update(&mut optimizer, &gradients, 1.0)?;
            let norm = f64::from(update.grad_norm);
            wasted += f64::from(done.wasted) / steps as f64;
            if place < own.switch {
                largest = largest.max(norm);
                norms.push((place as f64, norm));
            }
            if (place + 1) % every == 0 && place + 1 < steps {
                bounds.push(((place + 1) as f64, learner.held_out_bound(rows / 3 + 1, 1)?));
            }
        }
        let bound = learner.held_out_bound(rows, 2)?;
        bounds.push((steps as f64, bound));
        let found = infilling::by_diffusion(&learner, rows)?;
        let metrics = vec![
            drawn.mean,
            drawn.variance,
            error,
            wasted,
            trace,
            mean,
            if own.from_scratch { nan } else { largest },
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

fn prepared(settings: &ArmSettings<DiffusionSettings, Measured>, seed: u64) -> Result<Start> {
    let ArmSettings { recipe, own } = settings;
    let mut learner = learner(recipe, seed)?;
    if !own.from_scratch {
        let phase = &recipe.next_token;
        let mut optimizer = AdamW::new(phase.optimizer.clone(), learner.model.parameters())?;
        for step in 0..phase.steps {
            let mut gradients = Gradients::new();
            learner.next_token(step, &mut gradients)?;
            // The rate does not fall: the paper goes on from a model before its annealing.
            let factor = phase.schedule.factor(step, u64::MAX);
            learner.update(&mut optimizer, &gradients, factor)?;
        }
    }
    Ok(Start { model: learner.model })
}
