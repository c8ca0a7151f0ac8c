//! `kernels::advantage` against an f64 oracle, published values and its promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::kernels::advantage::{
    Counts, Estimator, FLAG_DEGENERATE, FLAG_NAN, FLAG_SINGLETON, Groups, Outputs, Scale,
    Singleton, forward,
};
use gradstone::rng::{Sequence, Stream};
use proptest::prelude::*;

struct Got {
    advantage: Vec<f32>,
    mean: Vec<f32>,
    std: Vec<f32>,
    flags: Vec<u8>,
    counts: Counts,
}

fn run(estimator: &Estimator, rewards: &[f32], groups: Groups<'_>) -> Got {
    let count = groups.count().unwrap();
    let mut got = Got {
        advantage: vec![f32::NAN; rewards.len()],
        mean: vec![f32::NAN; count],
        std: vec![f32::NAN; count],
        flags: vec![255; count],
        counts: Counts::default(),
    };
    let outputs = Outputs {
        advantage: &mut got.advantage,
        mean: Some(&mut got.mean),
        std: Some(&mut got.std),
        flags: Some(&mut got.flags),
    };
    got.counts = forward(estimator, rewards, groups, outputs).unwrap();
    got
}

fn grpo(epsilon: f64, scale: Scale, singleton: Singleton) -> Estimator {
    Estimator::Grpo { epsilon, scale, singleton, variance_floor: 0.0, variance_threshold: 0.0 }
}

fn close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((f64::from(*g) - w).abs() <= 2e-7 * w.abs(), "{got:?} {want:?}");
    }
}

#[test]
fn values_computed_by_hand() {
    let rewards = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    let groups = Groups::Offsets(&[0, 8]);
    let two = |estimator: &Estimator| {
        let got = run(estimator, &rewards, groups);
        (f64::from(got.advantage[0]), f64::from(got.advantage[1]))
    };
    let near = |(a, b): (f64, f64), (x, y): (f64, f64)| {
        assert!((a - x).abs() < 1e-6 && (b - y).abs() < 1e-6, "{a} {b}");
    };
    let verl = grpo(1e-6, Scale::Group, Singleton::Reward);
    near(two(&verl), (1.620_181_67, -0.540_060_56));
    let trl = grpo(1e-4, Scale::Group, Singleton::Zero);
    near(two(&trl), (1.619_835_25, -0.539_945_08));
    near(two(&Estimator::DrGrpo { singleton: Singleton::Zero }), (0.75, -0.25));
    let rloo = Estimator::Rloo { singleton: Singleton::Zero };
    near(two(&rloo), (0.857_142_86, -0.285_714_29));
    let got = run(&verl, &rewards, groups);
    assert_eq!((got.mean[0], got.flags[0]), (0.25, 0));
    assert!((got.std[0] - 0.462_910_05).abs() < 1e-7);
}

#[test]
fn equal_rewards_give_exactly_zero() {
    // 0.1f32 has no exact mean of three in f32, which divided by an epsilon of 1e-6 would show.
    let rewards = [0.1, 0.1, 0.1, 7.0, f32::NAN, f32::NAN, 3.0, 3.0];
    let offsets = [0, 3, 4, 4, 5, 8];
    for singleton in [Singleton::Zero, Singleton::Reward] {
        for scale in [Scale::Group, Scale::Batch] {
            let got = run(&grpo(0.0, scale, singleton), &rewards, Groups::Offsets(&offsets));
            assert_eq!(got.advantage[..3], [0.0; 3]);
            assert_eq!(got.advantage[4..], [0.0; 4]);
            let alone = FLAG_DEGENERATE | FLAG_SINGLETON;
            let unscored = FLAG_DEGENERATE | FLAG_NAN;
            assert_eq!(got.flags, [FLAG_DEGENERATE, alone, FLAG_DEGENERATE, unscored, unscored]);
            assert_eq!(got.counts, Counts { groups: 4, degenerate: 4, unscored: 2 });
            assert_eq!(got.mean, [0.1, 7.0, 0.0, 0.0, 3.0]);
            assert_eq!(got.std, [0.0; 5]);
        }
    }
    let one = |estimator: Estimator| run(&estimator, &[7.0], Groups::Ids(&[3])).advantage[0];
    assert_eq!(one(grpo(0.0, Scale::Group, Singleton::Zero)), 0.0);
    assert_eq!(one(grpo(0.0, Scale::Group, Singleton::Reward)), 7.0);
    assert_eq!(one(Estimator::DrGrpo { singleton: Singleton::Reward }), 7.0);
    assert_eq!(one(Estimator::Rloo { singleton: Singleton::Zero }), 0.0);
    assert_eq!(one(Estimator::Rloo { singleton: Singleton::Reward }), 7.0);
}

