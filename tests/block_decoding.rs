//! Filling masked blocks: the cache changes nothing, neither do neighbours and threads; every rule ends; log-probs of
//! completions as a policy, and a reward that rises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod devices;

use gradstone::device::Device;
use gradstone::device::cpu::pool;
use gradstone::kernels::policy_loss::Objective;
use gradstone::models::{Decoder, DecoderConfig, Diffusion};
use gradstone::optim::{AdamW, AdamWSettings};
use gradstone::rl::batch::{Advantage, Batch as RlBatch};
use gradstone::rl::block_decoding::{fill, fill_watched};
use gradstone::rl::episode::Scored;
use gradstone::rl::episode::{Episode, Order};
use gradstone::rl::filling::{Decoding, Filled};
use gradstone::rl::filling_policy::{Filling, FillingPolicy};
use gradstone::rl::masked_policy::{Likelihood, logprobs};
use gradstone::rl::policy::Policy;
use gradstone::rl::sampling::Sampling;
use gradstone::rl::score;
use gradstone::rl::unmasking::{Confidence, Selection};
use gradstone::rng::{Sequence, Stream};
use gradstone::tensor::Gradients;
use gradstone::train::diffusion::batch::{Ends, Packing};
use gradstone::train::diffusion::{Batch, Noising, step};
use gradstone::train::learner::{self, Minimise};
use gradstone::{DType, ops};

const VOCAB: usize = 37;
const MASK: i32 = 36;
const STOP: i32 = 3;

fn model(architecture: &str, diffusion: Diffusion, louder: f32) -> Decoder {
    let mut config = DecoderConfig::small(architecture, VOCAB, 32, 2, 4, 64).unwrap();
    config.set_diffusion(diffusion).unwrap();
    let mut model = Decoder::random(config, DType::F32, 5).unwrap();
    for index in 0..model.parameters().len() {
        let value = model.parameters().get(index);
        if value.shape().len() == 2 {
            let value = ops::scale(&value.detach(), louder).unwrap();
            model.parameters_mut().set(index, value).unwrap();
        }
    }
    model
}

fn of_four(shift: bool) -> Decoder {
    model("qwen3", Diffusion { mask_id: MASK, block: 4, shift }, 8.0)
}

fn prompts(lengths: &[usize]) -> Vec<Vec<i32>> {
    let mut draws = Sequence::new(3, Stream::Free, 0);
    let prompt = |n: &usize| (0..*n).map(|_| draws.below(VOCAB as u32 - 1) as i32).collect();
    lengths.iter().map(prompt).collect()
}

fn decoding(temperature: f32) -> Decoding {
    Decoding {
        temperature,
        seed: 11,
        stream: Stream::Sample,
        first_sequence: 40,
        ..Decoding::greedy(18, vec![STOP])
    }
}

const RULES: [Selection; 6] = [
    Selection::Static { steps: 4 },
    Selection::Static { steps: 2 },
    Selection::Sequential { steps: 4 },
    Selection::Threshold { threshold: 0.5 },
    Selection::Factor { factor: 1.0 },
    Selection::Entropy { bound: 1.5 },
];

#[test]
fn the_cache_changes_no_bit() {
    // No prompt, one that fills no block, whole blocks, longer than a tile of keys.
    let lengths = [0, 3, 8, 13, 50];
    for (shift, guidance) in [(false, 0.0), (true, 0.0), (false, 1.5), (true, 1.5)] {
        let model = of_four(shift);
        for selection in RULES {
            let cached = Decoding { selection, guidance, ..decoding(0.8) };
            let plain = Decoding { cached: false, ..cached.clone() };
            let with = fill(&model, &prompts(&lengths), 2, &cached).unwrap();
            let without = fill(&model, &prompts(&lengths), 2, &plain).unwrap();
            assert_eq!(with, without, "shift {shift}, guidance {guidance}, {selection:?}");
            assert!(with.iter().all(|filled| !filled.tokens.contains(&MASK)));
        }
    }
}

