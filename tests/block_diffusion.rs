//! Block diffusion on the decoder: training all blocks at once is the sum of training each; blocks of one masked token are
//! next-token prediction; checkpoints under the names of the models that exist.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod devices;

use gradstone::device::Device;
use gradstone::kernels::attention::{Attention, Mask};
use gradstone::kernels::block_noise::Weight;
use gradstone::models::{Copies, Decoder, DecoderConfig, Diffusion, Tokens};
use gradstone::rl::episode::Scored;
use gradstone::rl::policy::Policy;
use gradstone::rl::sampling::Distribution;
use gradstone::rng::{Sequence, Stream};
use gradstone::tensor::{Gradients, autograd};
use gradstone::train::diffusion::{Batch, Noised, Noising, Schedule, bound, range_search, step};
use gradstone::{DType, Tensor, ops};
use serde_json::{Value, json};
use std::path::Path;

const VOCAB: usize = 41;
const MASK: i32 = 40;

/// A model whose log-probs differ from token to token.
fn model(architecture: &str, block: usize, shift: bool) -> Decoder {
    let mut config = DecoderConfig::small(architecture, VOCAB, 32, 2, 4, 64).unwrap();
    config.set_diffusion(Diffusion { mask_id: MASK, block, shift }).unwrap();
    let mut model = Decoder::random(config, DType::F32, 5).unwrap();
    for index in 0..model.parameters().len() {
        let value = model.parameters().get(index);
        if value.shape().len() == 2 {
            let louder = ops::scale(&value.detach(), 6.0).unwrap();
            model.parameters_mut().set(index, louder).unwrap();
        }
    }
    model
}

fn text(length: usize, seed: u64) -> Vec<i32> {
    let mut draws = Sequence::new(seed, Stream::Free, 0);
    (0..length).map(|_| draws.below(VOCAB as u32 - 1) as i32).collect()
}

fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}[{i}]: {g} against {w} (scale {scale})");
    }
}

fn host(tensor: &Tensor) -> Vec<f32> {
    tensor.to_device(&Device::Cpu).unwrap().to_f32s().unwrap().to_vec()
}

/// Gradients by name of `Σ w · -log p`.
fn by_name(model: &Decoder, gradients: &Gradients) -> Vec<(String, Vec<f32>)> {
    let parameters = model.parameters().iter().map(|p| {
        let gradient = gradients.get(p.id()).map(host);
        (p.name().to_owned(), gradient.unwrap_or_else(|| vec![0.0; p.value().len()]))
    });
    parameters.collect()
}

fn weighted(logprob: Tensor, weights: &[f32], gradients: &mut Gradients) -> Vec<f32> {
    let values = host(&logprob);
    let upstream = weights.iter().map(|w| -w).collect();
    let upstream = Tensor::from_f32(upstream, logprob.shape()).unwrap();
    let upstream = upstream.to_device(&logprob.device()).unwrap();
    autograd::backward_from(vec![(logprob, upstream)], gradients).unwrap();
    values
}

fn noised_text(length: usize, block: usize) -> (Batch, Noised) {
    let batch = Batch::rows([text(length, 1), text(length, 2)].concat(), length, block, 7).unwrap();
    let diffusion = Diffusion { mask_id: MASK, block, shift: false };
    let noised = Noising::default().apply(&batch, diffusion, VOCAB, 3, 0).unwrap();
    (batch, noised)
}

