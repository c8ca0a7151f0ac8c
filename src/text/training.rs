//! Tokenizers made here: one id a byte, or byte pairs merged by how often they occur in a text.
//!
//! Both are `tokenizer.json` files in the byte-level form of GPT-2, so any text can be encoded and every other program
//! opens them. Ids 0 to 3 are pad, bos, eos and mask.

use super::Tokenizer;
use crate::error::{Error, Result};
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, models::ModelWrapper};

/// Special tokens, in the order of their ids.
const SPECIAL: [&str; 4] = ["<pad>", "<bos>", "<eos>", "<mask>"];
/// Ids of a byte tokenizer.
const BYTES: usize = 256 + SPECIAL.len();

impl Tokenizer {
    /// One id for each byte, 260 with the special ones.
    ///
    /// # Errors
    /// None that a user can cause.
    pub fn bytes() -> Result<Tokenizer> {
        Tokenizer::byte_pairs(&[], BYTES)
    }

    /// Byte pairs merged until there are `vocab_size` ids, or no pair occurs twice.
    ///
    /// The same texts in the same order give the same tokenizer.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for fewer ids than the 260 of the bytes, [`Error::is_format`] when the library fails.
    pub fn byte_pairs(texts: &[&str], vocab_size: usize) -> Result<Tokenizer> {
        if vocab_size < BYTES {
            return Err(Error::invalid(format!(
                "a byte-level tokenizer of {vocab_size} ids; the bytes and the special ids are {BYTES}"
            )));
        }
        let bad = |e: tokenizers::Error| Error::format(format!("training a tokenizer: {e}"));
        let specials = SPECIAL.map(|name| AddedToken::from(name, true)).to_vec();
        let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(specials)
            .build()
            .into();
        let mut made = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
        made.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        made.with_decoder(Some(ByteLevel::default()));
        made.train(&mut trainer, texts.iter().copied()).map_err(bad)?;
        let text = made.to_string(true).map_err(bad)?;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": SPECIAL[0], "bos_token": SPECIAL[1],
            "eos_token": SPECIAL[2], "mask_token": SPECIAL[3], "clean_up_tokenization_spaces": false,
        });
        let files = vec![
            ("tokenizer.json".to_owned(), text.into_bytes()),
            ("tokenizer_config.json".to_owned(), format!("{config:#}\n").into_bytes()),
        ];
        Tokenizer::from_files(files, &Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        let tokenizer = Tokenizer::bytes().unwrap();
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.eos(), tokenizer.mask()),
            (260, &[2][..], Some(3))
        );
        for text in ["fn main() {\n\tlet x = \"é\u{1F600}\";\n}\n", "", "<mask", "  two  spaces "]
        {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids.len(), text.len(), "{text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
        assert!(tokenizer.decode_table().is_some());
    }

    #[test]
    fn pairs_that_occur_often_become_one_token() {
        let text = "let value = value + value;\n".repeat(40);
        let tokenizer = Tokenizer::byte_pairs(&[&text], 280).unwrap();
        let ids = tokenizer.encode("let value").unwrap();
        assert!(ids.len() <= 3, "{ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), "let value");
        let again = Tokenizer::byte_pairs(&[&text], 280).unwrap();
        assert_eq!(again.encode(&text).unwrap(), tokenizer.encode(&text).unwrap());
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let loaded = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(
            (loaded.mask(), loaded.encode(&text).unwrap()),
            (Some(3), again.encode(&text).unwrap())
        );
        assert!(Tokenizer::byte_pairs(&[], 100).unwrap_err().is_invalid());
    }
}
