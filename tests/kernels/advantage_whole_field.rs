//! Every estimator of `kernels::advantage` for outcomes: f64 definitions, edges, the emulated device, settings.

use crate::device_memory::{bits, download, gpu, upload};
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::error::Result;
use gradstone::kernels::advantage::launch::{self, DeviceGroups};
use gradstone::kernels::advantage::{
    Combination, Counted, Estimator, Gae, Groups, Need, Outputs, PRESETS, Responses, Scale,
    SeveralRewards, Singleton, of_responses, several_rewards,
};
use gradstone::rng::{Sequence, Stream};
use gradstone_host::Order;
use proptest::prelude::*;
use std::sync::Arc;

struct Batch {
    rewards: Vec<f32>,
    ids: Vec<i32>,
    lengths: Vec<i64>,
    greedy: Vec<f32>,
    basis: Option<Vec<u8>>,
}

impl Batch {
    fn draw(seed: u64, ids: &[i32], nan: f32, with_basis: bool) -> Batch {
        let mut draws = Sequence::new(seed, Stream::Free, 0);
        let binary = seed.is_multiple_of(2);
        let reward = |draws: &mut Sequence| match draws.next_unit() < nan {
            true => f32::NAN,
            false if binary => f32::from(u8::from(draws.next_unit() < 0.4)),
            false => draws.next_normal(),
        };
        Batch {
            rewards: ids.iter().map(|_| reward(&mut draws)).collect(),
            ids: ids.to_vec(),
            lengths: ids.iter().map(|_| i64::from(draws.below(9))).collect(),
            greedy: ids.iter().map(|_| draws.next_normal()).collect(),
            basis: with_basis
                .then(|| ids.iter().map(|_| u8::from(draws.next_unit() < 0.7)).collect()),
        }
    }

    fn responses(&self) -> Responses<'_> {
        Responses {
            lengths: Some(&self.lengths),
            greedy: Some(&self.greedy),
            basis: self.basis.as_deref(),
            ..Responses::new(&self.rewards, Groups::Ids(&self.ids))
        }
    }

    fn on_cpu(&self, estimator: &Estimator) -> Vec<f32> {
        let mut advantage = vec![f32::NAN; self.rewards.len()];
        let out = Outputs { advantage: &mut advantage, mean: None, std: None, flags: None };
        of_responses(estimator, &self.responses(), out).unwrap();
        advantage
    }

    fn on_device(&self, gpu: &Arc<Gpu>, estimator: &Estimator) -> Result<Vec<f32>> {
        let groups = DeviceGroups::upload(gpu, Groups::Ids(&self.ids), self.rewards.len())?;
        let rewards = upload(gpu, DType::F32, &self.rewards);
        let lengths = upload(gpu, DType::I64, &self.lengths);
        let greedy = upload(gpu, DType::F32, &self.greedy);
        let basis = self.basis.as_ref().map(|basis| upload(gpu, DType::U8, basis));
        let responses = launch::Responses {
            rewards: rewards.whole(),
            groups: &groups,
            lengths: Some(lengths.whole()),
            greedy: Some(greedy.whole()),
            basis: basis.as_ref().map(DeviceBuffer::whole),
        };
        let mut advantage = DeviceBuffer::recycled(gpu, DType::F32, self.rewards.len())?;
        let out = launch::Outputs {
            advantage: advantage.whole_mut(),
            mean: None,
            std: None,
            flags: None,
            counts: None,
        };
        launch::of_responses(estimator, &responses, out)?;
        Ok(download(&advantage))
    }
}

/// Mean, unbiased deviation (1 below two) and number.
fn statistics(values: &[f64]) -> (f64, f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let std = if values.len() < 2 { 1.0 } else { (squares / (n - 1.0)).sqrt() };
    (mean, std, n)
}

