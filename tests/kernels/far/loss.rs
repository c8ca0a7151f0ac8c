//! The policy loss: its sequences, its tokens and their records.

use super::args::*;
use super::{Cases, FAR, Run, WALKED, blocks, zeroed};
use gradstone::dtype::DType;
use std::ptr::{null, null_mut};

pub fn cases(cases: &mut Cases) {
    sequences(cases);
    for per_token in [0, 1] {
        for plain in [false, true] {
            tokens(cases, per_token, plain);
        }
    }
    metrics(cases);
}

const F32: DType = DType::F32;
/// Tokens of a record.
const BLOCK: i64 = POLICY_LOSS_BLOCK as i64;

/// An objective that reads everything a token has.
fn objective() -> ObjectiveRule {
    let infinite = f32::INFINITY;
    ObjectiveRule {
        of_loss: AggregationRule { mode: AGGREGATION_SEQUENCE_MEAN_TOKEN_MEAN, ..zeroed() },
        of_kl: AggregationRule { mode: AGGREGATION_TOKEN_MEAN, ..zeroed() },
        of_entropy: AggregationRule { mode: AGGREGATION_TOKEN_MEAN, ..zeroed() },
        clip: ClipBounds {
            high_positive: 1.2,
            low_negative: 0.8,
            high_negative: 3.0,
            report_high: 1.2,
            report_low: 0.8,
        },
        replay: ReplayRule {
            shape: REPLAY_PLAIN,
            probability: 0,
            number: 1.0,
            gain: 1.0,
            least: -infinite,
            most: infinite,
        },
        surrogate: SURROGATE_CLIP,
        ratio_shape: RATIO_PLAIN,
        log_ratio_limit: 20.0,
        sequence_limit: 10.0,
        weighting: WEIGHTING_TOKEN,
        pick: PICK_DROP,
        has_off_policy_threshold: 1,
        off_policy_threshold: 5.0,
        kl_coefficient: 0.1,
        kl_argument_limit: 20.0,
        kl_value_limit: 10.0,
        kl: KL_K3,
        entropy_coefficient: 0.01,
        ..zeroed()
    }
}

fn mask(run: &Run, count: i64, of: i64) -> *const u8 {
    let mask: Vec<u8> = (0..count).map(|i| u8::from(i % 3 != of)).collect();
    run.input(run.at, &mask)
}

/// What both passes over tokens read; sequences and outputs are the case's.
fn args(run: &Run, count: i64) -> PolicyLossArgs {
    let floats = || run.floats(F32, run.at, count);
    PolicyLossArgs {
        logprob: floats(),
        old_logprob: floats(),
        mask: mask(run, count, 1),
        reference: floats(),
        entropy: floats(),
        weight: floats(),
        sampler: floats(),
        off_policy: mask(run, count, 0),
        selected: mask(run, count, 2),
        status: run.quiet(0, &[0u32]),
        tokens: run.at + count,
        total_tokens: -1.0,
        total_sequences: -1.0,
        scale: 1.0,
        objective: objective(),
        ..zeroed()
    }
}

/// A clip of the ratio and nothing else, which has a loop of its own.
fn made_plain(mut args: PolicyLossArgs) -> PolicyLossArgs {
    args.objective.has_off_policy_threshold = 0;
    args.objective.pick = PICK_NOTHING;
    (args.weight, args.selected, args.off_policy) = (null(), null(), null());
    args.replay_sums = null_mut();
    args
}

fn sequences(cases: &mut Cases) {
    // The last asks of a sequence how many of its tokens are live, and nothing else.
    for (surrogate, plain) in
        [(SURROGATE_CLIP, false), (SURROGATE_GMPO, false), (SURROGATE_CLIP, true)]
    {
        cases.check("policy_loss_sequences", FAR, |run| {
            let ends = [0i64, 40, 40, 73, 80, 144, 147, 148, 168, 220, 222];
            let count = ends.len() as i64 - 1;
            let none = SequenceFactors { ratio: -1.0, ..zeroed() };
            let mut args = PolicyLossArgs {
                advantage: run.floats(F32, run.at, count),
                offsets: run.input(run.at, &ends.map(|end| run.at + end)),
                factors: run.output(run.at, &[none; 10]),
                counts: run.output(0, &[0u64; 2]),
                sequences: run.at + count,
                ..args(run, 222)
            };
            args.objective.surrogate = surrogate;
            args.objective.of_sequence = u32::from(surrogate == SURROGATE_CLIP && !plain);
            if plain {
                args = made_plain(args);
            }
            run.launch([blocks(args.sequences, 8), 1, 1], 256, 0, &args);
        });
    }
}

/// Sequences are found by a search: those before have no token and begin at 0, which is what a reservation holds.
fn tokens(cases: &mut Cases, advantage_per_token: u32, plain: bool) {
    let count = BLOCK + 600;
    cases.check("policy_loss_tokens", FAR, |run| {
        let offsets = [0, 700, 1500, 1500, count].map(|end| run.at + end);
        let factors = [1u32, 0, 1, 0].map(|stopped| SequenceFactors {
            ratio: 1.1,
            weight: 0.9,
            stopped,
            live: 300 + stopped,
            ..zeroed()
        });
        let none = PolicyLossSums { policy_loss: -1.0, ..zeroed() };
        let replayed = [ReplaySums { tokens: 99, ..zeroed() }; 2];
        let args = PolicyLossArgs {
            advantage: run.floats(F32, run.at, if advantage_per_token == 1 { count } else { 4 }),
            offsets: run.sparse(&[(run.at, &offsets)]),
            dlogprob: run.blank(F32, run.at, count),
            dentropy: run.blank(F32, run.at, count),
            factors: run.given(run.at, &factors),
            counts: run.given(0, &[1700u64, 4]),
            sums: run.output(run.at / BLOCK, &[none; 2]),
            replay_sums: if plain { null_mut() } else { run.output(run.at / BLOCK, &replayed) },
            sequences: run.at + 4,
            advantage_per_token,
            ..args(run, count)
        };
        let args = if plain { made_plain(args) } else { args };
        run.launch([blocks(args.tokens, BLOCK), 1, 1], 256, 0, &args);
    });
}

/// One block adds the records of all tokens. Those before are zeros, which are read.
fn metrics(cases: &mut Cases) {
    cases.check("policy_loss_metrics", WALKED, |run| {
        let sums = PolicyLossSums { policy_loss: 3.0, ratio: 5.0, clipped: 7, ..zeroed() };
        let replay = ReplaySums { surrogate: 2.0, tokens: 4, ..zeroed() };
        let place = run.at / BLOCK;
        let none = PolicyLossMetrics { loss: -1.0, ..zeroed() };
        let args = PolicyLossArgs {
            counts: run.given(0, &[1700u64, 4]),
            sums: run.sparse::<_, PolicyLossSums>(&[(place, &[sums, sums])]).cast_mut(),
            replay_sums: run.sparse::<_, ReplaySums>(&[(place, &[replay, replay])]).cast_mut(),
            metrics: run.output(0, &[none]),
            tokens: run.at + BLOCK + 600,
            objective: objective(),
            ..zeroed()
        };
        run.launch([1, 1, 1], 256, 0, &args);
    });
}