#[test]
fn all_blocks_at_once_are_the_sum_of_single_blocks() {
    for (architecture, shift) in [("llama", false), ("sdar", false), ("qwen2", true)] {
        let (length, block) = (20, 4);
        let model = model(architecture, block, shift);
        let (batch, noised) = noised_text(length, block);
        let copies =
            Copies::new(model.diffusion().unwrap(), &noised.ids, &batch.ids, &batch.documents);
        let mut together = Gradients::new();
        let (logprob, _) = model.masked_logprob(&copies.unwrap(), &noised.places, 1.0).unwrap();
        let all = weighted(logprob, &noised.weights, &mut together);

        // [clean tokens before the block; its noised block], nothing after it.
        let mut singly = Gradients::new();
        let mut alone = vec![0f32; all.len()];
        for document in batch.documents.windows(2) {
            for start in (document[0]..document[1]).step_by(block) {
                let clean = &batch.ids[document[0]..start];
                let sequence: Vec<i32> =
                    clean.iter().chain(&noised.ids[start..start + block]).copied().collect();
                let positions: Vec<i32> = (0..sequence.len() as i32).collect();
                let segments = [0, sequence.len()];
                let tokens = Tokens { ids: &sequence, positions: &positions, segments: &segments };
                let hidden = model.hidden_under(tokens, Mask::BlockCausal { block }).unwrap();
                let mine: Vec<usize> = (0..all.len())
                    .filter(|i| (start..start + block).contains(&noised.places[*i]))
                    .collect();
                let row = |i: &usize| {
                    let place = noised.places[*i] - document[0];
                    if shift { place.max(1) - 1 } else { place }
                };
                let rows: Vec<usize> = mine.iter().map(row).collect();
                let targets: Vec<i32> = mine.iter().map(|i| batch.ids[noised.places[*i]]).collect();
                let weights: Vec<f32> = mine.iter().map(|i| noised.weights[*i]).collect();
                let softmax =
                    ops::SoftmaxOptions { banned: vec![MASK], ..ops::SoftmaxOptions::default() };
                let hidden = ops::gather(&hidden, &rows).unwrap();
                let (logprob, _) =
                    ops::linear_logprob(&hidden, &model.head(), None, &targets, &softmax).unwrap();
                let values = weighted(logprob, &weights, &mut singly);
                mine.iter().zip(values).for_each(|(i, value)| alone[*i] = value);
            }
        }
        let what = format!("{architecture:?} shift {shift}");
        close(&all, &alone, 1e-5, &what);
        for ((name, got), (_, want)) in
            by_name(&model, &together).iter().zip(&by_name(&model, &singly))
        {
            close(got, want, 3e-5, &format!("{what}: {name}"));
        }
    }
}

#[test]
fn a_batch_cut_into_micro_batches_has_the_same_gradient() {
    let model = model("llama", 4, false);
    let (batch, noised) = noised_text(16, 4);
    let run = |tokens| {
        let mut gradients = Gradients::new();
        let done = step::gradients(&model, &batch, &noised, tokens, &mut gradients).unwrap();
        (done, by_name(&model, &gradients))
    };
    let (whole, want) = run(10_000);
    let (cut, got) = run(1);
    assert!((whole.loss - cut.loss).abs() < 1e-5 && whole.loss > 0.0);
    assert_eq!((whole.tokens, whole.wasted), (64, 0.0));
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        close(got, want, 1e-5, name);
    }
    let losses = step::losses(&model, &batch, &noised, 40).unwrap();
    let sum: f32 = losses.iter().zip(&noised.weights).map(|(l, w)| l * w).sum();
    assert!((sum / 32.0 - whole.loss).abs() < 1e-5);
}

