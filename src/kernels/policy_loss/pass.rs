//! The token pass: blocks of tokens, cut into runs of one sequence. The arithmetic of a run is in `tile`.

use super::formula::{Bounds, Cispo, Clip, Cpgd, Gmpo, Reinforce, Reshaped, Sapo, Value};
use super::kl::{Estimator, K3Limits};
use super::metrics::Sums;
use super::objective::Objective;
use super::replay::Replay;
use super::sequence::{Factors, Shared};
use super::surrogate::{Drift, ImportanceLevel, RatioShape, Surrogate};
use super::tile::{gradients_of_run, one_run};
use super::{Advantages, Gradients, Inputs};
use crate::device::cpu::pool;
use crate::kernels::token_selection::Selection;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose sums make one record.
pub(super) const BLOCK: usize = 4096;

/// What is the same for every token.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub surrogate: SurrogateRule,
    /// The ratio is the sequence's.
    pub of_sequence: bool,
    pub log_ratio_limit: f32,
    pub weighting: Weighting,
    pub pick: Pick,
    pub replay: Option<Replay>,
    pub drift: Option<Drift>,
    pub kl: Option<KlRule>,
    pub entropy_coefficient: f32,
}

/// A surrogate with its numbers ready.
#[derive(Clone, Copy)]
pub(super) enum SurrogateRule {
    Clip(Clip),
    Reshaped(Reshaped),
    Cispo(Cispo),
    Gmpo(Gmpo),
    Sapo(Sapo),
    Reinforce(Reinforce),
    Cpgd(Cpgd),
    /// φ is the sequence's.
    Vespo,
    /// No surrogate: a value function's error.
    Value(Value),
}

impl SurrogateRule {
    fn of(objective: &Objective) -> SurrogateRule {
        let bounds = Bounds::of(&objective.surrogate);
        match &objective.surrogate {
            Surrogate::PpoClip { .. } | Surrogate::Ratio {} => match objective.ratio_shape {
                RatioShape::Plain => SurrogateRule::Clip(Clip(bounds)),
                shape => SurrogateRule::Reshaped(Reshaped { bounds, shape }),
            },
            Surrogate::Cispo { least, most } => {
                SurrogateRule::Cispo(Cispo { least: least.unwrap_or(0.0), most: *most })
            }
            Surrogate::Gmpo { clip_low, clip_high } => {
                SurrogateRule::Gmpo(Gmpo { low: -clip_low, high: *clip_high })
            }
            Surrogate::Sapo { temperature_positive, temperature_negative } => {
                let (positive, negative) = (*temperature_positive, *temperature_negative);
                SurrogateRule::Sapo(Sapo { positive, negative })
            }
            Surrogate::Reinforce {} => SurrogateRule::Reinforce(Reinforce),
            Surrogate::Cpgd { clip_low, clip_high } => {
                let (low, high) = ((-clip_low).ln_1p(), clip_high.ln_1p());
                SurrogateRule::Cpgd(Cpgd { low, high })
            }
            Surrogate::Vespo { .. } => SurrogateRule::Vespo,
        }
    }
}

/// How importance weights enter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weighting {
    /// Each token's surrogate is multiplied by its weight.
    Token,
    /// So is its value, but the gradient goes through the sequence's ratio: it has the mean of them all.
    Mean,
    /// The sequence's surrogate is multiplied by their geometric mean.
    Geometric,
    /// They are in the sequence's ratio already.
    Consumed,
}

/// What happens to tokens that a selection picked.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pick {
    Nothing,
    /// Picked tokens lose their surrogate.
    Drop,
    /// The others do.
    Keep,
    /// Picked tokens pay this much for each unit of |log ratio|.
    Penalise(f32),
}

pub(super) fn weighting_of(objective: &Objective) -> Weighting {
    match (&objective.surrogate, objective.importance_level) {
        (Surrogate::Gmpo { .. }, _) => Weighting::Geometric,
        (Surrogate::Vespo { .. }, _) => Weighting::Consumed,
        // The gradient of CISPO's log-prob is its token's.
        (Surrogate::Cispo { .. }, _) => Weighting::Token,
        (_, ImportanceLevel::Sequence) => Weighting::Mean,
        _ => Weighting::Token,
    }
}

