//! Advantages of tokens: GAE, returns, whitening, the optimal token baseline, against f64 definitions and on the
//! emulated device.

use crate::device_memory::{bits, download, gpu, upload};
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::error::Result;
use gradstone::kernels::advantage::launch::{self, DeviceGroups};
use gradstone::kernels::advantage::{
    Estimator, Gae, Groups, Holes, Masked, Positions, Prime, TokenBaseline, TokenOutputs, Tokens,
    gae, prime, reinforce_plus_plus, returns, token_baseline, whiten,
};
use gradstone::rng::{Sequence, Stream};
use gradstone_host::Order;
use proptest::prelude::*;
use std::sync::Arc;

struct Batch {
    offsets: Vec<i64>,
    mask: Vec<u8>,
    rewards: Vec<f32>,
    values: Vec<f32>,
    logprob: Vec<f32>,
    sum_squares: Vec<f32>,
    weight: Vec<f32>,
    groups: Vec<i32>,
}

impl Batch {
    fn draw(seed: u64, lengths: &[usize]) -> Batch {
        let mut draws = Sequence::new(seed, Stream::Free, 0);
        let mut offsets = vec![0i64];
        offsets.extend(lengths.iter().scan(0, |sum, n| {
            *sum += *n as i64;
            Some(*sum)
        }));
        let tokens: usize = lengths.iter().sum();
        let mut normals = |n: usize| (0..n).map(|_| draws.next_normal()).collect::<Vec<f32>>();
        let (rewards, values) = (normals(tokens), normals(tokens));
        let mut units = |n: usize| (0..n).map(|_| draws.next_unit()).collect::<Vec<f32>>();
        Batch {
            offsets,
            mask: units(tokens).iter().map(|u| u8::from(*u < 0.75) * 9).collect(),
            rewards,
            values,
            logprob: units(tokens).iter().map(|u| -2.0 * u - 0.05).collect(),
            sum_squares: units(tokens).iter().map(|u| 0.2 + 0.5 * u).collect(),
            weight: units(tokens).iter().map(|u| 2.0 * u).collect(),
            groups: lengths.iter().enumerate().map(|(i, _)| (i as i32 * 7) % 3).collect(),
        }
    }

    fn tokens(&self) -> Tokens<'_> {
        Tokens { mask: &self.mask, offsets: &self.offsets }
    }

    /// An outcome a sequence; the third is not scored.
    fn outcomes(&self) -> Vec<f32> {
        (0..self.groups.len()).map(|i| if i == 2 { f32::NAN } else { (i as f32).sin() }).collect()
    }

    /// NaN in everything that is masked.
    fn poisoned(&self) -> Batch {
        let poison = |values: &[f32]| -> Vec<f32> {
            values
                .iter()
                .zip(&self.mask)
                .map(|(v, m)| if *m != 0 { *v } else { f32::NAN })
                .collect()
        };
        Batch {
            offsets: self.offsets.clone(),
            mask: self.mask.clone(),
            rewards: poison(&self.rewards),
            values: poison(&self.values),
            logprob: poison(&self.logprob),
            sum_squares: poison(&self.sum_squares),
            weight: poison(&self.weight),
            groups: self.groups.clone(),
        }
    }
}

/// What is computed, on either device.
#[derive(Clone, Copy, Debug)]
enum What {
    Gae(Gae),
    Returns(f64, Holes),
    Reinforce(Estimator, Holes),
    Baseline(Estimator, bool),
    Prime(f64),
}

type Pair = (Vec<f32>, Vec<f32>);

fn on_cpu(what: What, batch: &Batch) -> Pair {
    let tokens = batch.rewards.len();
    let (mut advantage, mut to_go) = (vec![f32::NAN; tokens], vec![f32::NAN; tokens]);
    let out = TokenOutputs { advantage: &mut advantage, returns: Some(&mut to_go) };
    match what {
        What::Gae(settings) => gae(&settings, &batch.rewards, &batch.values, batch.tokens(), out),
        What::Returns(gamma, holes) => {
            to_go.fill(0.0);
            returns(gamma, holes, &batch.rewards, batch.tokens(), &mut advantage)
        }
        What::Reinforce(estimator, holes) => {
            reinforce_plus_plus(&estimator, holes, &batch.rewards, batch.tokens(), out)
        }
        What::Baseline(estimator, weighed) => {
            let of = TokenBaseline {
                rewards: &batch.rewards,
                logprob: &batch.logprob,
                sum_squares: &batch.sum_squares,
                weight: weighed.then_some(&batch.weight),
            };
            let groups = Groups::Ids(&batch.groups);
            token_baseline(&estimator, &of, batch.tokens(), groups, Masked::Zero, out)
        }
        What::Prime(gamma) => {
            to_go.fill(0.0);
            let outcome = batch.outcomes();
            let of = Prime { outcome: &outcome, process: &batch.rewards, gamma };
            prime(&of, batch.tokens(), Groups::Ids(&batch.groups), &mut advantage)
        }
    }
    .unwrap();
    (advantage, to_go)
}

