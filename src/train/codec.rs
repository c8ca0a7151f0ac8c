//! Problems as token ids and back: a tokenizer for text, or nothing at all for problems that are made of ids.

use super::text_codec::TextCodec;
use crate::error::{Error, Result};
use crate::tasks::problem::written;
use crate::tasks::{Ids, Part};
use crate::text::Tokenizer;
use std::path::Path;

/// How a policy reads and writes.
pub enum Codec {
    /// Text.
    Text(Box<TextCodec>),
    /// Ids as they are.
    Ids(Ids),
}

impl Codec {
    /// Text whose prompts are given as they are.
    pub fn text(tokenizer: Tokenizer) -> Codec {
        Codec::Text(Box::new(TextCodec::plain(tokenizer)))
    }

    /// The tokenizer, where text is written.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        match self {
            Codec::Text(text) => Some(text.tokenizer()),
            Codec::Ids(_) => None,
        }
    }

    /// The ids of a prompt, with what a tokenizer or a chat template puts around a text.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for text that cannot be encoded, or text where there is no tokenizer; what
    /// [`TextCodec::prompt`] reports.
    pub fn prompt(&self, parts: &[Part]) -> Result<Vec<i32>> {
        match self {
            Codec::Text(text) => text.prompt(parts),
            Codec::Ids(_) => {
                let parts = parts.iter().map(|part| self.encode(part));
                Ok(parts.collect::<Result<Vec<_>>>()?.concat())
            }
        }
    }

    /// The ids of something that continues a prompt.
    ///
    /// # Errors
    /// As [`Codec::prompt`], and [`Error::is_unsupported`] for messages, which can only begin.
    pub fn encode(&self, part: &Part) -> Result<Vec<i32>> {
        match (self, part) {
            (_, Part::Tokens(ids)) => Ok(ids.clone()),
            (Codec::Text(text), Part::Text(part)) => text.tokenizer().encode(part),
            (Codec::Text(_), Part::Messages(_)) => Err(Error::unsupported(
                "messages in the middle of a text: give them with the prompt",
            )),
            (Codec::Ids(_), part) => Err(Error::invalid(format!(
                "a task of ids cannot write the text {:?}: there is no tokenizer",
                part.text()
            ))),
        }
    }

    /// Ids as text; without a tokenizer they are written as numbers.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode(&self, ids: &[i32]) -> Result<String> {
        match self {
            Codec::Text(text) => text.tokenizer().decode(ids),
            Codec::Ids(_) => Ok(written(ids)),
        }
    }

    /// Ids as what they are for a task: text, or ids.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub fn part(&self, ids: &[i32]) -> Result<Part> {
        match self {
            Codec::Text(text) => Ok(Part::Text(text.tokenizer().decode(ids)?)),
            Codec::Ids(_) => Ok(Part::Tokens(ids.to_vec())),
        }
    }

    /// For each token the byte of the decoded text at which it ends.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub fn ends(&self, ids: &[i32]) -> Result<Vec<usize>> {
        let mut ends = Vec::with_capacity(ids.len());
        if let Some(tokenizer) = self.tokenizer()
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
            Codec::Text(text) => text.tokenizer().eos().to_vec(),
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
            Codec::Text(text) => text.tokenizer().save(folder),
            Codec::Ids(_) => Ok(()),
        }
    }
}
