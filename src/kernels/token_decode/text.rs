//! Ids to bytes: most tokens are one copy of sixteen bytes of which the next token overwrites what was too much; the
//! beginning of a text, runs of single bytes, special and long tokens go the slow way.

use super::table::{ABSENT, Entry, FALLBACK, INLINE, PLAIN, SPECIAL, Table};
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use std::borrow::Cow;

/// Arguments of [`decode`].
#[derive(Clone, Copy, Debug)]
pub struct Decode<'a> {
    /// The ids of all texts, one after the other. An id without a token is left out, as Hugging Face `tokenizers` does.
    pub ids: &'a [i32],
    /// CSR offsets of the texts: text t is `ids[segments[t]..segments[t + 1]]`.
    pub segments: &'a [usize],
    /// Leave out special tokens.
    pub skip_special: bool,
    /// Also say where each token's bytes begin.
    pub starts: bool,
}

/// What [`decode`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// The bytes of all texts, one after the other. Byte-level tokens may leave a character cut or broken:
    /// [`Decoded::text`] mends that.
    pub bytes: Vec<u8>,
    /// `[texts + 1]` CSR offsets into `bytes`.
    pub offsets: Vec<usize>,
    /// `[ids + 1]` where the bytes of each token begin, a token without bytes at the next one's; empty unless asked for.
    pub starts: Vec<usize>,
    /// Ids that have no token.
    pub unknown: usize,
}

impl Decoded {
    /// A text; what is no valid UTF-8 in it is replaced by U+FFFD, a maximal part of a character at a time, as
    /// Hugging Face `tokenizers` does. None past the last text.
    pub fn text(&self, text: usize) -> Option<Cow<'_, str>> {
        let (from, to) = (*self.offsets.get(text)?, *self.offsets.get(text + 1)?);
        Some(String::from_utf8_lossy(&self.bytes[from..to]))
    }
}

const OP: &str = "token_decode";
/// Ids whose room is made at once.
const CHUNK: usize = 512;
/// Ids that are worth another thread.
const IDS_PER_TASK: usize = 32 * 1024;

/// The bytes of texts.
///
/// # Errors
/// [`Error::is_shape`] when `segments` do not rise from 0 to the number of ids.
pub fn decode(table: &Table, args: &Decode<'_>) -> Result<Decoded> {
    let Decode { ids, segments, .. } = *args;
    check_segments(segments, ids.len())?;
    let texts = segments.len() - 1;
    let tasks = (ids.len() / IDS_PER_TASK).min(texts).min(4 * pool::threads());
    if tasks < 2 || pool::threads() == 1 {
        return Ok(texts_of(table, args, 0..texts));
    }
    // Runs of texts with about equally many ids; what a text becomes does not depend on the cut.
    let cut =
        |task: usize| segments.partition_point(|at| *at < ids.len() / tasks * task).min(texts);
    let mut cuts: Vec<usize> = (0..tasks).map(cut).collect();
    cuts.push(texts);
    let mut parts: Vec<Decoded> = vec![Decoded::default(); tasks];
    pool::each(parts.iter_mut(), 1, |i, part| *part = texts_of(table, args, cuts[i]..cuts[i + 1]));
    let mut all = Decoded { offsets: vec![0], ..Decoded::default() };
    all.bytes.reserve(parts.iter().map(|part| part.bytes.len()).sum());
    for part in &parts {
        let before = all.bytes.len();
        all.bytes.extend_from_slice(&part.bytes);
        all.offsets.extend(part.offsets[1..].iter().map(|at| before + at));
        all.starts.pop();
        all.starts.extend(part.starts.iter().map(|at| before + at));
        all.unknown += part.unknown;
    }
    Ok(all)
}

pub(super) fn check_segments(segments: &[usize], ids: usize) -> Result<()> {
    let whole = segments.first() == Some(&0) && segments.last() == Some(&ids);
    if whole && segments.is_sorted() {
        return Ok(());
    }
    Err(Error::shape(format!(
        "{OP}: {} segments from {:?} to {:?} do not rise from 0 to {ids} ids",
        segments.len(),
        segments.first(),
        segments.last(),
    )))
}

fn texts_of(table: &Table, args: &Decode<'_>, texts: std::ops::Range<usize>) -> Decoded {
    let mut out = Decoded { offsets: vec![0], ..Decoded::default() };
    let mut cursor = Cursor::default();
    for text in texts {
        let ids = &args.ids[args.segments[text]..args.segments[text + 1]];
        cursor.begin(table);
        if args.starts {
            one::<true>(table, ids, args.skip_special, &mut cursor, &mut out);
        } else {
            one::<false>(table, ids, args.skip_special, &mut cursor, &mut out);
        }
        cursor.flush(&mut out.bytes, &mut out.starts);
        out.offsets.push(out.bytes.len());
    }
    if args.starts {
        out.starts.push(out.bytes.len());
    }
    out
}

