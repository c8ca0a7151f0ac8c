//! The two passes over the tokens: counting the live ones of each sequence, then blocks of them, cut into runs of one
//! sequence. The arithmetic of a run is in `tile`.

use super::kl::{Estimator, K3Limits};
use super::metrics::Sums;
use super::objective::{Bounds, Objective};
use super::tile::one_run;
use super::{Advantages, Gradients, Inputs};
use crate::device::cpu::pool;
use crate::device::cpu::simd::simd_fn;
use rayon::prelude::*;

/// Tokens whose sums make one record.
pub(super) const BLOCK: usize = 4096;

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
pub(super) struct Rule {
    pub bounds: Bounds,
    pub log_ratio_limit: f32,
    pub kl: Option<KlRule>,
    pub entropy_coefficient: f32,
}

#[derive(Clone, Copy)]
pub(super) struct KlRule {
    pub estimator: Estimator,
    pub limits: K3Limits,
    pub coefficient: f32,
    pub bias_correction: bool,
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
pub(super) struct Run<'a> {
    pub coefficient: f32,
    pub entropy_coefficient: f32,
    pub logprob: &'a [f32],
    pub old_logprob: &'a [f32],
    pub mask: &'a [u8],
    pub advantage: Lane<'a>,
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
