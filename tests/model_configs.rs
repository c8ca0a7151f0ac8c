//! `config.json` as published: what changes nothing loads, and what would change the model is refused by name.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use gradstone::models::{Decoder, DecoderConfig, read_json};
use std::path::{Path, PathBuf};

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn published_configs_load() {
    let files = files("configs");
    assert!(files.len() > 15);
    for file in files {
        let read = DecoderConfig::from_json(read_json(&file).unwrap());
        let config = read.unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert!(config.vocab_size >= 64 && config.rotary.len() == config.layers);
    }
}

#[test]
fn what_would_change_the_model_is_refused_with_a_sentence() {
    for (file, names) in [
        ("bitsandbytes", "quantization_config"),
        ("chunked_layers", "layer_types"),
        ("dropout", "attention_dropout"),
        ("dynamic_ntk", "rope_scaling.rope_type"),
        ("encoder_decoder", "is_encoder_decoder"),
        ("gemma3_bidirectional", "use_bidirectional_attention"),
        ("gemma3_of_pictures", "gemma3_text"),
        ("mrope_section", "mrope_section"),
        ("partial_rotary", "partial_rotary_factor"),
        ("quantization_config", "quantization_config"),
        ("relu2", "hidden_act"),
        ("rope_interleaved-true", "rope_interleaved"),
        ("use_mrope-true", "use_mrope"),
    ] {
        let path = Path::new("configs_refused").join(format!("{file}.json"));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path);
        let error = DecoderConfig::from_json(read_json(&path).unwrap()).unwrap_err();
        let says = error.to_string();
        assert!(error.is_unsupported() && says.contains(names), "{file}: {says}");
        assert!(says.split_whitespace().count() > 8, "{file}: {says}");
    }
    assert_eq!(files("configs_refused").len(), 13);
}

#[test]
fn what_published_configs_say_is_what_is_computed() {
    let read = |name: &str| {
        let path = files("configs").into_iter().find(|path| path.file_stem().unwrap() == name);
        DecoderConfig::from_json(read_json(&path.unwrap()).unwrap()).unwrap()
    };
    let gemma = read("gemma-3-1b-it");
    assert_eq!(gemma.windows[..6], [Some(512), Some(512), Some(512), Some(512), Some(512), None]);
    assert_eq!(gemma.rotary[..6], [Some(1), Some(1), Some(1), Some(1), Some(1), Some(0)]);
    assert_eq!((gemma.ropes[0].theta, gemma.ropes[1].theta), (1e6, 1e4));
    let smollm = read("smollm3-3b");
    assert_eq!(smollm.rotary[..4], [Some(0), Some(0), Some(0), None]);
    let phi = read("phi-4-mini-instruct");
    assert_eq!((phi.rotary_dim, phi.max_position_embeddings), (96, 4096));
    assert_eq!(phi.ignored, ["auto_map", "full_attn_mod", "interpolate_factor"]);
    let experts = read("qwen3-30b-a3b").experts[47].unwrap();
    assert_eq!((experts.experts, experts.per_token, experts.inner), (128, 8, 768));
    let granite = read("granite-3.3-2b-instruct");
    assert_eq!((granite.logits_scaling, granite.attention_scale), (8.0, 1.0 / 64.0));
    assert_eq!(
        read("smollm2-135m-instruct").ignored,
        ["is_llama_config", "transformers.js_config"]
    );
}

/// A path that is no model folder: what it is, and what to do.
#[test]
fn other_things_than_model_folders_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let says = |path: &Path| Decoder::load(path, None).err().unwrap().to_string();
    for name in [Path::new("Qwen/Qwen2.5-0.5B"), &folder.path().join("Qwen/Qwen2.5-0.5B")] {
        assert!(says(name).contains("hf download Qwen/Qwen2.5-0.5B"), "{}", says(name));
    }
    let plain = says(&folder.path().join("nothing"));
    assert!(plain.contains("no such folder") && !plain.contains("hf download"), "{plain}");
    for (file, text, part) in [
        ("model.gguf", "", "llama.cpp"),
        ("pytorch_model.bin", "", "pickle"),
        ("adapter_config.json", "{\"base_model_name_or_path\": \"a/b\"}", "adapter of a/b"),
    ] {
        let own = tempfile::tempdir().unwrap();
        std::fs::write(own.path().join(file), text).unwrap();
        assert!(says(own.path()).contains(part), "{file}: {}", says(own.path()));
    }
}
