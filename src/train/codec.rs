//! Problems as token ids and back: a tokenizer for text, or nothing at all for problems that are made of ids.

use crate::error::{Error, Result};
use crate::tasks::problem::written;
use crate::tasks::{Ids, Part};
use crate::text::Tokenizer;
use std::path::Path;

/// How a policy reads and writes.
pub enum Codec {
    /// Text.
    Text(Box<Tokenizer>),
    /// Ids as they are.
    Ids(Ids),
}

impl Codec {
    /// The tokenizer, where text is written.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        match self {
            Codec::Text(tokenizer) => Some(tokenizer),
            Codec::Ids(_) => None,
        }
    }

    /// The ids of a prompt, with what a tokenizer puts around a text.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for text that cannot be encoded, or text where there is no tokenizer.
    pub fn prompt(&self, parts: &[Part]) -> Result<Vec<i32>> {
        match (self, parts) {
            (Codec::Text(tokenizer), [Part::Text(text)]) => tokenizer.encode_prompt(text),
            (Codec::Text(tokenizer), [Part::Text(first), rest @ ..]) => {
                let mut ids = tokenizer.encode_prompt(first)?;
                for part in rest {
                    ids.extend(self.encode(part)?);
                }
                Ok(ids)
            }
            (_, parts) => {
                let mut ids = Vec::new();
                for part in parts {
                    ids.extend(self.encode(part)?);
                }
                Ok(ids)
            }
        }
    }

    /// The ids of something that continues a prompt.
    ///
    /// # Errors
    /// As [`Codec::prompt`].
    pub fn encode(&self, part: &Part) -> Result<Vec<i32>> {
        match (self, part) {
            (_, Part::Tokens(ids)) => Ok(ids.clone()),
            (Codec::Text(tokenizer), Part::Text(text)) => tokenizer.encode(text),
            (_, Part::Messages(all)) => Err(Error::invalid(format!(
                "a prompt of {} messages needs a chat template",
                all.len()
            ))),
            (Codec::Ids(_), Part::Text(text)) => Err(Error::invalid(format!(
                "a task of ids cannot write the text {text:?}: there is no tokenizer"
            ))),
        }
    }

    /// Ids as text; without a tokenizer they are written as numbers.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode(&self, ids: &[i32]) -> Result<String> {
        match self {
            Codec::Text(tokenizer) => tokenizer.decode(ids),
            Codec::Ids(_) => Ok(written(ids)),
        }
    }

    /// Ids as what they are for a task: text, or ids.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub fn part(&self, ids: &[i32]) -> Result<Part> {
        match self {
            Codec::Text(tokenizer) => Ok(Part::Text(tokenizer.decode(ids)?)),
            Codec::Ids(_) => Ok(Part::Tokens(ids.to_vec())),
        }
    }

    /// For each token the byte of the decoded text at which it ends.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub fn ends(&self, ids: &[i32]) -> Result<Vec<usize>> {
        let mut ends = Vec::with_capacity(ids.len());
        if let Codec::Text(tokenizer) = self
            && let Ok(mut stream) = tokenizer.stream()
        {
            let mut end = 0;
            for id in ids {
                end += stream.push(*id).len();
                ends.push(end);
            }
            return Ok(ends);
        }
        for count in 1..=ids.len() {
            ends.push(self.decode(&ids[..count])?.len());
        }
        Ok(ends)
    }

    /// The ids that end a completion; the first is what a trainer appends to an example.
    pub fn stop(&self) -> Vec<i32> {
        match self {
            Codec::Text(tokenizer) => tokenizer.eos().to_vec(),
            Codec::Ids(ids) => vec![ids.end],
        }
    }

    /// Ids that are never drawn.
    pub fn banned(&self) -> Vec<i32> {
        match self {
            Codec::Text(_) => Vec::new(),
            Codec::Ids(ids) => ids.banned.into_iter().collect(),
        }
    }

    /// Writes what belongs to it into a model folder.
    ///
    /// # Errors
    /// [`Error::is_io`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        match self {
            Codec::Text(tokenizer) => tokenizer.save(folder),
            Codec::Ids(_) => Ok(()),
        }
    }
}
