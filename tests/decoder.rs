//! The decoder as a whole: sampling and training agree to the bit, whatever is batched beside a sequence; files round
//! trip; broken folders are errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "decoder/causal.rs"]
mod causal;

use gradstone::DType;
use gradstone::device::cpu::pool;
use gradstone::models::{ARCHITECTURES, Decoder, DecoderConfig};
use gradstone::rl::episode::Episode;
use gradstone::rl::episode::Scored;
use gradstone::rl::generate::rollouts;
use gradstone::rl::policy::{Policy, Scores};
use gradstone::rl::sampling::Distribution;
use gradstone::rl::sampling::Sampling;
use gradstone::rng::{Sequence, Stream};
use std::path::Path;

const VOCAB: usize = 67;

/// A model whose head is sharp enough that log-probs differ from token to token.
fn model(architecture: &str, dtype: DType, seed: u64) -> Decoder {
    let config = DecoderConfig::small(architecture, VOCAB, 48, 2, 4, 256).unwrap();
    let mut model = Decoder::random(config, dtype, seed).unwrap();
    for index in 0..model.parameters().len() {
        let value = model.parameters().iter().nth(index).unwrap().value().clone();
        if value.shape().len() == 2 {
            let louder = gradstone::ops::scale(&value, 8.0).unwrap();
            model.parameters_mut().set(index, louder).unwrap();
        }
    }
    model
}

fn prompts(lengths: &[usize], seed: u64) -> Vec<Vec<i32>> {
    let mut draws = Sequence::new(seed, Stream::Free, 0);
    let prompt = |n: &usize| (0..*n).map(|_| draws.below(VOCAB as u32) as i32).collect();
    lengths.iter().map(prompt).collect()
}

fn sampling(max_new_tokens: usize) -> Sampling {
    Sampling {
        temperature: 0.9,
        truncation: Default::default(),
        max_new_tokens,
        stop: vec![3, 5],
        banned: vec![],
        seed: 11,
        stream: Stream::Sample,
        first_sequence: 40,
        activity: Default::default(),
    }
}

fn scored<'a>(prompts: &'a [Vec<i32>], rollouts: &'a [Episode]) -> Vec<Scored<'a>> {
    let one = |r: &'a Episode| Scored::new(&prompts[r.prompt], &r.tokens);
    rollouts.iter().map(one).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_log_prob_that_was_sampled_is_the_one_that_training_computes() {
    for architecture in ARCHITECTURES.iter().map(|known| known.model_type) {
        for dtype in [DType::F32, DType::Bf16] {
            let model = model(architecture, dtype, 5);
            // Shorter and longer than a tile of keys, and one token.
            let prompts = prompts(&[1, 7, 63, 64, 65, 130], 1);
            let drawn = rollouts(&model, &prompts, 3, &sampling(20)).unwrap();
            assert_eq!(drawn.len(), 18);
            let drawn_from = Distribution { temperature: 0.9 };
            let Scores { logprob: together, entropy } =
                model.score(&scored(&prompts, &drawn), &drawn_from).unwrap();
            let sampled: Vec<f32> = drawn.iter().flat_map(|r| r.logprob.clone()).collect();
            assert!(sampled.iter().any(|x| *x < -0.5), "a trivial distribution proves nothing");
            assert_eq!(bits(together.f32s().unwrap()), bits(&sampled), "{architecture:?} {dtype}");
            assert!(entropy.f32s().unwrap().iter().all(|h| *h >= 0.0));
            for (i, one) in scored(&prompts, &drawn).iter().enumerate() {
                let drawn_from = Distribution { temperature: 0.9 };
                let alone = model.score(&[*one], &drawn_from).unwrap().logprob;
                assert_eq!(bits(alone.f32s().unwrap()), bits(&drawn[i].logprob), "alone: {i}");
            }
        }
    }
}

#[test]
fn a_sequence_does_not_depend_on_its_neighbours_or_on_threads() {
    let model = model("qwen3", DType::F32, 6);
    let prompts = prompts(&[3, 9, 5, 70], 2);
    let together = rollouts(&model, &prompts, 2, &sampling(12)).unwrap();
    for (p, prompt) in prompts.iter().enumerate() {
        let mut one = sampling(12);
        one.first_sequence += 2 * p as u64;
        let alone = rollouts(&model, std::slice::from_ref(prompt), 2, &one).unwrap();
        for (a, b) in alone.iter().zip(&together[2 * p..]) {
            assert_eq!((&a.tokens, bits(&a.logprob)), (&b.tokens, bits(&b.logprob)));
        }
    }
    for threads in [1, 2, 4] {
        pool::set_threads(threads).unwrap();
        assert_eq!(rollouts(&model, &prompts, 2, &sampling(12)).unwrap(), together, "{threads}");
    }
}

/// More completions than are decoded at once, of other lengths: who ends makes room for the next.
#[test]
fn those_that_come_later_have_the_bits_of_those_that_began() {
    let model = model("gemma2", DType::F32, 9);
    let prompts = prompts(&[2, 70, 5], 4);
    let together = rollouts(&model, &prompts, 30, &sampling(40)).unwrap();
    let lengths: Vec<usize> = together.iter().map(|rollout| rollout.tokens.len()).collect();
    assert!(lengths.iter().any(|n| *n < 10) && lengths.contains(&40), "{lengths:?}");
    for number in [0, 16, 31, 45, 89] {
        let mut one = sampling(40);
        one.first_sequence += number as u64;
        let prompt = std::slice::from_ref(&prompts[number / 30]);
        let alone = rollouts(&model, prompt, 1, &one).unwrap().remove(0);
        let among = &together[number];
        assert_eq!((number / 30, &alone.tokens), (among.prompt, &among.tokens), "{number}");
        assert_eq!(bits(&alone.logprob), bits(&among.logprob), "{number}");
    }
}

#[test]
fn completions_end_at_a_stop_id_or_are_marked_as_cut() {
    let model = model("llama", DType::F32, 7);
    let prompts = prompts(&[4, 4, 250], 3);
    let drawn = rollouts(&model, &prompts, 8, &sampling(30)).unwrap();
    let mut ended = 0;
    for rollout in &drawn {
        let stops = rollout.tokens.iter().filter(|id| [3, 5].contains(*id)).count();
        let last = rollout.tokens.last().copied();
        assert_eq!(stops, usize::from(!rollout.truncated));
        assert_eq!(rollout.truncated, !matches!(last, Some(3 | 5)));
        assert_eq!(rollout.tokens.len(), rollout.logprob.len());
        // The context has room for six more tokens after the longest prompt.
        assert!(rollout.tokens.len() <= if rollout.prompt == 2 { 6 } else { 30 });
        ended += stops;
    }
    assert!(ended > 0 && ended < drawn.len(), "{ended} of {} ended", drawn.len());
    assert!(rollouts(&model, &[vec![]], 1, &sampling(3)).unwrap_err().is_invalid());
    assert!(rollouts(&model, &[vec![0; 256]], 1, &sampling(3)).unwrap_err().is_invalid());
    assert!(rollouts(&model, &[vec![VOCAB as i32]], 1, &sampling(3)).unwrap_err().is_index());
    assert!(rollouts(&model, &[vec![1]], 1, &sampling(0)).unwrap()[0].truncated);
}

fn saved(dtype: DType) -> (tempfile::TempDir, Decoder) {
    let model = model("qwen2", dtype, 8);
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path()).unwrap();
    (dir, model)
}