#[test]
fn neighbours_and_threads_do_not_matter() {
    let model = of_four(false);
    let prompts = prompts(&[5, 9, 2, 17]);
    let together = fill(&model, &prompts, 4, &decoding(1.0)).unwrap();
    for (p, prompt) in prompts.iter().enumerate() {
        let one = Decoding { first_sequence: 40 + 4 * p as u64, ..decoding(1.0) };
        let alone = fill(&model, std::slice::from_ref(prompt), 4, &one).unwrap();
        for (a, b) in alone.iter().zip(&together[4 * p..]) {
            assert_eq!((&a.tokens, &a.logprob, &a.order), (&b.tokens, &b.logprob, &b.order));
        }
    }
    let groups = together.chunks(4);
    assert!(groups.into_iter().any(|group| group[0].tokens != group[1].tokens), "no draw differs");
    for threads in [1, 2, 4] {
        pool::set_threads(threads).unwrap();
        assert_eq!(fill(&model, &prompts, 4, &decoding(1.0)).unwrap(), together, "{threads}");
    }
}

#[test]
fn rules_fill_as_many_as_they_say() {
    let model = of_four(false);
    let prompts = prompts(&[8]);
    let run = |selection| {
        let endless = Decoding { selection, stop: vec![], ..decoding(0.0) };
        fill(&model, &prompts, 1, &endless).unwrap().remove(0)
    };
    let one = run(Selection::Static { steps: 4 });
    // Eighteen tokens are cut from five blocks.
    assert_eq!((one.tokens.len(), one.order.dropped.len(), one.passes), (18, 2, 20));
    assert!((one.tokens_per_pass() - 1.0).abs() < 1e-6 && one.truncated);
    assert_eq!(run(Selection::Static { steps: 1 }).passes, 5);
    assert_eq!(run(Selection::Static { steps: 2 }).passes, 10);
    assert_eq!(run(Selection::Threshold { threshold: 0.0 }).passes, 5);
    assert_eq!(run(Selection::Threshold { threshold: 1.0 }).passes, 20);
    let between = run(Selection::Entropy { bound: 2.5 }).passes;
    assert!((5..=20).contains(&between));
    let sequential = run(Selection::Sequential { steps: 4 });
    assert_eq!(sequential.order.step[..8], [0, 1, 2, 3, 0, 1, 2, 3]);
    for confidence in [Confidence::Margin, Confidence::NegativeEntropy, Confidence::Random] {
        let filled = fill(&model, &prompts, 1, &Decoding { confidence, ..decoding(0.0) }).unwrap();
        assert!(!filled[0].tokens.is_empty(), "{confidence:?}");
    }
}

#[test]
fn completions_end_at_the_first_end_token() {
    let model = of_four(false);
    let drawn = fill(&model, &prompts(&[4, 6]), 40, &decoding(1.5)).unwrap();
    let mut ended = 0;
    for filled in &drawn {
        let stops = filled.tokens.iter().filter(|id| **id == STOP).count();
        assert_eq!(stops, usize::from(!filled.truncated));
        assert_eq!(filled.tokens.last() == Some(&STOP), stops == 1);
        assert!(filled.tokens.len() <= 18 && filled.tokens.len() == filled.logprob.len());
        assert!(filled.logprob.iter().all(|logprob| *logprob <= 0.0 && logprob.is_finite()));
        ended += stops;
    }
    assert!(ended > 0 && ended < 80, "{ended} ended");
    let none = fill(&model, &prompts(&[4]), 2, &Decoding { max_new_tokens: 0, ..decoding(0.0) });
    assert!(none.unwrap().iter().all(|filled| filled.truncated && filled.tokens.is_empty()));
    // The context ends a completion too, in the middle of a block if need be.
    let long = Decoding { stop: vec![], max_new_tokens: 500, ..decoding(0.0) };
    let full = fill(&model, &prompts(&[50]), 1, &long).unwrap();
    assert_eq!((full[0].tokens.len(), full[0].truncated), (14, true));
}

