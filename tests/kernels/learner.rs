//! The learner's loss straight from hidden states against log-probs first and gradients then: one set of bits.

use crate::closed_policy::Closed;
use crate::decoder::{batch, minimise, model, on, prompts, sampling};
use crate::devices;
use gradstone::DType;
use gradstone::device::Device;
use gradstone::kernels::policy_loss::{Objective, PRESETS, ValueLoss};
use gradstone::models::Decoder;
use gradstone::rl::batch::Batch;
use gradstone::rl::episode::Episode;
use gradstone::rl::generate::rollouts;
use gradstone::rl::policy::Policy;
use gradstone::rl::value_head::ValueHead;
use gradstone::tensor::Gradients;
use gradstone::train::learner::{self, Minimise, Updated};

/// Prompts, and completions whose policy has moved on since they were drawn.
fn drawn(model: &Decoder) -> (Vec<Vec<i32>>, Vec<Episode>) {
    let prompts = prompts(&[4, 6]);
    let mut drawn = rollouts(model, &prompts, 3, &sampling(1.0)).unwrap();
    for (i, logprob) in drawn.iter_mut().flat_map(|one| &mut one.logprob).enumerate() {
        *logprob += [0.3, -0.2, 0.05, -0.1][i % 4];
    }
    (prompts, drawn)
}

fn updated(policy: &dyn Policy, batch: &Batch, how: &Minimise<'_>) -> (Updated, Vec<Vec<u32>>) {
    let mut gradients = Gradients::new();
    let done = learner::gradients(policy, batch, &batch.members, how, &mut gradients).unwrap();
    let of = |parameter: &gradstone::nn::Parameter| {
        let gradient = gradients.get(parameter.id()).unwrap().to_device(&Device::Cpu).unwrap();
        gradient.f32s().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    (done, policy.parameters().iter().map(of).collect())
}

#[test]
fn the_loss_from_hidden_states_has_the_bits_of_the_loss_from_log_probs() {
    for device in [Device::Cpu, devices::emulated()] {
        for dtype in [DType::F32, DType::Bf16] {
            let decoder = model("llama", dtype);
            let (prompts, mut drawn) = drawn(&decoder);
            drawn[1].mask[0] = 0;
            let open = on(&decoder, &device);
            let closed = Closed(on(&decoder, &device));
            let mut whole = batch(&prompts, &drawn, &device);
            (whole.replayed[2], whole.replayed[3]) = (true, true);
            for preset in PRESETS {
                // With a bonus every token has a gradient, so that the head's is a sum in one order.
                let objective = Objective { entropy_coefficient: 0.01, ..preset.objective() };
                let how = minimise(&objective, 20);
                let (got, gradients) = updated(&open, &whole, &how);
                let (want, wanted) = updated(&closed, &whole, &how);
                let what = format!("{device} {dtype} {}", preset.name);
                assert_eq!(got.metrics, want.metrics, "{what}");
                assert_eq!(got.mismatch.to_bits(), want.mismatch.to_bits(), "{what}");
                assert!(got.mismatch > 0.1 && got.metrics.live_tokens > 10, "{what}");
                for (parameter, (got, want)) in
                    open.parameters().iter().zip(gradients.iter().zip(&wanted))
                {
                    assert_eq!(got, want, "{what}: {}", parameter.name());
                }
            }
        }
    }
}

#[test]
fn on_the_policy_every_ratio_is_one() {
    for device in [Device::Cpu, devices::emulated()] {
        let decoder = on(&model("qwen3", DType::F32), &device);
        let prompts = prompts(&[4, 6]);
        let drawn = rollouts(&decoder, &prompts, 3, &sampling(1.0)).unwrap();
        let whole = batch(&prompts, &drawn, &device);
        let objective = Objective::default();
        let (done, _) = updated(&decoder, &whole, &minimise(&objective, 20));
        let ratios = [done.metrics.ratio_mean, done.metrics.ratio_max];
        assert_eq!((done.mismatch, ratios), (0.0, [1.0, 1.0]), "{device}");
    }
}

/// The trunk's gradient is the sum of two: the policy's and the value head's.
#[test]
fn a_value_head_reads_the_hidden_states_of_the_loss() {
    for device in [Device::Cpu, devices::emulated()] {
        let decoder = on(&model("llama", DType::F32), &device);
        let (prompts, drawn) = drawn(&decoder);
        let mut whole = batch(&prompts, &drawn, &device);
        let count = |start: f32| (0..whole.tokens()).map(|i| start + i as f32 * 0.1).collect();
        (whole.value, whole.returns) =
            (Some(whole.column(count(0.0)).unwrap()), Some(whole.column(count(1.0)).unwrap()));
        let mut head = ValueHead::new(decoder.width(), ValueLoss::default(), 0.5, &device).unwrap();
        let weight = gradstone::Tensor::from_f32(vec![0.3; decoder.width()], &[1, decoder.width()]);
        head.parameters_mut().set(0, weight.unwrap().to_device(&device).unwrap()).unwrap();
        let objective = Objective::default();
        let alone = minimise(&objective, 20);
        let of = |how: &Minimise<'_>| {
            let (done, bits) = updated(&decoder, &whole, how);
            let floats = bits.concat().into_iter().map(f32::from_bits).collect::<Vec<f32>>();
            (done, floats)
        };
        let (policy, of_policy) = of(&alone);
        let (both, of_both) = of(&Minimise { value_head: Some(&head), ..alone });
        assert!(policy.value_loss.is_none() && both.value_loss.unwrap() > 0.0);
        assert_eq!(policy.metrics, both.metrics);
        // While a critic warms up the policy has no gradient of its own, and the same metrics.
        let how = Minimise { value_head: Some(&head), policy: false, ..alone };
        let mut gradients = Gradients::new();
        let done =
            learner::gradients(&decoder, &whole, &whole.members, &how, &mut gradients).unwrap();
        assert_eq!((done.metrics, done.value_loss), (both.metrics, both.value_loss));
        let of_value = |parameter: &gradstone::nn::Parameter| match gradients.get(parameter.id()) {
            Some(gradient) => gradient.to_device(&Device::Cpu).unwrap().f32s().unwrap().to_vec(),
            None => vec![0.0; parameter.value().len()],
        };
        let of_value = decoder.parameters().iter().flat_map(of_value).collect::<Vec<f32>>();
        let size = of_both.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(of_value.iter().any(|x| x.abs() > 1e-3 * size));
        for (both, (policy, value)) in of_both.iter().zip(of_policy.iter().zip(&of_value)) {
            assert!((both - policy - value).abs() < 1e-5 * size, "{both} {policy} {value}");
        }
    }
}
