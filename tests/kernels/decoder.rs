//! The decoder on the emulated device: what the CPU computes, through the CUDA kernels; and the promises that hold there
//! too: the log-prob that was sampled is the one that training computes, bits do not depend on the order of threads.

use crate::devices;
use gradstone::device::Device;
use gradstone::kernels::policy_loss::{Clamp, Kl, KlEstimator, Objective};
use gradstone::models::{ARCHITECTURES, Causal, Decoder, DecoderConfig, Gpt, GptConfig};
use gradstone::optim::{AdamW, AdamWSettings};
use gradstone::rl::batch::{Advantage, Batch};
use gradstone::rl::episode::{Episode, Scored};
use gradstone::rl::generate::rollouts;
use gradstone::rl::policy::{Policy, Scores};
use gradstone::rl::sampling::{Distribution, Sampling};
use gradstone::rng::{Sequence, Stream};
use gradstone::tensor::{Gradients, Tensor, autograd};
use gradstone::train::learner::{self, Minimise};
use gradstone::train::supervised;
use gradstone::{DType, ops};
use gradstone_host::{Order, with_order};

const VOCAB: usize = 37;

pub fn model(architecture: &str, dtype: DType) -> Decoder {
    let config = DecoderConfig::small(architecture, VOCAB, 32, 2, 2, 128).unwrap();
    let mut model = Decoder::random(config, dtype, 5).unwrap();
    for index in 0..model.parameters().len() {
        let value = model.parameters().iter().nth(index).unwrap().value().clone();
        if value.shape().len() == 2 {
            let louder = ops::scale(&value, 6.0).unwrap();
            model.parameters_mut().set(index, louder).unwrap();
        }
    }
    model
}

/// The same weights on `device`.
pub fn on(model: &Decoder, device: &Device) -> Decoder {
    let mut copy = model.copy().unwrap();
    copy.move_to(device).unwrap();
    copy
}

pub fn prompts(lengths: &[usize]) -> Vec<Vec<i32>> {
    let mut draws = Sequence::new(3, Stream::Free, 0);
    let prompt = |n: &usize| (0..*n).map(|_| draws.below(VOCAB as u32) as i32).collect();
    lengths.iter().map(prompt).collect()
}

pub fn sampling(temperature: f32) -> Sampling {
    Sampling {
        temperature,
        truncation: Default::default(),
        max_new_tokens: 5,
        stop: vec![3],
        banned: vec![],
        seed: 11,
        stream: Stream::Sample,
        first_sequence: 40,
        activity: Default::default(),
    }
}

fn host(tensor: &Tensor) -> Vec<f32> {
    tensor.to_device(&Device::Cpu).unwrap().to_f32s().unwrap().to_vec()
}

pub fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}[{i}]: {g} against {w} (scale {scale})");
    }
}

pub fn scored<'a>(prompts: &'a [Vec<i32>], rollouts: &'a [Episode]) -> Vec<Scored<'a>> {
    rollouts.iter().map(|r| Scored::new(&prompts[r.prompt], &r.tokens)).collect()
}

/// What was drawn as a batch on `device`: the reference's log-probs are those of the sampler.
pub fn batch(prompts: &[Vec<i32>], drawn: &[Episode], device: &Device) -> Batch {
    let mut groups = vec![0i64];
    for prompt in 0..prompts.len() {
        let own = drawn.iter().filter(|one| one.prompt == prompt).count() as i64;
        groups.push(groups[prompt] + own);
    }
    let drawn_from = Distribution::default();
    let mut batch =
        Batch::new(prompts.to_vec(), drawn.to_vec(), groups, drawn_from, device).unwrap();
    let sampled: Vec<f32> = drawn.iter().flat_map(|one| one.logprob.clone()).collect();
    batch.reference_logprob = Some(batch.column(sampled).unwrap());
    let advantages = (0..drawn.len()).map(|i| i as f32 - 1.3).collect();
    batch.advantage = Some(Advantage::PerEpisode(advantages));
    batch
}