#[test]
fn a_whole_context_is_filled_in_parts() {
    let diffusion = Diffusion { mask_id: MASK, block: 64, shift: false };
    let model = model("llada", diffusion, 8.0);
    for sub_block in [None, Some(4), Some(7)] {
        let parts = Decoding {
            selection: Selection::Static { steps: 2 },
            sub_block,
            stop: vec![],
            max_new_tokens: 14,
            ..decoding(0.0)
        };
        let filled = fill(&model, &prompts(&[5, 0]), 1, &parts).unwrap();
        let plain =
            fill(&model, &prompts(&[5, 0]), 1, &Decoding { cached: false, ..parts }).unwrap();
        assert_eq!(filled, plain);
        let passes = match sub_block {
            None => 2,
            // 4 + 4 + 4 + 2, and 7 + 7.
            Some(4) => 8,
            _ => 4,
        };
        assert!(filled.iter().all(|f| f.tokens.len() == 14 && f.passes == passes), "{sub_block:?}");
    }
}

#[test]
fn who_watches_sees_blocks_fill() {
    let model = of_four(false);
    let (mut passes, mut last) = (0, Vec::new());
    let filled = fill_watched(&model, &prompts(&[6]), 1, &decoding(0.0), &mut |pass| {
        passes += 1;
        let masked = pass.tokens.iter().filter(|id| **id == MASK).count();
        assert_eq!(pass.full, masked == 0);
        assert!(pass.block % 4 == 2 || pass.block == 0);
        last = pass.tokens.to_vec();
    })
    .unwrap();
    assert_eq!(passes, filled[0].passes);
    assert_eq!(last[..filled[0].tokens.len()], filled[0].tokens);
}

#[test]
fn guidance_leads_away_from_what_needs_no_prompt() {
    let model = of_four(false);
    let plain = fill(&model, &prompts(&[9]), 1, &decoding(0.0)).unwrap();
    let weak = Decoding { guidance: 1e-6, ..decoding(0.0) };
    assert_eq!(fill(&model, &prompts(&[9]), 1, &weak).unwrap()[0].tokens, plain[0].tokens);
    let strong = Decoding { guidance: 4.0, ..decoding(0.0) };
    assert_ne!(fill(&model, &prompts(&[9]), 1, &strong).unwrap()[0].tokens, plain[0].tokens);
}

#[test]
fn an_emulated_device_fills_the_same() {
    let device = devices::emulated();
    for shift in [false, true] {
        let cpu = of_four(shift);
        let mut on_device = cpu.copy().unwrap();
        on_device.move_to(&device).unwrap();
        let decoding = Decoding {
            selection: Selection::Static { steps: 2 },
            max_new_tokens: 8,
            stop: vec![],
            ..decoding(0.0)
        };
        let want = fill(&cpu, &prompts(&[2, 9]), 1, &decoding).unwrap();
        let got = fill(&on_device, &prompts(&[2, 9]), 1, &decoding).unwrap();
        for (got, want) in got.iter().zip(&want) {
            assert_eq!((&got.tokens, &got.order), (&want.tokens, &want.order));
        }
        let plain = Decoding { cached: false, ..decoding };
        assert_eq!(fill(&on_device, &prompts(&[2, 9]), 1, &plain).unwrap(), got);
    }
}

