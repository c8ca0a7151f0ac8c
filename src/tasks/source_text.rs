//! Running text to learn from without answers: small programs made in code, or the source files of a folder.
//!
//! A corpus gives rows of tokens by number, so where a run stands is a number; held-out rows are never training rows.

use crate::error::{Error, Result};
use crate::rng::{Sequence, Stream};
use crate::text::Tokenizer;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Every character of the made programs.
pub const ALPHABET: &str = "abcdefgh0123456789=+-;()[]{}\n";

/// Where text comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TextSettings {
    /// Assignments, sums of what was assigned, and nested brackets: `a=3;b=4;a+b=7;{[a](b)}`.
    Programs,
    /// Files below a folder, in the order of their paths.
    Files {
        /// The folder, or one file.
        path: PathBuf,
        /// Endings of the files that are read, without the dot.
        extensions: Vec<String>,
        /// No more bytes than this are read.
        most_bytes: usize,
    },
}

/// Which rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Those that are trained on.
    Training,
    /// Those that are measured on.
    HeldOut,
}

/// Tokens to draw rows from.
#[derive(Clone, Debug)]
pub struct Corpus {
    seed: u64,
    tokenizer: Tokenizer,
    /// Tokens of files, and where the held-out ones begin; `None`: programs are made.
    read: Option<(Vec<i32>, usize)>,
}

impl TextSettings {
    /// The text that a tokenizer is trained on: the first million bytes of it.
    ///
    /// # Errors
    /// [`Error::is_io`] for a path that cannot be read, [`Error::is_invalid`] when it holds no such file.
    pub fn sample(&self, seed: u64) -> Result<String> {
        match self {
            TextSettings::Programs => {
                Ok((0..2000).map(|i| program(seed, Stream::Task, i)).collect())
            }
            TextSettings::Files { path, extensions, most_bytes } => {
                let mut text = read(path, extensions, (*most_bytes).min(1 << 20))?.concat();
                let end = (0..=text.len().min(1 << 20)).rev().find(|i| text.is_char_boundary(*i));
                text.truncate(end.unwrap_or(0));
                Ok(text)
            }
        }
    }

    /// The corpus, its last tenth of files held out. Rows are functions of the seed and their number.
    ///
    /// # Errors
    /// As [`TextSettings::sample`], and [`Error::is_invalid`] for text that the tokenizer cannot encode or that is shorter
    /// than ten rows of `length`.
    pub fn corpus(&self, tokenizer: &Tokenizer, seed: u64, length: usize) -> Result<Corpus> {
        let read = match self {
            TextSettings::Programs => None,
            TextSettings::Files { path, extensions, most_bytes } => {
                let mut ids = Vec::new();
                for text in read(path, extensions, *most_bytes)? {
                    ids.extend(tokenizer.encode(&text)?);
                    ids.extend(tokenizer.eos().first());
                }
                let held_out = ids.len() - ids.len() / 10;
                if ids.len() < 10 * length.max(1) {
                    return Err(Error::invalid(format!(
                        "{}: {} tokens are fewer than ten rows of {length}",
                        path.display(),
                        ids.len()
                    )));
                }
                Some((ids, held_out))
            }
        };
        Ok(Corpus { seed, tokenizer: tokenizer.clone(), read })
    }
}

impl Corpus {
    /// Row `number` of a split, `length` tokens.
    ///
    /// # Errors
    /// [`Error::is_invalid`] when the tokenizer cannot encode what is made.
    pub fn row(&self, split: Split, number: u64, length: usize) -> Result<Vec<i32>> {
        let stream = if split == Split::HeldOut { Stream::HeldOut } else { Stream::Task };
        let Some((ids, held_out)) = &self.read else {
            let mut row = Vec::with_capacity(length + 32);
            let mut part = 0;
            while row.len() < length {
                // No row has so many programs.
                let text = program(self.seed, stream, number << 12 | part);
                row.extend(self.tokenizer.encode(&text)?);
                part += 1;
            }
            row.truncate(length);
            return Ok(row);
        };
        let part = if split == Split::HeldOut { &ids[*held_out..] } else { &ids[..*held_out] };
        let room = part.len().saturating_sub(length) as u32;
        let start = Sequence::new(self.seed, stream, number).below(room.saturating_add(1)) as usize;
        Ok(part[start..(start + length).min(part.len())].to_vec())
    }

    /// Rows `first..first + count`, one after another.
    ///
    /// # Errors
    /// As [`Corpus::row`].
    pub fn rows(&self, split: Split, first: u64, count: usize, length: usize) -> Result<Vec<i32>> {
        let rows = (0..count as u64).map(|i| self.row(split, first + i, length));
        Ok(rows.collect::<Result<Vec<_>>>()?.concat())
    }
}

