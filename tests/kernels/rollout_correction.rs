//! `kernels::rollout_correction`: f64 definitions, published values, edges, the emulated device.

use crate::device_memory::{bits, download, gpu, upload};
use gradstone::device::cpu::pool;
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::error::Result;
use gradstone::kernels::rollout_correction::{
    Bound, Diagnostics, Inputs, Level, Outputs, Over, PRESETS, Rejection, RolloutCorrection,
    Statistic, Weight, forward, launch,
};
use gradstone::rng::{Sequence, Stream};
use gradstone_host::Order;
use proptest::prelude::*;
use std::sync::Arc;

struct Batch {
    policy: Vec<f32>,
    sampler: Vec<f32>,
    mask: Vec<u8>,
    offsets: Vec<i64>,
}

#[derive(Debug)]
struct Got {
    weight: Vec<f32>,
    mask: Vec<u8>,
    seen: Diagnostics,
}

impl Batch {
    fn draw(seed: u64, lengths: &[usize], scale: f32) -> Batch {
        let mut draws = Sequence::new(seed, Stream::Free, 0);
        let mut offsets = vec![0i64];
        offsets.extend(lengths.iter().scan(0, |sum, n| {
            *sum += *n as i64;
            Some(*sum)
        }));
        let tokens: usize = lengths.iter().sum();
        let policy: Vec<f32> = (0..tokens).map(|_| -2.0 * draws.next_unit()).collect();
        let sampler = policy.iter().map(|p| p + scale * draws.next_normal()).collect();
        let mask = (0..tokens).map(|_| u8::from(draws.next_unit() < 0.8) * 5).collect();
        Batch { policy, sampler, mask, offsets }
    }

    fn on_cpu(&self, correction: &RolloutCorrection) -> Got {
        let inputs = Inputs {
            policy_logprob: &self.policy,
            sampler_logprob: Some(&self.sampler),
            mask: &self.mask,
            offsets: &self.offsets,
        };
        let (mut weight, mut mask) = (vec![f32::NAN; self.mask.len()], vec![9; self.mask.len()]);
        let out = Outputs { weight: &mut weight, mask: &mut mask };
        let seen = forward(correction, &inputs, out).unwrap();
        Got { weight, mask, seen }
    }

    fn on_device(&self, gpu: &Arc<Gpu>, correction: &RolloutCorrection) -> Result<Got> {
        let policy = upload(gpu, DType::F32, &self.policy);
        let sampler = upload(gpu, DType::F32, &self.sampler);
        let mask = upload(gpu, DType::U8, &self.mask);
        let offsets = upload(gpu, DType::I64, &self.offsets);
        let inputs = launch::Inputs {
            policy_logprob: policy.whole(),
            sampler_logprob: Some(sampler.whole()),
            mask: mask.whole(),
            offsets: offsets.whole(),
        };
        let mut weight = DeviceBuffer::recycled(gpu, DType::F32, self.mask.len())?;
        let mut kept = DeviceBuffer::recycled(gpu, DType::U8, self.mask.len())?;
        let out = launch::Outputs { weight: weight.whole_mut(), mask: kept.whole_mut() };
        let seen = launch::forward(correction, &inputs, out)?.read()?;
        Ok(Got { weight: download(&weight), mask: download(&kept), seen })
    }
}

fn rejection(over: Over, statistic: Statistic) -> Rejection {
    Rejection { over, statistic }
}