/// `(x - mean) / sqrt(var + epsilon)` where each value is written as often as it has tokens.
fn whitened(values: &[f64], lengths: &[i64], epsilon: f64) -> Vec<f64> {
    let repeat = |(v, n): (&f64, &i64)| std::iter::repeat_n(*v, *n as usize);
    let tokens: Vec<f64> = values.iter().zip(lengths).flat_map(repeat).collect();
    let (mean, std, n) = statistics(&tokens);
    let flat = tokens.iter().all(|t| *t == tokens[0]) || n < 2.0;
    values
        .iter()
        .zip(lengths)
        .map(|(v, n)| match flat || *n == 0 {
            true => 0.0,
            false => (v - mean) / (std * std + epsilon).sqrt(),
        })
        .collect()
}

/// The definitions, group by group, in f64; NaN rewards have 0.
fn oracle(estimator: &Estimator, batch: &Batch) -> Vec<f64> {
    let rewards: Vec<f64> = batch.rewards.iter().map(|r| f64::from(*r)).collect();
    let in_basis = |i: usize| batch.basis.as_ref().is_none_or(|b| b[i] != 0);
    let scored = |keep: &dyn Fn(usize) -> bool| -> Vec<usize> {
        (0..rewards.len()).filter(|i| keep(*i) && !rewards[*i].is_nan()).collect()
    };
    let of = |places: &[usize]| places.iter().map(|i| rewards[*i]).collect::<Vec<f64>>();
    let all = scored(&|_| true);
    let flat = all.iter().all(|i| rewards[*i] == rewards[all[0]]);
    let batch_std = if flat { 1.0 } else { statistics(&of(&all)).1 };
    let nonzero = all.iter().filter(|i| rewards[**i] != 0.0).count().max(1) as f64;
    let mut raw = vec![0f64; rewards.len()];
    for i in scored(&|_| true) {
        let group = scored(&|j| batch.ids[j] == batch.ids[i] && in_basis(j));
        let (mean, std, n) = statistics(&of(&group));
        let equal = group.iter().all(|j| rewards[*j] == rewards[group[0]]);
        let std = if equal { 1.0 } else { std };
        let own = matches!(estimator, Estimator::Remax {} | Estimator::ReinforcePlusPlus { .. });
        if group.is_empty() && !own {
            continue; // nothing to compare with
        }
        let center = |singleton: Singleton| match singleton {
            Singleton::Reward if group.len() == 1 => 0.0,
            _ => mean,
        };
        raw[i] = match *estimator {
            Estimator::Grpo { epsilon, scale, singleton, variance_floor, variance_threshold } => {
                let variance = if equal { 0.0 } else { std * std };
                let own = if scale == Scale::Batch { batch_std } else { std };
                match variance < variance_threshold {
                    true => 0.0,
                    false => {
                        (rewards[i] - center(singleton))
                            / (own.max(variance_floor.sqrt()) + epsilon)
                    }
                }
            }
            Estimator::DrGrpo { singleton } => rewards[i] - center(singleton),
            Estimator::Rloo { singleton } => {
                let factor = if n > 1.0 { n / (n - 1.0) } else { 1.0 };
                factor * (rewards[i] - center(singleton))
            }
            Estimator::PassK { epsilon, divide } => {
                let mut order = group.clone();
                order.sort_by(|a, b| rewards[*b].total_cmp(&rewards[*a]));
                match order.first() == Some(&i) && order.len() > 1 {
                    true => {
                        let by = if divide { std + epsilon } else { 1.0 };
                        (rewards[i] - rewards[order[1]]) / by
                    }
                    false => 0.0,
                }
            }
            Estimator::Opo { singleton } => {
                let weight: f64 = group.iter().map(|j| batch.lengths[*j] as f64).sum();
                let sum: f64 = group.iter().map(|j| batch.lengths[*j] as f64 * rewards[*j]).sum();
                let alone = singleton == Singleton::Reward && group.len() == 1;
                let baseline = if weight > 0.0 && !equal { sum / weight } else { mean };
                rewards[i] - if alone { 0.0 } else { baseline }
            }
            Estimator::ReinforcePlusPlus { .. } => rewards[i],
            Estimator::ReinforcePlusPlusBaseline { singleton, .. } => {
                rewards[i] - center(singleton)
            }
            Estimator::Remax {} => rewards[i] - f64::from(batch.greedy[i]),
            Estimator::Gpg { f_norm, singleton } => {
                all.len() as f64 / nonzero * (rewards[i] - center(singleton)) / f_norm
            }
            Estimator::Cpgd { cap, counted, singleton } => {
                let mut ids = batch.ids.clone();
                ids.sort_unstable();
                ids.dedup();
                let differs = |id: &&i32| {
                    let members = scored(&|j| batch.ids[j] == **id && in_basis(j));
                    members.iter().any(|j| rewards[*j] != rewards[members[0]])
                };
                let live = ids.iter().filter(differs).count() as f64;
                let count = if counted == Counted::Groups { ids.len() } else { rewards.len() };
                let factor = if live > 0.0 { cap.min(count as f64 / live) } else { cap };
                factor * (rewards[i] - center(singleton))
            }
            Estimator::Cale { eta, correct_above, epsilon } => {
                let correct: Vec<f64> = group
                    .iter()
                    .filter(|j| rewards[**j] > correct_above)
                    .map(|j| batch.lengths[*j] as f64)
                    .collect();
                let (mean_length, std_length, _) = statistics(&correct);
                let short =
                    match rewards[i] > correct_above && correct.len() > 1 && std_length > 0.0 {
                        true => eta * (mean_length - batch.lengths[i] as f64) / std_length,
                        false => 0.0,
                    };
                (rewards[i] - mean) / (std + epsilon) + short
            }
            Estimator::Gae(_)
            | Estimator::Prime { .. }
            | Estimator::OptimalTokenBaseline { .. } => panic!("of tokens"),
        };
    }
    match *estimator {
        Estimator::ReinforcePlusPlus { epsilon, .. }
        | Estimator::ReinforcePlusPlusBaseline { epsilon, .. } => {
            let scored: Vec<i64> = (0..rewards.len())
                .map(|i| if rewards[i].is_nan() { 0 } else { batch.lengths[i] })
                .collect();
            whitened(&raw, &scored, epsilon)
        }
        _ => raw,
    }
}

