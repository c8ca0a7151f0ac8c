//! Lines of a stream, each of bounded length.

use std::io::{BufRead, BufReader, ErrorKind, Read};

/// A line, or as much of one as fits.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A whole line, without its end.
    Whole(Vec<u8>),
    /// The beginning of a line that is longer than the bound; the rest of the line is not kept.
    Cut(Vec<u8>),
}

/// Hands every line of a stream to `take`, until the stream ends or fails or `take` is false. What follows the last line
/// end is a line too. Holds at most `longest` bytes of a line.
pub(super) fn each_line(from: impl Read, longest: usize, mut take: impl FnMut(Line) -> bool) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    let mut cut = false;
    loop {
        let piece = match from.fill_buf() {
            Ok(piece) => piece,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if piece.is_empty() {
            if !line.is_empty() && !cut {
                take(Line::Whole(line));
            }
            return;
        }
        let end = piece.iter().position(|byte| *byte == b'\n');
        let text = &piece[..end.unwrap_or(piece.len())];
        let used = text.len() + usize::from(end.is_some());
        if !cut {
            let room = longest - line.len();
            line.extend_from_slice(&text[..text.len().min(room)]);
            cut = text.len() > room;
            if cut && !take(Line::Cut(std::mem::take(&mut line))) {
                return;
            }
        }
        if end.is_some() {
            let whole = std::mem::take(&mut line);
            if !cut && !take(Line::Whole(whole)) {
                return;
            }
            cut = false;
        }
        from.consume(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.len().min(self.1).min(buffer.len());
            let (now, later) = self.0.split_at(count);
            buffer[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    fn lines(text: &[u8], pace: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        each_line(Slow(text, pace), 4, |line| {
            lines.push(line);
            true
        });
        lines
    }

    #[test]
    fn lines_are_whole_or_cut() {
        let whole = |text: &str| Line::Whole(text.as_bytes().to_vec());
        let cut = |text: &str| Line::Cut(text.as_bytes().to_vec());
        for pace in 1..9 {
            assert_eq!(lines(b"a\n\nbcde\n", pace), [whole("a"), whole(""), whole("bcde")]);
            assert_eq!(lines(b"abcdefghij\nk", pace), [cut("abcd"), whole("k")]);
            assert_eq!(lines(b"abcde", pace), [cut("abcd")]);
            assert_eq!(lines(b"", pace), []);
        }
    }

    #[test]
    fn an_endless_line_is_cut_once_and_can_be_stopped() {
        let mut calls = 0;
        each_line(std::io::repeat(b'x'), 1000, |line| {
            calls += 1;
            assert_eq!(line, Line::Cut(vec![b'x'; 1000]));
            false
        });
        assert_eq!(calls, 1);
    }
}