#[test]
fn nearly_equal_rewards_keep_their_digits() {
    let rewards: Vec<f32> = (0..5).map(|i| 1000.0 + i as f32 * 6.103_515_6e-5).collect();
    let got = run(&grpo(0.0, Scale::Group, Singleton::Zero), &rewards, Groups::Offsets(&[0, 5]));
    let s = 2.5f64.sqrt();
    close(&got.advantage, &[-2.0 / s, -1.0 / s, 0.0, 1.0 / s, 2.0 / s]);
}

fn oracle(estimator: &Estimator, rewards: &[f32], ids: &[i32]) -> Vec<f64> {
    let statistics = |values: &[f64]| {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt(), n)
    };
    let scored = |keep: &dyn Fn(usize) -> bool| -> Vec<f64> {
        (0..rewards.len())
            .filter(|i| keep(*i) && !rewards[*i].is_nan())
            .map(|i| f64::from(rewards[i]))
            .collect()
    };
    let (_, batch_std, _) = statistics(&scored(&|_| true));
    (0..rewards.len())
        .map(|i| {
            let (mean, std, n) = statistics(&scored(&|j| ids[j] == ids[i]));
            let reward = f64::from(rewards[i]);
            if reward.is_nan() {
                return 0.0;
            }
            match (estimator, n as u64) {
                (Estimator::DrGrpo { singleton }, 1) | (Estimator::Rloo { singleton }, 1) => {
                    if *singleton == Singleton::Reward {
                        reward
                    } else {
                        0.0
                    }
                }
                (Estimator::Grpo { singleton, epsilon, scale, .. }, 1) => {
                    match (singleton, scale) {
                        (Singleton::Zero, _) => 0.0,
                        (Singleton::Reward, Scale::Group) => reward / (1.0 + epsilon),
                        (Singleton::Reward, Scale::Batch) => reward / (batch_std + epsilon),
                    }
                }
                (Estimator::Grpo { epsilon, scale: Scale::Group, .. }, _) => {
                    (reward - mean) / (std + epsilon)
                }
                (Estimator::Grpo { epsilon, .. }, _) => (reward - mean) / (batch_std + epsilon),
                (Estimator::DrGrpo { .. }, _) => reward - mean,
                (Estimator::Rloo { .. }, _) => reward - (mean * n - reward) / (n - 1.0),
                (other, _) => panic!("{other:?} is tested with the whole field"),
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn equals_the_oracle_for_any_groups(
        seed in 0u64..1000,
        ids in prop::collection::vec(prop::sample::select(vec![0i32, 1, 2, 5, 1_000_000_007]), 2..40),
        nan in prop::sample::select(vec![0.0f32, 0.2]),
    ) {
        let mut draws = Sequence::new(seed, Stream::Free, 0);
        let rewards: Vec<f32> = ids
            .iter()
            .map(|_| if draws.next_unit() < nan { f32::NAN } else { draws.next_normal() })
            .collect();
        let mut estimators = Vec::new();
        for singleton in [Singleton::Zero, Singleton::Reward] {
            estimators.push(grpo(1e-6, Scale::Group, singleton));
            estimators.push(grpo(1e-4, Scale::Batch, singleton));
            estimators.push(Estimator::DrGrpo { singleton });
            estimators.push(Estimator::Rloo { singleton });
        }
        // Groups sorted by id, for the form with offsets.
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|i| ids[*i]);
        let sorted: Vec<f32> = order.iter().map(|i| rewards[*i]).collect();
        let mut offsets: Vec<i64> = vec![0];
        for i in 1..ids.len() {
            if ids[order[i]] != ids[order[i - 1]] {
                offsets.push(i as i64);
            }
        }
        offsets.push(ids.len() as i64);

        for estimator in estimators {
            let got = run(&estimator, &rewards, Groups::Ids(&ids));
            let batch_of_one = rewards.iter().filter(|r| !r.is_nan()).count() < 2;
            if !batch_of_one {
                for (g, w) in got.advantage.iter().zip(oracle(&estimator, &rewards, &ids)) {
                    prop_assert!((f64::from(*g) - w).abs() <= 1e-6 * w.abs().max(1e-3), "{g} {w}");
                }
            }
            let packed = run(&estimator, &sorted, Groups::Offsets(&offsets));
            for (place, i) in order.iter().enumerate() {
                prop_assert_eq!(packed.advantage[place].to_bits(), got.advantage[*i].to_bits());
            }
            prop_assert_eq!(&packed.mean, &got.mean);
            prop_assert_eq!(&packed.flags, &got.flags);
            prop_assert_eq!(packed.counts, got.counts);
        }
    }
}

#[test]
fn a_group_does_not_see_its_neighbours() {
    let rewards = [0.3, 0.9, -1.0, 5.0, 5.0, 2.0];
    let estimator = grpo(1e-6, Scale::Group, Singleton::Zero);
    let together = run(&estimator, &rewards, Groups::Offsets(&[0, 3, 6]));
    let alone = run(&estimator, &rewards[3..], Groups::Offsets(&[0, 3]));
    assert_eq!(together.advantage[3..], alone.advantage);
    assert_eq!(together.std[1], alone.std[0]);
}

#[test]
fn nothing_in_nothing_out() {
    for groups in [Groups::Offsets(&[]), Groups::Offsets(&[0]), Groups::Ids(&[])] {
        let got = run(&Estimator::default(), &[], groups);
        assert_eq!((groups.count().unwrap(), got.counts), (0, Counts::default()));
    }
}

#[test]
fn bad_input_is_an_error_that_says_what() {
    let fails = |rewards: &[f32], groups: Groups<'_>, advantages: usize| {
        let mut advantage = vec![0.0; advantages];
        let outputs = Outputs { advantage: &mut advantage, mean: None, std: None, flags: None };
        forward(&Estimator::default(), rewards, groups, outputs).unwrap_err()
    };
    let rewards = [1.0, 2.0];
    let error = fails(&rewards, Groups::Ids(&[0, -4]), 2);
    assert!(error.is_index() && error.to_string().contains("-4 of response 1"), "{error}");
    assert!(fails(&rewards, Groups::Ids(&[0]), 2).is_shape());
    assert!(fails(&rewards, Groups::Offsets(&[0, 3]), 2).is_shape());
    assert!(fails(&rewards, Groups::Offsets(&[]), 2).is_shape());
    assert!(fails(&rewards, Groups::Offsets(&[0, 2, 1, 2]), 2).is_index());
    assert!(fails(&rewards, Groups::Offsets(&[0, 2]), 3).is_shape());
    assert!(fails(&[1.0, f32::INFINITY], Groups::Ids(&[0, 0]), 2).is_invalid());
    let mut mean = [0.0; 2];
    let mut advantage = [0.0; 2];
    let outputs =
        Outputs { advantage: &mut advantage, mean: Some(&mut mean), std: None, flags: None };
    let groups = Groups::Offsets(&[0, 2]);
    let error = forward(&Estimator::default(), &rewards, groups, outputs).unwrap_err();
    assert!(error.is_shape() && error.to_string().contains("`mean` has 2"), "{error}");
    for epsilon in [-1.0, f64::NAN] {
        let outputs = Outputs { advantage: &mut advantage, mean: None, std: None, flags: None };
        let estimator = grpo(epsilon, Scale::Group, Singleton::Zero);
        assert!(forward(&estimator, &rewards, groups, outputs).unwrap_err().is_invalid());
    }
}

#[test]
fn an_estimator_is_read_from_toml() {
    let read = |text: &str| toml::from_str::<Estimator>(text);
    assert_eq!(read("kind = 'grpo'").unwrap(), Estimator::default());
    assert_eq!(
        read("kind = 'grpo'\nepsilon = 1e-4\nscale = 'batch'\nsingleton = 'reward'").unwrap(),
        grpo(1e-4, Scale::Batch, Singleton::Reward)
    );
    assert_eq!(read("kind = 'rloo'").unwrap(), Estimator::Rloo { singleton: Singleton::Zero });
    assert!(read("kind = 'dr-grpo'\nepsilon = 1e-4").is_err());
    assert!(read("kind = 'magic'").is_err());
}
