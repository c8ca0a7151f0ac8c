//! `kernels/policy_loss.cu` on the emulated device, against the CPU's own family.
#[path = "../policy_loss/cases.rs"]
#[allow(dead_code)]
mod cases;
#[path = "../policy_loss/oracle.rs"]
#[allow(dead_code)]
mod oracle;

use crate::device_memory::{bits, download, gpu, upload};
use cases::{Got, batch, every, run, wants_one_advantage};
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::error::Result;
use gradstone::kernels::policy_loss::launch;
use gradstone::kernels::policy_loss::{Metrics, Objective, Surrogate, Totals};
use gradstone_host::Order;
use oracle::Batch;
use std::sync::Arc;

fn on_device(gpu: &Arc<Gpu>, objective: &Objective, batch: &Batch, totals: Totals) -> Result<Got> {
    let floats = |values: &[f32]| upload(gpu, DType::F32, values);
    let bytes = |values: &[u8]| upload(gpu, DType::U8, values);
    let (logprob, old, reference) =
        (floats(&batch.logprob), floats(&batch.old_logprob), floats(&batch.reference));
    let (entropy, weight, sampler) =
        (floats(&batch.entropy), floats(&batch.weight), floats(&batch.sampler));
    let (mask, off_policy, selected) =
        (bytes(&batch.mask), bytes(&batch.off_policy), bytes(&batch.selected));
    let offsets = upload(gpu, DType::I64, &batch.offsets);
    let one = wants_one_advantage(objective);
    let advantage = if one {
        let first = |pair: &[i64]| {
            let tokens = &batch.advantage[pair[0] as usize..pair[1] as usize];
            tokens.first().copied().unwrap_or(f32::NAN)
        };
        floats(&batch.offsets.windows(2).map(first).collect::<Vec<f32>>())
    } else {
        floats(&batch.advantage)
    };
    let new = || DeviceBuffer::recycled(gpu, DType::F32, batch.logprob.len()).unwrap();
    let (mut dlogprob, mut dentropy) = (new(), new());
    let advantage = if one {
        launch::Advantages::PerSequence(advantage.whole())
    } else {
        launch::Advantages::PerToken(advantage.whole())
    };
    let inputs = launch::Inputs {
        reference_logprob: objective.kl.is_some().then(|| reference.whole()),
        entropy: Some(entropy.whole()),
        weight: Some(weight.whole()),
        sampler_logprob: Some(sampler.whole()),
        off_policy: objective.replay.is_some().then(|| off_policy.whole()),
        selected: objective.selection.is_some().then(|| selected.whole()),
        totals,
        ..launch::Inputs::new(
            logprob.whole(),
            old.whole(),
            advantage,
            mask.whole(),
            offsets.whole(),
        )
    };
    let gradients =
        launch::Gradients { logprob: dlogprob.whole_mut(), entropy: Some(dentropy.whole_mut()) };
    let metrics = launch::forward_backward(objective, &inputs, gradients)?.read()?;
    Ok(Got { dlogprob: download(&dlogprob), dentropy: download(&dentropy), metrics })
}

fn check(gpu: &Arc<Gpu>, objective: &Objective, batch: &Batch, totals: Totals) {
    let (got, want) =
        (on_device(gpu, objective, batch, totals).unwrap(), run(objective, batch, totals));
    let largest = want.dlogprob.iter().fold(0f32, |a, b| a.max(b.abs()));
    for (i, (got, want)) in got.dlogprob.iter().zip(&want.dlogprob).enumerate() {
        let near = (got - want).abs() <= 6e-6 * want.abs() + 1e-6 * largest;
        assert!(near, "dlogprob {i}: {got} {want} {objective:?}");
    }
    for (got, want) in got.dentropy.iter().zip(&want.dentropy) {
        assert!((got - want).abs() <= 1e-6 * want.abs(), "dentropy {got} {want}");
    }
    let want_metrics = want.metrics;
    for ((name, got), (_, want)) in numbers(&got.metrics).into_iter().zip(numbers(&want.metrics)) {
        // A variance is a difference of squares.
        let square = if name.contains("variance") { largest_square(&want_metrics) } else { 0.0 };
        let near = (got - want).abs() <= 2e-5 * want.abs().max(0.05) + 1e-6 * square;
        assert!(near, "{name}: {got} {want} {objective:?}");
    }
    assert_eq!(got.metrics.replay.tokens, want.metrics.replay.tokens);
    assert_eq!(got.metrics.live_tokens, want.metrics.live_tokens);
    assert_eq!(got.metrics.live_sequences, want.metrics.live_sequences);
}

