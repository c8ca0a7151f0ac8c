//! What a `tokenizer.json` may ask for. The crate that reads these files believes every number in them, and folders come from
//! anywhere: what would take memory or time out of all proportion, or split a text wrongly without a word, is an error here.

use crate::error::{Error, Result};
use fancy_regex::Regex;
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

/// The most ids that tables are made for, where most of the ids have no token.
const MOST_IDS: usize = 1 << 20;
/// How many times longer decoders and pre-tokenizers may make a text. A published one does it less than ten times.
const MOST_GROWTH: f64 = 4096.0;
/// A normalizer that cannot do more than this is not watched.
const LITTLE_GROWTH: f64 = 64.0;
/// Bytes that a watched normalizer may make of a text: so many, or [`MOST_TIMES`] its length.
const MOST_BYTES: usize = 1 << 20;
const MOST_TIMES: usize = 256;

/// What is watched while a tokenizer works.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    /// The normalizer's steps and how many times longer each may make a text, where all of them together could do much.
    watched: Vec<(NormalizerWrapper, f64)>,
    /// Regular expressions that texts are split and changed by.
    expressions: Vec<Regex>,
}

impl Limits {
    /// Checks a file that is JSON, before it is opened.
    ///
    /// # Errors
    /// [`Error::is_format`] for a table of characters that is cut off, and for steps that make a text too long.
    pub fn of(file: &Value) -> Result<Limits> {
        let mut limits = Limits::default();
        let mut steps = Vec::new();
        for part in ["normalizer", "pre_tokenizer", "decoder"] {
            let found = steps_of(&file[part]);
            let mut all = 1.0;
            let mut each = Vec::new();
            for step in found {
                let times = growth(step).map_err(|e| e.at(part))?;
                all *= times.max(1.0);
                each.push((step, times.max(1.0)));
                let expression = step["pattern"]["Regex"].as_str().filter(|_| part != "decoder");
                // An expression that cannot be read is the crate's to complain about.
                limits.expressions.extend(expression.and_then(|text| Regex::new(text).ok()));
            }
            match part {
                "normalizer" if all > LITTLE_GROWTH => steps = each,
                "normalizer" => {}
                _ if all > MOST_GROWTH => {
                    return Err(Error::format(format!(
                        "{part}: it can make a text more than {MOST_GROWTH} times longer"
                    )));
                }
                _ => {}
            }
        }
        for (step, times) in steps {
            if let Ok(one) = serde_json::from_value(step.clone()) {
                limits.watched.push((one, times));
            }
        }
        Ok(limits)
    }

    /// Checks the largest id against the number of tokens.
    ///
    /// # Errors
    /// [`Error::is_format`] where tables by id would be nearly empty and very large.
    pub fn check_ids(ids: usize, tokens: usize) -> Result<()> {
        if ids > MOST_IDS.max(4 * tokens) || i32::try_from(ids).is_err() {
            return Err(Error::format(format!("{tokens} tokens, and an id {}", ids - 1)));
        }
        Ok(())
    }

    /// Checks what the normalizer and the regular expressions would do to a text.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when the text would become too long, or an expression gives up on it.
    pub fn check_text(&self, text: &str) -> Result<()> {
        if !self.watched.is_empty() {
            let most = MOST_BYTES.max(text.len().saturating_mul(MOST_TIMES));
            let mut normalized = NormalizedString::from(text);
            for (step, times) in &self.watched {
                if normalized.get().len() as f64 * times > most as f64 {
                    return Err(Error::invalid(format!(
                        "the normalizer makes more than {most} bytes of a text of {}",
                        text.len()
                    )));
                }
                step.normalize(&mut normalized).map_err(|e| Error::invalid(e.to_string()))?;
            }
        }
        for expression in &self.expressions {
            // The crate takes an expression that gives up for one that finds nothing more, and splits wrongly.
            if let Some(Err(error)) = expression.find_iter(text).find(std::result::Result::is_err) {
                return Err(Error::invalid(format!("a regular expression gives up: {error}")));
            }
        }
        Ok(())
    }
}