fn estimators() -> Vec<Estimator> {
    let mut all: Vec<Estimator> = PRESETS.iter().map(|preset| preset.estimator).collect();
    let of_tokens = |e: &Estimator| {
        matches!(
            e,
            Estimator::Gae(_) | Estimator::OptimalTokenBaseline { .. } | Estimator::Prime { .. }
        )
    };
    all.retain(|e| !of_tokens(e));
    let singleton = Singleton::Reward;
    all.extend([
        Estimator::Grpo {
            epsilon: 1e-6,
            scale: Scale::Group,
            singleton,
            variance_floor: 0.3,
            variance_threshold: 0.25,
        },
        Estimator::PassK { epsilon: 0.0, divide: false },
        Estimator::Opo { singleton },
        Estimator::ReinforcePlusPlusBaseline { singleton, epsilon: 1e-8 },
        Estimator::Gpg { f_norm: 2.5, singleton },
        Estimator::Cpgd { cap: 1.2, counted: Counted::Groups, singleton },
        Estimator::Cale { eta: 0.7, correct_above: 0.0, epsilon: 1e-6 },
    ]);
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_estimator_is_its_definition_on_both_devices(
        seed in 0u64..10_000,
        ids in prop::collection::vec(prop::sample::select(vec![0i32, 1, 2, 5, 1_000_000_007]), 1..30),
        nan in prop::sample::select(vec![0.0f32, 0.2]),
        with_basis in any::<bool>(),
    ) {
        let batch = Batch::draw(seed, &ids, nan, with_basis);
        let device = gpu();
        for estimator in estimators() {
            let got = batch.on_cpu(&estimator);
            for (i, (got, want)) in got.iter().zip(oracle(&estimator, &batch)).enumerate() {
                // Whitening subtracts a mean from values rounded to f32.
                let near = (f64::from(*got) - want).abs() <= 2e-6 * want.abs().max(1.0);
                prop_assert!(near, "{estimator:?} {i}: {got} {want}");
            }
            let there = batch.on_device(&device, &estimator).unwrap();
            for (here, there) in got.iter().zip(&there) {
                let near = (here - there).abs() <= 1e-6 * here.abs().max(1.0);
                prop_assert!(near, "{estimator:?}: {here} {there}");
            }
        }
        device.check_status().unwrap();
    }
}