fn on_device(gpu: &Arc<Gpu>, what: What, batch: &Batch) -> Result<Pair> {
    let floats = |values: &[f32]| upload(gpu, DType::F32, values);
    let (rewards, values) = (floats(&batch.rewards), floats(&batch.values));
    let (logprob, sum_squares) = (floats(&batch.logprob), floats(&batch.sum_squares));
    let weight = floats(&batch.weight);
    let mask = upload(gpu, DType::U8, &batch.mask);
    let offsets = upload(gpu, DType::I64, &batch.offsets);
    let tokens = launch::Tokens { mask: mask.whole(), offsets: offsets.whole() };
    let mut advantage = DeviceBuffer::recycled(gpu, DType::F32, batch.rewards.len())?;
    let mut to_go = DeviceBuffer::zeros(gpu, DType::F32, batch.rewards.len())?;
    let out =
        launch::TokenOutputs { advantage: advantage.whole_mut(), returns: Some(to_go.whole_mut()) };
    match what {
        What::Gae(settings) => {
            launch::gae(&settings, rewards.whole(), values.whole(), tokens, out)?
        }
        What::Returns(gamma, holes) => {
            launch::returns(gamma, holes, rewards.whole(), tokens, advantage.whole_mut())?
        }
        What::Reinforce(estimator, holes) => {
            launch::reinforce_plus_plus(&estimator, holes, rewards.whole(), tokens, out)?
        }
        What::Baseline(estimator, weighed) => {
            let of = launch::TokenBaseline {
                rewards: rewards.whole(),
                logprob: logprob.whole(),
                sum_squares: sum_squares.whole(),
                weight: weighed.then(|| weight.whole()),
            };
            let ids = Groups::Ids(&batch.groups);
            let groups = DeviceGroups::upload(gpu, ids, batch.groups.len())?;
            launch::token_baseline(&estimator, &of, tokens, &groups, Masked::Zero, out)?
        }
        What::Prime(gamma) => {
            let outcome = floats(&batch.outcomes());
            let of = launch::Prime { outcome: outcome.whole(), process: rewards.whole(), gamma };
            let ids = Groups::Ids(&batch.groups);
            let groups = DeviceGroups::upload(gpu, ids, batch.groups.len())?;
            launch::prime(&of, tokens, &groups, advantage.whole_mut())?
        }
    }
    Ok((download(&advantage), download(&to_go)))
}

fn whitened(values: &mut [f64], mask: &[u8], epsilon: f64) {
    let live: Vec<f64> =
        values.iter().zip(mask).filter(|(_, m)| **m != 0).map(|(v, _)| *v).collect();
    let n = live.len() as f64;
    let mean = live.iter().sum::<f64>() / n;
    let variance = live.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    for (value, mask) in values.iter_mut().zip(mask) {
        let flat = live.len() < 2 || *mask == 0;
        *value = if flat { 0.0 } else { (*value - mean) / (variance + epsilon).sqrt() };
    }
}

