//! Every kind of objective, batches for them, and a run of the kernel.

use super::oracle::Batch;
use gradstone::kernels::policy_loss::{
    Advantages, Aggregation, Clamp, Drift, Gradients, ImportanceLevel, Inputs, Kl, KlEstimator,
    LogRatio, Metrics, Objective, RatioShape, Replay, ReplayRatio, ReplayShape, Rows, Surrogate,
    Totals, forward_backward,
};
use gradstone::kernels::token_selection::Selection;
use gradstone::rng::{Sequence, Stream};

pub struct Got {
    pub metrics: Metrics,
    pub dlogprob: Vec<f32>,
    pub dentropy: Vec<f32>,
}

/// One advantage a sequence is all that it takes.
pub fn wants_one_advantage(objective: &Objective) -> bool {
    objective.importance_level == ImportanceLevel::Sequence
        || matches!(objective.surrogate, Surrogate::Gmpo { .. })
}

pub fn run(objective: &Objective, batch: &Batch, totals: Totals) -> Got {
    let mut dlogprob = vec![f32::NAN; batch.logprob.len()];
    let mut dentropy = vec![f32::NAN; batch.logprob.len()];
    let first = |range: std::ops::Range<usize>| batch.advantage[range].first().copied();
    let of_sequences: Vec<f32> =
        batch.sequences().into_iter().map(|range| first(range).unwrap_or(f32::NAN)).collect();
    let advantage = if wants_one_advantage(objective) {
        Advantages::PerSequence(&of_sequences)
    } else {
        Advantages::PerToken(&batch.advantage)
    };
    let base =
        Inputs::new(&batch.logprob, &batch.old_logprob, advantage, &batch.mask, &batch.offsets);
    let inputs = Inputs {
        reference_logprob: Some(&batch.reference),
        entropy: Some(&batch.entropy),
        weight: Some(&batch.weight),
        sampler_logprob: Some(&batch.sampler),
        off_policy: objective.replay.is_some().then_some(&batch.off_policy),
        selected: objective.selection.is_some().then_some(&batch.selected),
        totals,
        ..base
    };
    let gradients = Gradients { logprob: &mut dlogprob, entropy: Some(&mut dentropy) };
    let metrics = forward_backward(objective, &inputs, gradients).unwrap();
    Got { metrics, dlogprob, dentropy }
}

pub fn batch(seed: u64, lengths: &[usize], spread: f32, live: f32, per_token: bool) -> Batch {
    let mut draws = Sequence::new(seed, Stream::Free, 0);
    let tokens: usize = lengths.iter().sum();
    let mut offsets = vec![0i64];
    for length in lengths {
        offsets.push(offsets[offsets.len() - 1] + *length as i64);
    }
    let mut normal =
        |scale: f32| -> Vec<f32> { (0..tokens).map(|_| draws.next_normal() * scale).collect() };
    let logprob: Vec<f32> = normal(1.0).iter().map(|x| -x.abs()).collect();
    let near = |noise: Vec<f32>| logprob.iter().zip(noise).map(|(l, n)| l + n).collect();
    let old_logprob = near(normal(spread));
    let reference = near(normal(spread));
    let sampler = near(normal(0.3));
    let mut advantage = normal(1.0);
    if !per_token {
        for pair in offsets.windows(2) {
            let range = pair[0] as usize..pair[1] as usize;
            let first = advantage[range.clone()].first().copied().unwrap_or(0.0);
            advantage[range].fill(first);
        }
    }
    let entropy = normal(2.0).iter().map(|x| x.abs()).collect();
    let weight = normal(1.0).iter().map(|x| x.abs()).collect();
    let mut bytes = |share: f32| (0..tokens).map(|_| u8::from(draws.next_unit() < share)).collect();
    let (mask, off_policy, selected) = (bytes(live), bytes(0.3), bytes(0.4));
    Batch {
        logprob,
        old_logprob,
        reference,
        sampler,
        advantage,
        entropy,
        weight,
        mask,
        off_policy,
        selected,
        offsets,
    }
}