fn corrections() -> Vec<RolloutCorrection> {
    let mut all: Vec<RolloutCorrection> =
        PRESETS.iter().map(|preset| RolloutCorrection::preset(preset.name).unwrap()).collect();
    all.push(RolloutCorrection::default());
    let weight = |level, bound, normalize| Some(Weight { level, bound, normalize });
    let k1 = |mirrored| Statistic::K1 { low: Some(0.7), high: 1.2, mirrored };
    all.extend([
        RolloutCorrection {
            weight: weight(Level::Geometric, Bound::Truncate { max: 1.2, min: Some(0.9) }, true),
            reject: vec![
                rejection(Over::Token, Statistic::K2 { high: 0.1 }),
                rejection(Over::SequenceSum, k1(true)),
            ],
        },
        RolloutCorrection {
            weight: weight(Level::Token, Bound::Mask { max: 1.3, min: Some(0.8) }, true),
            reject: vec![rejection(Over::SequenceMean, k1(false))],
        },
        RolloutCorrection {
            weight: weight(Level::Sequence, Bound::Truncate { max: 1.5, min: None }, true),
            reject: vec![
                rejection(Over::SequenceMax, Statistic::K3 { high: 0.2 }),
                rejection(Over::SequenceMax, Statistic::K2 { high: 0.3 }),
                rejection(Over::Token, k1(false)),
            ],
        },
        RolloutCorrection {
            weight: None,
            reject: vec![
                rejection(Over::SequenceSum, Statistic::K2 { high: 0.5 }),
                rejection(Over::SequenceSum, Statistic::K3 { high: 0.5 }),
                rejection(Over::SequenceMean, Statistic::K2 { high: 0.1 }),
                rejection(Over::SequenceMean, Statistic::K3 { high: 0.1 }),
                rejection(Over::Token, Statistic::K3 { high: 0.15 }),
            ],
        },
    ]);
    all
}

/// Weight before normalisation, and whether the token stays, of every live token; written from the definition.
fn oracle(correction: &RolloutCorrection, batch: &Batch) -> Vec<Option<(f64, bool)>> {
    let mut all = vec![None; batch.mask.len()];
    for bounds in batch.offsets.windows(2) {
        let live: Vec<usize> =
            (bounds[0] as usize..bounds[1] as usize).filter(|t| batch.mask[*t] != 0).collect();
        let d = |t: usize| f64::from(batch.policy[t]) - f64::from(batch.sampler[t]);
        let n = live.len() as f64;
        let k = |statistic: Statistic, t: usize| match statistic {
            Statistic::K1 { mirrored: true, .. } => -d(t),
            Statistic::K1 { .. } => d(t),
            Statistic::K2 { .. } => 0.5 * d(t) * d(t),
            Statistic::K3 { .. } => d(t).exp() - 1.0 - d(t),
        };
        let sum: f64 = live.iter().map(|t| d(*t)).sum();
        for t in &live {
            let weight = correction.weight.map_or(1.0, |weight| {
                let raw = match weight.level {
                    Level::Token => d(*t).exp(),
                    Level::Sequence => sum.clamp(-20.0, 20.0).exp(),
                    Level::Geometric => (sum / n).exp(),
                };
                match weight.bound {
                    Bound::Truncate { max, min } => raw.clamp(min.unwrap_or(0.0), max),
                    Bound::Mask { max, min } => {
                        if raw > max || raw < min.unwrap_or(0.0) {
                            0.0
                        } else {
                            raw
                        }
                    }
                }
            });
            let stays = correction.reject.iter().all(|rule| {
                let each = || live.iter().map(|t| k(rule.statistic, *t));
                let value = match rule.over {
                    Over::Token => k(rule.statistic, *t),
                    Over::SequenceSum => each().sum(),
                    Over::SequenceMean => each().sum::<f64>() / n,
                    Over::SequenceMax => each().fold(f64::NEG_INFINITY, f64::max),
                };
                match rule.statistic {
                    Statistic::K1 { low, high, .. } => {
                        value >= low.unwrap_or(1.0 / high).ln() && value <= high.ln()
                    }
                    Statistic::K2 { high } | Statistic::K3 { high } => value <= high,
                }
            });
            all[*t] = Some((weight, stays));
        }
    }
    all
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(1.0)
}