/// Blocks of one token, all masked: what predicts token i has seen exactly the tokens before it.
#[test]
fn one_masked_token_a_block_is_next_token_prediction() {
    let ids = text(13, 4);
    let masks = vec![MASK; 13];
    let places: Vec<usize> = (0..13).collect();
    let of = |shift: bool| {
        let model = model("llama", 1, shift);
        let copies = Copies::new(model.diffusion().unwrap(), &masks, &ids, &[0, 13]).unwrap();
        let mut gradients = Gradients::new();
        let (logprob, _) = model.masked_logprob(&copies, &places, 1.0).unwrap();
        let values = weighted(logprob, &[1.0; 13], &mut gradients);
        (model, values, gradients)
    };
    // Without a shift: the mask at the end of the tokens before it, causal.
    let (model, got, gradients) = of(false);
    let mut want = Vec::new();
    let mut one_by_one = Gradients::new();
    let softmax = ops::SoftmaxOptions { banned: vec![MASK], ..ops::SoftmaxOptions::default() };
    for i in 0..13 {
        let sequence: Vec<i32> = ids[..i].iter().copied().chain([MASK]).collect();
        let positions: Vec<i32> = (0..=i as i32).collect();
        let tokens = Tokens { ids: &sequence, positions: &positions, segments: &[0, i + 1] };
        let hidden = ops::gather(&model.hidden(tokens).unwrap(), &[i]).unwrap();
        let (logprob, _) =
            ops::linear_logprob(&hidden, &model.head(), None, &ids[i..=i], &softmax).unwrap();
        want.extend(weighted(logprob, &[1.0], &mut one_by_one));
    }
    close(&got, &want, 1e-5, "without a shift");
    for ((name, got), (_, want)) in
        by_name(&model, &gradients).iter().zip(&by_name(&model, &one_by_one))
    {
        close(got, want, 3e-5, name);
    }
    // With a shift: the autoregressive loss itself, but for the mask, which has no probability here.
    let (model, got, _) = of(true);
    let scored = Scored::new(&ids[..1], &ids[1..]);
    let drawn_from = Distribution { temperature: 1.0 };
    let causal = model.score(&[scored], &drawn_from).unwrap().logprob;
    let (mask, _) = {
        let positions: Vec<i32> = (0..12).collect();
        let tokens = Tokens { ids: &ids[..12], positions: &positions, segments: &[0, 12] };
        let hidden = model.hidden(tokens).unwrap();
        ops::linear_logprob(
            &hidden,
            &model.head(),
            None,
            &[MASK; 12],
            &ops::SoftmaxOptions::default(),
        )
        .unwrap()
    };
    let without_mask: Vec<f32> = host(&causal)
        .iter()
        .zip(host(&mask))
        .map(|(token, mask)| token - (-mask.exp()).ln_1p())
        .collect();
    close(&got[1..], &without_mask, 1e-5, "with a shift");
}

#[test]
fn the_mask_is_never_predicted_and_documents_do_not_see_each_other() {
    let model = model("llama", 4, false);
    let (a, b) = (text(8, 1), text(12, 2));
    let noise = |ids: &[i32]| -> Vec<i32> {
        ids.iter().enumerate().map(|(i, id)| if i % 3 == 0 { MASK } else { *id }).collect()
    };
    let at = |ids: &[i32], from: usize| -> Vec<usize> {
        (0..ids.len()).step_by(3).map(|i| i + from).collect()
    };
    let diffusion = model.diffusion().unwrap();
    let run = |clean: &[i32], noised: &[i32], documents: &[usize], places: &[usize]| {
        let copies = Copies::new(diffusion, noised, clean, documents).unwrap();
        host(&model.masked_logprob(&copies, places, 1.0).unwrap().0)
    };
    let together = [a.clone(), b.clone()].concat();
    let noised = [noise(&a), noise(&b)].concat();
    let places = [at(&a, 0), at(&b, 8)].concat();
    let separate = run(&together, &noised, &[0, 8, 20], &places);
    let alone =
        [run(&a, &noise(&a), &[0, 8], &at(&a, 0)), run(&b, &noise(&b), &[0, 12], &at(&b, 0))];
    assert_eq!(separate, alone.concat());
    // In one document the second text sees the first.
    let visible = run(&together, &noised, &[0, 20], &places);
    assert_eq!(visible[..3], separate[..3]);
    assert!(visible[3..].iter().zip(&separate[3..]).all(|(a, b)| a != b));
    // Probabilities of all other tokens add up to 1.
    let sum: f32 = (0..MASK)
        .map(|token| {
            let mut clean = a.clone();
            clean[3] = token;
            run(&clean, &noise(&a), &[0, 8], &[3])[0].exp()
        })
        .sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let mut clean = a.clone();
    clean[3] = MASK;
    assert!(run(&clean, &noise(&a), &[0, 8], &[3])[0] < -1e30 || model.config().vocab_size == 0);
}

