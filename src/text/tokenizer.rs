//! The tokenizer of a model: a Hugging Face `tokenizer.json`, or one id per character for problems made in code.
//!
//! Both are the same thing underneath: a character tokenizer is a `tokenizer.json` that is made here, so that it can
//! be saved beside a checkpoint and opened by any other program. Ids are `i32`, as kernels take them.

use crate::error::{Error, Result};
use crate::files::atomic;
use crate::kernels::token_decode::{Decode, Stream, Table, decode};
use crate::text::decoding;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Ids of a character tokenizer's special tokens; characters follow.
const SPECIAL: [&str; 3] = ["<pad>", "<bos>", "<eos>"];

/// Files of a model folder that belong to the tokenizer and are kept as they are.
const COMPANIONS: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// Encodes prompts and decodes completions.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<i32>,
    eos: Vec<i32>,
    pad: i32,
    mask: Option<i32>,
    vocab_size: usize,
    /// The decoder as a table, made when it is first needed; none where it cannot be one.
    table: Arc<OnceLock<Option<Table>>>,
    /// What [`Tokenizer::save`] writes, by name.
    files: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} ids, eos {:?})", self.vocab_size, self.eos)
    }
}

impl Tokenizer {
    /// One id per character of `alphabet` after pad 0, bos 1 and eos 2; other characters cannot be encoded.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when the alphabet is empty or a character occurs twice.
    pub fn characters(alphabet: &str) -> Result<Tokenizer> {
        let mut vocabulary = serde_json::Map::new();
        let names = SPECIAL.iter().map(|name| (*name).to_string());
        for (id, name) in names.chain(alphabet.chars().map(String::from)).enumerate() {
            if vocabulary.insert(name.clone(), id.into()).is_some() {
                return Err(Error::invalid(format!("`{name}` occurs twice in the alphabet")));
            }
        }
        if vocabulary.len() == SPECIAL.len() {
            return Err(Error::invalid("an empty alphabet"));
        }
        let added: Vec<Value> = SPECIAL
            .iter()
            .enumerate()
            .map(|(id, name)| {
                json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
            "post_processor": null, "decoder": {"type": "Fuse"},
            // No unknown token: a character outside the alphabet is an error, not a substitute.
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": ""},
        });
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": SPECIAL[0], "bos_token": SPECIAL[1],
            "eos_token": SPECIAL[2], "clean_up_tokenization_spaces": false,
        });
        let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
        let files = vec![
            ("tokenizer.json".to_string(), pretty(&tokenizer)),
            ("tokenizer_config.json".to_string(), pretty(&config)),
        ];
        Tokenizer::from_files(files, &Value::Null)
    }

    /// Reads `tokenizer.json` of a model folder, and the ids of its special tokens from `generation_config.json`,
    /// `config.json` and `tokenizer_config.json`, in this order.
    ///
    /// # Errors
    /// [`Error::is_io`] when there is no `tokenizer.json`, [`Error::is_format`] when a file cannot be understood or no
    /// end-of-sequence token is named anywhere.
    pub fn load(folder: &Path) -> Result<Tokenizer> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|e| Error::io(format!("reading {}", path.display()), e))
        };
        let mut files = vec![("tokenizer.json".to_string(), read("tokenizer.json")?)];
        for name in COMPANIONS {
            if folder.join(name).exists() {
                files.push((name.to_string(), read(name)?));
            }
        }
        let model = match folder.join("config.json").exists() {
            true => {
                parse("config.json", &read("config.json")?).map_err(|e| e.at(folder.display()))?
            }
            false => Value::Null,
        };
        Tokenizer::from_files(files, &model).map_err(|e| e.at(folder.display()))
    }

    pub(super) fn from_files(files: Vec<(String, Vec<u8>)>, model: &Value) -> Result<Tokenizer> {
        let file =
            |name: &str| files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.as_slice());
        let bad = |e: tokenizers::Error| Error::format(format!("tokenizer.json: {e}"));
        let mut inner = open(file("tokenizer.json").unwrap_or_default())?;
        // Settings of whoever made the file; here they would cut prompts silently.
        inner.with_truncation(None).map_err(bad)?;
        inner.with_padding(None);
        let largest = inner.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        if vocab_size == 0 || i32::try_from(vocab_size).is_err() {
            return Err(Error::format(format!("tokenizer.json: {vocab_size} ids")));
        }
        let optional = |name: &str| file(name).map_or(Ok(Value::Null), |bytes| parse(name, bytes));
        let (generation, own) =
            (optional("generation_config.json")?, optional("tokenizer_config.json")?);
        let named = |key: &str| named_id(&inner, &own[key], key);
        let first = |key: &str, name: &str| -> Result<Vec<i32>> {
            for (file, config) in [("generation_config.json", &generation), ("config.json", model)]
            {
                let ids = ids(&config[key], vocab_size, &format!("{file}: `{key}`"))?;
                if !ids.is_empty() {
                    return Ok(ids);
                }
            }
            Ok(named(name)?.into_iter().collect())
        };
        let eos = first("eos_token_id", "eos_token")?;
        if eos.is_empty() {
            return Err(Error::format(
                "no end-of-sequence token: neither `eos_token_id` in generation_config.json or config.json nor \
                 `eos_token` in tokenizer_config.json",
            ));
        }
        let bos = named("bos_token")?.or(first("bos_token_id", "bos_token")?.first().copied());
        let pad = match named("pad_token")? {
            Some(pad) => pad,
            // Any id will do: padding is masked and never looked at.
            None => {
                first("pad_token_id", "pad_token")?.first().or(eos.first()).copied().unwrap_or(0)
            }
        };
        // Block-diffusion models name it in their config, masked language models in that of the tokenizer.
        let mask = match named("mask_token")? {
            Some(mask) => Some(mask),
            None => ids(&model["mask_token_id"], vocab_size, "config.json: `mask_token_id`")
                .unwrap_or_default()
                .first()
                .copied(),
        };
        let table = Arc::default();
        Ok(Tokenizer { inner, bos, eos, pad, mask, vocab_size, table, files })
    }

    /// The number of ids: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id that starts a text, where the tokenizer has one. [`Tokenizer::encode_prompt`] puts it where it belongs.
    pub fn bos(&self) -> Option<i32> {
        self.bos
    }

    /// The ids that end a completion, at least one; the first is what a trainer appends.
    pub fn eos(&self) -> &[i32] {
        &self.eos
    }

    /// The id that fills unused places.
    pub fn pad(&self) -> i32 {
        self.pad
    }

    /// The id that stands for a token to be predicted, where there is one.
    pub fn mask(&self) -> Option<i32> {
        self.mask
    }

    /// Checks that a model with `vocab_size` embeddings can take every id.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when it cannot.
    pub fn fits(&self, vocab_size: usize) -> Result<()> {
        if self.vocab_size <= vocab_size {
            return Ok(());
        }
        let ids = self.vocab_size;
        Err(Error::invalid(format!(
            "the tokenizer has {ids} ids but the model's vocabulary is {vocab_size}\n\
             tokenizer.json and the weights are of different models"
        )))
    }

    /// The ids of a prompt, with what the tokenizer puts around a text (a bos id, for Llama and Gemma).
    ///
    /// # Errors
    /// [`Error::is_invalid`] when the text has a character the tokenizer cannot encode.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<i32>> {
        self.encode_with(text, true)
    }

    /// The ids of a text that continues another: nothing is added around it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_prompt`].
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, surround: bool) -> Result<Vec<i32>> {
        let encoded = self.inner.encode_fast(text, surround).map_err(|e| {
            let shown: String = text.chars().take(60).collect();
            let what = e.to_string().replace(
                "WordLevel error: Missing [UNK] token from the vocabulary",
                "a character is not in the alphabet",
            );
            Error::invalid(format!("the tokenizer cannot encode `{shown}`: {what}"))
        })?;
        Ok(encoded.get_ids().iter().map(|id| *id as i32).collect())
    }

    /// The bytes of every id, for decoders that go token by token (all but CTC and BPE with an end-of-word suffix, and
    /// some unusual sequences): what [`decode`](crate::kernels::token_decode::decode()) and a device decode with.
    pub fn decode_table(&self) -> Option<&Table> {
        self.table.get_or_init(|| decoding::table(&self.inner, self.vocab_size).ok()).as_ref()
    }

    /// The text of ids. Special tokens are left out, so are ids outside the vocabulary.
    ///
    /// # Errors
    /// [`Error::is_index`] for a negative id, [`Error::is_format`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[i32]) -> Result<String> {
        let negative = |id: &i32| Error::index(format!("decoding: id {id} is negative"));
        if let Some(id) = ids.iter().find(|id| **id < 0) {
            return Err(negative(id));
        }
        if let Some(table) = self.decode_table() {
            let segments = [0, ids.len()];
            let args = Decode { ids, segments: &segments, skip_special: true, starts: false };
            let decoded = decode(table, &args)?;
            // Without a copy where all is valid, as it nearly always is.
            return Ok(String::from_utf8(decoded.bytes)
                .unwrap_or_else(|broken| String::from_utf8_lossy(broken.as_bytes()).into_owned()));
        }
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        self.inner
            .decode(&ids, true)
            .map_err(|e| Error::format(format!("the tokenizer cannot decode: {e}")))
    }

    /// Decodes a text as its ids arrive, without special tokens; never splits a character.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] for a decoder that does not go token by token.
    pub fn stream(&self) -> Result<Stream<'_>> {
        match self.decode_table() {
            Some(table) => Ok(Stream::new(table, true)),
            None => Err(Error::unsupported(
                "this tokenizer's decoder looks at all tokens at once: decode whole texts",
            )),
        }
    }

    /// Writes `tokenizer.json` and the files that belong to it into a model folder.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.files
            .iter()
            .try_for_each(|(name, bytes)| atomic::write_file(&folder.join(name), bytes))
    }
}