fn largest_square(m: &Metrics) -> f64 {
    m.ratio_max.max(m.replay.ratio_max).max(m.replay.shaped_mean).powi(2)
}

fn numbers(m: &Metrics) -> Vec<(&'static str, f64)> {
    let replay = &m.replay;
    vec![
        ("loss", m.loss),
        ("policy_loss", m.policy_loss),
        ("kl_loss", m.kl_loss),
        ("entropy_loss", m.entropy_loss),
        ("drift_loss", m.drift_loss),
        ("clip_fraction", m.clip_fraction),
        ("clip_fraction_high", m.clip_fraction_high),
        ("clip_fraction_low", m.clip_fraction_low),
        ("dual_clip_fraction", m.dual_clip_fraction),
        ("dropped_fraction", m.dropped_fraction),
        ("selected_fraction", m.selected_fraction),
        ("approx_kl", m.approx_kl),
        ("absolute_log_ratio", m.absolute_log_ratio),
        ("kl", m.kl),
        ("ratio_mean", m.ratio_mean),
        ("ratio_variance", m.ratio_variance),
        ("ratio_max", m.ratio_max),
        ("entropy", m.entropy),
        ("fresh_loss", m.fresh_loss),
        ("replay.loss", replay.loss),
        ("replay.shaped_mean", replay.shaped_mean),
        ("replay.shaped_variance", replay.shaped_variance),
        ("replay.clip_fraction_high", replay.clip_fraction_high),
        ("replay.clip_fraction_low", replay.clip_fraction_low),
        ("replay.ratio_max", replay.ratio_max),
        ("replay.probability", replay.probability),
        ("replay.fresh_probability", replay.fresh_probability),
    ]
}

#[test]
fn every_objective_agrees_with_the_cpu() {
    let device = gpu();
    for (i, (objective, per_token)) in every().into_iter().enumerate() {
        let mut tokens = batch(1 + i as u64, &[3, 0, 17, 1, 64, 5, 0], 0.4, 0.8, per_token);
        let mut totals = Totals::default();
        if i % 5 == 4 {
            tokens.mask[..3].fill(0);
            totals = Totals { tokens: Some(50.0), sequences: Some(9.0), scale: 0.5 };
        }
        check(&device, &objective, &tokens, totals);
    }
    let lengths = [2047, 1, 0, 3001, 700, 2];
    for (objective, per_token) in every().into_iter().step_by(9) {
        check(&device, &objective, &batch(9, &lengths, 0.4, 0.8, per_token), Totals::default());
    }
}

#[test]
fn thread_orders_do_not_change_a_bit() {
    let device = gpu();
    for (objective, per_token) in every() {
        let tokens = batch(3, &[45, 1, 0, 70], 0.4, 0.8, per_token);
        let want = on_device(&device, &objective, &tokens, Totals::default()).unwrap();
        for order in Order::ALL {
            let got = gradstone_host::with_order(order, || {
                on_device(&device, &objective, &tokens, Totals::default()).unwrap()
            });
            assert_eq!(bits(&got.dlogprob), bits(&want.dlogprob), "{order:?} {objective:?}");
            assert_eq!(got.metrics, want.metrics, "{order:?} {objective:?}");
        }
    }
}

/// With the totals given, a sequence does not know what is batched beside it; and masked tokens may hold anything.
#[test]
fn sequences_and_masked_tokens_stand_alone() {
    let device = gpu();
    for (objective, per_token) in every().into_iter().step_by(2) {
        let tokens = batch(4, &[40, 60, 9], 0.4, 0.7, per_token);
        let totals = Totals { tokens: Some(1000.0), sequences: Some(3.0), scale: 1.0 };
        let all = on_device(&device, &objective, &tokens, totals).unwrap();
        let alone = on_device(&device, &objective, &tokens.part(100..109), totals).unwrap();
        assert_eq!(bits(&alone.dlogprob), bits(&all.dlogprob[100..]), "{objective:?}");

        let mut poisoned = tokens.clone();
        for token in (0..poisoned.mask.len()).filter(|token| tokens.mask[*token] == 0) {
            for values in [
                &mut poisoned.logprob,
                &mut poisoned.old_logprob,
                &mut poisoned.reference,
                &mut poisoned.sampler,
                &mut poisoned.entropy,
                &mut poisoned.weight,
            ] {
                values[token] = f32::NAN;
            }
            if per_token {
                poisoned.advantage[token] = f32::NAN;
            }
        }
        let got = on_device(&device, &objective, &poisoned, totals).unwrap();
        assert_eq!(bits(&got.dlogprob), bits(&all.dlogprob), "{objective:?}");
        assert_eq!(got.metrics, all.metrics, "{objective:?}");

        let mut dead = tokens.clone();
        dead.mask.fill(0);
        let got = on_device(&device, &objective, &dead, Totals::default()).unwrap();
        assert!(got.dlogprob.iter().all(|g| *g == 0.0));
        assert_eq!(got.metrics, Metrics::default());
    }
    let nothing = batch(1, &[], 0.3, 1.0, true);
    let got = on_device(&device, &Objective::default(), &nothing, Totals::default()).unwrap();
    assert_eq!(got.metrics, Metrics::default());
    let mut broken = batch(4, &[40, 9], 0.4, 1.0, true);
    broken.logprob[7] = f32::NAN;
    let got = on_device(&device, &Objective::default(), &broken, Totals::default()).unwrap();
    assert!(got.dlogprob[7].is_nan() && got.metrics.loss.is_nan());
    assert_eq!(got.dlogprob.iter().filter(|g| g.is_nan()).count(), 1);
}

