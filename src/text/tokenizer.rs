//! The tokenizer of a model: a Hugging Face `tokenizer.json`, or one id per character for problems made in code.
//!
//! Both are the same thing underneath: a character tokenizer is a `tokenizer.json` that is made here, so that it can
//! be saved beside a checkpoint and opened by any other program. Ids are `i32`, as kernels take them.

use crate::error::{Error, Result};
use crate::files::atomic;
use crate::kernels::token_decode::{Decode, Stream, Table, decode};
use crate::text::chat::{self, ChatTemplate};
use crate::text::guard::guarded;
use crate::text::limits::Limits;
use crate::text::{decoding, special};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The file that a tokenizer is.
const FILE: &str = "tokenizer.json";

/// Ids of a character tokenizer's special tokens; characters follow.
const SPECIAL: [&str; 3] = ["<pad>", "<bos>", "<eos>"];

/// Files of a model folder that belong to the tokenizer and are kept as they are.
const COMPANIONS: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    chat::FILE,
];

/// Encodes prompts and decodes completions.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    limits: Limits,
    bos: Option<i32>,
    eos: Vec<i32>,
    pad: i32,
    mask: Option<i32>,
    /// Special tokens by their names: what a chat template may write.
    names: BTreeMap<String, String>,
    /// What `tokenizer_config.json` says of chat templates.
    templates: Value,
    vocab_size: usize,
    /// Ids from here on have no embedding in the model.
    rows: usize,
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

    /// Reads `tokenizer.json` of a model folder and the tokens that `tokenizer_config.json` adds. What ends a text is in
    /// `generation_config.json`, `config.json` or `tokenizer_config.json`, in this order; other special tokens may be named
    /// and have no id, as long as nothing uses them.
    ///
    /// # Errors
    /// [`Error::is_io`] when there is no `tokenizer.json`, [`Error::is_format`] when a file cannot be understood, asks for
    /// work or memory out of all proportion, or no end-of-sequence token is named anywhere.
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
        let read = |name: &str| match files.iter().find(|(one, _)| one == name) {
            Some((_, bytes)) => parse(name, bytes),
            None => Ok(Value::Null),
        };
        let special = special::Files {
            tokenizer_config: read("tokenizer_config.json")?,
            special_tokens_map: read("special_tokens_map.json")?,
            generation_config: read("generation_config.json")?,
            config: model.clone(),
        };
        let json = read(FILE)?;
        let limits = Limits::of(&json).map_err(|e| e.at(FILE))?;
        // The crate normalizes these when it opens the file.
        let added = json["added_tokens"].as_array().into_iter().flatten();
        for token in added.filter_map(|token| token["content"].as_str()) {
            guarded(FILE, || limits.check_text(token))?.map_err(|e| e.at(FILE))?;
        }
        let bytes = files.iter().find(|(one, _)| one == FILE).map_or(&[][..], |(_, bytes)| bytes);
        let bad = |e: tokenizers::Error| Error::format(format!("{FILE}: {e}"));
        let mut inner = guarded(FILE, || tokenizers::Tokenizer::from_bytes(bytes))?.map_err(bad)?;
        // Settings of whoever made the file; here they would cut prompts silently.
        inner.with_truncation(None).map_err(bad)?;
        inner.with_padding(None);
        guarded("tokenizer_config.json", || special.add_tokens(&mut inner))??;
        let all = inner.get_vocab(true);
        let ids = all.values().max().map_or(0, |id| *id as usize + 1);
        if ids == 0 {
            return Err(Error::format(format!("{FILE}: it has no token")));
        }
        Limits::check_ids(ids, all.len()).map_err(|e| e.at(FILE))?;
        let special::Ids { bos, eos, pad, mask } = special.ids(&inner, ids)?;
        let names = special::names(&special.tokenizer_config, &special.special_tokens_map);
        let table = Arc::default();
        let templates = special.tokenizer_config["chat_template"].clone();
        Ok(Tokenizer {
            inner,
            limits,
            bos,
            eos,
            pad,
            mask,
            names,
            templates,
            vocab_size: ids,
            rows: ids,
            table,
            files,
        })
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

    /// The tokenizer for a model with `rows` embeddings. Ids beyond them are an error where a text has them; the model
    /// cannot draw them. Published tokenizers have such ids where a token was added that no model was trained with.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when no id that ends a text has a row.
    pub fn fitted(mut self, rows: usize) -> Result<Tokenizer> {
        let has_row = |id: &i32| (*id as usize) < rows;
        self.eos.retain(has_row);
        let Some(end) = self.eos.first() else {
            let ids = self.vocab_size;
            return Err(Error::invalid(format!(
                "the tokenizer has {ids} ids but the model's vocabulary is {rows}, without an id that ends a text\n\
                 tokenizer.json and the weights are of different models"
            )));
        };
        self.pad = if has_row(&self.pad) { self.pad } else { *end };
        self.bos = self.bos.filter(has_row);
        self.mask = self.mask.filter(has_row);
        self.rows = rows.min(self.vocab_size);
        Ok(self)
    }

    /// The chat template of the model folder; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::is_format`] for a template that cannot be read, with its file and line.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let file = self.files.iter().find(|(name, _)| name == chat::FILE);
        let file = file.map(|(_, bytes)| bytes.as_slice());
        ChatTemplate::of_files(file, &self.templates, self.names.clone())
    }

    /// A chat template in the place of the folder's; [`Tokenizer::save`] writes it with the other files.
    ///
    /// # Errors
    /// [`Error::is_format`] when it cannot be read; `place` is the file that the error names.
    pub fn with_chat_template(mut self, source: &str, place: &str) -> Result<Tokenizer> {
        ChatTemplate::new(source, place, self.names.clone())?;
        self.files.retain(|(name, _)| name != chat::FILE);
        self.files.push((chat::FILE.to_owned(), source.as_bytes().to_vec()));
        Ok(self)
    }

    /// The ids of a prompt, with what the tokenizer puts around a text (a bos id, for Llama and Gemma). A text that begins
    /// with the bos token gets no second one.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when the text has a character the tokenizer cannot encode, [`Error::is_index`] when it has a
    /// token for which the model has no embedding.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<i32>> {
        let mut ids = self.encode_with(text, true)?;
        if let (Some(bos), [first, second, ..]) = (self.bos, &ids[..])
            && [*first, *second] == [bos, bos]
            && self.encode_with(text, false)?.len() < ids.len()
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The ids of a text that continues another, or that has everything around it already, as a rendered conversation has:
    /// nothing is added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_prompt`].
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, surround: bool) -> Result<Vec<i32>> {
        let refused = |what: String| {
            let shown: String = text.chars().take(60).collect();
            Error::invalid(format!("the tokenizer cannot encode `{shown}`: {what}"))
        };
        let encoded = guarded(FILE, || {
            self.limits.check_text(text).map_err(|e| refused(e.to_string()))?;
            self.inner.encode_fast(text, surround).map_err(|e| {
                refused(e.to_string().replace(
                    "WordLevel error: Missing [UNK] token from the vocabulary",
                    "a character is not in the alphabet",
                ))
            })
        })??;
        let ids = encoded.get_ids();
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.rows) {
            let token =
                self.inner.id_to_token(*id).map_or(String::new(), |token| format!("`{token}`, "));
            return Err(Error::index(format!(
                "the text has the token {token}id {id}, and the model's vocabulary ends at {}",
                self.rows
            )));
        }
        Ok(ids.iter().map(|id| *id as i32).collect())
    }

    /// The bytes of every id, for decoders that go token by token (all but CTC and BPE with an end-of-word suffix, and
    /// some unusual sequences): what [`decode`](crate::kernels::token_decode::decode()) and a device decode with.
    pub fn decode_table(&self) -> Option<&Table> {
        let made = || guarded(FILE, || decoding::table(&self.inner, self.vocab_size).ok()).ok()?;
        self.table.get_or_init(made).as_ref()
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
        guarded(FILE, || self.inner.decode(&ids, true))?
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

fn parse(name: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::format(format!("{name}: {e}")))
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
    fn ids_beyond_the_models_rows_are_errors_where_a_text_has_them() {
        let tokenizer = || Tokenizer::characters("0123").unwrap();
        assert!(tokenizer().fitted(7).is_ok() && tokenizer().fitted(8).is_ok());
        let smaller = tokenizer().fitted(6).unwrap();
        assert_eq!(smaller.encode("012").unwrap(), [3, 4, 5]);
        let error = smaller.encode_prompt("013").unwrap_err();
        assert!(error.is_index() && error.to_string().contains("`3`, id 6"), "{error}");
        let error = tokenizer().fitted(2).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("7 ids"), "{error}");
    }

    #[test]
    fn special_tokens_that_nothing_uses_may_lack_an_id() {
        let folder = tempfile::tempdir().unwrap();
        Tokenizer::characters("0123456789").unwrap().save(folder.path()).unwrap();
        let put = |name: &str, value: Value| {
            fs::write(folder.path().join(name), value.to_string()).unwrap()
        };
        put(
            "tokenizer_config.json",
            json!({"eos_token": "<eos>", "pad_token": "[PAD]", "bos_token": "<s>", "mask_token": "[M]"}),
        );
        put(
            "config.json",
            json!({"pad_token_id": 63, "bos_token_id": 99, "mask_token_id": 98, "eos_token_id": 2}),
        );
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let found = (tokenizer.eos(), tokenizer.pad(), tokenizer.bos(), tokenizer.mask());
        assert_eq!(found, (&[2][..], 2, None, None));
        // Older folders name them in a file of its own.
        put("tokenizer_config.json", json!({}));
        put("config.json", json!({}));
        put(
            "special_tokens_map.json",
            json!({"eos_token": {"content": "<eos>"}, "bos_token": "<bos>", "pad_token": "<pad>"}),
        );
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert_eq!((tokenizer.eos(), tokenizer.pad(), tokenizer.bos()), (&[2][..], 0, Some(1)));
        fs::write(folder.path().join("chat_template.jinja"), "{{ bos_token }}{{ eos_token }}")
            .unwrap();
        let template = Tokenizer::load(folder.path()).unwrap().chat_template().unwrap().unwrap();
        assert_eq!(template.render(&[json!({})], true).unwrap(), "<bos><eos>");
        let loaded = ChatTemplate::load(folder.path()).unwrap().unwrap();
        assert_eq!(loaded.render(&[json!({})], true).unwrap(), "<bos><eos>");
    }

    #[test]
    fn tokens_that_the_config_adds() {
        let folder = tempfile::tempdir().unwrap();
        Tokenizer::characters("<|im_endstr>0123").unwrap().save(folder.path()).unwrap();
        let size = Tokenizer::load(folder.path()).unwrap().vocab_size();
        let with = |id: usize| {
            let added = json!({"0": {"content": "<pad>", "special": true}, id.to_string(): {"content": "<|im_end|>", "special": true}});
            let config = json!({"eos_token": "<|im_end|>", "added_tokens_decoder": added});
            fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            Tokenizer::load(folder.path())
        };
        let tokenizer = with(size).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (size + 1, &[size as i32][..]));
        let ids = tokenizer.encode("0<|im_end|>1").unwrap();
        assert_eq!((ids.len(), ids[1]), (3, size as i32));
        assert_eq!(tokenizer.decode(&ids).unwrap(), "01");
        let error = with(size + 5).unwrap_err();
        assert!(error.is_format() && error.to_string().contains("<|im_end|>"), "{error}");
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
        // What the tokenizer itself ends a text with comes first.
        assert_eq!(eos().unwrap(), [2, 7]);
        put("generation_config.json", json!({"eos_token_id": 99}));
        assert!(eos().unwrap_err().to_string().contains("`eos_token_id` is 99"));
        put("generation_config.json", json!({"eos_token_id": "x"}));
        assert!(eos().unwrap_err().is_format());
        put("generation_config.json", json!({}));
        put("config.json", json!({"eos_token_id": null}));
        put("tokenizer_config.json", json!({"eos_token": "5", "bos_token": null}));
        assert_eq!(eos().unwrap(), [8]);
        put("tokenizer_config.json", json!({"eos_token": "nope"}));
        assert!(eos().unwrap_err().to_string().contains("(`nope` has no id)"));
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
