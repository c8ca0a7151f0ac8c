//! How `gradstone generate` prints a completion: as text while it is drawn, as text when it is done, or as a line of JSON.

use super::terminal;
use crate::error::{Error, Result};
use crate::kernels::token_decode::Stream;
use crate::text::Tokenizer;
use serde::Serialize;

/// The text of a completion while its ids come. All that it gives, one after another, is the text of all the ids: nothing is
/// given before it is certain.
pub(super) struct Growing<'a> {
    tokenizer: &'a Tokenizer,
    /// None where the tokenizer's decoder looks at all tokens at once.
    stream: Option<Stream<'a>>,
    ids: Vec<i32>,
}

impl<'a> Growing<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Growing<'a> {
        Growing { tokenizer, stream: tokenizer.stream().ok(), ids: Vec::new() }
    }

    /// Takes an id and gives what is certain now.
    pub fn push(&mut self, id: i32) -> String {
        self.ids.push(id);
        self.stream.as_mut().map_or(String::new(), |stream| stream.push(id).to_owned())
    }

    /// How many ids there were.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// What is left, and a line end.
    pub fn end(mut self) -> Result<String> {
        let rest = match &mut self.stream {
            Some(stream) => stream.finish().to_owned(),
            None => self.tokenizer.decode(&self.ids)?,
        };
        Ok(rest + "\n")
    }
}

/// A completion that is done.
pub(super) struct Done<'a> {
    /// The prompt as it was given.
    pub prompt: &'a str,
    /// The ids that the model read.
    pub prompt_ids: &'a [i32],
    /// The ids that it wrote.
    pub ids: &'a [i32],
    /// It was cut at the limit.
    pub truncated: bool,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Record<'a> {
    prompt: &'a str,
    completion: String,
    tokens: &'a [i32],
    prompt_tokens: usize,
    finish_reason: &'static str,
}

impl Done<'_> {
    /// Prints it: its text and a line end, or one JSON object on a line.
    pub fn print(&self, tokenizer: &Tokenizer, json: bool) -> Result<()> {
        let completion = tokenizer.decode(self.ids)?;
        if !json {
            return terminal::print(&(completion + "\n"));
        }
        let record = Record {
            prompt: self.prompt,
            completion,
            tokens: self.ids,
            prompt_tokens: self.prompt_ids.len(),
            finish_reason: if self.truncated { "length" } else { "stop" },
        };
        let line = serde_json::to_string(&record)
            .map_err(|e| Error::format(format!("writing a completion as JSON: {e}")))?;
        terminal::print(&(line + "\n"))
    }
}
