//! Model folders as people have them, through the program: what is odd and harmless works, what is broken is an error of one
//! or two lines, and never a panic, a hang or an allocation without end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const WIDTH: usize = 64;

fn config(vocab: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": WIDTH,
        "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    })
}

fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

/// A `tokenizer.json` of one id a word; the first three are special.
fn tokenizer(words: &[&str]) -> Value {
    let names: Vec<&str> = ["<pad>", "<bos>", "<eos>"].iter().chain(words).copied().collect();
    let vocabulary: serde_json::Map<String, Value> =
        names.iter().enumerate().map(|(id, name)| ((*name).to_owned(), id.into())).collect();
    let special: Vec<Value> =
        names[..3].iter().enumerate().map(|(id, name)| added(id, name)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>"},
    })
}

fn characters() -> Value {
    let all: Vec<String> =
        "0123456789+-*%= abcdefghijklmnopqrstuvwxyz\n".chars().map(String::from).collect();
    tokenizer(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A tokenizer as those that are made by SentencePiece: words with a blank, and bytes for what has no word.
fn byte_fallback(words: &[&str]) -> Value {
    let mut file = tokenizer(words);
    file["pre_tokenizer"] = Value::Null;
    file["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    file["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    file["model"] = json!({
        "type": "BPE", "dropout": null, "unk_token": "<pad>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": true, "ignore_merges": false, "vocab": file["model"]["vocab"], "merges": [],
    });
    file
}

/// A model folder. Attention and MLP are zero and the head is a table from token to token: after the last token of the prompt
/// the model says `says`, and then it ends.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(config: &Value, tokenizer: &Value, after: &str, says: &[&str]) -> Folder {
        Folder::with_types(config, tokenizer, after, says, |_| false)
    }

    /// The same with the tensors in bf16 that `half` names.
    fn with_types(
        config: &Value,
        tokenizer: &Value,
        after: &str,
        says: &[&str],
        half: impl Fn(&str) -> bool,
    ) -> Folder {
        let rows = config["vocab_size"].as_u64().unwrap() as usize;
        let id = |word: &str| tokenizer["model"]["vocab"][word].as_u64().unwrap() as usize;
        let line: Vec<usize> =
            std::iter::once(id(after)).chain(says.iter().map(|word| id(word))).chain([2]).collect();
        let mut embedding = vec![0.0f32; rows * WIDTH];
        (0..rows.min(WIDTH)).for_each(|i| embedding[i * WIDTH + i] = 1.0);
        let mut head = vec![0.0f32; rows * WIDTH];
        line.windows(2).for_each(|pair| head[pair[1] * WIDTH + pair[0]] = 5.0);
        let layer = "model.layers.0.";
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![rows, WIDTH], embedding),
            ("lm_head.weight".to_owned(), vec![rows, WIDTH], head),
            ("model.norm.weight".to_owned(), vec![WIDTH], vec![1.0; WIDTH]),
        ];
        for (name, shape) in [
            ("self_attn.q_proj", [WIDTH, WIDTH]),
            ("self_attn.k_proj", [WIDTH, WIDTH]),
            ("self_attn.v_proj", [WIDTH, WIDTH]),
            ("self_attn.o_proj", [WIDTH, WIDTH]),
            ("mlp.gate_proj", [48, WIDTH]),
            ("mlp.up_proj", [48, WIDTH]),
            ("mlp.down_proj", [WIDTH, 48]),
        ] {
            let zeros = vec![0.0; shape[0] * shape[1]];
            tensors.push((format!("{layer}{name}.weight"), shape.to_vec(), zeros));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("{layer}{name}.weight"), vec![WIDTH], vec![1.0; WIDTH]));
        }
        let bytes: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, shape, values)| match half(&name) {
                true => {
                    let bytes = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes());
                    (name, Dtype::BF16, shape, bytes.collect())
                }
                false => {
                    let bytes = values.iter().flat_map(|v| v.to_le_bytes());
                    (name, Dtype::F32, shape, bytes.collect())
                }
            })
            .collect();
        let views = bytes.iter().map(|(name, dtype, shape, data)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let folder = Folder(tempfile::tempdir().unwrap());
        let written = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.0.path().join("model.safetensors"), written).unwrap();
        folder.put("config.json", config);
        folder.put("tokenizer.json", tokenizer);
        folder.put("tokenizer_config.json", &json!({"eos_token": "<eos>"}));
        folder
    }

    fn put(&self, name: &str, value: &Value) {
        std::fs::write(self.0.path().join(name), value.to_string()).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// `gradstone generate` with options, and with lines on its standard input.
    fn generate(&self, options: &[&str], lines: Option<&str>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gradstone"));
        command.arg("generate").arg("--model").arg(self.path()).args(["--max-tokens", "20"]);
        command.args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // A program that fails before it reads closes the pipe.
        let _ = input.write_all(lines.unwrap_or_default().as_bytes());
        drop(input);
        child.wait_with_output().unwrap()
    }

    /// What it says to one prompt.
    fn says(&self, options: &[&str]) -> String {
        let output = self.generate(options, None);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// That it refuses, in two lines at most, without a panic.
    fn refuses(&self, options: &[&str], what: &str) {
        let output = self.generate(options, None);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{what}: {error}");
        assert!(error.starts_with("error: ") && !error.contains("panicked"), "{what}: {error}");
        assert!(error.lines().count() <= 2 && error.contains(what), "{what}: {error}");
    }
}

/// Says "2" after an equals sign.
fn sums(config: &Value, tokenizer: &Value) -> Folder {
    Folder::new(config, tokenizer, "=", &["2"])
}

const SUM: [&str; 2] = ["--prompt", "1+1="];

#[test]
fn a_prompt_that_begins_with_bos_gets_no_second_one() {
    let mut file = characters();
    file["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}}});
    // The context holds the bos token, three characters and one more.
    let mut small = config(WIDTH);
    small["max_position_embeddings"] = 5.into();
    let folder = sums(&small, &file);
    folder.put("tokenizer_config.json", &json!({"eos_token": "<eos>", "bos_token": "<bos>"}));
    assert_eq!(folder.says(&["--prompt", "<bos>+1=", "--max-tokens", "1"][..2]), "2\n");
    assert_eq!(folder.says(&["--prompt", "+1="]), "2\n");
    folder.refuses(&["--prompt", "<bos><bos>+1="], "");
}

#[test]
fn special_tokens_that_nothing_uses_may_lack_an_id() {
    let folder = sums(&config(WIDTH), &characters());
    for tokens in [
        json!({"eos_token": "<eos>", "pad_token": "[PAD]"}),
        json!({"eos_token": "<eos>", "bos_token": "<s>", "mask_token": "[MASK]"}),
        json!({"eos_token": {"content": "<eos>"}, "cls_token": {"content": "[CLS]"}}),
    ] {
        folder.put("tokenizer_config.json", &tokens);
        assert_eq!(folder.says(&SUM), "2\n");
    }
    let mut padded = config(WIDTH);
    padded["pad_token_id"] = 63.into();
    padded["bos_token_id"] = 127.into();
    assert_eq!(sums(&padded, &characters()).says(&SUM), "2\n");
}

#[test]
fn ids_beyond_the_models_rows_are_an_error_only_where_a_text_has_them() {
    let mut file = characters();
    let ids = file["model"]["vocab"].as_object().unwrap().len();
    file["model"]["vocab"]["<extra>"] = ids.into();
    file["added_tokens"].as_array_mut().unwrap().push(added(ids, "<extra>"));
    let folder = sums(&config(ids), &file);
    assert_eq!(folder.says(&SUM), "2\n");
    folder.refuses(&["--prompt", "1<extra>="], "`<extra>`");
    sums(&config(48), &tokenizer(&["=", "2"])).says(&["--prompt", "="]);
    let other = sums(&config(32), &characters());
    other.put("tokenizer_config.json", &json!({"eos_token": "z"}));
    other.put("generation_config.json", &json!({"eos_token_id": [40, 41]}));
    other.refuses(&SUM, "without an id that ends a text");
}

#[test]
fn matrices_in_bf16_and_norms_in_f32_load() {
    for dtype in [json!("bfloat16"), json!("float32"), Value::Null] {
        let mut mixed = config(WIDTH);
        mixed["torch_dtype"] = dtype;
        let half = |name: &str| !name.contains("norm");
        let folder = Folder::with_types(&mixed, &characters(), "=", &["2"], half);
        assert_eq!(folder.says(&SUM), "2\n");
    }
}

#[test]
fn one_prompt_prints_the_text_that_two_print() {
    for words in [
        &["▁one", "<0x0A>", "<0xF0>", "<0x9F>", "▁two", "▁three"][..],
        &["▁one", "<0xC3>", "<0xA9>", "▁two"],
        &["<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xFF>"],
        &["<0xE2>", "<0x96>"],
    ] {
        let vocabulary: Vec<&str> = std::iter::once("p").chain(words.iter().copied()).collect();
        let folder = Folder::new(&config(WIDTH), &byte_fallback(&vocabulary), "p", words);
        let one = folder.says(&["--prompt", "p"]);
        let two = folder.generate(&[], Some("p\np\n"));
        assert_eq!(String::from_utf8(two.stdout).unwrap(), one.repeat(2), "{words:?}");
    }
}

#[test]
fn json_has_a_completion_a_line() {
    let folder = Folder::new(&config(WIDTH), &characters(), "=", &["2", "\n", "3"]);
    let output = folder.generate(&["--json"], Some("1+1=\n9=\n"));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["prompt"], "1+1=");
    assert_eq!(lines[1]["prompt"], "9=");
    for line in &lines {
        assert_eq!((&line["completion"], &line["finish_reason"]), (&json!("2\n3"), &json!("stop")));
        assert_eq!(line["tokens"].as_array().unwrap().len(), 4);
    }
    assert_eq!((&lines[0]["prompt_tokens"], &lines[1]["prompt_tokens"]), (&json!(4), &json!(2)));
    let cut = folder.says(&["--json", "--prompt", "1=", "--temperature", "0"]);
    assert_eq!(cut.lines().count(), 1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradstone"));
    command.args(["generate", "--json", "--max-tokens", "2", "--prompt", "="]);
    let cut = command.arg("--model").arg(folder.path()).output().unwrap();
    let cut: Value = serde_json::from_slice(&cut.stdout).unwrap();
    assert_eq!((&cut["completion"], &cut["finish_reason"]), (&json!("2\n"), &json!("length")));
}

#[test]
fn a_prompt_is_a_turn_of_the_folders_chat_template() {
    // The answer follows "m=": only a rendered conversation ends so, or a raw prompt that does.
    let folder = Folder::new(&config(WIDTH), &characters(), "=", &["2"]);
    let template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }} {% endfor %}{% if add_generation_prompt %}={% endif %}";
    folder.put("tokenizer_config.json", &json!({"eos_token": "<eos>", "chat_template": template}));
    let tokens = |options: &[&str]| {
        let all = [&["--json", "--prompt", "1+1"], options].concat();
        serde_json::from_str::<Value>(&folder.says(&all)).unwrap()["prompt_tokens"].clone()
    };
    assert_eq!(folder.says(&["--prompt", "1+1"]), "2\n");
    assert_eq!(tokens(&[]), 6);
    assert_eq!(tokens(&["--system", "xyz"]), 11);
    assert_eq!(tokens(&["--raw"]), 3);
    std::fs::write(folder.path().join("chat_template.jinja"), "\n{{ raise_exception('no user') }}")
        .unwrap();
    folder.refuses(&["--prompt", "1"], "chat_template.jinja line 2: no user");
    std::fs::write(folder.path().join("chat_template.jinja"), "{% for %}").unwrap();
    folder.refuses(&["--prompt", "1"], "chat_template.jinja line 1: syntax error");
    assert_eq!(folder.says(&["--raw", "--prompt", "1+1="]), "2\n");
}