/// The definitions on the live tokens alone, in f64.
fn oracle(what: What, batch: &Batch) -> (Vec<f64>, Vec<f64>) {
    let tokens = batch.rewards.len();
    let (mut advantage, mut to_go) = (vec![0f64; tokens], vec![0f64; tokens]);
    let r = |i: usize| f64::from(batch.rewards[i]);
    let v = |i: usize| f64::from(batch.values[i]);
    for bounds in batch.offsets.windows(2) {
        let live: Vec<usize> =
            (bounds[0] as usize..bounds[1] as usize).filter(|i| batch.mask[*i] != 0).collect();
        for (k, i) in live.iter().enumerate() {
            match what {
                What::Gae(Gae { gamma, lambda, length_alpha, critic_lambda, .. }) => {
                    let adapted = |a: f64| (1.0 - 1.0 / (a * live.len() as f64)).max(0.0);
                    let lambda = length_alpha.map_or(lambda, adapted);
                    let sum = |lambda: f64| -> f64 {
                        (k..live.len())
                            .map(|j| {
                                let next = live.get(j + 1).map_or(0.0, |n| v(*n));
                                let delta = r(live[j]) + gamma * next - v(live[j]);
                                (gamma * lambda).powi((j - k) as i32) * delta
                            })
                            .sum()
                    };
                    advantage[*i] = sum(lambda);
                    to_go[*i] = sum(critic_lambda.unwrap_or(lambda)) + v(*i);
                }
                What::Returns(gamma, holes)
                | What::Reinforce(Estimator::ReinforcePlusPlus { gamma, .. }, holes) => {
                    let reaches = |j: &usize| holes == Holes::Pass || live[*j] - live[k] == j - k;
                    let term = |j: usize| gamma.powi((j - k) as i32) * r(live[j]);
                    advantage[*i] = (k..live.len()).take_while(reaches).map(term).sum();
                    if let What::Reinforce(..) = what {
                        to_go[*i] = advantage[*i];
                    }
                }
                What::Reinforce(..) => panic!("another estimator"),
                What::Baseline(..) => to_go[*i] = live[k..].iter().map(|j| r(*j)).sum(),
                What::Prime(gamma) => {
                    let own =
                        batch.offsets.windows(2).position(|b| b == bounds && b[0] < b[1]).unwrap();
                    let mean = |s: usize| {
                        let tokens = batch.offsets[s] as usize..batch.offsets[s + 1] as usize;
                        let mine: Vec<f64> =
                            tokens.filter(|t| batch.mask[*t] != 0).map(r).collect();
                        mine.iter().sum::<f64>() / mine.len() as f64
                    };
                    let outcomes = batch.outcomes();
                    let others = |score: &dyn Fn(usize) -> f64| -> Option<f64> {
                        let all: Vec<f64> = (0..batch.groups.len())
                            .filter(|s| *s != own && batch.groups[*s] == batch.groups[own])
                            .map(score)
                            .filter(|score| !score.is_nan())
                            .collect();
                        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
                    };
                    let center = others(&mean).unwrap_or(mean(own));
                    let outcome = |s: usize| f64::from(outcomes[s]);
                    let relative = others(&outcome).map_or(0.0, |mean| outcome(own) - mean);
                    let term = |j: usize| gamma.powi((j - k) as i32) * (r(live[j]) - center);
                    let process: f64 = (k..live.len()).map(term).sum();
                    advantage[*i] = process + if relative.is_nan() { 0.0 } else { relative };
                }
            }
        }
    }
    match what {
        What::Gae(settings) if settings.whiten => whitened(&mut advantage, &batch.mask, 1e-8),
        What::Reinforce(..) => whitened(&mut advantage, &batch.mask, 1e-8),
        What::Baseline(estimator, weighed) => {
            baseline_oracle(&estimator, weighed, batch, &to_go, &mut advantage)
        }
        _ => {}
    }
    (advantage, to_go)
}