/// The crate panics on some malformed files (0.23.2: a decoder that is not JSON), so syntax is checked first and a
/// panic becomes an error.
fn open(bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    parse("tokenizer.json", bytes)?;
    let opened = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
    let bad = |what: String| Error::format(format!("tokenizer.json: {what}"));
    opened.map_err(|_| bad("it cannot be understood".into()))?.map_err(|e| bad(e.to_string()))
}

fn parse(name: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::format(format!("{name}: {e}")))
}

/// A number, a list of numbers, or nothing.
fn ids(value: &Value, vocab_size: usize, place: &str) -> Result<Vec<i32>> {
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    // Models say -1 for "none".
    let wanted = list.iter().filter(|id| id.as_i64() != Some(-1));
    wanted
        .map(|id| match id.as_u64().and_then(|id| i32::try_from(id).ok()) {
            Some(id) if (id as usize) < vocab_size => Ok(id),
            _ => Err(Error::format(format!(
                "{place} is {id}, but the tokenizer has {vocab_size} ids"
            ))),
        })
        .collect()
}

/// The id of a token given as text or as `{"content": text}`.
fn named_id(inner: &tokenizers::Tokenizer, token: &Value, key: &str) -> Result<Option<i32>> {
    let text = match token {
        Value::String(text) => text,
        Value::Object(fields) => match fields.get("content").and_then(Value::as_str) {
            Some(text) => text,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    match inner.token_to_id(text) {
        Some(id) => Ok(Some(id as i32)),
        None => Err(Error::format(format!(
            "tokenizer_config.json: `{key}` is `{text}`, which has no id"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> Option<std::path::PathBuf> {
        let folders = std::env::var_os("GRADSTONE_GOLDEN_DIR")
            .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/golden").into());
        let found = std::env::split_paths(&folders).map(|folder| folder.join(name));
        let path = found.into_iter().find(|path| path.exists());
        if path.is_none() {
            eprintln!("SKIPPED: no golden file {name} in {}", folders.display());
        }
        path
    }

    fn folder_of(tokenizer: &Path, config: Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        folder
    }

    #[test]
    fn characters_round_trip() {
        let tokenizer = Tokenizer::characters("0123456789+-*%= \n").unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.pad(), tokenizer.eos()), (20, 0, &[2][..]));
        assert_eq!(tokenizer.bos(), Some(1));
        let ids = tokenizer.encode_prompt("12+34=\n").unwrap();
        assert_eq!(ids, [4, 5, 13, 6, 7, 17, 19]);
        assert_eq!(tokenizer.encode("12+34=\n").unwrap(), ids);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "12+34=\n");
        assert_eq!(tokenizer.decode(&[7, 9, 2, 0, 0]).unwrap(), "46");
        assert_eq!(tokenizer.decode(&[7, 999]).unwrap(), "4");
        assert!(tokenizer.decode(&[-1]).unwrap_err().is_index());
        assert!(tokenizer.encode("").unwrap().is_empty());
        let error = tokenizer.encode("1x2").unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("`1x2`"), "{error}");
        assert!(Tokenizer::characters("").unwrap_err().is_invalid());
        assert!(Tokenizer::characters("aba").unwrap_err().is_invalid());
    }

    #[test]
    fn a_saved_character_tokenizer_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::characters("0123456789+= ").unwrap();
        tokenizer.save(folder.path()).unwrap();
        let loaded = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(loaded.encode("1 + 2").unwrap(), tokenizer.encode("1 + 2").unwrap());
        assert_eq!((loaded.eos(), loaded.pad(), loaded.bos()), (tokenizer.eos(), 0, Some(1)));
        assert_eq!(loaded.decode(&[3, 15, 4]).unwrap(), "0 1");
    }

    #[test]
    fn it_must_fit_the_model() {
        let tokenizer = Tokenizer::characters("0123").unwrap();
        assert!(tokenizer.fits(7).is_ok() && tokenizer.fits(8).is_ok());
        let error = tokenizer.fits(6).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("7 ids"), "{error}");
    }

    #[test]
    fn golden_tokenizers_encode_and_decode() {
        for (name, eos) in [("bytelevel_2k", 0), ("bytefallback_850", 0), ("metaspace_600", 0)] {
            let Some(path) = golden(&format!("text_decode__tokenizers__{name}.tokenizer.json"))
            else {
                continue;
            };
            let folder = folder_of(&path, json!({}));
            fs::write(folder.path().join("config.json"), json!({"eos_token_id": eos}).to_string())
                .unwrap();
            let tokenizer = Tokenizer::load(folder.path()).unwrap();
            let Some(case) = golden(&format!("text_decode__tokenizers__{name}.json")) else {
                continue;
            };
            let case: Value = serde_json::from_slice(&fs::read(case).unwrap()).unwrap();
            for one in case["cases"].as_array().unwrap() {
                let ids: Vec<i32> = serde_json::from_value(one["ids"].clone()).unwrap();
                assert_eq!(
                    tokenizer.decode(&ids).unwrap(),
                    one["skip_special_true"].as_str().unwrap()
                );
            }
            println!("{name}: {} cases", case["cases"].as_array().unwrap().len());
        }
    }

    #[test]
    fn a_qwen_style_pattern_splits_as_published() {
        // The regular expression of Qwen2's and Llama 3's pre-tokenizers: look-ahead and Unicode classes.
        let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let words = ["It", "'s", " 4", " été", "  ", "!!", "\n"];
        let mut vocabulary: serde_json::Map<String, Value> = serde_json::Map::new();
        for (id, word) in ["It", "'s", " ", "4", " été", " !!\n", "<|im_end|>"].iter().enumerate()
        {
            vocabulary.insert((*word).into(), id.into());
        }
        let tokenizer = json!({
            "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": null, "added_tokens": [], "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": ""},
        });
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        fs::write(
            folder.path().join("tokenizer_config.json"),
            r#"{"eos_token": {"content": "<|im_end|>"}}"#,
        )
        .unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        // Not cut to two ids, although the file asks for it.
        assert_eq!(
            tokenizer.encode("It's 4 e\u{301}te\u{301} !!\n").unwrap(),
            [0, 1, 2, 3, 4, 5],
            "{words:?}"
        );
        assert_eq!(tokenizer.eos(), [6]);
    }

    #[test]
    fn special_ids_come_from_the_right_file() {
        let folder = tempfile::tempdir().unwrap();
        Tokenizer::characters("0123456789").unwrap().save(folder.path()).unwrap();
        let put = |name: &str, value: Value| {
            fs::write(folder.path().join(name), value.to_string()).unwrap()
        };
        let eos = || Tokenizer::load(folder.path()).map(|t| t.eos().to_vec());
        put("config.json", json!({"eos_token_id": 5}));
        assert_eq!(eos().unwrap(), [5]);
        put("generation_config.json", json!({"eos_token_id": [7, 2], "pad_token_id": 9}));
        assert_eq!(eos().unwrap(), [7, 2]);
        put("generation_config.json", json!({"eos_token_id": 99}));
        assert!(eos().unwrap_err().to_string().contains("`eos_token_id` is 99"));
        put("generation_config.json", json!({"eos_token_id": "x"}));
        assert!(eos().unwrap_err().is_format());
        put("generation_config.json", json!({}));
        put("config.json", json!({"eos_token_id": null}));
        put("tokenizer_config.json", json!({"eos_token": "5", "bos_token": null}));
        assert_eq!(eos().unwrap(), [8]);
        put("tokenizer_config.json", json!({"eos_token": "nope"}));
        assert!(eos().unwrap_err().to_string().contains("`nope`, which has no id"));
        put("tokenizer_config.json", json!({}));
        assert!(eos().unwrap_err().to_string().contains("no end-of-sequence token"));
        fs::write(folder.path().join("config.json"), "{").unwrap();
        assert!(eos().unwrap_err().to_string().contains("config.json"));
    }

    #[test]
    fn damaged_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Tokenizer::load(folder.path()).unwrap_err().is_io());
        Tokenizer::characters("0123456789").unwrap().save(folder.path()).unwrap();
        let path = folder.path().join("tokenizer.json");
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len() - 2).step_by(7) {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Tokenizer::load(folder.path()).unwrap_err().is_format(), "{length}");
        }
        for text in ["{}", "[]", r#"{"model": {"type": "Nope"}}"#, "\u{0}", r#"{"decoder": 5}"#] {
            fs::write(&path, text).unwrap();
            assert!(Tokenizer::load(folder.path()).unwrap_err().is_format(), "{text}");
        }
    }
}