#[test]
fn bad_input_is_an_error() {
    let model = of_four(false);
    let refused =
        |prompts: &[Vec<i32>], decoding: Decoding| fill(&model, prompts, 1, &decoding).unwrap_err();
    let long = refused(&[vec![1; 64]], decoding(0.0));
    assert!(long.is_invalid() && long.to_string().contains("context of 64"), "{long}");
    assert!(refused(&[vec![VOCAB as i32]], decoding(0.0)).is_index());
    assert!(refused(&[vec![1]], decoding(-1.0)).is_invalid());
    assert!(refused(&[vec![1]], decoding(f32::NAN)).is_invalid());
    assert!(refused(&[vec![1]], Decoding { guidance: -1.0, ..decoding(0.0) }).is_invalid());
    assert!(refused(&[vec![1]], Decoding { banned: vec![99], ..decoding(0.0) }).is_index());
    assert!(refused(&[vec![1]], Decoding { sub_block: Some(0), ..decoding(0.0) }).is_invalid());
    let selection = Selection::Static { steps: 0 };
    assert!(refused(&[vec![1]], Decoding { selection, ..decoding(0.0) }).is_invalid());
    // Nothing that may be set.
    let everything = Decoding { banned: (0..VOCAB as i32).collect(), ..decoding(0.0) };
    assert!(refused(&[vec![1]], everything).is_numeric());
    let plain = DecoderConfig::small("llama", VOCAB, 32, 1, 4, 64).unwrap();
    let plain = Decoder::random(plain, DType::F32, 1).unwrap();
    assert!(fill(&plain, &[vec![1]], 1, &decoding(0.0)).unwrap_err().is_unsupported());
    assert!(fill(&model, &[], 3, &decoding(0.0)).unwrap().is_empty());
}