/// One text, up to a run of single bytes that may end it.
fn one<const STARTS: bool>(
    table: &Table,
    ids: &[i32],
    skip_special: bool,
    cursor: &mut Cursor,
    out: &mut Decoded,
) {
    let mut rest = ids;
    while let Some(id) = rest.first() {
        if cursor.is_plain() {
            let taken = copy_plain::<STARTS>(&table.entries, rest, out);
            rest = &rest[taken..];
            if taken > 0 {
                continue;
            }
        }
        if STARTS {
            cursor.mark(out.bytes.len(), &mut out.starts);
        }
        let known = cursor.step(table, *id, skip_special, &mut out.bytes, &mut out.starts);
        out.unknown += usize::from(!known);
        rest = &rest[1..];
    }
}

/// Copies tokens up to the first that is not plain, at most [`CHUNK`]; how many there were.
#[inline]
fn copy_plain<const STARTS: bool>(entries: &[Entry], ids: &[i32], out: &mut Decoded) -> usize {
    let ids = &ids[..ids.len().min(CHUNK)];
    if Table::entry_of(entries, ids[0])[INLINE] >= PLAIN {
        return 0;
    }
    let mut at = out.bytes.len();
    out.bytes.resize(at + ids.len() * 16, 0);
    let mut taken = 0;
    for id in ids {
        let entry = Table::entry_of(entries, *id);
        let tag = entry[INLINE];
        if tag >= PLAIN {
            break;
        }
        if STARTS {
            out.starts.push(at);
        }
        if let Some(room) = out.bytes[at..].first_chunk_mut() {
            *room = *entry;
        }
        at += usize::from(tag);
        taken += 1;
    }
    out.bytes.truncate(at);
    taken
}

/// Where in a text the decoder stands: everything that a token's bytes depend on besides its id.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    /// A token has been seen.
    started: bool,
    /// The first token differs from others, or is cut.
    special_start: bool,
    /// What may still be cut from the beginning.
    strip: usize,
    character: Vec<u8>,
    /// Bytes of a run of single bytes that has not ended.
    run: Vec<u8>,
    /// Tokens since the run began whose place is not known yet, and the bytes of the run before each.
    waiting: Vec<(usize, usize)>,
}

impl Cursor {
    pub fn begin(&mut self, table: &Table) {
        self.started = false;
        self.special_start = table.first.is_some() || table.strip.is_some();
        self.strip = table.strip.map_or(0, |strip| strip.count);
        self.character.clear();
        if let Some(strip) = table.strip {
            let mut utf8 = [0; 4];
            self.character.extend_from_slice(strip.character.encode_utf8(&mut utf8).as_bytes());
        }
        self.run.clear();
        self.waiting.clear();
    }

    /// The next token's bytes depend on nothing but its id.
    #[inline]
    fn is_plain(&self) -> bool {
        (self.started || !self.special_start) && self.strip == 0 && self.run.is_empty()
    }

    /// Notes where a token begins.
    fn mark(&mut self, at: usize, starts: &mut Vec<usize>) {
        if !self.run.is_empty() {
            self.waiting.push((starts.len(), self.run.len()));
        }
        starts.push(at);
    }

    /// Takes a token; false for an id without one.
    pub fn step(
        &mut self,
        table: &Table,
        id: i32,
        skip_special: bool,
        out: &mut Vec<u8>,
        starts: &mut [usize],
    ) -> bool {
        let mut entry = Table::entry_of(&table.entries, id);
        let tag = entry[INLINE];
        if tag == ABSENT {
            return false;
        }
        if tag & SPECIAL != 0 && skip_special {
            return true;
        }
        if tag & FALLBACK != 0 {
            self.run.push(entry[0]);
            self.started = true;
            return true;
        }
        self.flush(out, starts);
        if let (false, Some(first)) = (self.started, &table.first) {
            entry = Table::entry_of(first, id);
        }
        self.started = true;
        let begin = out.len();
        self.append(table.bytes(entry), out);
        // Cut characters have no place: the token begins where its first byte is.
        if let Some(start) = starts.last_mut() {
            *start = (*start).max(begin);
        }
        true
    }

    /// Ends a run of single bytes.
    pub fn flush(&mut self, out: &mut Vec<u8>, starts: &mut [usize]) {
        if self.run.is_empty() {
            return;
        }
        let run = std::mem::take(&mut self.run);
        let begin = out.len();
        let valid = std::str::from_utf8(&run).is_ok();
        if valid {
            self.append(&run, out);
        } else {
            run.iter().for_each(|_| self.append("\u{FFFD}".as_bytes(), out));
        }
        let (width, cut) = match valid {
            true => (1, run.len() - (out.len() - begin)),
            false => ("\u{FFFD}".len(), 0),
        };
        for (token, before) in self.waiting.drain(..) {
            if let Some(start) = starts.get_mut(token) {
                *start = begin + (before * width).saturating_sub(cut);
            }
        }
        self.run = run;
        self.run.clear();
    }

    /// Appends bytes, without the characters that are cut from the beginning.
    fn append(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while self.strip > 0 {
            match bytes.strip_prefix(self.character.as_slice()) {
                Some(rest) => {
                    self.strip -= 1;
                    bytes = rest;
                }
                None if bytes.is_empty() => break,
                None => self.strip = 0,
            }
        }
        out.extend_from_slice(bytes);
    }
}