fn agree(here: &Diagnostics, there: &Diagnostics) -> bool {
    let floats = |d: &Diagnostics| {
        [
            d.kl,
            d.k3,
            d.perplexity_ratio,
            d.chi_squared_token,
            d.chi_squared_sequence,
            d.effective_share,
            d.weight_effective_share,
            d.weight_mean,
            d.weight_max,
            d.fraction_high,
            d.fraction_low,
            d.fraction_rejected,
        ]
    };
    let counts = |d: &Diagnostics| (d.tokens, d.sequences, d.dropped, d.rejected_sequences);
    counts(here) == counts(there)
        && floats(here).iter().zip(floats(there)).all(|(a, b)| near(*a, b))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_correction_is_its_definition_on_both_devices(
        seed in 0u64..10_000,
        lengths in prop::collection::vec(prop::sample::select(vec![0usize, 1, 2, 7, 33, 257]), 1..6),
        scale in prop::sample::select(vec![0.0f32, 0.1, 0.5]),
    ) {
        let batch = Batch::draw(seed, &lengths, scale);
        let device = gpu();
        for correction in corrections() {
            let got = batch.on_cpu(&correction);
            let want = oracle(&correction, &batch);
            let normalize = correction.weight.is_some_and(|w| w.normalize);
            let mut norm = 1.0;
            if normalize {
                let live = || want.iter().flatten().map(|w| w.0);
                let of_sequences: Vec<f64> = batch.offsets.windows(2).filter_map(|b| {
                    let mine: Vec<f64> = want[b[0] as usize..b[1] as usize].iter().flatten().map(|w| w.0).collect();
                    (!mine.is_empty()).then(|| mine.iter().sum::<f64>() / mine.len() as f64)
                }).collect();
                let by_token = correction.weight.is_some_and(|w| w.level == Level::Token);
                let mean = if by_token {
                    live().sum::<f64>() / live().count().max(1) as f64
                } else {
                    of_sequences.iter().sum::<f64>() / of_sequences.len().max(1) as f64
                };
                norm = if mean > 1e-8 { mean } else { 1.0 };
            }
            for (t, want) in want.iter().enumerate() {
                let (weight, stays) = want.map_or((0.0, false), |(w, stays)| (if stays { w / norm } else { 0.0 }, stays));
                prop_assert_eq!(got.mask[t], u8::from(stays));
                prop_assert!(near(weight, f64::from(got.weight[t])), "{correction:?}: {} {weight}", got.weight[t]);
            }
            let there = batch.on_device(&device, &correction).unwrap();
            prop_assert_eq!(&there.mask, &got.mask);
            for (here, there) in got.weight.iter().zip(&there.weight) {
                prop_assert!(near(f64::from(*here), f64::from(*there)), "{here} {there}");
            }
            prop_assert!(agree(&got.seen, &there.seen), "{:?} {:?}", got.seen, there.seen);
        }
        device.check_status().unwrap();
    }
}

#[test]
fn bits_do_not_depend_on_the_order_of_threads() {
    let batch = Batch::draw(4, &[300, 0, 5, 64, 129], 0.3);
    let device = gpu();
    for correction in corrections() {
        let first = batch.on_device(&device, &correction).unwrap();
        for order in Order::ALL {
            let again = gradstone_host::with_order(order, || batch.on_device(&device, &correction))
                .unwrap();
            assert_eq!(bits(&again.weight), bits(&first.weight), "{order:?}");
            assert_eq!((&again.mask, again.seen), (&first.mask, first.seen), "{order:?}");
        }
    }
}