fn masked<'a>(prompts: &'a [Vec<i32>], drawn: &'a [Filled]) -> Vec<Scored<'a>> {
    let one = |(i, filled): (usize, &'a Filled)| filled.scored(&prompts[filled.prompt], i as u64);
    drawn.iter().enumerate().map(one).collect()
}

#[test]
fn a_trajectory_has_the_log_probs_it_was_drawn_with() {
    for shift in [false, true] {
        let model = of_four(shift);
        let prompts = prompts(&[5, 8, 0]);
        for selection in RULES {
            let drawn =
                fill(&model, &prompts, 3, &Decoding { selection, ..decoding(0.9) }).unwrap();
            let batch = masked(&prompts, &drawn);
            let (logprob, entropy) =
                logprobs(&model, &batch, Likelihood::Trajectory, 0.9, 1).unwrap();
            let recorded: Vec<f32> = drawn.iter().flat_map(|f| f.logprob.clone()).collect();
            assert!(recorded.iter().any(|logprob| *logprob < -0.5));
            for (got, want) in logprob.f32s().unwrap().iter().zip(&recorded) {
                assert!(
                    (got - want).abs() < 2e-4 * (1.0 + want.abs()),
                    "{got} {want} {selection:?}"
                );
            }
            assert!(entropy.f32s().unwrap().iter().all(|h| *h >= 0.0));
        }
    }
}

/// Every likelihood of a completion of two tokens in one block, from the probabilities themselves.
#[test]
fn likelihoods_are_what_they_say() {
    let model = model("llama", Diffusion { mask_id: MASK, block: 2, shift: false }, 8.0);
    let prompt = prompts(&[4]).remove(0);
    let filled = |step: [u32; 2]| Filled {
        tokens: vec![7, 9],
        logprob: vec![0.0; 2],
        order: Order { step: step.to_vec(), ..Order::default() },
        ..Filled::default()
    };
    let score = |step: [u32; 2], likelihood, seed| -> Vec<f32> {
        let filled = filled(step);
        let one = filled.scored(&prompt, 3);
        let (logprob, _) = logprobs(&model, &[one], likelihood, 1.0, seed).unwrap();
        logprob.f32s().unwrap().to_vec()
    };
    // log p(a), log p(b), log p(a | b), log p(b | a).
    let [a, b] = score([0, 0], Likelihood::Trajectory, 0)[..] else { panic!() };
    let [_, b_after] = score([0, 1], Likelihood::Trajectory, 0)[..] else { panic!() };
    let [a_after, _] = score([1, 0], Likelihood::Trajectory, 0)[..] else { panic!() };
    assert!((a - a_after).abs() > 1e-3 && (b - b_after).abs() > 1e-3);
    assert_eq!(score([1, 0], Likelihood::MeanField, 0), [a, b]);
    let (mut bound, mut seen) = ([0f64; 2], std::collections::BTreeSet::new());
    for seed in 0..600 {
        let coupled = score([0, 0], Likelihood::Coupled { pairs: 1 }, seed);
        let near = |x: f32, y: f32| (x - y).abs() < 1e-4;
        let alone = near(coupled[0], a) && near(coupled[1], b);
        let crossed = (near(coupled[0], a) && near(coupled[1], b_after))
            || (near(coupled[0], a_after) && near(coupled[1], b))
            || (near(coupled[0], a_after) && near(coupled[1], b_after));
        assert!(alone || crossed, "{coupled:?}");
        seen.insert(alone);
        let drawn = score([0, 0], Likelihood::Bound { draws: 1 }, seed);
        bound.iter_mut().zip(drawn).for_each(|(sum, x)| *sum += f64::from(x) / 600.0);
    }
    assert_eq!(seen.len(), 2);
    // Half of the draws mask both, a quarter each token alone with weight 2.
    let want = 0.5 * (a + b) + 0.5 * (a_after + b_after);
    let got = (bound[0] + bound[1]) as f32;
    assert!((got - want).abs() < 0.08 * want.abs(), "{got} {want}");
    // A bound indeed: the likelihood is a mean over orders of the exponentials.
    let exact = (0.5 * ((a + b_after).exp() + (b + a_after).exp())).ln();
    assert!(want <= exact + 1e-4, "{want} {exact}");
    let zero = Likelihood::Bound { draws: 0 };
    let one = filled([0, 0]);
    let one = one.scored(&prompt, 3);
    assert!(logprobs(&model, &[one], zero, 1.0, 1).unwrap_err().is_invalid());
    let short = Filled { order: Order { step: vec![0], ..Order::default() }, ..filled([0, 0]) };
    let one = short.scored(&prompt, 3);
    assert!(logprobs(&model, &[one], Likelihood::MeanField, 1.0, 1).unwrap_err().is_shape());
    assert!(logprobs(&model, &[], Likelihood::Trajectory, 1.0, 1).unwrap().0.is_empty());
}

/// Fine-tuned on two answers, with prompts that end anywhere in a block, the model writes them and ends.
#[test]
fn a_fine_tuned_model_answers_and_ends() {
    for (packing, shift) in
        [(Packing::Separate, false), (Packing::Separate, true), (Packing::Visible, false)]
    {
        let diffusion = Diffusion { mask_id: MASK, block: 4, shift };
        let mut model = model("llama", diffusion, 1.0);
        let settings = AdamWSettings { learning_rate: 4e-3, ..AdamWSettings::default() };
        let mut optimizer = AdamW::new(settings, model.parameters()).unwrap();
        let prompts = [vec![7, 8, 9], vec![10, 11, 12, 13, 14]];
        let answers = [vec![20, 21, 22, 23, 24], vec![30, 31]];
        let examples: Vec<Scored<'_>> = prompts
            .iter()
            .zip(&answers)
            .map(|(prompt, completion)| Scored::new(prompt, completion))
            .collect();
        let noising = Noising { warm_up_steps: 10, ..Noising::default() };
        let (mut first, mut last) = (0.0, 0.0);
        for step in 0..300u64 {
            let ends = Ends { id: STOP, most: 4, seed: 1 };
            let part = match packing {
                Packing::Separate => &examples[..],
                // Each alone is visible to itself; both texts in turn.
                Packing::Visible => &examples[step as usize % 2..][..1],
            };
            let batch = Batch::answers(part, 4, ends, packing, 64, 2 * step).unwrap();
            let noised = noising.apply(&batch, diffusion, VOCAB, 1, step).unwrap();
            let mut gradients = Gradients::new();
            let done = step::gradients(&model, &batch, &noised, 1000, &mut gradients).unwrap();
            optimizer.step(model.parameters_mut(), &gradients, 1.0).unwrap();
            first = if step == 10 { done.loss } else { first };
            // A single loss is as noisy as its weights.
            last += if step >= 250 { done.loss / 50.0 } else { 0.0 };
        }
        assert!(last < 0.5 * first, "{packing:?}: {first} to {last}");
        let filled = fill(&model, &prompts, 1, &decoding(0.0)).unwrap();
        for (filled, answer) in filled.iter().zip(&answers) {
            let whole: Vec<i32> = answer.iter().copied().chain([STOP]).collect();
            assert_eq!((&filled.tokens, filled.truncated), (&whole, false), "{packing:?} {shift}");
        }
    }
}

/// Reward: the share of even tokens. A few steps of the usual objective under each likelihood raise it.
#[test]
fn reward_rises() {
    let diffusion = Diffusion { mask_id: MASK, block: 4, shift: false };
    let reward = |episode: &Episode| {
        let even = episode.tokens.iter().filter(|id| *id % 2 == 0).count();
        even as f32 / episode.tokens.len().max(1) as f32
    };
    for likelihood in [
        Likelihood::Trajectory,
        Likelihood::MeanField,
        Likelihood::Coupled { pairs: 1 },
        Likelihood::Bound { draws: 2 },
    ] {
        let model = model("llama", diffusion, 1.0);
        let selection = Selection::Static { steps: 2 };
        let filling = Filling { selection, likelihood, ..Filling::default() };
        let mut policy = FillingPolicy::new(model, filling, 7).unwrap();
        let settings = AdamWSettings { learning_rate: 1e-2, ..AdamWSettings::default() };
        let mut optimizer = AdamW::new(settings, policy.parameters()).unwrap();
        let prompts = prompts(&[4, 6]);
        let mut means = Vec::new();
        for step in 0..14u64 {
            let sampling = Sampling {
                temperature: 1.0,
                truncation: Default::default(),
                max_new_tokens: 8,
                stop: vec![],
                banned: vec![],
                seed: 5,
                stream: Stream::Sample,
                first_sequence: 64 * step,
                activity: Default::default(),
            };
            let drawn = policy.generate(&prompts, &[16, 16], &sampling, None).unwrap();
            let rewards: Vec<f32> = drawn.iter().map(reward).collect();
            let mean = rewards.iter().sum::<f32>() / rewards.len() as f32;
            means.push(mean);
            let (groups, drawn_from) = (vec![0, 16, 32], sampling.distribution());
            let mut batch =
                RlBatch::new(prompts.clone(), drawn, groups, drawn_from, &Device::Cpu).unwrap();
            if !policy.records_scores() {
                let all = batch.members.clone();
                batch.old_logprob = score::scores(&policy, &batch, &all, 4096).unwrap().logprob;
            }
            let advantages = rewards.iter().map(|reward| 4.0 * (reward - mean)).collect();
            batch.advantage = Some(Advantage::PerEpisode(advantages));
            let mut gradients = Gradients::new();
            let how = Minimise {
                objective: &Objective::default(),
                micro_batch_tokens: 200,
                seed: 5,
                number: step,
                value_head: None,
                policy: true,
                activity: None,
            };
            let done =
                learner::gradients(&policy, &batch, &batch.members, &how, &mut gradients).unwrap();
            let largest = done.metrics.ratio_max;
            assert!((largest - 1.0).abs() < 1e-4, "{largest}");
            optimizer.step(policy.parameters_mut(), &gradients, 1.0).unwrap();
        }
        let (first, last) = (means[0], means[13]);
        println!("{likelihood:?}: {first} to {last}");
        assert!(last > first + 0.2, "{likelihood:?}: {means:?}");
    }
}
