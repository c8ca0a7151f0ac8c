//! Text as its ids arrive.

use super::table::Table;
use super::text::Cursor;

/// Decodes one text id by id and never splits a character.
///
/// What it has returned, with what [`Stream::finish`] returns, is the text that [`decode`](super::decode()) makes of all
/// the ids. A character that is not whole is held back, and so is a run of single-byte fallback tokens, because one
/// wrong byte at its end changes all of it.
#[derive(Clone, Debug)]
pub struct Stream<'a> {
    table: &'a Table,
    skip_special: bool,
    cursor: Cursor,
    /// Bytes of a character that is not whole.
    held: Vec<u8>,
    text: String,
}

impl<'a> Stream<'a> {
    /// The beginning of a text.
    pub fn new(table: &'a Table, skip_special: bool) -> Stream<'a> {
        let mut cursor = Cursor::default();
        cursor.begin(table);
        Stream { table, skip_special, cursor, held: Vec::new(), text: String::new() }
    }

    /// Takes an id and returns the text that has become certain, perhaps none.
    pub fn push(&mut self, id: i32) -> &str {
        self.cursor.step(self.table, id, self.skip_special, &mut self.held, &mut Vec::new());
        self.release(false)
    }

    /// Ends the text and returns what was held back, a broken character as U+FFFD. Then another text may begin.
    pub fn finish(&mut self) -> &str {
        self.cursor.flush(&mut self.held, &mut []);
        self.cursor.begin(self.table);
        self.release(true)
    }

    /// Moves whole characters from the held bytes into the text.
    fn release(&mut self, all: bool) -> &str {
        self.text.clear();
        let mut released = 0;
        for chunk in self.held.utf8_chunks() {
            self.text.push_str(chunk.valid());
            released += chunk.valid().len();
            let broken = chunk.invalid();
            let may_go_on =
                |bytes| std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none());
            if broken.is_empty() || (!all && may_go_on(broken)) {
                break;
            }
            self.text.push(char::REPLACEMENT_CHARACTER);
            released += broken.len();
        }
        self.held.drain(..released);
        &self.text
    }
}
