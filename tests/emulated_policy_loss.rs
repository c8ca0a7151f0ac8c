//! `kernels/policy_loss.cu` on the emulated device, against the CPU's own family.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod device_memory;

use device_memory::{bits, download, gpu, uniform, upload};
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::error::Result;
use gradstone::kernels::policy_loss::launch;
use gradstone::kernels::policy_loss::{
    self, Advantages, Aggregation, Clamp, Gradients, Inputs, Kl, KlEstimator, LogRatio, Metrics,
    Objective, Rows, Surrogate, Totals,
};
use gradstone_host::Order;
use std::sync::Arc;

#[derive(Clone)]
struct Batch {
    logprob: Vec<f32>,
    old_logprob: Vec<f32>,
    reference: Vec<f32>,
    entropy: Vec<f32>,
    weight: Vec<f32>,
    advantage: Vec<f32>,
    per_token: bool,
    mask: Vec<u8>,
    offsets: Vec<i64>,
    totals: Totals,
}

struct Got {
    dlogprob: Vec<f32>,
    dentropy: Vec<f32>,
    metrics: Metrics,
}

impl Batch {
    fn new(lengths: &[usize], per_token: bool, seed: u64) -> Batch {
        let mut next = uniform(seed);
        let tokens: usize = lengths.iter().sum();
        let mut many =
            |n: usize, size: f32| -> Vec<f32> { (0..n).map(|_| next() * size).collect() };
        let mut offsets = vec![0i64];
        for length in lengths {
            offsets.push(offsets[offsets.len() - 1] + *length as i64);
        }
        let logprob: Vec<f32> = many(tokens, 4.0).into_iter().map(|x| -x.abs()).collect();
        let near = |noise: Vec<f32>| logprob.iter().zip(noise).map(|(x, n)| x + n).collect();
        let (old_logprob, reference) = (near(many(tokens, 1.6)), near(many(tokens, 3.0)));
        let advantages = if per_token { tokens } else { lengths.len() };
        Batch {
            old_logprob,
            reference,
            entropy: many(tokens, 4.0).into_iter().map(f32::abs).collect(),
            weight: many(tokens, 2.0).into_iter().map(f32::abs).collect(),
            advantage: many(advantages, 4.0),
            per_token,
            mask: many(tokens, 1.0).into_iter().map(|x| u8::from(x < 0.3)).collect(),
            offsets,
            totals: Totals::default(),
            logprob,
        }
    }

    fn on_device(&self, gpu: &Arc<Gpu>, objective: &Objective) -> Result<Got> {
        let floats = |values: &[f32]| upload(gpu, DType::F32, values);
        let (logprob, old, reference) =
            (floats(&self.logprob), floats(&self.old_logprob), floats(&self.reference));
        let (entropy, weight) = (floats(&self.entropy), floats(&self.weight));
        let advantage = floats(&self.advantage);
        let mask = upload(gpu, DType::U8, &self.mask);
        let offsets = upload(gpu, DType::I64, &self.offsets);
        let new = || DeviceBuffer::recycled(gpu, DType::F32, self.logprob.len()).unwrap();
        let (mut dlogprob, mut dentropy) = (new(), new());
        let inputs = launch::Inputs {
            logprob: logprob.whole(),
            old_logprob: old.whole(),
            advantage: if self.per_token {
                launch::Advantages::PerToken(advantage.whole())
            } else {
                launch::Advantages::PerSequence(advantage.whole())
            },
            mask: mask.whole(),
            offsets: offsets.whole(),
            reference_logprob: objective.kl.is_some().then(|| reference.whole()),
            entropy: Some(entropy.whole()),
            weight: Some(weight.whole()),
            totals: self.totals,
        };
        let gradients = launch::Gradients {
            logprob: dlogprob.whole_mut(),
            entropy: Some(dentropy.whole_mut()),
        };
        let metrics = launch::forward_backward(objective, &inputs, gradients)?.read()?;
        Ok(Got { dlogprob: download(&dlogprob), dentropy: download(&dentropy), metrics })
    }

    fn on_cpu(&self, objective: &Objective) -> Got {
        let mut dlogprob = vec![7.0; self.logprob.len()];
        let mut dentropy = dlogprob.clone();
        let inputs = Inputs {
            logprob: &self.logprob,
            old_logprob: &self.old_logprob,
            advantage: if self.per_token {
                Advantages::PerToken(&self.advantage)
            } else {
                Advantages::PerSequence(&self.advantage)
            },
            mask: &self.mask,
            offsets: &self.offsets,
            reference_logprob: objective.kl.is_some().then_some(&self.reference),
            entropy: Some(&self.entropy),
            weight: Some(&self.weight),
            sampler_logprob: None,
            off_policy: None,
            selected: None,
            totals: self.totals,
        };
        let gradients = Gradients { logprob: &mut dlogprob, entropy: Some(&mut dentropy) };
        let metrics = policy_loss::forward_backward(objective, &inputs, gradients).unwrap();
        Got { dlogprob, dentropy, metrics }
    }

