//! The bytes of every id, in the form that is copied from: sixteen bytes an id, long tokens in one run beside them.

use crate::error::{Error, Result};

/// What an id stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its bytes where it is the first token of a text, when they are others.
    pub first: Option<Vec<u8>>,
    /// Left out of a text that skips special tokens.
    pub special: bool,
    /// It is one byte of a character that has no token of its own: a run of such tokens that is no valid UTF-8 becomes
    /// one U+FFFD for each.
    pub fallback: bool,
}

/// Characters that are cut from the beginning of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strip {
    /// The character.
    pub character: char,
    /// At most so many.
    pub count: usize,
}

/// Sixteen bytes: up to [`INLINE`] bytes of text, then the tag: the number of bytes, or flags.
pub(super) type Entry = [u8; 16];
/// Bytes that fit an entry.
pub(super) const INLINE: usize = 15;
/// From this tag on an entry is not simply copied.
pub(super) const PLAIN: u8 = 16;
/// No token has this id.
pub(super) const ABSENT: u8 = 16;
/// One byte, the first of the entry, of a run.
pub(super) const FALLBACK: u8 = 32;
/// A special token.
pub(super) const SPECIAL: u8 = 64;
/// The entry is an offset and a length, both u32, little-endian, into the long tokens.
pub(super) const LONG: u8 = 128;

/// The bytes of every id of a vocabulary.
#[derive(Clone, Debug)]
pub struct Table {
    pub(super) entries: Vec<Entry>,
    /// The same for the first token of a text, where any differs.
    pub(super) first: Option<Vec<Entry>>,
    /// The bytes of the tokens that do not fit an entry.
    pub(super) long: Vec<u8>,
    pub(super) strip: Option<Strip>,
}

impl Table {
    /// A table of `tokens`, by id; `None` where no token has the id.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for a fallback token that is not one byte, or that differs at the beginning of a text;
    /// [`Error::is_shape`] for more than 2³¹ ids or 2³² bytes.
    pub fn new(
        tokens: impl IntoIterator<Item = Option<Token>>,
        strip: Option<Strip>,
    ) -> Result<Table> {
        let mut table = Table { entries: Vec::new(), first: None, long: Vec::new(), strip };
        let mut differing: Vec<(usize, Entry)> = Vec::new();
        for (id, token) in tokens.into_iter().enumerate() {
            let Some(token) = token else {
                let mut entry = [0; 16];
                entry[INLINE] = ABSENT;
                table.entries.push(entry);
                continue;
            };
            if token.fallback && (token.bytes.len() != 1 || token.first.is_some()) {
                return Err(Error::invalid(format!(
                    "token_decode: token {id} stands for a byte but is {:?}",
                    token.bytes
                )));
            }
            let entry = table.entry(&token.bytes, &token)?;
            table.entries.push(entry);
            if let Some(first) = token.first.as_ref().filter(|first| **first != token.bytes) {
                differing.push((id, table.entry(first, &token)?));
            }
        }
        if table.entries.len() > i32::MAX as usize {
            return Err(Error::shape(format!("token_decode: {} ids", table.entries.len())));
        }
        if !differing.is_empty() {
            let mut first = table.entries.clone();
            differing.into_iter().for_each(|(id, entry)| first[id] = entry);
            table.first = Some(first);
        }
        Ok(table)
    }

    fn entry(&mut self, bytes: &[u8], token: &Token) -> Result<Entry> {
        let mut entry = [0; 16];
        let mut tag = 0;
        if bytes.len() <= INLINE {
            entry[..bytes.len()].copy_from_slice(bytes);
            tag |= bytes.len() as u8;
        } else {
            let (Ok(start), Ok(length)) =
                (u32::try_from(self.long.len()), u32::try_from(bytes.len()))
            else {
                return Err(Error::shape("token_decode: more than 4 GiB of long tokens"));
            };
            entry[..4].copy_from_slice(&start.to_le_bytes());
            entry[4..8].copy_from_slice(&length.to_le_bytes());
            self.long.extend_from_slice(bytes);
            tag |= LONG;
        }
        tag |= if token.special { SPECIAL } else { 0 };
        tag |= if token.fallback { FALLBACK } else { 0 };
        entry[INLINE] = tag;
        Ok(entry)
    }

    /// Ids, those without a token among them.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True for a table of no ids.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of an id, [`ABSENT`] outside the table.
    #[inline(always)]
    pub(super) fn entry_of(entries: &[Entry], id: i32) -> &Entry {
        const NONE: Entry = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ABSENT];
        // A negative id becomes a number that no table has.
        entries.get(id as u32 as usize).unwrap_or(&NONE)
    }

    /// Bytes of the longest token.
    pub(super) fn longest(&self) -> usize {
        let first = self.first.iter().flatten();
        self.entries.iter().chain(first).map(|entry| self.bytes(entry).len()).max().unwrap_or(0)
    }

    /// The bytes of an entry.
    pub(super) fn bytes<'a>(&'a self, entry: &'a Entry) -> &'a [u8] {
        if entry[INLINE] & LONG == 0 {
            return &entry[..usize::from(entry[INLINE] % PLAIN)];
        }
        let [a, b, c, d, e, f, g, h, ..] = *entry;
        let start = u32::from_le_bytes([a, b, c, d]) as usize;
        &self.long[start..start + u32::from_le_bytes([e, f, g, h]) as usize]
    }
}