#[test]
fn bits_do_not_depend_on_the_order_of_threads() {
    let ids: Vec<i32> = (0..700).map(|i| if i < 300 { 0 } else { i % 40 }).collect();
    let batch = Batch::draw(8, &ids, 0.05, true);
    let device = gpu();
    for estimator in estimators() {
        let first = batch.on_device(&device, &estimator).unwrap();
        for (here, there) in batch.on_cpu(&estimator).iter().zip(&first) {
            assert!((here - there).abs() <= 1e-5 * here.abs().max(1.0), "{estimator:?}");
        }
        for order in Order::ALL {
            let again = gradstone_host::with_order(order, || batch.on_device(&device, &estimator));
            assert_eq!(bits(&again.unwrap()), bits(&first), "{estimator:?} {order:?}");
        }
    }
}

fn advantages(estimator: &Estimator, rewards: &[f32], ids: &[i32], lengths: &[i64]) -> Vec<f32> {
    let greedy = vec![0.5; rewards.len()];
    let batch = Batch {
        rewards: rewards.to_vec(),
        ids: ids.to_vec(),
        lengths: lengths.to_vec(),
        greedy,
        basis: None,
    };
    let here = batch.on_cpu(estimator);
    let there = batch.on_device(&gpu(), estimator).unwrap();
    for (here, there) in here.iter().zip(&there) {
        assert!((here - there).abs() <= 1e-6 * here.abs().max(1.0), "{here} {there}");
    }
    here
}

#[test]
fn a_group_of_one_has_zero_or_its_reward_by_option() {
    let one = |estimator: Estimator| advantages(&estimator, &[7.0], &[3], &[4])[0];
    for preset in PRESETS.iter().filter(|p| estimators().contains(&p.estimator)) {
        let want = match preset.name {
            "grpo_verl" | "grpo_verl_vectorized" | "rloo_verl" => 7.0,
            "remax" => 6.5,
            _ => 0.0,
        };
        assert!((one(preset.estimator) - want).abs() < 1e-4, "{}", preset.name);
    }
}

#[test]
fn a_group_of_equal_rewards_has_exactly_zero() {
    for estimator in estimators() {
        if matches!(estimator, Estimator::Remax {} | Estimator::ReinforcePlusPlus { .. }) {
            continue;
        }
        let got = advantages(&estimator, &[0.1; 5], &[0, 0, 0, 1, 1], &[1, 2, 3, 3, 3]);
        let bonus = matches!(estimator, Estimator::Cale { correct_above: 0.0, .. });
        assert!(bonus || got.iter().all(|a| *a == 0.0), "{estimator:?} {got:?}");
    }
}

#[test]
fn a_tie_for_the_best_teaches_nothing() {
    let pass_k = Estimator::preset("pass_k").unwrap();
    assert_eq!(advantages(&pass_k, &[1.0, 1.0, 0.0], &[0; 3], &[1; 3]), [0.0; 3]);
    let best = advantages(
        &Estimator::PassK { epsilon: 0.0, divide: false },
        &[1.0, 3.0, 0.5],
        &[0; 3],
        &[1; 3],
    );
    assert_eq!(best, [0.0, 2.0, 0.0]);
}

#[test]
fn responses_without_tokens_fall_back_to_the_plain_mean() {
    let opo = Estimator::preset("opo").unwrap();
    assert_eq!(advantages(&opo, &[1.0, 0.0], &[0; 2], &[0; 2]), [0.5, -0.5]);
    assert_eq!(advantages(&opo, &[1.0, 0.0], &[0; 2], &[3, 1]), [0.25, -0.75]);
}