    fn check(&self, gpu: &Arc<Gpu>, objective: &Objective) -> Got {
        let (got, want) = (self.on_device(gpu, objective).unwrap(), self.on_cpu(objective));
        let largest = want.dlogprob.iter().fold(0f32, |a, b| a.max(b.abs()));
        for (i, (got, want)) in got.dlogprob.iter().zip(&want.dlogprob).enumerate() {
            let near = (got - want).abs() <= 4e-6 * want.abs() + 1e-6 * largest;
            assert!(near, "dlogprob {i}: {got} {want} {objective:?}");
        }
        for (got, want) in got.dentropy.iter().zip(&want.dentropy) {
            assert!((got - want).abs() <= 1e-6 * want.abs(), "dentropy {got} {want}");
        }
        let (g, w) = (numbers(&got.metrics), numbers(&want.metrics));
        for (i, (got, want)) in g.iter().zip(w).enumerate() {
            assert!((got - want).abs() <= 2e-5 * want.abs().max(0.05), "metric {i}: {got} {want}");
        }
        assert_eq!(got.metrics.live_tokens, want.metrics.live_tokens);
        assert_eq!(got.metrics.live_sequences, want.metrics.live_sequences);
        got
    }
}

fn numbers(m: &Metrics) -> [f64; 13] {
    [
        m.loss,
        m.policy_loss,
        m.kl_loss,
        m.entropy_loss,
        m.clip_fraction,
        m.clip_fraction_high,
        m.clip_fraction_low,
        m.dual_clip_fraction,
        m.approx_kl,
        m.kl,
        m.ratio_mean,
        m.ratio_max,
        m.entropy,
    ]
}

fn objectives() -> Vec<Objective> {
    let clip =
        |dual_clip, delta| Surrogate::PpoClip { clip_low: 0.2, clip_high: 0.28, dual_clip, delta };
    let surrogates = [
        clip(None, None),
        clip(Some(1.6), None),
        clip(None, Some(1.15)),
        clip(Some(2.5), Some(0.7)),
    ];
    let kl = |estimator, clamp, bias_correction| {
        Some(Kl { estimator, coefficient: 0.3, clamp, bias_correction, straight_through: false })
    };
    let penalties = [
        None,
        kl(KlEstimator::K1, Clamp::Clamped, false),
        kl(KlEstimator::K2, Clamp::Clamped, true),
        kl(KlEstimator::K3, Clamp::Clamped, false),
        kl(KlEstimator::K3, Clamp::Unclamped, true),
        kl(KlEstimator::Abs, Clamp::Clamped, false),
    ];
    let aggregations = [
        Aggregation::TokenMean {},
        Aggregation::SequenceMeanTokenMean { rows: Rows::NonEmpty },
        Aggregation::SequenceMeanTokenMean { rows: Rows::All },
        Aggregation::SequenceMeanTokenSum { rows: Rows::NonEmpty, length: 1.0 },
        Aggregation::SequenceMeanTokenSum { rows: Rows::All, length: 17.0 },
        Aggregation::TokenSum { length: 10.0 },
    ];
    let mut all = Vec::new();
    for (i, surrogate) in surrogates.iter().enumerate() {
        for (j, penalty) in penalties.iter().enumerate() {
            all.push(Objective {
                surrogate: surrogate.clone(),
                kl: penalty.clone(),
                aggregation: aggregations[(i + j) % aggregations.len()].clone(),
                entropy_aggregation: (i % 3 == 0).then(|| aggregations[j].clone()),
                entropy_coefficient: if j % 2 == 0 { 0.05 } else { 0.0 },
                log_ratio: if i % 2 == 0 { LogRatio::Clamped } else { LogRatio::Unclamped },
                ..Objective::default()
            });
        }
    }
    all
}

#[test]
fn agrees_with_the_cpu() {
    let device = gpu();
    for (i, objective) in objectives().iter().enumerate() {
        let mut batch = Batch::new(&[3, 0, 17, 1, 64, 5, 0], i % 2 == 0, 1 + i as u64);
        if i % 5 == 4 {
            batch.mask[..3].fill(0);
            batch.totals = Totals { tokens: Some(50.0), sequences: Some(9.0), scale: 0.5 };
        }
        batch.check(&device, objective);
    }
    let long = Batch::new(&[2047, 1, 0, 3001, 700, 2], false, 9);
    for objective in objectives().iter().step_by(7) {
        long.check(&device, objective);
    }
}