pub(super) fn pick_of(objective: &Objective) -> Pick {
    match objective.selection {
        None => Pick::Nothing,
        Some(Selection::ClipCov { .. }) => Pick::Drop,
        Some(Selection::TopEntropy { .. }) => Pick::Keep,
        Some(Selection::KlCov { coefficient, .. }) => Pick::Penalise(coefficient),
    }
}

#[derive(Clone, Copy)]
pub(super) struct KlRule {
    pub estimator: Estimator,
    pub limits: K3Limits,
    pub coefficient: f32,
    pub bias_correction: bool,
    pub straight_through: bool,
}

impl Rule {
    pub fn of(objective: &Objective) -> Rule {
        let of_sequence = objective.importance_level != ImportanceLevel::Token;
        Rule {
            surrogate: SurrogateRule::of(objective),
            of_sequence,
            // A sequence's ratio is bounded as a whole.
            log_ratio_limit: if of_sequence { f32::INFINITY } else { objective.log_ratio.limit() },
            weighting: weighting_of(objective),
            pick: pick_of(objective),
            replay: objective.replay,
            drift: objective.drift,
            kl: objective.kl.as_ref().map(|kl| KlRule {
                estimator: kl.estimator,
                limits: kl.clamp.limits(),
                coefficient: kl.coefficient,
                bias_correction: kl.bias_correction,
                straight_through: kl.straight_through,
            }),
            entropy_coefficient: objective.entropy_coefficient,
        }
    }
}

/// What the sequence pass found.
pub(super) struct Sequences<'a> {
    pub offsets: &'a [usize],
    /// The weight of each sequence's losses.
    pub coefficients: &'a [f32],
    /// The weight of each sequence's divergences.
    pub kl_coefficients: &'a [f32],
    /// The weight of each sequence's entropies.
    pub entropy_coefficients: &'a [f32],
    /// What its tokens share; `None`: nothing.
    pub shared: Option<Shared<'a>>,
}

/// One run of tokens of one sequence inside one block.
pub(super) struct Run<'a> {
    pub coefficient: f32,
    pub kl_coefficient: f32,
    pub entropy_coefficient: f32,
    pub factors: Factors,
    pub logprob: &'a [f32],
    pub old_logprob: &'a [f32],
    pub mask: &'a [u8],
    pub advantage: Lane<'a>,
    pub off_policy: Option<&'a [u8]>,
    pub selected: Option<&'a [u8]>,
    pub reference: Option<&'a [f32]>,
    pub entropy: Option<&'a [f32]>,
    pub weight: Option<&'a [f32]>,
    pub dlogprob: &'a mut [f32],
    pub dentropy: Option<&'a mut [f32]>,
}

/// A value a token, or one for all.
#[derive(Clone, Copy)]
pub(super) enum Lane<'a> {
    Each(&'a [f32]),
    Same(f32),
}

/// Losses, gradients and sums of all tokens.
pub(super) fn tokens(
    rule: &Rule,
    inputs: &Inputs<'_>,
    gradients: Gradients<'_>,
    sequences: &Sequences<'_>,
) -> Sums {
    let block = |(index, dlogprob, dentropy): (usize, &mut [f32], Option<&mut [f32]>)| {
        one_block(rule, inputs, sequences, index * BLOCK, dlogprob, dentropy)
    };
    let blocks = gradients.logprob.par_chunks_mut(BLOCK).enumerate();
    let min_blocks = pool::rows_per_task(BLOCK * 16);
    let records: Vec<Sums> = pool::install(|| match gradients.entropy {
        Some(dentropy) => blocks
            .zip(dentropy.par_chunks_mut(BLOCK))
            .with_min_len(min_blocks)
            .map(|((index, dlogprob), dentropy)| block((index, dlogprob, Some(dentropy))))
            .collect(),
        None => blocks
            .with_min_len(min_blocks)
            .map(|(index, dlogprob)| block((index, dlogprob, None)))
            .collect(),
    });
    let mut total = Sums::default();
    for record in &records {
        total.add(record);
    }
    total
}