/// A step, or the steps in a sequence, in order.
fn steps_of(value: &Value) -> Vec<&Value> {
    let inner =
        ["normalizers", "pretokenizers", "decoders"].iter().find_map(|key| value[*key].as_array());
    match inner {
        Some(steps) => steps.iter().flat_map(steps_of).collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

/// How many times longer a step makes a text at most.
fn growth(step: &Value) -> Result<f64> {
    let length = |value: &Value| value.as_str().map_or(0.0, |text| text.len() as f64);
    Ok(match step["type"].as_str().unwrap_or_default() {
        "Replace" => match &step["pattern"]["String"] {
            Value::String(pattern) if !pattern.is_empty() => {
                length(&step["content"]) / pattern.len() as f64
            }
            // An expression may match nothing, at every place.
            _ => 1.0 + length(&step["content"]),
        },
        "Precompiled" => longest_entry(step["precompiled_charsmap"].as_str().unwrap_or_default())?,
        // Of a byte a character of two bytes, of a blank one of up to four.
        "ByteLevel" => 2.0,
        "Metaspace" => 4.0,
        // The longest decomposition of Unicode: one character of three bytes as eighteen.
        "NFKC" | "NFKD" => 11.0,
        "NFC" | "NFD" | "Lowercase" | "BertNormalizer" => 3.0,
        _ => 1.0,
    })
}

/// The longest text that a table of characters puts in the place of something: a trie's length in four bytes, the trie, and
/// texts that end with a zero.
fn longest_entry(base64: &str) -> Result<f64> {
    let bad = || Error::format("precompiled_charsmap is cut off");
    let bytes = base64::decode(base64).map_err(|_| bad())?;
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    let length = u32::from_le_bytes(*length) as usize;
    let texts = rest.get(length..).filter(|_| length > 0).ok_or_else(bad)?;
    let longest = texts.split(|byte| *byte == 0).map(<[u8]>::len).max();
    Ok(longest.unwrap_or(0) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replace(pattern: Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    #[test]
    fn what_grows_without_end_is_refused() {
        let doubling = vec![replace(json!({"String": "1"}), "11"); 40];
        let normalizer = json!({"normalizer": {"type": "Sequence", "normalizers": doubling}});
        let limits = Limits::of(&normalizer).unwrap();
        assert!(limits.check_text("1").unwrap_err().is_invalid());
        assert!(limits.check_text("2").is_ok());
        for (part, key, step) in [
            ("decoder", "decoders", replace(json!({"String": "1"}), "11")),
            ("pre_tokenizer", "pretokenizers", json!({"type": "ByteLevel"})),
        ] {
            let mut file = json!({});
            file[part] = json!({"type": "Sequence"});
            file[part][key] = vec![step; 40].into();
            let error = Limits::of(&file).unwrap_err();
            assert!(error.is_format() && error.to_string().starts_with(part), "{error}");
        }
        let empty = vec![replace(json!({"Regex": ""}), "aaaaaaaa"); 12];
        let limits =
            Limits::of(&json!({"normalizer": {"type": "Sequence", "normalizers": empty}})).unwrap();
        assert!(limits.check_text("abc").unwrap_err().is_invalid());
    }

    #[test]
    fn usual_files_pass() {
        let usual = [
            replace(json!({"String": " "}), "▁"),
            json!({"type": "NFKC"}),
            json!({"type": "Prepend", "prepend": "▁"}),
        ];
        let limits = Limits::of(&json!({
            "normalizer": {"type": "Sequence", "normalizers": usual},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": r"\s+(?!\S)|\s+|\p{L}+"}}, {"type": "ByteLevel"}]},
            "decoder": {"type": "Sequence", "decoders": [replace(json!({"String": "▁"}), " "), {"type": "ByteFallback"}, {"type": "Fuse"}]},
        }));
        limits.unwrap().check_text(&" a b  c\n".repeat(10_000)).unwrap();
        assert!(
            Limits::check_ids(150_000, 150_000).is_ok() && Limits::check_ids(1 << 31, 9).is_err()
        );
        assert!(
            Limits::check_ids(1 << 22, 1 << 21).is_ok() && Limits::check_ids(1 << 22, 9).is_err()
        );
    }

    #[test]
    fn an_expression_that_gives_up_is_an_error() {
        let file = json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"(?=(1+)+2)|(1+)+(?=2)"}}});
        let limits = Limits::of(&file).unwrap();
        assert!(limits.check_text("112").is_ok());
        let error = limits.check_text(&"1".repeat(40)).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("gives up"), "{error}");
    }

    #[test]
    fn tables_of_characters_are_whole() {
        let table = |base64: &str| {
            Limits::of(
                &json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64}}),
            )
        };
        for cut_off in ["", "/////w==", "AAAAAA==", "CAAAAAAAAAA=", "no base64"] {
            assert!(table(cut_off).unwrap_err().is_format(), "{cut_off}");
        }
        assert!(table("CAAAAAAAAAAAAAAA").is_ok());
    }
}