pub fn clip(dual_clip: Option<f32>, delta: Option<f32>) -> Surrogate {
    Surrogate::PpoClip { clip_low: 0.2, clip_high: 0.28, dual_clip, delta }
}

pub fn kl(estimator: KlEstimator, clamp: Clamp, bias_correction: bool) -> Option<Kl> {
    Some(Kl { clamp, bias_correction, ..Kl::new(estimator, 0.3) })
}

/// An unclamped k3 of log-probs far apart overflows f32.
pub fn stays_finite(objective: &Objective) -> bool {
    objective.kl.as_ref().is_none_or(|kl| kl.clamp == Clamp::Clamped && !kl.bias_correction)
}

fn penalties() -> Vec<Option<Kl>> {
    let straight = |estimator| Some(Kl { straight_through: true, ..Kl::new(estimator, 0.3) });
    vec![
        None,
        kl(KlEstimator::K1, Clamp::Clamped, false),
        kl(KlEstimator::K2, Clamp::Clamped, true),
        kl(KlEstimator::K3, Clamp::Clamped, false),
        kl(KlEstimator::K3, Clamp::Unclamped, true),
        kl(KlEstimator::Abs, Clamp::Clamped, false),
        straight(KlEstimator::K1),
        straight(KlEstimator::K2),
        straight(KlEstimator::K3),
        Some(Kl {
            aggregation: Some(Aggregation::TokenSum { length: 3.0 }),
            ..Kl::new(KlEstimator::K2, 0.3)
        }),
    ]
}

fn aggregations() -> Vec<Aggregation> {
    vec![
        Aggregation::TokenMean {},
        Aggregation::SequenceMeanTokenMean { rows: Rows::NonEmpty },
        Aggregation::SequenceMeanTokenMean { rows: Rows::All },
        Aggregation::SequenceMeanTokenSum { rows: Rows::NonEmpty, length: 1.0 },
        Aggregation::SequenceMeanTokenSum { rows: Rows::All, length: 17.0 },
        Aggregation::SequenceLength { rows: Rows::All },
        Aggregation::TokenSum { length: 10.0 },
    ]
}