#[test]
fn a_document_of_one_block_needs_no_clean_copy() {
    let model = model("llada", 64, false);
    let ids = text(16, 3);
    let noised: Vec<i32> = ids.iter().map(|id| if id % 2 == 0 { MASK } else { *id }).collect();
    let copies = Copies::new(model.diffusion().unwrap(), &noised, &ids, &[0, 16]).unwrap();
    assert_eq!((copies.tokens().ids.len(), copies.mask()), (16, Mask::Full));
    let places: Vec<usize> = (0..16).filter(|i| noised[*i] == MASK).collect();
    let (got, _) = model.masked_logprob(&copies, &places, 1.0).unwrap();
    // The same through the mask of two copies.
    let twice: Vec<i32> = [noised.clone(), ids.clone()].concat();
    let positions: Vec<i32> = (0..16).chain(0..16).collect();
    let tokens = Tokens { ids: &twice, positions: &positions, segments: &[0, 32] };
    let hidden = model.hidden_under(tokens, Mask::BlockDiffusion { block: 64 }).unwrap();
    let targets: Vec<i32> = places.iter().map(|i| ids[*i]).collect();
    let softmax = ops::SoftmaxOptions { banned: vec![MASK], ..ops::SoftmaxOptions::default() };
    let hidden = ops::gather(&hidden, &places).unwrap();
    let (want, _) = ops::linear_logprob(&hidden, &model.head(), None, &targets, &softmax).unwrap();
    close(&host(&got), &host(&want), 1e-6, "log-prob");
}

/// What attention visits while the model trains: near N² + N·B scores of the 4 N² of a stored mask.
#[test]
fn the_work_is_that_of_the_mask() {
    let (n, block) = (2048, 4);
    let ids = vec![1; n];
    let diffusion = Diffusion { mask_id: MASK, block, shift: false };
    let copies = Copies::new(diffusion, &ids, &ids, &[0, n]).unwrap();
    let spec = Attention { mask: copies.mask(), ..Attention::causal(1, 1, 8) };
    let visited = spec.visited_tiles(copies.segments()) * 64 * 64;
    let (seen, dense) = (n * n + n * block, 4 * n * n);
    println!(
        "N = {n}, B = {block}: {visited} scores visited, {seen} seen, {dense} in a stored mask"
    );
    assert!(visited >= seen && visited < seen + seen / 10);
}

#[test]
fn emulated_devices_compute_the_same_loss() {
    let emulated = devices::emulated();
    for shift in [false, true] {
        let cpu = model("qwen3", 4, shift);
        let (batch, noised) = noised_text(12, 4);
        let run = |device: &Device| {
            let mut model = cpu.copy().unwrap();
            model.move_to(device).unwrap();
            let mut gradients = Gradients::new();
            let done = step::gradients(&model, &batch, &noised, 64, &mut gradients).unwrap();
            (done.loss, by_name(&model, &gradients))
        };
        let ((want, gradients), (got, on_device)) = (run(&Device::Cpu), run(&emulated));
        assert!((got - want).abs() < 1e-4 * want, "{got} {want}");
        for ((name, got), (_, want)) in on_device.iter().zip(&gradients) {
            close(got, want, 3e-4, name);
        }
    }
}

