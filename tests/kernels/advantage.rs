//! `kernels/advantage.cu` on the emulated device, against the CPU's own family.

use crate::device_memory::{bits, download, gpu, uniform, upload};
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::error::Result;
use gradstone::kernels::advantage::launch::{DeviceGroups, Outputs, forward};
use gradstone::kernels::advantage::{self, Estimator, Groups, Scale, Singleton};
use gradstone_host::Order;
use std::sync::Arc;

#[derive(Debug, PartialEq)]
struct Got {
    advantage: Vec<f32>,
    mean: Vec<f32>,
    std: Vec<f32>,
    flags: Vec<u8>,
    counts: Vec<i64>,
}

impl Got {
    fn bits(&self) -> ([Vec<u32>; 3], &[u8], &[i64]) {
        ([&self.advantage, &self.mean, &self.std].map(|x| bits(x)), &self.flags, &self.counts)
    }
}

fn run(
    gpu: &Arc<Gpu>,
    estimator: &Estimator,
    rewards: &[f32],
    groups: &DeviceGroups,
) -> Result<Got> {
    let rewards = upload(gpu, DType::F32, rewards);
    let new = |dtype, len| DeviceBuffer::recycled(gpu, dtype, len).unwrap();
    let mut advantage = new(DType::F32, rewards.len());
    let [mut mean, mut std] = [(); 2].map(|()| new(DType::F32, groups.count()));
    let (mut flags, mut counts) = (new(DType::U8, groups.count()), new(DType::I64, 3));
    let out = Outputs {
        advantage: advantage.whole_mut(),
        mean: Some(mean.whole_mut()),
        std: Some(std.whole_mut()),
        flags: Some(flags.whole_mut()),
        counts: Some(counts.whole_mut()),
    };
    forward(estimator, rewards.whole(), groups, out)?;
    Ok(Got {
        advantage: download(&advantage),
        mean: download(&mean),
        std: download(&std),
        flags: download(&flags),
        counts: download(&counts),
    })
}

fn twin(estimator: &Estimator, rewards: &[f32], groups: Groups<'_>) -> Got {
    let count = groups.count().unwrap();
    let mut advantage = vec![0.0; rewards.len()];
    let (mut mean, mut std, mut flags) = (vec![0.0; count], vec![0.0; count], vec![0; count]);
    let out = advantage::Outputs {
        advantage: &mut advantage,
        mean: Some(&mut mean),
        std: Some(&mut std),
        flags: Some(&mut flags),
    };
    let counts = advantage::forward(estimator, rewards, groups, out).unwrap();
    let counts = [counts.groups, counts.degenerate, counts.unscored].map(|n| n as i64).to_vec();
    Got { advantage, mean, std, flags, counts }
}

fn estimators() -> Vec<Estimator> {
    let grpo = |scale, singleton, variance_floor| Estimator::Grpo {
        epsilon: 1e-6,
        scale,
        singleton,
        variance_floor,
        variance_threshold: 0.0,
    };
    vec![
        grpo(Scale::Group, Singleton::Zero, 0.0),
        grpo(Scale::Group, Singleton::Reward, 1e-2),
        grpo(Scale::Batch, Singleton::Reward, 0.0),
        grpo(Scale::Batch, Singleton::Zero, 0.0),
        Estimator::DrGrpo { singleton: Singleton::Reward },
        Estimator::Rloo { singleton: Singleton::Zero },
        Estimator::Rloo { singleton: Singleton::Reward },
    ]
}

/// Groups of many sizes, with equal rewards, NaN and nothing among them.
fn batch() -> (Vec<f32>, Vec<i64>) {
    let sizes = [8usize, 1, 0, 2, 256, 257, 33, 700, 5, 1, 3, 16, 0, 300];
    let mut offsets = vec![0i64];
    let mut next = uniform(7);
    let mut rewards = Vec::new();
    for (group, size) in sizes.into_iter().enumerate() {
        for i in 0..size {
            rewards.push(match group {
                3 | 13 => 0.1,
                8 if i % 2 == 0 => f32::NAN,
                10 => f32::NAN,
                _ => (next() * 8.0).round() / 4.0 + 1000.0,
            });
        }
        offsets.push(rewards.len() as i64);
    }
    (rewards, offsets)
}

fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        // Sums of f64 in another order: the last place of an f32 may differ.
        assert!((got - want).abs() <= 1e-6 * want.abs() + 1e-9, "{what} {i}: {got} {want}");
    }
}

fn compare(got: &Got, want: &Got) {
    close("advantage", &got.advantage, &want.advantage);
    close("mean", &got.mean, &want.mean);
    close("std", &got.std, &want.std);
    assert_eq!((&got.flags, &got.counts), (&want.flags, &want.counts));
}

#[test]
fn agrees_with_the_cpu() {
    let device = gpu();
    let (rewards, offsets) = batch();
    let groups = DeviceGroups::upload(&device, Groups::Offsets(&offsets), rewards.len()).unwrap();
    for estimator in estimators() {
        let got = run(&device, &estimator, &rewards, &groups).unwrap();
        compare(&got, &twin(&estimator, &rewards, Groups::Offsets(&offsets)));
        assert!(got.advantage[offsets[13] as usize..].iter().all(|a| *a == 0.0), "all equal");
        for order in Order::ALL {
            let again =
                gradstone_host::with_order(order, || run(&device, &estimator, &rewards, &groups));
            assert_eq!(again.unwrap().bits(), got.bits(), "{order:?}");
        }
    }
    let ids: Vec<i32> = (0..rewards.len()).map(|i| (i as i32 * 7) % 23 * 3).collect();
    let groups = DeviceGroups::upload(&device, Groups::Ids(&ids), rewards.len()).unwrap();
    let got = run(&device, &Estimator::default(), &rewards, &groups).unwrap();
    compare(&got, &twin(&Estimator::default(), &rewards, Groups::Ids(&ids)));
}

#[test]
fn a_group_alone_is_the_group_in_a_batch() {
    let device = gpu();
    let (rewards, offsets) = batch();
    let groups = DeviceGroups::upload(&device, Groups::Offsets(&offsets), rewards.len()).unwrap();
    let all = run(&device, &Estimator::default(), &rewards, &groups).unwrap();
    for bounds in offsets.windows(2) {
        let members = bounds[0] as usize..bounds[1] as usize;
        let (of_group, alone) = (&rewards[members.clone()], [0, members.len() as i64]);
        let groups = DeviceGroups::upload(&device, Groups::Offsets(&alone), members.len()).unwrap();
        let got = run(&device, &Estimator::default(), of_group, &groups).unwrap();
        assert_eq!(bits(&got.advantage), bits(&all.advantage[members]));
    }
}

#[test]
fn bad_input_is_named_or_left_out() {
    let device = gpu();
    let default = Estimator::default();
    let offsets = upload(&device, DType::I64, &[0i64, 2, 1, 9, 4]);
    let groups = DeviceGroups::from_offsets(offsets, 4).unwrap();
    let got = run(&device, &default, &[1.0, 0.0, 1.0, 1.0], &groups).unwrap();
    assert!(got.advantage[0] > 0.5 && got.advantage[1] < -0.5);
    let met = device.check_status().unwrap_err();
    assert!(met.to_string().contains("offsets"), "{met}");

    let pair = DeviceGroups::upload(&device, Groups::Offsets(&[0, 3]), 3).unwrap();
    let got = run(&device, &default, &[1.0, f32::INFINITY, 0.0], &pair).unwrap();
    assert_eq!((got.advantage[1], got.counts[2]), (0.0, 1));
    assert!(device.check_status().is_err());

    assert!(run(&device, &default, &[1.0], &pair).unwrap_err().is_shape());
    let bad = Estimator::Grpo {
        epsilon: -1.0,
        scale: Scale::Group,
        singleton: Singleton::Zero,
        variance_floor: 0.0,
        variance_threshold: 0.0,
    };
    assert!(run(&device, &bad, &[1.0, 2.0, 3.0], &pair).unwrap_err().is_invalid());
    let falls = DeviceGroups::upload(&device, Groups::Offsets(&[0, 2, 1, 3]), 3);
    assert!(falls.is_err_and(|e| e.is_index()));
    let none = DeviceGroups::upload(&device, Groups::Offsets(&[0]), 0).unwrap();
    assert_eq!(run(&device, &default, &[], &none).unwrap().counts, [0, 0, 0]);
}
