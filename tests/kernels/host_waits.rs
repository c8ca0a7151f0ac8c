//! Where the host waits for the device: never inside a step. Updates, optimizer and rollouts are started whole, and what
//! the host wants to know comes at the end; and the same numbers as on the CPU come of it.

use crate::decoder::{batch, close, minimise, on, prompts, sampling, scored};
use crate::devices;
use gradstone::device::Device;
use gradstone::device::gpu::Gpu;
use gradstone::kernels::policy_loss::{Kl, KlEstimator, Objective};
use gradstone::kernels::token_selection::Selection;
use gradstone::models::Decoder;
use gradstone::optim::{AdamW, AdamWSettings};
use gradstone::rl::episode::{Episode, micro_batches};
use gradstone::rl::generate::rollouts;
use gradstone::rl::policy::Policy;
use gradstone::rl::sampling::{Distribution, Sampling};
use gradstone::tensor::Gradients;
use gradstone::train::{learner, supervised};
use gradstone::{DType, Error};
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// The device that is watched, and how often the host had waited for it at each launch.
    static WATCHED: RefCell<Option<(Arc<Gpu>, Vec<u64>)>> = const { RefCell::new(None) };
}

/// Launches on the host engine, and notes how often the host has waited until now.
///
/// # Safety
/// As `gradstone_host::launch`.
unsafe fn noting(
    kernel: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    args: *const u8,
    size: usize,
) -> Result<(), String> {
    WATCHED.with_borrow_mut(|watched| {
        if let Some((gpu, at)) = watched {
            at.push(gpu.host_waits());
        }
    });
    // SAFETY: the caller's promise.
    unsafe { gradstone_host::launch(kernel, grid, block, shared, args, size) }
}

fn watched() -> Device {
    // SAFETY: the host engine is built from this crate's kernels and argument structs.
    unsafe { Device::emulated(noting) }.unwrap()
}

/// What `work` gives, how often the host had waited in it before each launch, and how often in all.
fn waits<R>(device: &Device, work: impl FnOnce() -> R) -> (R, Vec<u64>, u64) {
    let gpu = Arc::clone(device.gpu().unwrap());
    let before = gpu.host_waits();
    WATCHED.set(Some((Arc::clone(&gpu), Vec::new())));
    let result = work();
    let (_, at) = WATCHED.take().unwrap();
    (result, at.iter().map(|waits| waits - before).collect(), gpu.host_waits() - before)
}

fn drawn(model: &Decoder, prompts: &[Vec<i32>]) -> Vec<Episode> {
    let mut drawn = rollouts(model, prompts, 3, &sampling(1.0)).unwrap();
    // The policy has moved on since. No log ratio is 0, where a penalty has a kink.
    for (i, logprob) in drawn.iter_mut().flat_map(|r| &mut r.logprob).enumerate() {
        *logprob += [0.3, -0.2, 0.05, -0.1][i % 4];
    }
    drawn
}

fn objectives() -> Vec<(&'static str, Objective)> {
    let picks = |selection| Objective { selection: Some(selection), ..Objective::default() };
    let kl = Kl::new(KlEstimator::K3, 0.1);
    let wide = Objective { kl: Some(kl), entropy_coefficient: 0.01, ..Objective::default() };
    vec![
        ("kl and entropy", wide),
        ("clip-cov", picks(Selection::ClipCov { ratio: 0.2, least: -5.0, most: 5.0 })),
        ("kl-cov", picks(Selection::KlCov { ratio: 0.2, coefficient: 1.0 })),
        ("top-entropy", picks(Selection::TopEntropy { fraction: 0.4 })),
    ]
}

