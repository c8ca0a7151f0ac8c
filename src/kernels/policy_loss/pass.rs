//! The two passes over the tokens: counting the live ones of each sequence, then losses, gradients and sums.

use super::kl::{self, Estimator, K3Limits};
use super::metrics::Sums;
use super::objective::{Bounds, Objective};
use super::{Advantages, Gradients, Inputs};
use crate::device::cpu::math::exp;
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use rayon::prelude::*;

/// Tokens whose sums make one record.
pub(super) const BLOCK: usize = 4096;
/// Tokens computed side by side.
const LANES: usize = 16;

/// Live tokens of each sequence.
pub(super) fn count_live(mask: &[u8], offsets: &[usize]) -> Vec<u32> {
    let count = |bounds: &[usize]| count_nonzero(&mask[bounds[0]..bounds[1]]);
    let sequences = offsets.len() - 1;
    let mean_bytes = mask.len() / sequences.max(1) + 1;
    pool::install(|| {
        offsets.par_windows(2).with_min_len(pool::rows_per_task(mean_bytes)).map(count).collect()
    })
}

simd_fn! {
    fn count_nonzero(mask: &[u8]) -> u32 {
        mask.chunks(128)
            .map(|chunk| u32::from(chunk.iter().map(|byte| u8::from(*byte != 0)).sum::<u8>()))
            .sum()
    }
}

/// What is the same for every token.
#[derive(Clone, Copy)]
struct Rule {
    bounds: Bounds,
    log_ratio_limit: f32,
    kl: Option<KlRule>,
    entropy_coefficient: f32,
}

#[derive(Clone, Copy)]
struct KlRule {
    estimator: Estimator,
    limits: K3Limits,
    coefficient: f32,
    bias_correction: bool,
}

/// What the sequence pass found.
pub(super) struct Sequences<'a> {
    pub offsets: &'a [usize],
    /// The weight of each sequence's losses.
    pub coefficients: &'a [f32],
    /// The weight of each sequence's entropies.
    pub entropy_coefficients: &'a [f32],
}

/// One run of tokens of one sequence inside one block.
struct Run<'a> {
    coefficient: f32,
    entropy_coefficient: f32,
    logprob: &'a [f32],
    old_logprob: &'a [f32],
    mask: &'a [u8],
    advantage: Lane<'a>,
    reference: Option<&'a [f32]>,
    entropy: Option<&'a [f32]>,
    weight: Option<&'a [f32]>,
    dlogprob: &'a mut [f32],
    dentropy: Option<&'a mut [f32]>,
}

/// A value a token, or one for all.
#[derive(Clone, Copy)]
enum Lane<'a> {
    Each(&'a [f32]),
    Same(f32),
}

/// Losses, gradients and sums of all tokens.
pub(super) fn tokens(
    objective: &Objective,
    inputs: &Inputs<'_>,
    gradients: Gradients<'_>,
    sequences: &Sequences<'_>,
) -> Sums {
    let rule = Rule {
        bounds: Bounds::of(&objective.surrogate),
        log_ratio_limit: objective.log_ratio.limit(),
        kl: objective.kl.as_ref().map(|kl| KlRule {
            estimator: kl.estimator,
            limits: kl.clamp.limits(),
            coefficient: kl.coefficient,
            bias_correction: kl.bias_correction,
        }),
        entropy_coefficient: objective.entropy_coefficient,
    };
    let block = |(index, dlogprob, dentropy): (usize, &mut [f32], Option<&mut [f32]>)| {
        one_block(&rule, inputs, sequences, index * BLOCK, dlogprob, dentropy)
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
                coefficient: sequences.coefficients[sequence],
                entropy_coefficient: sequences.entropy_coefficients[sequence],
                logprob: &inputs.logprob[range.clone()],
                old_logprob: &inputs.old_logprob[range.clone()],
                mask: &inputs.mask[range.clone()],
                advantage: match inputs.advantage {
                    Advantages::PerToken(values) => Lane::Each(&values[range.clone()]),
                    Advantages::PerSequence(values) => Lane::Same(values[sequence]),
                },
                reference: inputs.reference_logprob.map(|values| &values[range.clone()]),
                entropy: inputs.entropy.map(|values| &values[range.clone()]),
                weight: inputs.weight.map(|values| &values[range.clone()]),
                dlogprob: head,
                dentropy: entropy_head,
            };
            one_run(rule, &mut run, &mut sums);
            at = stop;
        }
        sequence += 1;
    }
    sums
}