/// The tokens from `start` on, as many as `dlogprob` holds, cut where sequences end.
fn one_block(
    rule: &Rule,
    inputs: &Inputs<'_>,
    sequences: &Sequences<'_>,
    start: usize,
    mut dlogprob: &mut [f32],
    mut dentropy: Option<&mut [f32]>,
) -> Sums {
    let end = start + dlogprob.len();
    let offsets = sequences.offsets;
    let mut sums = Sums::default();
    let mut sequence = offsets.partition_point(|offset| *offset <= start) - 1;
    let mut at = start;
    while at < end {
        let stop = offsets[sequence + 1].min(end);
        if stop > at {
            let range = at..stop;
            let whole = offsets[sequence]..offsets[sequence + 1];
            let factors = match &sequences.shared {
                Some(shared) => shared.of(sequence, whole, inputs),
                None => Factors::NEUTRAL,
            };
            let (head, tail) = std::mem::take(&mut dlogprob).split_at_mut(range.len());
            dlogprob = tail;
            let (entropy_head, entropy_tail) = match dentropy.take() {
                Some(all) => {
                    let (head, tail) = all.split_at_mut(range.len());
                    (Some(head), Some(tail))
                }
                None => (None, None),
            };
            dentropy = entropy_tail;
            let mut run = Run {
                factors,
                dlogprob: head,
                dentropy: entropy_head,
                ..run_of(inputs, sequences, sequence, range)
            };
            one_run(rule, &mut run, &mut sums);
            at = stop;
        }
        sequence += 1;
    }
    sums
}

/// The loss's derivatives by the log-prob and by the entropy of one token, whose log-prob and old log-prob are not taken from
/// the inputs: nothing is shared in a sequence.
pub(super) fn one_token(
    rule: &Rule,
    inputs: &Inputs<'_>,
    sequences: &Sequences<'_>,
    token: usize,
    [logprob, old_logprob]: [f32; 2],
) -> (f32, f32) {
    let sequence = sequences.offsets.partition_point(|offset| *offset <= token) - 1;
    let (mut dlogprob, mut dentropy) = ([0.0], [0.0]);
    let mut run = Run {
        logprob: &[logprob],
        old_logprob: &[old_logprob],
        entropy: None,
        dlogprob: &mut dlogprob,
        dentropy: Some(&mut dentropy),
        ..run_of(inputs, sequences, sequence, token..token + 1)
    };
    gradients_of_run(rule, &mut run);
    (dlogprob[0], dentropy[0])
}

/// The tokens `range`, all of one sequence, without a place for their gradients.
fn run_of<'a>(
    inputs: &Inputs<'a>,
    sequences: &Sequences<'_>,
    sequence: usize,
    range: Range<usize>,
) -> Run<'a> {
    Run {
        coefficient: sequences.coefficients[sequence],
        kl_coefficient: sequences.kl_coefficients[sequence],
        entropy_coefficient: sequences.entropy_coefficients[sequence],
        factors: Factors::NEUTRAL,
        logprob: &inputs.logprob[range.clone()],
        old_logprob: &inputs.old_logprob[range.clone()],
        mask: &inputs.mask[range.clone()],
        advantage: match inputs.advantage {
            Advantages::PerToken(values) => Lane::Each(&values[range.clone()]),
            Advantages::PerSequence(values) => Lane::Same(values[sequence]),
        },
        off_policy: inputs.off_policy.map(|values| &values[range.clone()]),
        selected: inputs.selected.map(|values| &values[range.clone()]),
        reference: inputs.reference_logprob.map(|values| &values[range.clone()]),
        entropy: inputs.entropy.map(|values| &values[range.clone()]),
        weight: inputs.weight.map(|values| &values[range]),
        dlogprob: &mut [],
        dentropy: None,
    }
}