/// A sequence's weights are a function of the sequence (but for the mean they are divided by), its diagnostics sums in the
/// order of the sequences.
#[test]
fn bits_depend_neither_on_the_threads_nor_on_the_batch() {
    let lengths = [3000, 1, 0, 64, 65, 700, 5000, 127, 2000, 2000];
    let mut batch = Batch::draw(6, &lengths, 0.1);
    batch.mask[3000] = 0; // A sequence without a live token.
    for correction in corrections() {
        pool::set_threads(1).unwrap();
        let first = batch.on_cpu(&correction);
        for threads in [2, 4] {
            pool::set_threads(threads).unwrap();
            let again = batch.on_cpu(&correction);
            assert!(bits(&again.weight) == bits(&first.weight) && again.mask == first.mask);
            assert_eq!(again.seen, first.seen);
        }
        if correction.weight.is_some_and(|weight| weight.normalize) {
            continue;
        }
        for bounds in batch.offsets.windows(2) {
            let here = bounds[0] as usize..bounds[1] as usize;
            let alone = Batch {
                policy: batch.policy[here.clone()].to_vec(),
                sampler: batch.sampler[here.clone()].to_vec(),
                mask: batch.mask[here.clone()].to_vec(),
                offsets: vec![0, here.len() as i64],
            };
            let alone = alone.on_cpu(&correction);
            assert!(bits(&alone.weight) == bits(&first.weight[here.clone()]));
            assert!(alone.mask == first.mask[here]);
        }
    }
    pool::set_threads(0).unwrap();
}

/// The example of two responses that published values are known for.
fn example() -> Batch {
    Batch {
        policy: vec![-0.7, -0.9, -1.0, -0.1, -1.0, -0.9, -0.2, 0.0],
        sampler: vec![-0.8, -0.9, -2.2, -0.1, -1.0, -2.5, -0.2, 0.0],
        mask: vec![1, 1, 1, 1, 1, 1, 1, 0],
        offsets: vec![0, 4, 8],
    }
}

#[test]
fn values_computed_by_hand() {
    let of = |name: &str| example().on_cpu(&RolloutCorrection::preset(name).unwrap());
    let token = of("token_tis");
    for (got, want) in token.weight.iter().zip([1.105_171, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 0.0]) {
        assert!((got - want).abs() < 1e-6, "{:?}", token.weight);
    }
    let unbounded = RolloutCorrection {
        weight: Some(Weight {
            level: Level::Sequence,
            bound: Bound::Truncate { max: 100.0, min: None },
            normalize: false,
        }),
        reject: Vec::new(),
    };
    let sequence = example().on_cpu(&unbounded).weight;
    assert!((sequence[0] - 3.669_297).abs() < 1e-5 && (sequence[4] - 4.953_032).abs() < 1e-5);
    assert_eq!(of("sequence_tis").weight[..7], [2.0; 7]);
    let masked = of("trl_sequence_mask");
    assert_eq!((&masked.weight[..7], &masked.mask[..7]), (&[0.0; 7][..], &[1; 7][..]));
    assert_eq!((masked.seen.fraction_high, masked.seen.fraction_rejected), (1.0, 0.0));
    let rejected = of("sequence_mis");
    assert_eq!((rejected.mask, rejected.seen.rejected_sequences), (vec![0; 8], 2));
    assert!((of("token_tis").seen.kl - (-0.1 - 1.2 - 1.6) / 7.0).abs() < 1e-6);
}

#[test]
fn mirrored_bounds_keep_what_plain_ones_reject() {
    // A ratio of 0.6 inside 0.5..=1.25; mirrored, -ln 0.6 = 0.51 is above ln 1.25.
    let batch =
        Batch { policy: vec![0.6f32.ln()], sampler: vec![0.0], mask: vec![1], offsets: vec![0, 1] };
    let kept = |mirrored, low| {
        let statistic = Statistic::K1 { low, high: 1.25, mirrored };
        let reject = vec![rejection(Over::Token, statistic)];
        batch.on_cpu(&RolloutCorrection { weight: None, reject }).mask[0]
    };
    assert_eq!((kept(false, Some(0.5)), kept(true, Some(0.5))), (1, 0));
    assert_eq!(kept(false, None), kept(true, None), "reciprocal bounds are their own mirror");
}