/// An update of an objective over everything in a batch.
pub fn minimise(objective: &Objective, micro_batch_tokens: usize) -> Minimise<'_> {
    Minimise {
        objective,
        micro_batch_tokens,
        seed: 5,
        number: 3,
        value_head: None,
        policy: true,
        activity: None,
    }
}

#[test]
fn hidden_states_and_gradients_are_the_cpus() {
    let device = devices::emulated();
    for architecture in ARCHITECTURES.iter().map(|known| known.model_type) {
        for (dtype, tolerance) in [(DType::F32, 2e-4), (DType::Bf16, 4e-2)] {
            let model = model(architecture, dtype);
            let prompts = prompts(&[7, 1]);
            let drawn = rollouts(&model, &prompts, 1, &sampling(1.0)).unwrap();
            let batch = scored(&prompts, &drawn);
            let run = |device: &Device| {
                let model = on(&model, device);
                let drawn_from = Distribution { temperature: 0.9 };
                let Scores { logprob, entropy } = model.score(&batch, &drawn_from).unwrap();
                let mut gradients = Gradients::new();
                let loss =
                    ops::sum(&ops::add(&logprob, &ops::scale(&entropy, 0.3).unwrap()).unwrap());
                autograd::backward(&loss.unwrap(), &mut gradients).unwrap();
                let gradients: Vec<(String, Vec<f32>)> = model
                    .parameters()
                    .iter()
                    .map(|p| (p.name().to_owned(), host(gradients.get(p.id()).unwrap())))
                    .collect();
                (host(&logprob), host(&entropy), gradients)
            };
            let (want, got) = (run(&Device::Cpu), run(&device));
            let what = format!("{architecture:?} {dtype}");
            close(&got.0, &want.0, tolerance, &format!("{what} log-prob"));
            close(&got.1, &want.1, tolerance, &format!("{what} entropy"));
            for ((name, got), (_, want)) in got.2.iter().zip(&want.2) {
                close(got, want, tolerance, &format!("{what} gradient of {name}"));
            }
        }
    }
}

#[test]
fn sampling_and_training_agree_to_the_bit_in_every_order_of_threads() {
    let device = devices::emulated();
    for dtype in [DType::F32, DType::Bf16] {
        let model = on(&model("qwen3", dtype), &device);
        let prompts = prompts(&[3, 66]);
        let mut seen: Option<Vec<Episode>> = None;
        for order in Order::ALL {
            let drawn =
                with_order(order, || rollouts(&model, &prompts, 2, &sampling(0.9))).unwrap();
            let drawn_from = Distribution { temperature: 0.9 };
            let scores = model.score(&scored(&prompts, &drawn), &drawn_from).unwrap().logprob;
            let sampled: Vec<f32> = drawn.iter().flat_map(|r| r.logprob.clone()).collect();
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&host(&scores)), bits(&sampled), "{dtype} {order:?}");
            assert_eq!(*seen.get_or_insert(drawn.clone()), drawn, "{dtype} {order:?}");
        }
    }
}

#[test]
fn greedy_tokens_are_the_cpus() {
    let device = devices::emulated();
    for architecture in ARCHITECTURES.iter().map(|known| known.model_type) {
        let model = model(architecture, DType::F32);
        let prompts = prompts(&[2, 9]);
        let want = rollouts(&model, &prompts, 1, &sampling(0.0)).unwrap();
        let got = rollouts(&on(&model, &device), &prompts, 1, &sampling(0.0)).unwrap();
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got.tokens, want.tokens, "{architecture:?}");
        }
    }
}

