//! Special tokens of a model folder: which there are by name, and which ids they have.
//!
//! `tokenizer.json` has the ids. The names (`bos_token`, …) are in `tokenizer_config.json`, in older folders in
//! `special_tokens_map.json`; models name ids in `generation_config.json` and `config.json`.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tokenizers::{AddedToken, Tokenizer};

/// The files of a folder that name special tokens, as they are; `Null` where there is none.
pub(super) struct Files {
    pub tokenizer_config: Value,
    pub special_tokens_map: Value,
    pub generation_config: Value,
    pub config: Value,
}

/// The ids that mean something.
pub(super) struct Ids {
    pub bos: Option<i32>,
    pub eos: Vec<i32>,
    pub pad: i32,
    pub mask: Option<i32>,
}

impl Files {
    /// Adds the tokens of `added_tokens_decoder` that `tokenizer.json` does not have, or not as tokens that are found whole in
    /// a text.
    ///
    /// # Errors
    /// [`Error::is_format`] for a token that would get another id than it should have.
    pub fn add_tokens(&self, inner: &mut Tokenizer) -> Result<()> {
        let none = Map::new();
        let added = self.tokenizer_config["added_tokens_decoder"].as_object().unwrap_or(&none);
        let mut tokens: Vec<(u32, &str, &Value)> = added
            .iter()
            .filter_map(|(id, token)| Some((id.parse().ok()?, content(token)?, token)))
            .collect();
        tokens.sort_unstable_by_key(|(id, ..)| *id);
        // What an id of `tokenizer.json` contradicts stays as it is there.
        tokens.retain(|(id, text, _)| {
            !text.is_empty() && inner.token_to_id(text).is_none_or(|known| known == *id)
        });
        let bad = |what: String| {
            Error::format(format!("tokenizer_config.json: added_tokens_decoder: {what}"))
        };
        let made = tokens.iter().map(|(_, text, fields)| {
            let has = |key: &str| fields[key].as_bool().unwrap_or(false);
            AddedToken {
                content: (*text).to_owned(),
                single_word: has("single_word"),
                lstrip: has("lstrip"),
                rstrip: has("rstrip"),
                normalized: fields["normalized"].as_bool().unwrap_or(!has("special")),
                special: has("special"),
            }
        });
        inner.add_tokens(made).map_err(|e| bad(e.to_string()))?;
        for (id, text, _) in tokens {
            if let Some(got) = inner.token_to_id(text).filter(|got| *got != id) {
                return Err(bad(format!(
                    "`{text}` has the id {id}, but the next one after tokenizer.json is {got}"
                )));
            }
        }
        Ok(())
    }

    /// The ids of the tokens that have a meaning of their own. A name without an id is no such token.
    ///
    /// # Errors
    /// [`Error::is_format`] when no token ends a text, or an id that should end one belongs to no token.
    pub fn ids(&self, inner: &Tokenizer, vocab_size: usize) -> Result<Ids> {
        let named = |name: &str| {
            let text = content(&self.tokenizer_config[name]);
            let text = text.or_else(|| content(&self.special_tokens_map[name]))?;
            inner.token_to_id(text).map(|id| id as i32)
        };
        let models =
            [("generation_config.json", &self.generation_config), ("config.json", &self.config)];
        let given = |key: &str| -> Result<Vec<i32>> {
            for (file, config) in models {
                let ids = ids(&config[key], vocab_size, &format!("{file}: `{key}`"))?;
                if !ids.is_empty() {
                    return Ok(ids);
                }
            }
            Ok(Vec::new())
        };
        // What is never looked at may name nothing.
        let first = |key: &str| given(key).ok().and_then(|ids| ids.first().copied());
        let mut eos = given("eos_token_id")?;
        let own = named("eos_token");
        match own.and_then(|own| eos.iter().position(|id| *id == own)) {
            // What ends a turn of this tokenizer comes first: a trainer appends it.
            Some(at) => eos[..=at].rotate_right(1),
            None if eos.is_empty() => eos.extend(own),
            None => {}
        }
        if eos.is_empty() {
            let name = content(&self.tokenizer_config["eos_token"]);
            let without = name.map_or(String::new(), |name| format!(" (`{name}` has no id)"));
            return Err(Error::format(format!(
                "no end-of-sequence token: neither `eos_token_id` in generation_config.json or config.json nor \
                 `eos_token` in tokenizer_config.json{without}"
            )));
        }
        Ok(Ids {
            bos: named("bos_token").or_else(|| first("bos_token_id")),
            // Any id will do: padding is masked and never looked at.
            pad: named("pad_token")
                .or_else(|| first("pad_token_id"))
                .or(eos.first().copied())
                .unwrap_or(0),
            // Block-diffusion models name it in their config, masked language models in that of the tokenizer.
            mask: named("mask_token").or_else(|| {
                let place = "config.json: `mask_token_id`";
                ids(&self.config["mask_token_id"], vocab_size, place).ok()?.first().copied()
            }),
            eos,
        })
    }
}

/// The names of special tokens and their texts: what a chat template may write.
pub(super) fn names(
    tokenizer_config: &Value,
    special_tokens_map: &Value,
) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for file in [&tokenizer_config["extra_special_tokens"], special_tokens_map, tokenizer_config] {
        for (name, token) in file.as_object().into_iter().flatten() {
            if let Some(text) = content(token).filter(|_| name.ends_with("_token")) {
                names.insert(name.clone(), text.to_owned());
            }
        }
    }
    names
}

/// A token given as text or as `{"content": text}`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
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