#[test]
fn whitening_counts_tokens_and_not_responses() {
    let plus = Estimator::preset("reinforce_plus_plus").unwrap();
    let got = advantages(&plus, &[1.0, 0.0, 5.0], &[0, 1, 2], &[3, 1, 0]);
    // Tokens 1 1 1 0: mean 3/4, variance 1/4.
    for (got, want) in got.iter().zip([0.5, -1.5, 0.0]) {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
    assert_eq!(advantages(&plus, &[2.0], &[0], &[1]), [0.0], "fewer than two tokens");
    assert_eq!(advantages(&plus, &[], &[], &[]), [0.0f32; 0]);
}

#[test]
fn cpgd_counts_groups_and_siirl_responses() {
    let rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    let ids = [0, 0, 1, 1, 2, 2, 3, 3];
    let of = |name: &str| advantages(&Estimator::preset(name).unwrap(), &rewards, &ids, &[1; 8]);
    assert_eq!(of("cpgd")[..2], [1.5, -1.5], "four groups, one live: 3 at most");
    assert_eq!(of("cpgd_siirl")[..2], [1.5, -1.5]);
    let both = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0];
    let of = |name: &str| {
        let estimator = Estimator::preset(name).unwrap();
        advantages(&estimator, &both, &[0, 0, 1, 1, 2, 2], &[1; 6])[0]
    };
    assert_eq!((of("cpgd"), of("cpgd_siirl")), (0.75, 1.5), "3 groups of 2 live, 6 responses of 2");
}

#[test]
fn short_correct_responses_gain_and_the_others_do_not() {
    let cale = Estimator::Cale { eta: 1.0, correct_above: 0.5, epsilon: 0.0 };
    let plain = Estimator::preset("grpo").unwrap();
    let (rewards, lengths) = ([1.0, 1.0, 0.0, 0.0], [2, 6, 1, 9]);
    let bonus: Vec<f32> = advantages(&cale, &rewards, &[0; 4], &lengths)
        .iter()
        .zip(advantages(&plain, &rewards, &[0; 4], &lengths))
        .map(|(a, b)| a - b)
        .collect();
    let half = 0.5f32.sqrt();
    for (got, want) in bonus.iter().zip([half, -half, 0.0, 0.0]) {
        assert!((got - want).abs() < 1e-4, "{bonus:?}");
    }
    let alone = advantages(&cale, &[1.0, 0.0], &[0; 2], &[2, 6]);
    assert!((alone[0] - half).abs() < 1e-6, "fewer than two correct: no bonus");
}

#[test]
fn responses_outside_the_basis_are_compared_and_not_counted() {
    let estimator = Estimator::preset("dr_grpo").unwrap();
    let rewards = [1.0, 0.0, 5.0];
    let responses =
        Responses { basis: Some(&[1, 1, 0]), ..Responses::new(&rewards, Groups::Ids(&[0; 3])) };
    let mut advantage = [0.0; 3];
    let out = Outputs { advantage: &mut advantage, mean: None, std: None, flags: None };
    of_responses(&estimator, &responses, out).unwrap();
    assert_eq!(advantage, [0.5, -0.5, 4.5]);
    let nobody = Responses { basis: Some(&[0; 3]), ..responses };
    let out = Outputs { advantage: &mut advantage, mean: None, std: None, flags: None };
    of_responses(&Estimator::default(), &nobody, out).unwrap();
    assert_eq!(advantage, [0.0; 3], "nothing to compare with");
}