fn baseline_oracle(
    estimator: &Estimator,
    weighed: bool,
    batch: &Batch,
    to_go: &[f64],
    advantage: &mut [f64],
) {
    let Estimator::OptimalTokenBaseline { epsilon, zero_tail, positions } = *estimator else {
        panic!("another estimator")
    };
    // (sequence, slot, token, accumulated variance) of every live token.
    let mut places = Vec::new();
    let mut lengths = Vec::new();
    for (sequence, bounds) in batch.offsets.windows(2).enumerate() {
        let (mut energy, mut rank) = (0f64, 0);
        for token in bounds[0] as usize..bounds[1] as usize {
            if batch.mask[token] == 0 {
                continue;
            }
            let w = if weighed { f64::from(batch.weight[token]) } else { 1.0 };
            let pi = f64::from(batch.logprob[token]).exp();
            energy += (1.0 - 2.0 * pi + f64::from(batch.sum_squares[token])) * w * w;
            let position = token - bounds[0] as usize;
            let slot = if positions == Positions::Position { position } else { rank };
            places.push((sequence, slot, token, energy));
            rank += 1;
        }
        lengths.push(rank);
    }
    for (sequence, slot, token, _) in &places {
        let group = batch.groups[*sequence];
        let counts = |i: usize| positions == Positions::Position || lengths[i] > 0;
        let members: Vec<usize> =
            (0..lengths.len()).filter(|i| batch.groups[*i] == group && counts(*i)).collect();
        let beside = places.iter().filter(|(s, at, ..)| batch.groups[*s] == group && at == slot);
        let (mut sum, mut weight) = (0.0, 0.0);
        for (_, _, at, energy) in beside {
            sum += to_go[*at] * energy;
            weight += energy;
        }
        let mut sorted: Vec<usize> = members.iter().map(|i| lengths[*i]).collect();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let tail = zero_tail
            && sorted.len() > 1
            && sorted[0] > sorted[1]
            && lengths[*sequence] == sorted[0]
            && *slot >= sorted[1];
        let baseline = if members.len() < 2 || tail { 0.0 } else { sum / (weight + epsilon) };
        advantage[*token] = to_go[*token] - baseline;
    }
}

