//! A tokenizer's decoder as a table of bytes, for the decoders that can be one.
//!
//! A decoder turns a list of token strings into a text. Most do it token by token, with a rule of its own for the first
//! one: then what they do to each token is found by asking them, and the whole decoder is a table. Those that look at
//! neighbours in another way (CTC, BPE with an end-of-word suffix) are not, and the caller keeps asking them.

use crate::error::{Error, Result};
use crate::kernels::token_decode::{Strip, Table, Token};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Decoder, Model};

/// What the steps so far have made of a token.
struct Piece {
    first: String,
    rest: String,
    special: bool,
    bytes: Option<Vec<u8>>,
    fallback: bool,
}

/// The list of strings that the steps so far have made.
#[derive(PartialEq)]
enum List {
    /// One for each token.
    Tokens,
    /// One for each token, but for runs of single bytes.
    Runs,
    /// One.
    Fused,
}

/// The table of a tokenizer's decoder.
///
/// # Errors
/// [`Error::is_unsupported`] for a decoder that is no table, naming it; [`Error::is_format`] when it fails.
pub(super) fn table(tokenizer: &tokenizers::Tokenizer, vocab_size: usize) -> Result<Table> {
    let added = tokenizer.get_added_vocabulary();
    let mut pieces: Vec<Option<Piece>> = (0..vocab_size as u32)
        .map(|id| {
            let text =
                added.simple_id_to_token(id).or_else(|| tokenizer.get_model().id_to_token(id))?;
            let special = added.is_special_token(&text);
            let first = text.clone();
            Some(Piece { first, rest: text, special, bytes: None, fallback: false })
        })
        .collect();
    let mut strip = None;
    match tokenizer.get_decoder() {
        // Tokens are words.
        None => pieces.iter_mut().flatten().for_each(|piece| piece.rest.insert(0, ' ')),
        Some(decoder) => {
            let mut list = List::Tokens;
            for step in steps(decoder) {
                list = apply(step, list, &mut pieces, &mut strip)?;
            }
        }
    }
    let tokens = pieces.into_iter().map(|piece| piece.map(Piece::into_token));
    Table::new(tokens, strip)
}

impl Piece {
    fn into_token(self) -> Token {
        let Piece { first, rest, special, bytes, fallback } = self;
        match bytes {
            Some(bytes) => Token { bytes, first: None, special, fallback },
            None => {
                let first = (first != rest).then(|| first.into_bytes());
                Token { bytes: rest.into_bytes(), first, special, fallback }
            }
        }
    }
}

/// The decoder, or the decoders in it, in order.
fn steps(decoder: &DecoderWrapper) -> Vec<&DecoderWrapper> {
    match decoder {
        DecoderWrapper::Sequence(all) => all.get_decoders().iter().flat_map(steps).collect(),
        one => vec![one],
    }
}

fn apply(
    step: &DecoderWrapper,
    list: List,
    pieces: &mut [Option<Piece>],
    strip: &mut Option<Strip>,
) -> Result<List> {
    let known = pieces.iter_mut().flatten();
    match (step, list) {
        (DecoderWrapper::ByteLevel(_), List::Tokens) => {
            for piece in known {
                if piece.first != piece.rest {
                    return Err(unsupported(step));
                }
                piece.bytes = Some(byte_level(&piece.rest));
            }
            Ok(List::Fused)
        }
        (DecoderWrapper::ByteFallback(_), List::Tokens) => {
            for piece in known {
                let byte = fallback_byte(&piece.rest);
                if byte != fallback_byte(&piece.first) {
                    return Err(unsupported(step));
                }
                if let Some(byte) = byte {
                    (piece.bytes, piece.fallback) = (Some(vec![byte]), true);
                }
            }
            Ok(List::Runs)
        }
        (DecoderWrapper::Fuse(_), _) => Ok(List::Fused),
        (DecoderWrapper::Strip(cut), List::Fused) if cut.stop == 0 && strip.is_none() => {
            // Bytes that are no characters were replaced before: they are not what is cut.
            if known.into_iter().any(|piece| piece.bytes.is_some() && !piece.fallback) {
                return Err(unsupported(step));
            }
            *strip = Some(Strip { character: cut.content, count: cut.start });
            Ok(List::Fused)
        }
        (DecoderWrapper::Strip(cut), List::Tokens) if cut.stop == 0 => each(step, known),
        (DecoderWrapper::Replace(_), List::Tokens) => each(step, known),
        (DecoderWrapper::Metaspace(_), List::Tokens) => each(step, known),
        (DecoderWrapper::WordPiece(_), List::Tokens) => each(step, known),
        _ => Err(unsupported(step)),
    }
}

fn unsupported(step: &DecoderWrapper) -> Error {
    let name: String = format!("{step:?}").chars().take_while(|c| c.is_alphanumeric()).collect();
    Error::unsupported(format!("the decoder's step {name} does not go token by token"))
}

/// A step that does something to each token, and perhaps something else to the first.
fn each<'a>(step: &DecoderWrapper, pieces: impl Iterator<Item = &'a mut Piece>) -> Result<List> {
    let ask = |tokens: Vec<String>| -> Result<String> {
        let answer = step.decode_chain(tokens);
        let mut answer =
            answer.map_err(|e| Error::format(format!("the tokenizer cannot decode: {e}")))?;
        Ok(answer.pop().unwrap_or_default())
    };
    for piece in pieces {
        piece.first = ask(vec![std::mem::take(&mut piece.first)])?;
        piece.rest = ask(vec!["a".to_string(), std::mem::take(&mut piece.rest)])?;
    }
    Ok(List::Tokens)
}

/// The bytes of a byte-level token: a character stands for a byte. If one does not, the token is its own text.
fn byte_level(text: &str) -> Vec<u8> {
    // Printable bytes stand for themselves; the others, in order, are the characters from 256 on.
    let printable = |c: u32| matches!(c, 33..=126 | 161..=172 | 174..=255);
    let byte = |c: char| match u32::from(c) {
        c if printable(c) => Some(c as u8),
        c @ 256..=288 => Some((c - 256) as u8),
        c @ 289..=322 => Some((c - 289 + 127) as u8),
        323 => Some(173),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.chars().map(byte).collect();
    bytes.unwrap_or_else(|| text.as_bytes().to_vec())
}

/// The byte of `<0x41>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