/// Sums a lane each, of one run.
struct LaneSums {
    policy: [f32; LANES],
    kl: [f32; LANES],
    entropy: [f32; LANES],
    log_ratio: [f32; LANES],
    ratio: [f32; LANES],
    ratio_max: [f32; LANES],
    high: [u32; LANES],
    low: [u32; LANES],
    dual: [u32; LANES],
}

simd_fn! {
    fn one_run(rule: &Rule, run: &mut Run<'_>, sums: &mut Sums) {
        let mut lanes = LaneSums {
            policy: [0.0; LANES],
            kl: [0.0; LANES],
            entropy: [0.0; LANES],
            log_ratio: [0.0; LANES],
            ratio: [0.0; LANES],
            ratio_max: [0.0; LANES],
            high: [0; LANES],
            low: [0; LANES],
            dual: [0; LANES],
        };
        let length = run.logprob.len();
        let mut at = 0;
        while at < length {
            chunk::<FMA>(rule, run, at, (length - at).min(LANES), &mut lanes);
            at += LANES;
        }
        let sum = |values: &[f32; LANES]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
        let count = |values: &[u32; LANES]| values.iter().map(|v| u64::from(*v)).sum::<u64>();
        let (policy, kl, entropy) = (sum(&lanes.policy), sum(&lanes.kl), sum(&lanes.entropy));
        let mut ratio_max = 0f32;
        for lane in lanes.ratio_max {
            ratio_max = if lane > ratio_max || lane.is_nan() { lane } else { ratio_max };
        }
        // A sequence without weight adds nothing, whatever its tokens hold.
        let weigh = |by: f32, value: f64| if by == 0.0 { 0.0 } else { f64::from(by) * value };
        sums.add(&Sums {
            policy_loss: weigh(run.coefficient, policy),
            kl_loss: weigh(run.coefficient, kl),
            entropy_loss: weigh(run.entropy_coefficient, entropy),
            clipped_high: count(&lanes.high),
            clipped_low: count(&lanes.low),
            clipped_dual: count(&lanes.dual),
            log_ratio: sum(&lanes.log_ratio),
            kl,
            ratio: sum(&lanes.ratio),
            ratio_max: f64::from(ratio_max),
            entropy,
        });
    }
}

/// `LANES` values from `at` on; behind `count` of them zeros, which stand under a zero mask.
#[inline(always)]
fn load<T: Copy + Default>(values: &[T], at: usize, count: usize) -> [T; LANES] {
    if count == LANES
        && let Some(full) = values[at..].first_chunk::<LANES>()
    {
        return *full;
    }
    let mut lanes = [T::default(); LANES];
    lanes[..count].copy_from_slice(&values[at..at + count]);
    lanes
}

#[inline(always)]
fn store(values: &mut [f32], at: usize, count: usize, lanes: &[f32; LANES]) {
    if count == LANES
        && let Some(full) = values[at..].first_chunk_mut::<LANES>()
    {
        *full = *lanes;
        return;
    }
    values[at..at + count].copy_from_slice(&lanes[..count]);
}