#[test]
fn a_tokenizer_that_cannot_work_is_an_error_without_a_panic() {
    let base = characters();
    let with = |part: &str, value: Value| {
        let mut file = base.clone();
        file[part] = value;
        file
    };
    let post = |single: Value, tokens: Value| {
        let value = json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens});
        with("post_processor", value)
    };
    let around = json!([{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    let token = |id: u64| json!({"X": {"id": "X", "ids": [id], "tokens": ["X"]}});
    let doubling = json!({"type": "Replace", "pattern": {"String": "1"}, "content": "11"});
    let normalizers = |one: Value| json!({"type": "Sequence", "normalizers": vec![one; 31]});
    let table = |text: &str| json!({"type": "Precompiled", "precompiled_charsmap": text});
    let mut far = base.clone();
    far["model"]["vocab"]["far"] = 2_147_483_646.into();
    let mut added_bomb = with("normalizer", normalizers(doubling.clone()));
    let mut one = added(4, "1");
    one["normalized"] = true.into();
    added_bomb["added_tokens"].as_array_mut().unwrap().push(one);
    for (what, file) in [
        ("FixedLength 0", with("pre_tokenizer", json!({"type": "FixedLength", "length": 0}))),
        ("an id without a token before it", far),
        ("a normalizer that doubles", with("normalizer", normalizers(doubling.clone()))),
        ("an added token that it doubles", added_bomb),
        ("a table without texts", with("normalizer", table("CAAAAAAAAAAAAAAA"))),
        ("a table that is cut off", with("normalizer", table("/////w=="))),
        (
            "an expression that never ends",
            with(
                "pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "(1+)+(?=2)|(?=(1+)+2)"}, "behavior": "Isolated", "invert": false}),
            ),
        ),
        (
            "a decoder that doubles",
            with("decoder", json!({"type": "Sequence", "decoders": vec![doubling; 31]})),
        ),
        (
            "a decoder that strips more than there is",
            with("decoder", json!({"type": "Strip", "content": "2", "start": 0, "stop": 9})),
        ),
        ("an id outside the vocabulary", post(around.clone(), token(99))),
        ("the largest id", post(around.clone(), token(u64::from(u32::MAX)))),
        ("a token that is not there", post(around, json!({}))),
        ("a second text", post(json!([{"Sequence": {"id": "B", "type_id": 0}}]), json!({}))),
    ] {
        let started = std::time::Instant::now();
        let folder = sums(&config(WIDTH), &base);
        folder.put("tokenizer.json", &file);
        let program = env!("CARGO_BIN_EXE_gradstone");
        // Three gigabytes of addresses are many times what the model needs.
        let line = "ulimit -v 3000000; exec \"$0\" generate --model \"$1\" --prompt 1111111111111111111111111111111= --max-tokens 2";
        let output =
            Command::new("sh").args(["-c", line, program]).arg(folder.path()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{what}: {error}");
        assert!(error.starts_with("error: ") && error.lines().count() <= 2, "{what}: {error}");
        assert!(!error.contains("panicked") && started.elapsed().as_secs() < 60, "{what}: {error}");
    }
}