fn load_error(dir: &Path) -> gradstone::Error {
    Decoder::load(dir, None).map(|_| ()).unwrap_err()
}

#[test]
fn files_round_trip_in_both_types() {
    for dtype in [DType::F32, DType::Bf16] {
        let (dir, model) = saved(dtype);
        let again = Decoder::load(dir.path(), None).unwrap();
        assert_eq!(again.dtype(), dtype);
        for (a, b) in model.parameters().iter().zip(again.parameters().iter()) {
            assert_eq!(
                (a.name(), a.value().bytes().unwrap()),
                (b.name(), b.value().bytes().unwrap())
            );
        }
        assert_eq!(Decoder::load(dir.path(), Some(DType::Bf16)).unwrap().dtype(), DType::Bf16);
    }
}

#[test]
fn a_sharded_model_loads() {
    let (dir, model) = saved(DType::F32);
    let path = |name: &str| dir.path().join(name);
    std::fs::remove_file(path("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (i, half) in [0usize, 1].into_iter().enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", i + 1);
        let list: Vec<_> =
            model.parameters().iter().enumerate().filter(|(n, _)| n % 2 == half).collect();
        for (_, parameter) in &list {
            map.insert(parameter.name().into(), name.clone().into());
        }
        let tensors = list.iter().map(|(_, p)| (p.name(), p.value()));
        gradstone::tensor::file::write(&path(&name), tensors, &[]).unwrap();
    }
    let index = |map: &serde_json::Map<String, serde_json::Value>| {
        let text = serde_json::json!({ "weight_map": map }).to_string();
        std::fs::write(path("model.safetensors.index.json"), text).unwrap();
    };
    index(&map);
    let again = Decoder::load(dir.path(), None).unwrap();
    assert_eq!(again.parameters().elements(), model.parameters().elements());
    map.insert("model.norm.weight".into(), "../elsewhere.safetensors".into());
    index(&map);
    assert!(load_error(dir.path()).is_format());
}

#[test]
fn broken_folders_are_errors_that_name_the_file() {
    let (dir, _) = saved(DType::F32);
    let weights = dir.path().join("model.safetensors");
    let config = dir.path().join("config.json");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 7]).unwrap();
    let error = load_error(dir.path());
    assert!(error.is_format() && error.to_string().contains("model.safetensors"), "{error}");
    std::fs::remove_file(&weights).unwrap();
    assert!(load_error(dir.path()).is_io());
    std::fs::write(&weights, &bytes).unwrap();

    let text = std::fs::read_to_string(&config).unwrap();
    for (from, to, what) in [
        ("\"vocab_size\": 67", "\"vocab_size\": 68", "embed_tokens"),
        ("\"qwen2\"", "\"rwkv\"", "rwkv"),
        ("\"qwen2\"", "\"llama\"", "no place"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "model.layers.2"),
        ("\"hidden_size\"", "\"hidden_sizes\"", "hidden_size is missing"),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(&config, text.replacen(from, to, 1)).unwrap();
        let error = load_error(dir.path());
        assert!(error.to_string().contains(what), "{from}: {error}");
    }
    std::fs::write(&config, "{").unwrap();
    assert!(load_error(dir.path()).is_format());
    std::fs::remove_file(&config).unwrap();
    assert!(load_error(dir.path()).is_io());
}