#[inline(always)]
fn chunk<const FMA: bool>(
    rule: &Rule,
    run: &mut Run<'_>,
    at: usize,
    count: usize,
    lanes: &mut LaneSums,
) {
    let bounds = rule.bounds;
    let logprob = load(run.logprob, at, count);
    let old = load(run.old_logprob, at, count);
    let mask = load(run.mask, at, count);
    let advantage = match run.advantage {
        Lane::Each(values) => load(values, at, count),
        Lane::Same(value) => [value; LANES],
    };
    let mut live = [false; LANES];
    let mut ratio = [0f32; LANES];
    let mut inside = [false; LANES];
    for i in 0..LANES {
        live[i] = mask[i] != 0;
        let d = if live[i] { logprob[i] - old[i] } else { 0.0 };
        let clamped = if d > rule.log_ratio_limit { rule.log_ratio_limit } else { d };
        let clamped = if clamped < -rule.log_ratio_limit { -rule.log_ratio_limit } else { clamped };
        // NaN passes, so that it reaches the gradient.
        inside[i] = clamped == d || d.is_nan();
        ratio[i] = exp::<FMA>(clamped);
        lanes.log_ratio[i] += clamped;
    }
    let mut gradient = [0f32; LANES];
    let mut value = [0f32; LANES];
    for i in 0..LANES {
        let (w, a) = (ratio[i], if live[i] { advantage[i] } else { 0.0 });
        let negative = a < 0.0;
        let low = if negative { bounds.low_negative } else { f32::NEG_INFINITY };
        let high = if negative { bounds.high_negative } else { bounds.high_positive };
        let s = if w < low { low } else { w };
        let s = if s > high { high } else { s };
        let passes = (s == w || w.is_nan()) && inside[i];
        value[i] = -a * s;
        gradient[i] = if passes { -a * w } else { 0.0 };
        let counted = |hit: bool| u32::from(hit && live[i]);
        lanes.high[i] += counted(a > 0.0 && w > bounds.report_high);
        lanes.low[i] += counted(negative && w < bounds.report_low);
        lanes.dual[i] += counted(negative && w > bounds.high_negative);
        let w = if live[i] { w } else { 0.0 };
        lanes.ratio[i] += w;
        lanes.ratio_max[i] =
            if w > lanes.ratio_max[i] || w.is_nan() { w } else { lanes.ratio_max[i] };
    }
    if let Some(weight) = run.weight {
        let weight = load(weight, at, count);
        for i in 0..LANES {
            let weight = if live[i] { weight[i] } else { 0.0 };
            value[i] *= weight;
            gradient[i] *= weight;
        }
    }
    for i in 0..LANES {
        lanes.policy[i] += if live[i] { value[i] } else { 0.0 };
    }
    if let (Some(kl), Some(reference)) = (rule.kl, run.reference) {
        let reference = load(reference, at, count);
        for i in 0..LANES {
            let d = if live[i] { logprob[i] - reference[i] } else { 0.0 };
            let estimate = kl::estimate::<FMA>(kl.estimator, kl.limits, d);
            let (mut value, mut slope) = (estimate.value, estimate.slope);
            if kl.bias_correction {
                value *= ratio[i];
                slope = if inside[i] { estimate.value_and_slope } else { slope } * ratio[i];
            }
            lanes.kl[i] += if live[i] { value } else { 0.0 };
            gradient[i] += kl.coefficient * slope;
        }
    }
    for i in 0..LANES {
        gradient[i] = if live[i] { run.coefficient * gradient[i] } else { 0.0 };
    }
    store(run.dlogprob, at, count, &gradient);
    if let Some(entropy) = run.entropy {
        let entropy = load(entropy, at, count);
        for i in 0..LANES {
            lanes.entropy[i] += if live[i] { entropy[i] } else { 0.0 };
        }
    }
    if let Some(dentropy) = run.dentropy.as_deref_mut() {
        let slope = -(run.entropy_coefficient * rule.entropy_coefficient) + 0.0;
        let mut lanes = [0f32; LANES];
        for i in 0..LANES {
            lanes[i] = if live[i] { slope } else { 0.0 };
        }
        store(dentropy, at, count, &lanes);
    }
}