/// The small GPT of problems made in code, by the interface of a causal model.
#[test]
fn the_small_gpt_runs_on_a_device() {
    let config = GptConfig { vocab: VOCAB, width: 32, layers: 2, heads: 2, context: 16, ngram: 3 };
    let model = Gpt::random(config, 5).unwrap();
    let sequences: [&[i32]; 2] = [&[1, 2, 3, 4, 5, 6], &[9, 8, 7]];
    let run = |device: &Device| {
        let mut model = model.copy().unwrap();
        model.move_to(device).unwrap();
        let hidden = model.hidden_at(&sequences, &[1, 4, 7]).unwrap();
        let softmax = ops::SoftmaxOptions::default();
        let logprob = ops::linear_logprob(&hidden, &model.head(), None, &[3, 6, 7], &softmax);
        let logprob = logprob.unwrap().0;
        let mut gradients = Gradients::new();
        autograd::backward(&ops::sum(&logprob).unwrap(), &mut gradients).unwrap();
        let of = |p: &gradstone::nn::Parameter| host(gradients.get(p.id()).unwrap());
        let all: Vec<Vec<f32>> = model.parameters().iter().map(of).collect();

        // The hidden state of a token that continues a cache has the bits of the whole sequence's.
        let prepared = model.prepared().unwrap();
        let mut cache = Causal::cache(&model, 2, 6).unwrap();
        let prompts = sequences.map(|tokens| (&tokens[..2], 0));
        let first = Causal::continued(&model, Some(&prepared), &prompts, &mut cache).unwrap();
        let grown = [(&sequences[0][..5], 2), (sequences[1], 2)];
        let then = Causal::continued(&model, Some(&prepared), &grown, &mut cache).unwrap();
        let continued = [&host(&first)[32..64], &host(&then)[64..96], &host(&then)[96..128]];
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let whole = model.hidden_at(&sequences, &[1, 4, 8]).unwrap();
        assert_eq!(bits(&continued.concat()), bits(&host(&whole)));
        let logits = Causal::raw_logits(&model, Some(&prepared), &whole).unwrap();
        (host(&logprob), host(&logits), all)
    };
    let (want, got) = (run(&Device::Cpu), run(&devices::emulated()));
    close(&got.0, &want.0, 2e-4, "log-prob");
    close(&got.1, &want.1, 2e-4, "logits");
    for ((got, want), parameter) in got.2.iter().zip(&want.2).zip(model.parameters().iter()) {
        close(got, want, 2e-4, parameter.name());
    }
}

#[test]
fn a_step_of_training_is_the_cpus() {
    let device = devices::emulated();
    let model = model("llama", DType::F32);
    let prompts = prompts(&[4, 6]);
    let drawn = rollouts(&model, &prompts, 2, &sampling(1.0)).unwrap();
    let objective = Objective {
        kl: Some(Kl {
            estimator: KlEstimator::K3,
            coefficient: 0.1,
            clamp: Clamp::Clamped,
            bias_correction: false,
            straight_through: false,
            aggregation: None,
        }),
        entropy_coefficient: 0.01,
        ..Objective::default()
    };
    let run = |device: &Device| {
        let mut model = on(&model, device);
        let whole = batch(&prompts, &drawn, device);
        let settings = AdamWSettings { weight_decay: 0.1, ..AdamWSettings::default() };
        let mut optimizer = AdamW::new(settings, model.parameters()).unwrap();
        let mut losses = Vec::new();
        for _ in 0..2 {
            let mut gradients = Gradients::new();
            let how = minimise(&objective, 12);
            let done =
                learner::gradients(&model, &whole, &whole.members, &how, &mut gradients).unwrap();
            let step = optimizer.step(model.parameters_mut(), &gradients, 1.0).unwrap();
            assert!(step.skipped.is_none());
            losses.extend([done.metrics.loss as f32, done.metrics.kl as f32, step.grad_norm]);
            losses.push(done.metrics.ratio_mean as f32);
        }
        let mut gradients = Gradients::new();
        let done =
            supervised::gradients(&model, &scored(&prompts, &drawn), 12, &mut gradients).unwrap();
        losses.extend([done.loss, done.entropy]);
        let weights: Vec<f32> = model.parameters().iter().flat_map(|p| host(p.value())).collect();
        (losses, weights)
    };
    let (want, got) = (run(&Device::Cpu), run(&device));
    close(&got.0, &want.0, 1e-3, "losses");
    // A first step of Adam moves every weight by the rate, whatever its gradient: tiny gradients may differ in sign.
    let far = got.1.iter().zip(&want.1).filter(|(g, w)| (*g - *w).abs() > 1e-4).count();
    assert!(far * 200 < got.1.len(), "{far} of {} weights differ", got.1.len());
}
