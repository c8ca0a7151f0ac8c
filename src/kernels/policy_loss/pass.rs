//! The token pass: blocks of tokens, cut into runs of one sequence. The arithmetic of a run is in `walk`.

use super::metrics::Sums;
use super::run::{Lane, Run, Sequences};
use super::sequence::Factors;
use super::steps::{BLOCK, Rule};
use super::walk::{gradients_of_run, one_run};
use super::{Advantages, Gradients, Inputs};
use crate::device::cpu::pool;
use rayon::prelude::*;
use std::ops::Range;

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