#[test]
fn the_bound_is_the_mean_over_all_masks() {
    let model = model("llama", 2, false);
    let ids = text(4, 9);
    let batch = Batch::rows(ids.clone(), 4, 2, 0).unwrap();
    // Blocks of two: one of the two masked, each half of the time, weight 2; or both, weight 1.
    let diffusion = model.diffusion().unwrap();
    let nll = |masked: &[usize]| -> f64 {
        let mut noised = ids.clone();
        masked.iter().for_each(|i| noised[*i] = MASK);
        let copies = Copies::new(diffusion, &noised, &ids, &[0, 4]).unwrap();
        let (logprob, _) = model.masked_logprob(&copies, masked, 1.0).unwrap();
        -host(&logprob).iter().map(|x| f64::from(*x)).sum::<f64>()
    };
    let mut exact = 0.0;
    for block in [[0, 1], [2, 3]] {
        exact += 0.5 * (nll(&block[..1]) + nll(&block[1..])) + 0.5 * nll(&block);
    }
    exact /= 4.0;
    let got = bound::per_token(&model, &batch, 400, 1, 1000).unwrap();
    assert!((got - exact).abs() < 0.03 * exact, "{got} against {exact}");
    let partly = Batch { eligible: Some(vec![1; 4]), ..batch };
    assert!(bound::per_token(&model, &partly, 1, 1, 1000).unwrap_err().is_unsupported());
}

#[test]
fn a_narrow_range_of_rates_has_less_variance_than_all_of_them() {
    let model = model("llama", 4, false);
    let batch = Batch::rows(text(64 * 32, 2), 32, 4, 0).unwrap();
    let ranges = [(1e-3, 1.0), (0.45, 0.95), (0.05, 0.55)];
    let found = range_search::search(&model, &batch, &ranges, 1, 10_000).unwrap();
    assert_eq!((found[0].low, found[0].high), (0.45, 0.95), "{found:?}");
    assert!(found[2].variance > 3.0 * found[0].variance, "{found:?}");
    assert!(range_search::search(&model, &batch, &[], 1, 10_000).unwrap_err().is_invalid());
    let grid = range_search::grid(1e-3);
    assert!(grid.contains(&(0.45, 0.95)) && grid.contains(&(1e-3, 0.5)) && grid.len() == 35);
    assert_eq!(range_search::bd3lm(0.6, 1.0).weight, Weight::One);
}

#[test]
fn published_checkpoints_round_trip() {
    for architecture in ["llada", "sdar", "llama"] {
        let dir = tempfile::tempdir().unwrap();
        let original = model(architecture, 4, true);
        original.save(dir.path()).unwrap();
        let file = gradstone::files::safetensors::SafetensorsFile::open(
            &dir.path().join("model.safetensors"),
        )
        .unwrap();
        let embedding = match architecture {
            "llada" => "model.transformer.wte.weight",
            _ => "model.embed_tokens.weight",
        };
        assert!(file.entries().contains_key(embedding), "{architecture:?}");
        let loaded = Decoder::load(dir.path(), None).unwrap();
        assert_eq!(loaded.diffusion().unwrap(), original.diffusion().unwrap());
        for (a, b) in original.parameters().iter().zip(loaded.parameters().iter()) {
            assert_eq!(
                (a.name(), a.value().bytes().unwrap()),
                (b.name(), b.value().bytes().unwrap())
            );
        }
    }
}

fn config(
    change: impl FnOnce(&mut serde_json::Map<String, Value>),
) -> gradstone::Result<DecoderConfig> {
    // The fields of LLaDA-8B's file, at toy size.
    let text = r#"{
        "activation_type": "silu", "alibi": false, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0, "attention_layer_norm": false, "attention_layer_norm_with_affine": true,
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}, "bias_for_layer_norm": false,
        "block_group_size": 1, "block_type": "llama", "d_model": 32, "embedding_dropout": 0.0,
        "embedding_size": 48, "eos_token_id": 3, "flash_attention": false, "include_bias": false,
        "include_qkv_bias": false, "init_cutoff_factor": null, "init_device": "meta", "init_fn": "mitchell",
        "init_std": 0.02, "input_emb_norm": false, "layer_norm_type": "rms", "layer_norm_with_affine": true,
        "mask_token_id": 36, "max_sequence_length": 64, "mlp_hidden_size": 96, "mlp_ratio": 4,
        "model_type": "llada", "multi_query_attention": null, "n_heads": 4, "n_kv_heads": 4, "n_layers": 2,
        "pad_token_id": 3, "precision": "amp_bf16", "residual_dropout": 0, "rms_norm_eps": 1e-5, "rope": true,
        "rope_full_precision": true, "rope_theta": 500000.0, "scale_logits": false,
        "transformers_version": "4.46.3", "use_cache": false, "vocab_size": 40, "weight_tying": false
    }"#;
    let Ok(Value::Object(mut map)) = serde_json::from_str(text) else { panic!() };
    change(&mut map);
    DecoderConfig::from_json(map)
}