/// A short program: two assignments, what they add up to, brackets around what was named.
pub fn program(seed: u64, stream: Stream, number: u64) -> String {
    let mut draws = Sequence::new(seed, stream, number);
    let first = draws.below(8) as u8;
    let second = (first + 1 + draws.below(7) as u8) % 8;
    let [v, w] = [first, second].map(|i| char::from(b'a' + i));
    let [x, y] = [draws.below(10), draws.below(10)];
    let mut text = format!("{v}={x};{w}={y};");
    match draws.below(3) {
        0 => text += &format!("{v}+{w}={};", x + y),
        1 => text += &format!("{v}-{w}={};", i64::from(x) - i64::from(y)),
        _ => {}
    }
    let depth = 1 + draws.below(3);
    let pairs = ["()", "[]", "{}"];
    let chosen: Vec<&str> = (0..depth).map(|_| pairs[draws.below(3) as usize]).collect();
    chosen.iter().for_each(|pair| text += &pair[..1]);
    text.push(if draws.below(2) == 0 { v } else { w });
    chosen.iter().rev().for_each(|pair| text += &pair[1..]);
    text.push('\n');
    text
}

/// Files below a path, in order, up to a number of bytes in all.
fn read(path: &Path, extensions: &[String], most: usize) -> Result<Vec<String>> {
    let mut files = Vec::new();
    if path.is_file() {
        files.push(path.to_owned());
    } else {
        find(path, extensions, &mut files)?;
    }
    files.sort();
    let (mut texts, mut bytes) = (Vec::new(), 0);
    for file in files {
        if bytes >= most {
            break;
        }
        let content = std::fs::read(&file)
            .map_err(|e| Error::io(format!("reading {}", file.display()), e))?;
        // Not text: not source.
        let Ok(mut text) = String::from_utf8(content) else { continue };
        let end = (0..=text.len().min(most - bytes)).rev().find(|i| text.is_char_boundary(*i));
        text.truncate(end.unwrap_or(0));
        bytes += text.len();
        texts.push(text);
    }
    if texts.iter().all(String::is_empty) {
        return Err(Error::invalid(format!(
            "{} holds no text in files ending in {extensions:?}",
            path.display()
        )));
    }
    Ok(texts)
}

fn find(folder: &Path, extensions: &[String], files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |e| Error::io(format!("reading {}", folder.display()), e);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        let path = entry.path();
        // Links are not followed: they may lead in circles.
        if kind.is_dir() {
            find(&path, extensions, files)?;
        } else if kind.is_file()
            && path.extension().is_some_and(|own| extensions.iter().any(|e| own == e.as_str()))
        {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_functions_of_their_number_and_stay_in_the_alphabet() {
        for number in 0..200 {
            let text = program(1, Stream::Task, number);
            assert_eq!(text, program(1, Stream::Task, number));
            assert!(text.chars().all(|c| ALPHABET.contains(c)), "{text:?}");
            assert!(text.len() >= 12 && text.ends_with('\n'));
        }
        assert_ne!(program(1, Stream::Task, 5), program(1, Stream::HeldOut, 5));
        assert_ne!(program(1, Stream::Task, 5), program(2, Stream::Task, 5));
        let tokenizer = Tokenizer::characters(ALPHABET).unwrap();
        let corpus = TextSettings::Programs.corpus(&tokenizer, 1, 64).unwrap();
        let rows = corpus.rows(Split::Training, 7, 3, 64).unwrap();
        assert_eq!(
            (rows.len(), &rows[64..128]),
            (192, &corpus.row(Split::Training, 8, 64).unwrap()[..])
        );
    }

    #[test]
    fn files_are_read_in_order_and_the_last_tenth_is_held_out() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        for (name, text) in
            [("b/z.rs", "zz"), ("a.rs", "fn a() {}\n"), ("c.txt", "no"), ("d.rs", "\u{e9}")]
        {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        std::fs::write(folder.path().join("e.rs"), [0xff, 0xfe]).unwrap();
        let rust = || vec!["rs".to_owned()];
        assert_eq!(read(folder.path(), &rust(), 100).unwrap(), ["fn a() {}\n", "zz", "\u{e9}"]);
        // A character is not cut.
        assert_eq!(read(folder.path(), &rust(), 13).unwrap().concat(), "fn a() {}\nzz");
        assert!(read(folder.path(), &["py".to_owned()], 100).unwrap_err().is_invalid());
        assert!(read(&folder.path().join("nothing"), &rust(), 100).unwrap_err().is_io());
        let settings = |length| {
            let files = TextSettings::Files {
                path: folder.path().join("a.rs"),
                extensions: vec![],
                most_bytes: 1000,
            };
            files.corpus(&Tokenizer::bytes().unwrap(), 1, length)
        };
        let corpus = settings(1).unwrap();
        assert_eq!(corpus.row(Split::HeldOut, 3, 1).unwrap(), [2]);
        let number_of_ends = (0..50).filter(|i| corpus.row(Split::Training, *i, 1).unwrap() == [2]);
        assert_eq!(number_of_ends.count(), 0);
        assert!(settings(64).unwrap_err().is_invalid());
    }
}