#[test]
fn missing_sampler_logprobs_weigh_one() {
    let device = gpu();
    for correction in corrections() {
        let batch = example();
        let inputs = Inputs {
            policy_logprob: &batch.policy,
            sampler_logprob: None,
            mask: &batch.mask,
            offsets: &batch.offsets,
        };
        let (mut weight, mut mask) = ([9.0; 8], [9; 8]);
        let out = Outputs { weight: &mut weight, mask: &mut mask };
        let seen = forward(&correction, &inputs, out).unwrap();
        assert_eq!((&weight[..7], &mask[..7]), (&[1.0; 7][..], &[1; 7][..]));
        assert_eq!((seen.kl, seen.effective_share, seen.perplexity_ratio), (0.0, 1.0, 1.0));

        let policy = upload(&device, DType::F32, &batch.policy);
        let old_mask = upload(&device, DType::U8, &batch.mask);
        let offsets = upload(&device, DType::I64, &batch.offsets);
        let inputs = launch::Inputs {
            policy_logprob: policy.whole(),
            sampler_logprob: None,
            mask: old_mask.whole(),
            offsets: offsets.whole(),
        };
        let mut there = DeviceBuffer::recycled(&device, DType::F32, 8).unwrap();
        let mut kept = DeviceBuffer::recycled(&device, DType::U8, 8).unwrap();
        let out = launch::Outputs { weight: there.whole_mut(), mask: kept.whole_mut() };
        launch::forward(&correction, &inputs, out).unwrap();
        assert_eq!(download::<f32>(&there), weight);
        assert_eq!(download::<u8>(&kept), mask);
    }
}

#[test]
fn a_token_the_sampler_had_cut_off_is_truncated() {
    let mut batch = example();
    batch.sampler[1] = f32::NEG_INFINITY;
    let got = batch.on_cpu(&RolloutCorrection::preset("token_tis").unwrap());
    assert_eq!((got.weight[1], got.mask[1], got.seen.dropped), (2.0, 1, 0));
    let geometric = batch.on_cpu(&RolloutCorrection {
        weight: Some(Weight {
            level: Level::Geometric,
            bound: Bound::Truncate { max: 1e9, min: None },
            normalize: false,
        }),
        reject: Vec::new(),
    });
    // The infinite gap counts as 20.
    let mean: f32 = (0.1 + 20.0 + 1.2) / 4.0;
    assert!((geometric.weight[0] - mean.exp()).abs() < 1e-3 * mean.exp());
    batch.policy[4] = f32::NEG_INFINITY;
    let got = batch.on_cpu(&RolloutCorrection::preset("trl_token_truncate").unwrap());
    assert!((f64::from(got.weight[4]) - (-20f64).exp()).abs() < 1e-12);
}