/// Every surrogate at every level, and every part that changes what a token's surrogate is.
fn surrogates() -> Vec<Objective> {
    let plain = Objective::default();
    let of = |surrogate| Objective { surrogate, ..plain.clone() };
    let cispo = |least| Surrogate::Cispo { least, most: 1.3 };
    let sapo = Surrogate::Sapo { temperature_positive: 1.0, temperature_negative: 1.05 };
    let vespo = Surrogate::Vespo {
        k_positive: 2.0,
        lambda_positive: 3.0,
        k_negative: 3.0,
        lambda_negative: 2.0,
    };
    let mut all = vec![
        of(clip(None, None)),
        of(clip(Some(3.0), None)),
        of(clip(Some(1.1), None)),
        of(clip(None, Some(1.15))),
        of(clip(Some(2.5), Some(1.7))),
        of(clip(None, Some(0.7))),
        of(Surrogate::Ratio {}),
        of(cispo(Some(0.8))),
        of(cispo(None)),
        of(Surrogate::Gmpo { clip_low: 0.1, clip_high: 0.4 }),
        of(sapo.clone()),
        of(Surrogate::Reinforce {}),
        of(Surrogate::Cpgd { clip_low: 0.2, clip_high: 0.25 }),
        of(vespo),
    ];
    for importance_level in [ImportanceLevel::Sequence, ImportanceLevel::SequenceToken] {
        for surrogate in [
            Surrogate::clip(0.03, 0.04),
            clip(Some(3.0), Some(1.7)),
            Surrogate::Ratio {},
            cispo(Some(0.8)),
            sapo.clone(),
        ] {
            all.push(Objective { surrogate, importance_level, ..plain.clone() });
        }
    }
    for ratio_shape in [
        RatioShape::Logarithm {},
        RatioShape::RatioPlusLogarithm { weight: 0.3 },
        RatioShape::Power { exponent: 0.5 },
        RatioShape::Probability { offset: 0.1 },
    ] {
        all.push(Objective { ratio_shape, ..plain.clone() });
    }
    for (ratio, shape, least, most) in [
        (ReplayRatio::Recorded, ReplayShape::Plain {}, Some(0.6), Some(1.1)),
        (ReplayRatio::Recorded, ReplayShape::balanced(0.1), None, None),
        (ReplayRatio::Probability, ReplayShape::Sigmoid { beta: 0.5, gain: 1.0 }, None, Some(0.4)),
        (ReplayRatio::Recorded, ReplayShape::Power { exponent: 0.4 }, None, None),
        (ReplayRatio::Probability, ReplayShape::Logprob { weight: 0.6 }, None, None),
        (ReplayRatio::Recorded, ReplayShape::RatioPlusLogprob { weight: 0.6 }, None, None),
    ] {
        let replay = Some(Replay { ratio, shape, least, most });
        let surrogate = if most.is_some() { Surrogate::Ratio {} } else { clip(None, None) };
        all.push(Objective { surrogate, replay, ..plain.clone() });
    }
    let clip_cov = Selection::ClipCov { ratio: 0.1, least: 0.1, most: 2.0 };
    let kl_cov = Selection::KlCov { ratio: 0.1, coefficient: 0.7 };
    let top = Some(Selection::TopEntropy { fraction: 0.3 });
    all.push(Objective { selection: Some(clip_cov), ..plain.clone() });
    all.push(Objective { selection: Some(kl_cov), ..of(Surrogate::Ratio {}) });
    all.push(Objective { selection: top, ..plain.clone() });
    all.push(Objective {
        selection: top,
        importance_level: ImportanceLevel::Sequence,
        ..of(Surrogate::clip(0.03, 0.04))
    });
    all.push(Objective { selection: top, replay: Some(Replay::default()), ..plain.clone() });
    for objective in [of(clip(None, None)), of(Surrogate::Gmpo { clip_low: 0.4, clip_high: 0.4 })] {
        all.push(Objective { off_policy_threshold: Some(0.05), ..objective });
    }
    all.push(Objective {
        drift: Some(Drift { coefficient: 0.2, cap: 0.3 }),
        replay: Some(Replay::default()),
        ..of(Surrogate::Cpgd { clip_low: 0.2, clip_high: 0.2 })
    });
    all
}

/// Each surrogate once, its other parts taken in turn, and whether its advantages are of tokens.
pub fn every() -> Vec<(Objective, bool)> {
    let (penalties, aggregations) = (penalties(), aggregations());
    let mut all = Vec::new();
    for (i, objective) in surrogates().into_iter().enumerate() {
        for j in 0..2 {
            let log_ratio = if (i + j) % 2 == 0 { LogRatio::Clamped } else { LogRatio::Unclamped };
            let turn = |many: usize| (i * 3 + j * 4) % many;
            let mut candidate = Objective {
                kl: penalties[turn(penalties.len())].clone(),
                aggregation: aggregations[turn(aggregations.len())].clone(),
                entropy_aggregation: (i % 3 == 0).then(|| aggregations[j].clone()),
                entropy_coefficient: if j == 0 { 0.05 } else { 0.0 },
                log_ratio,
                ..objective.clone()
            };
            if candidate.check().is_err() {
                candidate.kl = penalties[3].clone();
                candidate.aggregation = aggregations[1].clone();
            }
            candidate.check().unwrap();
            let per_token = !wants_one_advantage(&candidate) && i % 4 != 0;
            all.push((candidate, per_token));
        }
    }
    all
}

/// Every surrogate × aggregation × penalty that goes together.
pub fn every_combination() -> Vec<(Objective, bool)> {
    let mut all = Vec::new();
    for objective in surrogates() {
        for aggregation in aggregations() {
            for kl in penalties() {
                let aggregation = aggregation.clone();
                let candidate = Objective { kl, aggregation, ..objective.clone() };
                if candidate.check().is_ok() {
                    let per_token = !wants_one_advantage(&candidate);
                    all.push((candidate, per_token));
                }
            }
        }
    }
    assert!(all.len() > 1500, "{} combinations", all.len());
    all
}