#[test]
fn an_update_is_started_whole_whatever_the_objective() {
    let model = crate::decoder::model("llama", DType::F32);
    let prompts = prompts(&[4, 6]);
    let drawn = drawn(&model, &prompts);
    let parts = micro_batches(&scored(&prompts, &drawn), 20).len() as u64;
    for (name, objective) in objectives() {
        let run = |device: &Device| {
            let mut model = on(&model, device);
            let whole = batch(&prompts, &drawn, device);
            let how = minimise(&objective, 20);
            let mut gradients = Gradients::new();
            let updated = |model: &Decoder, into: &mut Gradients| {
                learner::gradients(model, &whole, &whole.members, &how, into).unwrap()
            };
            let done = match device {
                Device::Cpu => updated(&model, &mut gradients),
                Device::Gpu(_) => {
                    let (done, at, all) = waits(device, || updated(&model, &mut gradients));
                    assert!(parts > 2 && at.len() > 100, "{name}: {parts} {}", at.len());
                    assert!(at.iter().all(|waits| *waits == 0), "{name}: a wait inside: {at:?}");
                    assert_eq!(all, 2 * parts, "{name}: metrics and log-probs of each part");
                    done
                }
            };
            let mut optimizer = AdamW::new(AdamWSettings::default(), model.parameters()).unwrap();
            let step = |model: &mut Decoder, optimizer: &mut AdamW| {
                optimizer.step(model.parameters_mut(), &gradients, 1.0).unwrap()
            };
            let step = match device {
                Device::Cpu => step(&mut model, &mut optimizer),
                Device::Gpu(_) => {
                    let (step, at, all) = waits(device, || step(&mut model, &mut optimizer));
                    assert!(!at.is_empty() && at.iter().all(|waits| *waits == 0), "{name}: {at:?}");
                    assert_eq!(all, 1, "{name}: the norm, at the end of the step");
                    step
                }
            };
            let of = done.metrics;
            let picked = (of.selected_fraction * 1e6).round();
            (vec![of.loss as f32, of.kl as f32, of.ratio_mean as f32, step.grad_norm], picked)
        };
        let (want, got) = (run(&Device::Cpu), run(&watched()));
        close(&got.0, &want.0, 1e-3, name);
        assert_eq!(got.1, want.1, "{name}: the picked share");
        let picks = objective.selection.is_some();
        assert_eq!(want.1 > 0.0 && want.1 < 1e6, picks, "{name}: {} is picked", want.1);
    }
}

#[test]
fn a_supervised_batch_is_started_whole() {
    let device = watched();
    let model = on(&crate::decoder::model("qwen2", DType::Bf16), &device);
    let (prompts, answers) = (prompts(&[3, 5, 9, 2]), prompts(&[6, 7, 8, 9]));
    let batch: Vec<_> = prompts
        .iter()
        .zip(&answers)
        .map(|(prompt, completion)| gradstone::rl::episode::Scored::new(prompt, completion))
        .collect();
    let parts = micro_batches(&batch, 12).len() as u64;
    let mut gradients = Gradients::new();
    let (done, at, all) =
        waits(&device, || supervised::gradients(&model, &batch, 12, &mut gradients).unwrap());
    assert!(done.loss > 0.0 && parts > 2);
    assert!(at.len() > 100 && at.iter().all(|waits| *waits == 0), "{at:?}");
    assert_eq!(all, 2 * parts, "loss and entropy of each part");
}

/// Between two looks at the drawn ids everything is started; nothing else is looked at before all have ended.
#[test]
fn a_rollout_looks_at_the_drawn_ids_once_a_step() {
    let device = watched();
    let host = crate::decoder::model("qwen3", DType::F32);
    let model = on(&host, &device);
    let prompts = prompts(&[3, 8]);
    for banned in [vec![], vec![5, 6]] {
        let sampling = Sampling { banned, ..sampling(1.0) };
        let (got, at, all) = waits(&device, || rollouts(&model, &prompts, 3, &sampling).unwrap());
        let steps = got.iter().map(|r| r.tokens.len()).max().unwrap() as u64;
        assert!(steps > 2, "{steps}");
        assert_eq!(all, steps + 1, "the ids of each step, and the log-probs of all at the end");
        assert_eq!(at.last(), Some(&(steps - 1)), "the last look is at what was launched last");
        assert!(got.iter().all(|r| r.logprob.len() == r.tokens.len()));
        let want = rollouts(&host, &prompts, 3, &sampling).unwrap();
        for (got, want) in got.iter().zip(&want) {
            assert_eq!((got.prompt, &got.tokens), (want.prompt, &want.tokens));
            close(&got.logprob, &want.logprob, 1e-4, "log-prob");
        }
    }
}

/// More log-probs than one piece of device memory keeps.
#[test]
fn many_log_probs_find_their_completions() {
    let device = devices::emulated();
    let model = on(&crate::decoder::model("llama", DType::F32), &device);
    let all = Sampling { max_new_tokens: 3, ..sampling(1.0) };
    let drawn = rollouts(&model, &prompts(&[2, 4, 3]), 2, &all).unwrap();
    let check = |drawn: &[Episode]| -> Result<(), Error> {
        let prompts = prompts(&[2, 4, 3]);
        let scores = model.score(&scored(&prompts, drawn), &Distribution::default())?;
        let scores = scores.logprob.to_device(&Device::Cpu)?;
        let sampled: Vec<f32> = drawn.iter().flat_map(|r| r.logprob.clone()).collect();
        assert_eq!(scores.f32s()?, sampled);
        Ok(())
    };
    check(&drawn).unwrap();
}