#[test]
fn a_nan_log_prob_drops_its_token() {
    let device = gpu();
    let mut batch = example();
    batch.sampler[2] = f32::NAN;
    batch.policy[5] = f32::NAN;
    (batch.policy[0], batch.sampler[0]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for correction in corrections() {
        let got = batch.on_cpu(&correction);
        assert_eq!((got.seen.dropped, got.seen.tokens), (3, 4));
        for t in [0, 2, 5] {
            assert_eq!((got.weight[t], got.mask[t]), (0.0, 0));
        }
        assert!(got.weight.iter().all(|w| w.is_finite()));
        let there = batch.on_device(&device, &correction).unwrap();
        assert_eq!((there.mask, there.seen.dropped), (got.mask, 3));
    }
}

#[test]
fn nan_in_masked_tokens_does_not_matter() {
    let clean = Batch::draw(12, &[40, 9], 0.3);
    let mut dirty = Batch::draw(12, &[40, 9], 0.3);
    for t in 0..dirty.mask.len() {
        if dirty.mask[t] == 0 {
            (dirty.policy[t], dirty.sampler[t]) = (f32::NAN, f32::INFINITY);
        }
    }
    for correction in corrections() {
        let (clean, dirty) = (clean.on_cpu(&correction), dirty.on_cpu(&correction));
        assert_eq!(bits(&clean.weight), bits(&dirty.weight));
        assert_eq!(clean.seen, dirty.seen);
    }
}

#[test]
fn a_whole_batch_masked_says_nothing_and_has_no_nan() {
    let device = gpu();
    let mut batch = example();
    batch.mask.fill(0);
    for correction in corrections() {
        for got in [batch.on_cpu(&correction), batch.on_device(&device, &correction).unwrap()] {
            assert_eq!((got.weight, got.mask), (vec![0.0; 8], vec![0; 8]));
            assert_eq!(got.seen, Diagnostics::default());
        }
    }
    let none = Batch { policy: vec![], sampler: vec![], mask: vec![], offsets: vec![0] };
    let token = RolloutCorrection::preset("token_tis").unwrap();
    assert_eq!(none.on_cpu(&token).seen, Diagnostics::default());
    assert_eq!(none.on_device(&device, &token).unwrap().seen, Diagnostics::default());
}

#[test]
fn bad_input_is_an_error_that_says_what() {
    let check = |weight: Option<Weight>, reject: Vec<Rejection>| {
        RolloutCorrection { weight, reject }.check().unwrap_err().to_string()
    };
    let bound = Bound::Truncate { max: 1.0, min: Some(2.0) };
    let weight = Weight { level: Level::Token, bound, normalize: false };
    assert!(check(Some(weight), vec![]).contains("from 2 to 1"));
    let k1 = Statistic::K1 { low: None, high: 2.0, mirrored: false };
    assert!(
        check(None, vec![rejection(Over::SequenceMax, k1)]).contains("`sequence_max` and `k1`")
    );
    assert!(
        check(None, vec![rejection(Over::Token, Statistic::K2 { high: f64::NAN })]).contains("NaN")
    );
    let many = vec![rejection(Over::Token, k1); 9];
    assert!(check(None, many).contains("9 rejections"));
    let unknown = RolloutCorrection::preset("magic").unwrap_err().to_string();
    assert!(unknown.contains("`magic`") && unknown.contains("icepop"), "{unknown}");

    let token = RolloutCorrection::preset("token-tis").unwrap();
    let fails = |mask: &[u8], offsets: &[i64]| {
        let inputs = Inputs { policy_logprob: &[0.0; 2], sampler_logprob: None, mask, offsets };
        let (mut weight, mut kept) = ([0.0; 2], [0; 2]);
        let out = Outputs { weight: &mut weight, mask: &mut kept };
        forward(&token, &inputs, out).unwrap_err()
    };
    assert!(fails(&[1], &[0, 2]).is_shape());
    assert!(fails(&[1; 2], &[0, 3]).is_shape());
    assert!(fails(&[1; 2], &[0, 3, 2]).is_index());

    let device = gpu();
    let mut batch = example();
    batch.offsets = vec![0, 9, 8];
    let got = batch.on_device(&device, &token).unwrap();
    assert_eq!((got.mask, got.seen.tokens), (vec![0; 8], 0));
    assert!(device.check_status().unwrap_err().to_string().contains("offsets"));
}

#[test]
fn a_correction_is_read_from_toml() {
    let text = "
        [weight]
        level = 'sequence'
        bound = { kind = 'truncate', max = 2.0 }
        [[reject]]
        over = 'sequence_sum'
        statistic = { kind = 'k1', low = 0.5, high = 2.0, mirrored = true }
    ";
    let read: RolloutCorrection = toml::from_str(text).unwrap();
    assert_eq!(read, RolloutCorrection::preset("sequence_mis").unwrap());
    for preset in PRESETS {
        let correction = RolloutCorrection::preset(preset.name).unwrap();
        correction.check().unwrap();
        let text = toml::to_string(&correction).unwrap();
        assert_eq!(toml::from_str::<RolloutCorrection>(&text).unwrap(), correction);
    }
    assert!(toml::from_str::<RolloutCorrection>("magic = 1").is_err());
}