#[test]
fn what_is_missing_is_named() {
    let lacks = |name: &str| {
        let mut advantage = [0.0; 2];
        let out = Outputs { advantage: &mut advantage, mean: None, std: None, flags: None };
        let rewards = [1.0, 0.0];
        let responses = Responses::new(&rewards, Groups::Ids(&[0, 0]));
        of_responses(&Estimator::preset(name).unwrap(), &responses, out).unwrap_err().to_string()
    };
    assert!(lacks("opo").contains("`opo` needs lengths"), "{}", lacks("opo"));
    assert!(lacks("remax").contains("`remax` needs rewards of greedy responses"));
    assert!(lacks("gae").contains("`gae` needs values"));
    assert!(lacks("optimal_token_baseline").contains("needs log-probs"));
    let gae = Estimator::preset("vapo").unwrap();
    let error = gae.check_available(&[Need::Lengths], "the trainer").unwrap_err();
    assert_eq!(error.to_string(), "advantage: `gae` needs values, which the trainer does not have");
    assert!(Estimator::preset("opo").unwrap().check_available(&[Need::Lengths], "x").is_ok());
    let discounted = Estimator::ReinforcePlusPlus { gamma: 0.9, epsilon: 1e-8 };
    let error = discounted.check_available(&[Need::Lengths], "the trainer").unwrap_err();
    assert!(error.to_string().contains("token rewards"), "{error}");
}

#[test]
fn a_name_or_a_table_is_read_from_settings() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Settings {
        advantage: Estimator,
    }
    let read = |text: &str| toml::from_str::<Settings>(text).map(|s| s.advantage);
    assert_eq!(read("advantage = 'rloo'").unwrap(), Estimator::preset("rloo").unwrap());
    assert_eq!(read("advantage = 'dr-grpo'").unwrap(), Estimator::preset("dr_grpo").unwrap());
    let table = "advantage = { kind = 'rloo', singleton = 'reward' }";
    assert_eq!(read(table).unwrap(), Estimator::Rloo { singleton: Singleton::Reward });
    let vapo = "advantage = { kind = 'gae', length_alpha = 0.05, critic_lambda = 1.0 }";
    assert_eq!(read(vapo).unwrap(), Estimator::preset("vapo").unwrap());
    let error = read("advantage = 'magic'").unwrap_err().to_string();
    assert!(error.contains("`magic`") && error.contains("dr_grpo"), "{error}");
    assert!(read("advantage = { kind = 'rloo', gamma = 1 }").is_err());
    assert!(read("advantage = 3").is_err());
    for preset in PRESETS {
        // Every one survives the config.toml of a run.
        let settings = Settings { advantage: preset.estimator };
        let text = toml::to_string(&settings).unwrap();
        assert_eq!(read(&text).unwrap(), preset.estimator, "{text}");
        assert!(preset.estimator.check().is_ok());
        assert!(!preset.summary.is_empty() && !preset.source.is_empty());
    }
}

#[test]
fn an_option_out_of_range_is_an_error() {
    let bad = [
        Estimator::PassK { epsilon: -1.0, divide: true },
        Estimator::Gpg { f_norm: 0.0, singleton: Singleton::Zero },
        Estimator::Cpgd { cap: f64::NAN, counted: Counted::Groups, singleton: Singleton::Zero },
        Estimator::ReinforcePlusPlus { gamma: 1.5, epsilon: 0.0 },
        Estimator::Gae(Gae { lambda: -0.1, ..Gae::default() }),
        Estimator::Gae(Gae { length_alpha: Some(0.0), ..Gae::default() }),
    ];
    for estimator in bad {
        assert!(estimator.check().unwrap_err().is_invalid(), "{estimator:?}");
    }
}

fn several(
    gpu: &Arc<Gpu>,
    estimator: &Estimator,
    combination: Combination,
    rewards: &[f32],
    weights: &[f64],
    ids: &[i32],
) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut here = vec![f32::NAN; ids.len()];
    let out = Outputs { advantage: &mut here, mean: None, std: None, flags: None };
    let of = SeveralRewards { rewards, weights, groups: Groups::Ids(ids) };
    several_rewards(estimator, combination, &of, out)?;
    let groups = DeviceGroups::upload(gpu, Groups::Ids(ids), ids.len())?;
    let rewards = upload(gpu, DType::F32, rewards);
    let mut there = DeviceBuffer::recycled(gpu, DType::F32, ids.len())?;
    let out = launch::Outputs {
        advantage: there.whole_mut(),
        mean: None,
        std: None,
        flags: None,
        counts: None,
    };
    launch::several_rewards(estimator, combination, rewards.whole(), weights, &groups, out)?;
    Ok((here, download(&there)))
}