fn all() -> Vec<What> {
    let otb = |zero_tail, positions| Estimator::OptimalTokenBaseline {
        epsilon: 1e-8,
        zero_tail,
        positions,
    };
    let plain = Gae { gamma: 0.97, lambda: 0.9, whiten: false, ..Gae::default() };
    let plus = Estimator::ReinforcePlusPlus { gamma: 0.95, epsilon: 1e-8 };
    vec![
        What::Gae(plain),
        What::Gae(Gae { whiten: true, ..plain }),
        What::Gae(Gae { length_alpha: Some(0.05), critic_lambda: Some(1.0), ..plain }),
        What::Gae(Gae { length_alpha: Some(0.5), ..plain }),
        What::Returns(0.9, Holes::Pass),
        What::Returns(1.0, Holes::Reset),
        What::Reinforce(plus, Holes::Pass),
        What::Reinforce(plus, Holes::Reset),
        What::Baseline(otb(false, Positions::Position), false),
        What::Baseline(otb(true, Positions::Position), true),
        What::Baseline(otb(true, Positions::LiveToken), false),
        What::Baseline(otb(false, Positions::LiveToken), true),
        What::Prime(0.97),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn everything_is_its_definition_on_both_devices(
        seed in 0u64..10_000,
        lengths in prop::collection::vec(prop::sample::select(vec![0usize, 1, 2, 7, 31, 32, 33, 101]), 1..8),
    ) {
        let batch = Batch::draw(seed, &lengths);
        let device = gpu();
        for what in all() {
            let got = on_cpu(what, &batch);
            let want = oracle(what, &batch);
            for (got, want) in [(&got.0, &want.0), (&got.1, &want.1)] {
                for (got, want) in got.iter().zip(want) {
                    let near = (f64::from(*got) - want).abs() <= 2e-6 * want.abs().max(1.0);
                    prop_assert!(near, "{what:?}: {got} {want}");
                }
            }
            // NaN in masked tokens does not matter; the device agrees.
            let poisoned = batch.poisoned();
            let again = on_cpu(what, &poisoned);
            prop_assert_eq!(bits(&again.0), bits(&got.0));
            prop_assert_eq!(bits(&again.1), bits(&got.1));
            let there = on_device(&device, what, &poisoned).unwrap();
            for (here, there) in [(&got.0, &there.0), (&got.1, &there.1)] {
                for (here, there) in here.iter().zip(there) {
                    prop_assert!((here - there).abs() <= 2e-6 * here.abs().max(1.0), "{what:?}: {here} {there}");
                }
            }
        }
        device.check_status().unwrap();
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_neighbours() {
    let batch = Batch::draw(2, &[70, 5, 0, 300, 33]);
    let alone = |from: usize, to: usize| Batch {
        offsets: vec![0, (to - from) as i64],
        mask: batch.mask[from..to].to_vec(),
        rewards: batch.rewards[from..to].to_vec(),
        values: batch.values[from..to].to_vec(),
        logprob: batch.logprob[from..to].to_vec(),
        sum_squares: batch.sum_squares[from..to].to_vec(),
        weight: batch.weight[from..to].to_vec(),
        groups: vec![0],
    };
    let device = gpu();
    for what in all() {
        let first = on_device(&device, what, &batch).unwrap();
        for order in Order::ALL {
            let again = gradstone_host::with_order(order, || on_device(&device, what, &batch));
            let again = again.unwrap();
            assert_eq!(
                (bits(&again.0), bits(&again.1)),
                (bits(&first.0), bits(&first.1)),
                "{what:?}"
            );
        }
        if let What::Gae(Gae { whiten: false, .. }) | What::Returns(..) = what {
            let (from, to) = (75, 375);
            let (one, together) = (alone(from, to), on_cpu(what, &batch));
            assert_eq!(bits(&on_cpu(what, &one).0), bits(&together.0[from..to]));
            let there = on_device(&device, what, &one).unwrap();
            assert_eq!(bits(&there.0), bits(&first.0[from..to]));
        }
    }
}

#[test]
fn an_observation_passes_on_value_and_advantage() {
    // Two tokens with an observation between them are two neighbours.
    let settings = Gae { gamma: 0.5, lambda: 0.5, whiten: false, ..Gae::default() };
    let run = |rewards: &[f32], values: &[f32], mask: &[u8]| {
        let mut advantage = vec![0.0; mask.len()];
        let tokens = Tokens { mask, offsets: &[0, mask.len() as i64] };
        let out = TokenOutputs { advantage: &mut advantage, returns: None };
        gae(&settings, rewards, values, tokens, out).unwrap();
        advantage
    };
    let with = run(&[0.1, f32::NAN, 1.0], &[0.3, f32::NAN, 0.2], &[1, 0, 1]);
    let without = run(&[0.1, 1.0], &[0.3, 0.2], &[1, 1]);
    assert_eq!([with[0], with[2]], [without[0], without[1]]);
    assert_eq!(with[1], 0.0);
}

#[test]
fn reset_gives_tokens_before_a_hole_no_credit() {
    let run = |holes| {
        let mut out = [0.0; 4];
        let tokens = Tokens { mask: &[1, 1, 0, 1], offsets: &[0, 4] };
        returns(1.0, holes, &[0.0, 0.0, 0.0, 1.0], tokens, &mut out).unwrap();
        out
    };
    assert_eq!(run(Holes::Pass), [1.0, 1.0, 0.0, 1.0]);
    assert_eq!(run(Holes::Reset), [0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn fewer_than_two_live_tokens_whiten_to_zero() {
    let device = gpu();
    for (values, mask) in [
        (vec![3.0f32, f32::NAN], vec![1u8, 0]),
        (vec![f32::NAN, f32::NAN], vec![0, 0]),
        (vec![0.1, 0.1, 0.1], vec![1, 1, 1]),
        (vec![], vec![]),
    ] {
        let mut here = values.clone();
        whiten(&mut here, &mask, 1e-8, Masked::Zero).unwrap();
        assert!(here.iter().all(|v| *v == 0.0), "{here:?}");
        let mut there = upload(&device, DType::F32, &values);
        let mask = upload(&device, DType::U8, &mask);
        launch::whiten(there.whole_mut(), mask.whole(), 1e-8, Masked::Zero).unwrap();
        assert!(download::<f32>(&there).iter().all(|v| *v == 0.0));
    }
}

#[test]
fn whitening_of_many_tokens_does_not_depend_on_threads() {
    let device = gpu();
    let mut draws = Sequence::new(1, Stream::Free, 0);
    let values: Vec<f32> = (0..5000).map(|_| 100.0 + draws.next_normal()).collect();
    let mask: Vec<u8> = (0..5000).map(|_| u8::from(draws.next_unit() < 0.5)).collect();
    let mut here = values.clone();
    whiten(&mut here, &mask, 1e-8, Masked::Carried).unwrap();
    let run = || {
        let mut there = upload(&device, DType::F32, &values);
        let mask = upload(&device, DType::U8, &mask);
        launch::whiten(there.whole_mut(), mask.whole(), 1e-8, Masked::Carried).unwrap();
        download::<f32>(&there)
    };
    let first = run();
    for (here, there) in here.iter().zip(&first) {
        assert!((here - there).abs() <= 1e-5, "{here} {there}");
    }
    for order in Order::ALL {
        assert_eq!(bits(&gradstone_host::with_order(order, run)), bits(&first));
    }
}

#[test]
fn a_sequence_alone_in_its_group_has_no_baseline() {
    let mut batch = Batch::draw(6, &[9, 4]);
    batch.groups = vec![0, 1];
    for what in all().into_iter().filter(|what| matches!(what, What::Baseline(..))) {
        let (advantage, to_go) = on_cpu(what, &batch);
        assert_eq!(advantage, to_go, "{what:?}");
    }
}

#[test]
fn lambda_by_length_is_never_negative() {
    // alpha = 0.05 and five tokens: 1 - 1 / 0.25 would be -3.
    let settings = Gae { length_alpha: Some(0.05), whiten: false, ..Gae::default() };
    let tokens = Tokens { mask: &[1; 5], offsets: &[0, 5] };
    let mut advantage = [0.0; 5];
    let out = TokenOutputs { advantage: &mut advantage, returns: None };
    gae(&settings, &[0.0, 0.0, 0.0, 0.0, 1.0], &[0.0; 5], tokens, out).unwrap();
    assert_eq!(advantage, [0.0, 0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn bad_input_is_an_error_or_a_status() {
    let mut advantage = [0.0; 3];
    let mut fails = |mask: &[u8], offsets: &[i64], values: &[f32]| {
        let out = TokenOutputs { advantage: &mut advantage, returns: None };
        gae(&Gae::default(), &[0.0; 3], values, Tokens { mask, offsets }, out).unwrap_err()
    };
    assert!(fails(&[1; 2], &[0, 3], &[0.0; 3]).is_shape());
    assert!(fails(&[1; 3], &[0, 2], &[0.0; 3]).is_shape());
    assert!(fails(&[1; 3], &[0, 4, 3], &[0.0; 3]).is_index());
    assert!(fails(&[1; 3], &[0, 3], &[0.0; 2]).to_string().contains("values has 2"));
    let out = TokenOutputs { advantage: &mut advantage, returns: None };
    let tokens = Tokens { mask: &[1; 3], offsets: &[0, 3] };
    let other = Estimator::default();
    let error = reinforce_plus_plus(&other, Holes::Pass, &[0.0; 3], tokens, out).unwrap_err();
    assert!(error.to_string().contains("`grpo` is not"), "{error}");
    assert!(whiten(&mut [0.0], &[1], -1.0, Masked::Zero).unwrap_err().is_invalid());

    let device = gpu();
    let mut batch = Batch::draw(1, &[3, 3]);
    batch.mask = vec![1; 6];
    batch.offsets = vec![0, 7, 6];
    for what in all() {
        let (advantage, _) = on_device(&device, what, &batch).unwrap();
        assert!(advantage.iter().all(|a| *a == 0.0), "{what:?}");
        assert!(device.check_status().unwrap_err().to_string().contains("offsets"));
    }
}

#[test]
fn a_baseline_of_more_tokens_than_an_int32_counts_is_refused_before_any_launch() {
    let device = gpu();
    let len = 1usize << 31;
    // SAFETY: refused by its length, so nobody reads it.
    let of = |dtype, len| unsafe { DeviceBuffer::borrowed(&device, dtype, 0x1000, len).unwrap() };
    let (floats, mask) = (of(DType::F32, len), of(DType::U8, len));
    let mut advantage = of(DType::F32, len);
    let offsets = upload(&device, DType::I64, &[0, len as i64]);
    let groups = DeviceGroups::upload(&device, Groups::Offsets(&[0, 1]), 1).unwrap();
    let baseline = launch::TokenBaseline {
        rewards: floats.whole(),
        logprob: floats.whole(),
        sum_squares: floats.whole(),
        weight: None,
    };
    let tokens = launch::Tokens { mask: mask.whole(), offsets: offsets.whole() };
    let out = launch::TokenOutputs { advantage: advantage.whole_mut(), returns: None };
    let positions = Positions::LiveToken;
    let estimator = Estimator::OptimalTokenBaseline { epsilon: 1e-8, zero_tail: false, positions };
    let error = launch::token_baseline(&estimator, &baseline, tokens, &groups, Masked::Zero, out)
        .unwrap_err();
    assert!(error.is_shape() && error.to_string().contains("2147483648 tokens"), "{error}");
}