#[test]
fn a_published_llada_config_is_read_and_its_switches_are_checked() {
    let read = config(|_| {}).unwrap();
    assert_eq!((read.hidden_size, read.layers, read.vocab_size, read.heads), (32, 2, 48, 4));
    assert_eq!((read.tied, read.eos.clone(), read.ropes[0].theta), (false, vec![3], 500_000.0));
    assert_eq!(read.diffusion, Some(Diffusion { mask_id: 36, block: 64, shift: false }));
    for (name, value) in [
        ("alibi", json!(true)),
        ("include_bias", json!(true)),
        ("layer_norm_type", json!("low_precision")),
        ("residual_dropout", json!(0.1)),
        ("block_type", json!("sequential")),
        ("quantization_config", json!({"bits": 4})),
    ] {
        let error = config(|map| drop(map.insert(name.into(), value))).unwrap_err();
        assert!(error.is_unsupported() && error.to_string().contains(name), "{name}: {error}");
    }
    let unknown = config(|map| drop(map.insert("a_new_field".into(), json!(1)))).unwrap();
    assert_eq!(unknown.ignored, ["auto_map", "a_new_field"]);
    assert!(
        config(|map| drop(map.insert("mask_token_id".into(), json!(48)))).unwrap_err().is_index()
    );
    assert!(
        config(|map| drop(map.insert("embedding_size".into(), json!(30)))).unwrap_err().is_format()
    );
    assert!(config(|map| drop(map.remove("mask_token_id"))).unwrap().diffusion.is_none());
}

#[test]
fn bad_input_is_an_error_and_nothing_eligible_is_no_loss() {
    let plain = DecoderConfig::small("llama", VOCAB, 32, 1, 4, 64).unwrap();
    let plain = Decoder::random(plain, DType::F32, 1).unwrap();
    let error = plain.diffusion().unwrap_err();
    assert!(error.is_unsupported() && error.to_string().contains("mask_token_id"), "{error}");
    let model = model("llama", 4, false);
    let diffusion = model.diffusion().unwrap();
    assert!(Copies::new(diffusion, &[1, 2], &[1], &[0, 1]).unwrap_err().is_shape());
    assert!(Copies::new(diffusion, &[1], &[1], &[0, 2, 1]).unwrap_err().is_shape());
    let copies = Copies::new(diffusion, &[1], &[1], &[0, 1]).unwrap();
    assert!(model.masked_logprob(&copies, &[1], 1.0).unwrap_err().is_index());
    // Longer than the context.
    let long = Batch::rows(text(68, 1), 68, 4, 0).unwrap();
    let noised = Noising::default().apply(&long, diffusion, VOCAB, 1, 0).unwrap();
    let error = step::gradients(&model, &long, &noised, 1000, &mut Gradients::new()).unwrap_err();
    assert!(error.is_index() && error.to_string().contains("context of 64"), "{error}");
    // Nothing may be masked.
    let mut none = Batch::rows(text(16, 1), 8, 4, 0).unwrap();
    none.eligible = Some(vec![0; 16]);
    for schedule in [Schedule::Clipped { forced: true }, Schedule::Sdar { eps: 1e-3 }] {
        let noising = Noising { schedule, ..Noising::default() };
        let noised = noising.apply(&none, diffusion, VOCAB, 1, 0).unwrap();
        let mut gradients = Gradients::new();
        let done = step::gradients(&model, &none, &noised, 1000, &mut gradients).unwrap();
        assert_eq!((done.loss, done.masked_loss, gradients.iter().count()), (0.0, 0.0, 0));
    }
    assert!(Decoder::load(Path::new("/no/such"), None).is_err());
}