#[test]
fn several_rewards_agree_with_the_definition() {
    let device = gpu();
    let mut draws = Sequence::new(4, Stream::Free, 0);
    let ids: Vec<i32> = (0..24).map(|i| (i * 5) % 4).collect();
    let weights = [0.5, 1.25, -0.75];
    let mut rewards: Vec<f32> = (0..24 * 3).map(|_| draws.next_normal()).collect();
    rewards[4] = f32::NAN;
    rewards[30..33].fill(f32::NAN); // response 10: nobody scores it
    let estimator = Estimator::preset("grpo_trl").unwrap();
    for combination in [Combination::SumThenNormalize, Combination::NormalizeThenSum] {
        let (here, there) =
            several(&device, &estimator, combination, &rewards, &weights, &ids).unwrap();
        assert_eq!((here[10], there[10]), (0.0, 0.0));
        for (here, there) in here.iter().zip(&there) {
            assert!((here - there).abs() < 1e-5, "{here} {there}");
        }
        for order in Order::ALL {
            let run = || several(&device, &estimator, combination, &rewards, &weights, &ids);
            assert_eq!(bits(&gradstone_host::with_order(order, run).unwrap().1), bits(&there));
        }
    }
    // The definition of normalise-then-sum.
    let z = |function: usize| -> Vec<f64> {
        let column: Vec<f64> = (0..24).map(|i| f64::from(rewards[i * 3 + function])).collect();
        let scored = |group: i32| -> Vec<f64> {
            (0..24)
                .filter(|i| ids[*i] == group && !column[*i].is_nan())
                .map(|i| column[i])
                .collect()
        };
        (0..24)
            .map(|i| {
                let (mean, std, _) = statistics(&scored(ids[i]));
                (column[i] - mean) / (std + 1e-4)
            })
            .collect()
    };
    let columns: Vec<Vec<f64>> = (0..3).map(z).collect();
    let sum = |i: usize| -> f64 {
        let terms = (0..3).filter(|f| !columns[*f][i].is_nan()).map(|f| weights[f] * columns[f][i]);
        terms.sum()
    };
    let sums: Vec<f64> = (0..24).filter(|i| *i != 10).map(sum).collect();
    let (mean, std, _) = statistics(&sums);
    let combination = Combination::NormalizeThenSum;
    let (here, _) = several(&device, &estimator, combination, &rewards, &weights, &ids).unwrap();
    for i in (0..24).filter(|i| *i != 10) {
        let want = (sum(i) - mean) / (std + 1e-4);
        assert!((f64::from(here[i]) - want).abs() < 1e-5, "{i}: {} {want}", here[i]);
    }
}

#[test]
fn combinations_without_sense_name_both_parts() {
    let device = gpu();
    let refused = |name: &str| {
        let estimator = Estimator::preset(name).unwrap();
        let combination = Combination::NormalizeThenSum;
        let error = several(&device, &estimator, combination, &[1.0, 0.0], &[1.0], &[0, 0]);
        error.unwrap_err().to_string()
    };
    assert!(refused("rloo").contains("`normalize-then-sum` and `rloo`"));
    assert!(refused("batch_std").contains("scale = \"batch\""));
    let grpo = Estimator::default();
    let sum = Combination::SumThenNormalize;
    let fails = |rewards: &[f32], weights: &[f64]| {
        several(&device, &grpo, sum, rewards, weights, &[0, 0]).unwrap_err()
    };
    assert!(fails(&[1.0; 3], &[1.0; 2]).is_shape());
    assert!(fails(&[1.0; 2], &[]).is_shape());
    assert!(fails(&[1.0; 2], &[f64::NAN]).is_invalid());
}