#[test]
fn bad_input_is_named_or_left_out() {
    let device = gpu();
    let objective = Objective::default();
    let good = batch(5, &[4, 4], 0.4, 1.0, true);
    let mut bad = good.clone();
    bad.offsets = vec![0, 4, 9];
    let got = {
        // The host's helper reads the offsets; the kernel is given them as they are.
        let mut placed = bad.clone();
        placed.advantage.push(0.0);
        placed.advantage.truncate(8);
        on_device(&device, &objective, &placed, Totals::default()).unwrap()
    };
    assert!(device.check_status().unwrap_err().to_string().contains("offsets"));
    assert_eq!(got.metrics.live_tokens, 4);
    assert!(got.dlogprob[4..].iter().all(|g| *g == 0.0));

    let fails = |objective: &Objective, change: fn(&mut Batch), totals: Totals| {
        let mut batch = good.clone();
        change(&mut batch);
        on_device(&device, objective, &batch, totals).err().unwrap()
    };
    let totals = Totals::default();
    assert!(fails(&objective, |b| b.advantage.truncate(3), totals).is_shape());
    assert!(fails(&objective, |b| b.mask.truncate(3), totals).is_shape());
    assert!(fails(&objective, |b| b.sampler.truncate(3), totals).is_shape());
    assert!(fails(&objective, |b| b.offsets.truncate(1), totals).is_shape());
    let bad_scale = Totals { scale: f64::NAN, ..totals };
    assert!(fails(&objective, |_| (), bad_scale).is_invalid());
    let wrong = Objective { surrogate: Surrogate::clip(-1.0, 0.2), ..Objective::default() };
    assert!(fails(&wrong, |_| (), totals).is_invalid());
}

#[test]
fn a_value_loss_agrees_with_the_cpu() {
    use gradstone::kernels::policy_loss::{ValueInputs, ValueLoss, value_loss};
    let device = gpu();
    let tokens = batch(17, &[9, 0, 70], 0.4, 0.8, true);
    for clip in [None, Some(0.2f32)] {
        let loss = ValueLoss { clip, ..ValueLoss::default() };
        let mut gradient = vec![f32::NAN; tokens.logprob.len()];
        let inputs = ValueInputs {
            value: &tokens.logprob,
            old_value: &tokens.old_logprob,
            target: &tokens.advantage,
            mask: &tokens.mask,
            offsets: &tokens.offsets,
            totals: Totals::default(),
        };
        let want = value_loss(&loss, &inputs, &mut gradient).unwrap();
        let floats = |values: &[f32]| upload(&device, DType::F32, values);
        let (value, old, target) =
            (floats(&tokens.logprob), floats(&tokens.old_logprob), floats(&tokens.advantage));
        let mask = upload(&device, DType::U8, &tokens.mask);
        let offsets = upload(&device, DType::I64, &tokens.offsets);
        let mut into = DeviceBuffer::recycled(&device, DType::F32, gradient.len()).unwrap();
        let inputs = launch::ValueInputs {
            value: value.whole(),
            old_value: old.whole(),
            target: target.whole(),
            mask: mask.whole(),
            offsets: offsets.whole(),
            totals: Totals::default(),
        };
        let got = launch::value_loss(&loss, &inputs, into.whole_mut()).unwrap().read().unwrap();
        for (got, want) in download::<f32>(&into).iter().zip(&gradient) {
            assert!((got - want).abs() <= 1e-6 * want.abs());
        }
        assert!((got.loss - want.loss).abs() < 1e-6 * want.loss);
        assert_eq!(got.live_tokens, want.live_tokens);
        assert!((got.clip_fraction - want.clip_fraction).abs() < 1e-9);
    }
}