#[test]
fn thread_orders_do_not_change_a_bit() {
    let device = gpu();
    let batch = Batch::new(&[2047, 1, 0, 800], true, 3);
    let objective = &objectives()[4];
    let want = batch.on_device(&device, objective).unwrap();
    for order in Order::ALL {
        let got =
            gradstone_host::with_order(order, || batch.on_device(&device, objective).unwrap());
        assert_eq!(bits(&got.dlogprob), bits(&want.dlogprob), "{order:?}");
        assert_eq!(got.metrics, want.metrics, "{order:?}");
    }
}

/// With the totals given, a sequence does not know what is batched beside it; and masked tokens may hold anything.
#[test]
fn sequences_and_masked_tokens_stand_alone() {
    let device = gpu();
    let objective = &objectives()[1];
    let mut batch = Batch::new(&[40, 2100, 9], true, 4);
    batch.totals = Totals { tokens: Some(1000.0), sequences: Some(3.0), scale: 1.0 };
    let all = batch.on_device(&device, objective).unwrap();
    let cut = |values: &[f32]| values[2140..].to_vec();
    let alone = Batch {
        logprob: cut(&batch.logprob),
        old_logprob: cut(&batch.old_logprob),
        reference: cut(&batch.reference),
        entropy: cut(&batch.entropy),
        weight: cut(&batch.weight),
        advantage: cut(&batch.advantage),
        mask: batch.mask[2140..].to_vec(),
        offsets: vec![0, 9],
        ..batch.clone()
    };
    let got = alone.on_device(&device, objective).unwrap();
    assert_eq!(bits(&got.dlogprob), bits(&all.dlogprob[2140..]));

    let mut poisoned = batch.clone();
    for token in (0..poisoned.mask.len()).filter(|token| batch.mask[*token] == 0) {
        for values in [
            &mut poisoned.logprob,
            &mut poisoned.old_logprob,
            &mut poisoned.reference,
            &mut poisoned.entropy,
            &mut poisoned.weight,
            &mut poisoned.advantage,
        ] {
            values[token] = f32::NAN;
        }
    }
    let got = poisoned.on_device(&device, objective).unwrap();
    assert_eq!(bits(&got.dlogprob), bits(&all.dlogprob));
    assert_eq!(got.metrics, all.metrics);

    let mut broken = batch.clone();
    let live = broken.mask.iter().position(|mask| *mask != 0).unwrap();
    broken.logprob[live] = f32::NAN;
    let got = broken.on_device(&device, objective).unwrap();
    assert!(got.dlogprob[live].is_nan() && got.metrics.loss.is_nan());
    assert_eq!(got.dlogprob.iter().filter(|g| g.is_nan()).count(), 1);

    let mut dead = batch.clone();
    dead.mask.fill(0);
    let got = dead.on_device(&device, objective).unwrap();
    assert!(got.dlogprob.iter().all(|g| *g == 0.0));
    assert_eq!(got.metrics, Metrics::default());
    let nothing = Batch::new(&[], true, 1).on_device(&device, objective).unwrap();
    assert_eq!(nothing.metrics, Metrics::default());
}

#[test]
fn bad_input_is_named_or_left_out() {
    let device = gpu();
    let objective = Objective::default();
    let good = Batch::new(&[4, 4], true, 5);
    let mut bad = good.clone();
    bad.mask.fill(1);
    bad.offsets = vec![0, 4, 9];
    let got = bad.on_device(&device, &objective).unwrap();
    assert!(device.check_status().unwrap_err().to_string().contains("offsets"));
    assert_eq!(got.metrics.live_tokens, 4);
    assert!(got.dlogprob[4..].iter().all(|g| *g == 0.0));

    let fails = |change: fn(&mut Batch)| {
        let mut batch = good.clone();
        change(&mut batch);
        batch.on_device(&device, &objective).err().unwrap()
    };
    assert!(fails(|b| b.advantage.truncate(3)).is_shape());
    assert!(fails(|b| b.mask.truncate(3)).is_shape());
    assert!(fails(|b| b.offsets.truncate(1)).is_shape());
    assert!(fails(|b| b.totals.scale = f64::NAN).is_invalid());
    let wrong = Objective {
        surrogate: Surrogate::PpoClip {
            clip_low: -1.0,
            clip_high: 0.2,
            dual_clip: None,
            delta: None,
        },
        ..Objective::default()
    };
    assert!(good.on_device(&device, &wrong).err().unwrap().is_invalid());
}
